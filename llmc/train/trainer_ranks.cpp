// What Trainer does on several ranks. Each computes its micro-batches of every batch; losses and
// gradients are added up, each tensor's update is computed by the rank that owns it, which then
// shares the new weights. All decisions are everybody's, from the same numbers. That these are the
// same is checked: every update compares a fingerprint of all rates and norms so far, every
// checkpoint the weights.
#include <algorithm>
#include <cmath>
#include <map>

#include "llmc/train/rank_setup.h"
#include "llmc/train/trainer.h"

namespace lmo {

namespace {

// How a checkpoint calls what rank `rank` has for itself.
std::string name_on_rank(const std::string& name, int rank) {
    return rank == 0 ? name : name + ".rank" + std::to_string(rank);
}

// A tensor whose values are in host memory.
TensorSource source_of(const std::string& name, const Tensor& tensor,
                       const std::shared_ptr<std::vector<std::byte>>& host) {
    return {name, tensor.dtype, extents(tensor.shape), [host](void* to) {
                std::copy(host->begin(), host->end(), static_cast<std::byte*>(to));
            }};
}

// A state that is cut over ranks, put together on rank 0. `own`: what this one has, by name.
std::shared_ptr<std::vector<std::byte>> join(Backend& backend, Ranks& ranks,
                                             const StateTensor& state,
                                             const std::vector<Piece>& parts,
                                             const std::map<std::string, Tensor>& own) {
    const size_t element = size_of(state.tensor.dtype);
    auto all =
        std::make_shared<std::vector<std::byte>>(ranks.first() ? state.tensor.bytes() : 0);
    std::vector<std::byte> slice;
    for (const Piece& part : parts) {
        const size_t bytes = static_cast<size_t>(part.count) * element;
        const bool here = part.owner == ranks.rank();
        if (!ranks.first()) slice.resize(here ? bytes : 0);
        std::byte* const at =
            ranks.first() ? all->data() + static_cast<size_t>(part.offset) * element : slice.data();
        if (here) backend.copy_out(at, own.at(state.name));
        ranks.hand_to_first(part.owner, at, bytes, "optimizer state");
    }
    return all;
}

// A sum over slots that only their rank fills is the collection of all.
template <typename T>
void share_largest(Backend& backend, const Tensor& tensor, Ranks& ranks) {
    const size_t count = static_cast<size_t>(tensor.count());
    std::vector<T> values(count);
    backend.copy_out(values.data(), tensor);
    std::vector<double> all(count * static_cast<size_t>(ranks.size()), 0.0);
    std::copy(values.begin(), values.end(),
              all.begin() + ranks.rank() * static_cast<int64_t>(count));
    ranks.sum(all.data(), static_cast<int64_t>(all.size()), "largest attention scores");
    for (size_t i = 0; i < all.size(); ++i) {
        T& largest = values[i % count];
        largest = std::max(largest, static_cast<T>(all[i]));
    }
    backend.copy_in(tensor, values.data());
}

}  // namespace

// The micro-batches of all ranks are consecutive in the global order: number n of the run belongs
// to rank n mod size.
std::unique_ptr<Loader> Trainer::make_loader(uint64_t seed, int64_t position) {
    const int64_t micro_batch = config_.batch.micro_batch;
    return std::make_unique<Loader>(
        train_set_, seed, micro_batch, position + ranks_.rank() * micro_batch, config_.data.order,
        ranks_.size() * micro_batch, config_.batch.one_rank_micro_batch);
}

int64_t Trainer::micro_batches(bool small) const {
    const int64_t sequences = small ? config_.optimizer.estimator.small : config_.batch.sequences;
    return sequences / ranks_.size() / config_.batch.micro_batch;
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
    double squares = 0.0;
    for (const LocalLoss& each : all) squares += each.gradient_norm * each.gradient_norm;
    const double norm = std::sqrt(squares / size);
    const auto part = [&](const LocalLoss& loss) {
        return compat.last_micro_batch ? loss.last_part : loss.mean_part;
    };
    if (compat.local) return {sum.mean_part, size * part(local), norm};
    return {sum.mean_part, compat.rank0 ? size * part(all[0]) : part(sum), norm};
}

void Trainer::sum_over_ranks(const Tensor& flat, bool everywhere) {
    const int64_t before = collectives_.bytes_sent();
    if (everywhere || drifting_) {
        collectives_.sum(flat, "sum of gradients");
    } else {
        collectives_.sum_to_owners(flat, sharding_.pieces, "sum of gradients");
    }
    sent_up_ += collectives_.bytes_sent() - before;
}

std::optional<Overlap> Trainer::make_overlap() const {
    if (!config_.run.overlap || !collectives_.overlaps()) return {};
    if (drifting_ || alone_ || stages_.feedback) return {};
    return Overlap(parameters_, config_.model.n_layer, sharding_.pieces,
                   bucket_elements(config_, precision_.master));
}

// The last operations issued are those of a backward pass.
void Trainer::sum_behind_backward() {
    const int64_t before = collectives_.bytes_sent();
    collectives_.sum_to_owners(gradients_.flat, overlap_->gradients, "sum of gradients");
    sent_up_ += collectives_.bytes_sent() - before;
}

// Nothing where ranks work alone. With error feedback, what the optimizer is to step by.
void Trainer::sum_gradients(bool everywhere) {
    if (alone_) return;
    if (ErrorFeedback* feedback = stages_.feedback ? &*stages_.feedback : nullptr) {
        feedback->smooth(gradients_, applied());
        if (feedback->compresses_up(applied())) {
            const int64_t before = collectives_.bytes_sent();
            feedback->send_up(gradients_, ranks_);
            sent_up_ += collectives_.bytes_sent() - before;
        } else {
            feedback->before_sum(gradients_);
            sum_over_ranks(gradients_.flat, false);
            feedback->after_sum(gradients_);
        }
    } else {
        sum_over_ranks(gradients_.flat, everywhere);
    }
}

double Trainer::gradient_norm() {
    if (ranks_.size() == 1 || drifting_ || alone_) return optimizer_.gradient_norm(gradients_);
    return optimizer_.gradient_norm(gradients_,
                                    [this](std::vector<double>& sums) { add_up_owned(sums); });
}

// Sums of squares by parameter, of which this rank has those of what it owns.
void Trainer::add_up_owned(std::vector<double>& sums) {
    for (size_t i = 0; i < sums.size(); ++i) {
        if (sharding_.part(static_cast<int>(i), ranks_.rank()).count == 0) sums[i] = 0.0;
    }
    ranks_.sum(sums.data(), static_cast<int64_t>(sums.size()), "norms of gradients");
}

void Trainer::share_weights() {
    const int64_t before = collectives_.bytes_sent();
    if (stages_.feedback && stages_.feedback->compresses_down()) {
        stages_.feedback->send_down(weights_.master(), ranks_);
        weights_.refresh_copies();
    } else if (overlap_) {
        const auto refresh = [this](const Bucket& bucket) {
            if (bucket.pieces.empty()) return;
            const Piece &first = bucket.pieces.front(), &last = bucket.pieces.back();
            weights_.refresh_copies(first.offset, last.offset + last.count - first.offset);
        };
        collectives_.begin_sharing(weights_.master().flat, overlap_->weights, refresh,
                                   weights_.remainders().flat, "new weights");
        weights_.expect([this] { collectives_.finish_sharing(); });
    } else if (ranks_.size() > 1 && !drifting_) {
        collectives_.share(weights_.master().flat, sharding_.pieces, "new weights");
        if (precision_.split) {
            collectives_.share(weights_.remainders().flat, sharding_.pieces, "new weights");
        }
        weights_.refresh_copies();
    }
    sent_down_ = collectives_.bytes_sent() - before;
}

// The mean of the weights of all ranks, on the owners.
void Trainer::average_weights() {
    const int64_t before = collectives_.bytes_sent();
    collectives_.mean_to_owners(weights_.master().flat, sharding_.pieces, "sum of weights");
    sent_up_ += collectives_.bytes_sent() - before;
}

// Bytes that all ranks sent for this update: gradients (or weights to be averaged), new weights.
// With compression, what part of the square of the norm this rank's messages carried.
void Trainer::add_traffic(nlohmann::ordered_json& line) {
    if (stages_.feedback && stages_.feedback->compresses_up(1)) {
        line["up_kept"] = stages_.feedback->kept();
    }
    if (ranks_.size() == 1) return;
    double sent[] = {static_cast<double>(sent_up_), static_cast<double>(sent_down_)};
    ranks_.sum(sent, 2, "bytes sent");
    line["up_bytes"] = static_cast<int64_t>(sent[0]);
    line["down_bytes"] = static_cast<int64_t>(sent[1]);
}

// The largest scores are of the whole batch. There are few of them: on every device they are taken
// through host memory.
void Trainer::share_head_maxima() {
    if (drifting_ || ranks_.size() == 1) return;
    const Tensor& maxima = model_.head_maxima();
    if (maxima.dtype == DType::f64) {
        share_largest<double>(backend_, maxima, ranks_);
    } else {
        share_largest<float>(backend_, maxima, ranks_);
    }
}

// The states of all ranks in the order of one, on rank 0: those of others in host memory. What
// every rank has for itself is there once for each, "NAME.STATE.rank1" that of rank 1.
std::vector<TensorSource> Trainer::state_sources() {
    std::map<std::string, Tensor> own;
    for (const StateTensor& state : stages_.states()) own[state.name] = state.tensor;
    Arena plan;
    const UpdateStages all(backend_, plan, config_, parameters_, precision_.master, sharding_, -1,
                           ranks_.size());
    std::vector<TensorSource> sources;
    const auto add = [&](const StateTensor& state, const std::string& name, int owner) {
        if (owner == 0) {
            if (ranks_.first()) {
                sources.push_back(tensor_source(backend_, name, own.at(state.name)));
            }
            return;
        }
        const size_t bytes = state.tensor.bytes();
        const bool concerned = ranks_.first() || owner == ranks_.rank();
        const auto host = std::make_shared<std::vector<std::byte>>(concerned ? bytes : 0);
        if (owner == ranks_.rank()) backend_.copy_out(host->data(), own.at(state.name));
        ranks_.hand_to_first(owner, host->data(), bytes, "optimizer state");
        sources.push_back(source_of(name, state.tensor, host));
    };
    for (const StateTensor& state : all.states()) {
        switch (state.spread) {
            case Spread::owner: {
                const int parameter = parameters_.find(state.name.substr(0, state.name.rfind('.')));
                const std::vector<Piece>& parts = sharding_.parts[static_cast<size_t>(parameter)];
                if (parts.size() == 1) {
                    add(state, state.name, parts[0].owner);
                } else {
                    const auto host = join(backend_, ranks_, state, parts, own);
                    sources.push_back(source_of(state.name, state.tensor, host));
                }
                break;
            }
            case Spread::alike:
                add(state, state.name, 0);
                break;
            case Spread::each:
            case Spread::share:
                for (int r = 0; r < ranks_.size(); ++r) add(state, name_on_rank(state.name, r), r);
        }
    }
    return sources;
}

// A state of this rank from the checkpoint of `saved_ranks` ranks.
std::vector<double> Trainer::saved_state(const SafetensorsFile& file, const StateTensor& state,
                                         int64_t saved_ranks) const {
    const std::vector<int64_t> shape = extents(state.whole);
    const bool own = state.spread == Spread::each || state.spread == Spread::share;
    if (!own) {
        const std::vector<double> all = file.read(state.name, shape);
        const auto begin = all.begin() + state.begin;
        return {begin, begin + state.tensor.count()};
    }
    if (saved_ranks == ranks_.size()) {
        return file.read(name_on_rank(state.name, ranks_.rank()), shape);
    }
    std::vector<double> sum = file.read(state.name, shape);
    for (int r = 1; r < saved_ranks; ++r) {
        const std::vector<double> more = file.read(name_on_rank(state.name, r), shape);
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += more[i];
    }
    const double parts = state.spread == Spread::each ? static_cast<double>(saved_ranks)
                                                      : static_cast<double>(ranks_.size());
    for (double& value : sum) value /= parts;
    return sum;
}

void Trainer::remember_decisions(const Update& update) {
    const double rate = drifting_ ? 0.0 : update.rate.rate;
    decisions_ = fingerprint({static_cast<double>(step_), update.loss, update.gradient_norm, rate},
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
    if (drifting_ || !at_meeting()) return;
    ranks_.require_equal(fingerprint(squares), "weights",
                         "holds other weights than rank 0 after " + std::to_string(step_) +
                             " updates, which are not saved; a fault of a machine, or of this "
                             "program?");
}

void Trainer::record(const nlohmann::ordered_json& line) {
    if (metrics_) metrics_->write(line);
}

}  // namespace lmo
