// What Trainer does for the stages around the optimizer: gradients at other points and of other
// batches than the update's own, and the steps of the outer stage.
#include <cmath>

#include "llmc/train/trainer.h"

namespace lmo {

// Samples that an update uses up, applied or not.
int64_t Trainer::samples_of(int64_t update) const {
    const EstimatorConfig& estimator = config_.optimizer.estimator;
    if (estimator.takes_small(update)) return estimator.small;
    return estimator.batches() * config_.batch.sequences;
}

int64_t Trainer::samples_before(int64_t update) const {
    if (config_.optimizer.estimator.type != EstimatorType::page) return update * samples_of(0);
    int64_t sum = 0;
    for (int64_t k = 0; k < update; ++k) sum += samples_of(k);
    return sum;
}

// The batches are read first, in their order in the data, as more than one gradient may be of each.
Trainer::BatchLoss Trainer::estimate_gradients(int64_t lowest) {
    Estimator& estimator = *stages_.estimator;
    const ParameterBuffer& master = weights_.master();
    const bool small = estimator.config().takes_small(step_);
    const size_t count = static_cast<size_t>(micro_batches(small));
    std::vector<HostBatch> data;
    for (size_t i = 0; i < count * static_cast<size_t>(estimator.config().batches()); ++i) {
        data.push_back(loader_->next());
    }
    const std::vector<GradientRequest> requests = estimator.requests(step_, applied());
    bool moves = false;
    for (const GradientRequest& request : requests) moves = moves || request.back != 0.0;
    const auto go = [&](auto move) {
        if (!moves) return;
        move();
        weights_.refresh_copies();
    };
    if (moves) estimator.leave(master);
    computed_ = 0;
    LocalLoss loss{};
    for (size_t i = 0; i < requests.size(); ++i) {
        go([&] { estimator.move(master, requests[i].back); });
        size_t at = static_cast<size_t>(requests[i].batch) * count;
        loss = local_loss(issue_gradients([&]() -> const HostBatch& { return data[at++]; },
                                          static_cast<int64_t>(count), lowest, small));
        estimator.add(gradients_, requests, i, applied());
    }
    go([&] { estimator.come_back(master); });
    if (estimator.config().clips()) {
        clip_estimate(requests.size() > 1);
    } else {
        sum_gradients(false);
    }
    estimator.accumulate(gradients_, !small);
    if (alone_) loss.gradient_norm = gradient_norm();
    return combine(loss);
}

// By norms of the whole batch; workers with error feedback, and ranks that work alone, clip what
// they have, by the norm of their own mean.
void Trainer::clip_estimate(bool corrected) {
    Estimator& estimator = *stages_.estimator;
    const bool own = stages_.feedback || alone_;
    if (!own) {
        sum_gradients(false);
        if (corrected) sum_over_ranks(estimator.correction().flat, false);
    }
    const double scale =
        stages_.feedback ? static_cast<double>(ranks_.size()) : 1.0;  // gradients are parts
    const double moved = corrected ? estimator.moved(weights_.master()) : 0.0;
    const double norm = scale * global_norm(gradients_);
    const double correction = corrected ? scale * global_norm(estimator.correction()) : 0.0;
    estimator.clip(gradients_, norm, correction, moved, corrected, applied());
    if (own) sum_gradients(false);
}

// Of a buffer of which this rank has what it owns, or all of its own.
double Trainer::global_norm(const ParameterBuffer& buffer) {
    const bool shared = ranks_.size() > 1 && !stages_.feedback && !alone_;
    std::vector<double> squares = stages_.estimator->squares(buffer, shared);
    if (shared) add_up_owned(squares);
    double sum = 0.0;
    for (const double square : squares) sum += square;
    return std::sqrt(sum);
}

// Decaying Local SGD: the rate of the j-th update since the ranks met.
double Trainer::inner_rate(double rate) const {
    const double power = config_.communication.inner_power;
    if (power == 0.0) return rate;
    const int64_t j = step_ % config_.optimizer.outer.every;
    return rate * std::pow(static_cast<double>(j + 1), -power);
}

void Trainer::take_outer_step() {
    const ParameterBuffer& master = weights_.master();
    if (config_.communication.type == CommunicationType::local) {
        if (!meets(step_ + 1) && step_ + 1 != config_.run.steps) return;
        if (alone_) average_weights();
    } else if (!stages_.outer->due(applied() + 1)) {
        return;
    }
    stages_.outer->step(master);
    if (ranks_.size() == 1 || drifting_) weights_.refresh_copies();  // share_weights() does else
}

}  // namespace lmo
