// What Trainer does on several ranks. Each computes its micro-batches of every batch; losses and
// gradients are added up, and from then on all do the same with the same numbers. That they do is
// checked: every update compares a fingerprint of all rates and norms so far, every checkpoint the
// weights.
#include "llmc/train/rank_setup.h"
#include "llmc/train/trainer.h"

namespace lmo {

// The micro-batches of all ranks are consecutive in the global order: number n of the run belongs
// to rank n mod size.
std::unique_ptr<Loader> Trainer::make_loader(uint64_t seed, int64_t position) {
    const int64_t micro_batch = config_.batch.micro_batch;
    return std::make_unique<Loader>(
        train_set_, seed, micro_batch, position + ranks_.rank() * micro_batch, config_.data.order,
        ranks_.size() * micro_batch, config_.batch.one_rank_micro_batch);
}

int64_t Trainer::micro_batches() const {
    return config_.batch.sequences / ranks_.size() / config_.batch.micro_batch;
}

Trainer::BatchLoss Trainer::combine(const LocalLoss& local) {
    const std::vector<LocalLoss> all = ranks_.gather(local, "loss");
    const ScheduleCompat& compat = config_.schedule.compat;
    LocalLoss sum = all[0];
    for (size_t r = 1; r < all.size(); ++r) {
        if (all[r].fingerprint != all[0].fingerprint) {
            throw Error("rank " + std::to_string(r) +
                        " is no longer where rank 0 is: up to update " + std::to_string(step_) +
                        " it has found other losses, norms or rates; a fault of a machine, or of "
                        "this program?");
        }
        sum.mean_part += all[r].mean_part;
        sum.last_part += all[r].last_part;
    }
    const double size = static_cast<double>(ranks_.size());
    if (!compat.rank0)
        return {sum.mean_part, compat.last_micro_batch ? sum.last_part : sum.mean_part};
    return {sum.mean_part, size * (compat.last_micro_batch ? all[0].last_part : all[0].mean_part)};
}

void Trainer::sum_gradients() {
    if (ranks_.size() == 1) return;
    const Tensor& gradients = gradients_.flat;
    host_gradients_.resize(gradients.bytes());
    backend_.copy_out(host_gradients_.data(), gradients);
    if (gradients.dtype == DType::f64) {
        ranks_.sum(reinterpret_cast<double*>(host_gradients_.data()), gradients.count(),
                   "sum of gradients");
    } else {
        ranks_.sum(reinterpret_cast<float*>(host_gradients_.data()), gradients.count(),
                   "sum of gradients");
    }
    backend_.copy_in(gradients, host_gradients_.data());
}

void Trainer::remember_decisions(const Update& update) {
    decisions_ = fingerprint(
        {static_cast<double>(step_), update.loss, update.gradient_norm, update.rate.rate},
        decisions_);
}

// The plan of the collectives follows from the configuration, which is compared before; what it
// comes to, and the data, are compared here.
void Trainer::require_same_start() {
    std::string plan = to_string(precision_.compute) + to_string(precision_.master) +
                       std::to_string(micro_batches());
    for (const Parameter& parameter : parameters_) {
        plan += " " + parameter.name + to_string(parameter.shape);
    }
    ranks_.require_equal(fingerprint(plan), "plan",
                         "trains other tensors, or in another type, than rank 0; start the same "
                         "program on all ranks");
    ranks_.require_equal(fingerprint(data_.dump()), "data files",
                         "data.train or data.val holds other tokens than on rank 0; give all "
                         "machines the same files");
}

void Trainer::require_same_weights(const std::vector<double>& squares) {
    ranks_.require_equal(fingerprint(squares), "weights",
                         "holds other weights than rank 0 after " + std::to_string(step_) +
                             " updates, which are not saved; a fault of a machine, or of this "
                             "program?");
}

void Trainer::record(const nlohmann::ordered_json& line) {
    if (metrics_) metrics_->write(line);
}

}  // namespace lmo
