#include "llmc/optim/estimator.h"

#include <algorithm>
#include <cmath>

#include "llmc/core/random.h"

namespace lmo {

namespace {

constexpr uint64_t kStream = 0x657374696d61746f;  // "estimato": apart from the streams of tensors

std::vector<Tensor> views(const ParameterBuffer& buffer) {
    std::vector<Tensor> result;
    for (int i = 0; i < buffer.list->size(); ++i) result.push_back(buffer[i]);
    return result;
}

// Of what is owned of each parameter; nothing of some.
std::vector<Tensor> views(const ParameterBuffer& buffer, const std::vector<Slice>& own) {
    std::vector<Tensor> result;
    for (int i = 0; i < buffer.list->size(); ++i) {
        const Slice& slice = own[static_cast<size_t>(i)];
        if (slice.count > 0) result.push_back(slice_of(buffer, i, slice));
    }
    return result;
}

}  // namespace

double beta_of(double beta, double eta_power, int64_t applied) {
    if (eta_power == 0.0) return beta;
    return 1.0 - std::pow(static_cast<double>(applied + 1), -eta_power);
}

bool EstimatorConfig::takes_small(int64_t update) const {
    return type == EstimatorType::page && update > 0 &&
           random_uniform(seed, kStream, static_cast<uint64_t>(update)) >= probability;
}

double EstimatorConfig::gradients(int64_t large) const {
    switch (type) {
        case EstimatorType::plain:
        case EstimatorType::igt:
            return 1.0;
        case EstimatorType::storm:
            return 2.0;
        case EstimatorType::hessian:
            return same_batch && !central ? 2.0 : 3.0;
        case EstimatorType::page:
            break;
    }
    const double part = static_cast<double>(small) / static_cast<double>(large);
    return probability + 2.0 * (1.0 - probability) * part;
}

double EstimatorConfig::batches(int64_t large) const {
    if (type != EstimatorType::page) return batches();
    const double part = static_cast<double>(small) / static_cast<double>(large);
    return probability + (1.0 - probability) * part;
}

Estimator::Estimator(Backend& backend, Arena& arena, const EstimatorConfig& config,
                     const ParameterList& parameters, DType master,
                     const OwnedElements& owned)
    : backend_(backend), arena_(arena), config_(config) {
    const auto take = [&](const char* part = "estimator") {
        return ParameterBuffer{&parameters, arena.take(part, master, {parameters.buffer_length()})};
    };
    if (config.type != EstimatorType::plain) {
        previous_ = take("optimizer state");
        here_ = take();
        for (int i = 0; i < parameters.size(); ++i) {
            const Tensor view = previous_.flat.empty()
                                    ? Tensor{nullptr, master, parameters[i].shape}
                                    : previous_[i];
            states_.push_back({parameters[i].name + ".previous", view, false, Spread::alike});
        }
    }
    if (config.corrects()) correction_ = take();
    for (int i = 0; i < parameters.size(); ++i) {
        const Slice own = owned_of(owned, parameters, i);
        own_.push_back(own);
        if (config.type != EstimatorType::page || own.count == 0) continue;
        const Shape& whole = parameters[i].shape;
        estimates_.push_back(arena.take("optimizer state", master, shape_of(whole, own)));
        states_.push_back({parameters[i].name + ".estimate", estimates_.back(), false,
                           Spread::owner, whole, own.begin});
    }
    if (config.clips()) squares_ = arena.take("estimator", DType::f64, {parameters.size()});
}

double Estimator::horizon(int64_t applied) const {
    const double beta = beta_of(config_.beta, config_.eta_power, applied);
    return beta / (1.0 - beta);
}

std::vector<GradientRequest> Estimator::requests(int64_t update, int64_t applied) const {
    const GradientRequest own{0.0, 0, 0.0};
    if (applied == 0) return {own};
    switch (config_.type) {
        case EstimatorType::plain:
            break;
        case EstimatorType::igt:
            return {{-horizon(applied), 0, 0.0}};
        case EstimatorType::storm:
            return {{1.0, 0, -1.0}, {0.0, 0, 1.0}};
        case EstimatorType::page:
            if (!config_.takes_small(update)) break;
            return {{1.0, 0, -1.0}, own};
        case EstimatorType::hessian: {
            const int batch = config_.same_batch ? 0 : 1;
            if (!config_.central) {
                if (config_.same_batch) return {{1.0, 0, -1.0}, {0.0, 0, 1.0}};
                return {{1.0, batch, -1.0}, {0.0, batch, 1.0}, own};
            }
            const double q = random_uniform(config_.seed, kStream, static_cast<uint64_t>(update));
            const double h = config_.step, weight = 1.0 / (2.0 * h);
            return {{1.0 - q + h, batch, -weight}, {1.0 - q - h, batch, weight}, own};
        }
    }
    return {own};
}

void Estimator::initialise(const ParameterBuffer& weights) {
    if (!previous_.flat.empty()) remember(weights);
    for (const Tensor& estimate : estimates_) backend_.zero(estimate);
}

void Estimator::leave(const ParameterBuffer& weights) { backend_.copy(here_.flat, weights.flat); }

// x - back d = (1 - back) x + back x_{k-1}.
void Estimator::move(const ParameterBuffer& weights, double back) {
    come_back(weights);
    if (back == 0.0) return;
    const std::vector<Tensor> x = views(weights), old = views(previous_);
    backend_.momentum({x, old, {}, back, 1.0 - back, 1.0, 0.0});
}

void Estimator::come_back(const ParameterBuffer& weights) {
    backend_.copy(weights.flat, here_.flat);
}

void Estimator::remember(const ParameterBuffer& weights) {
    if (!previous_.flat.empty()) backend_.copy(previous_.flat, weights.flat);
}

void Estimator::add(const ParameterBuffer& gradients, const std::vector<GradientRequest>& requests,
                    size_t index, int64_t applied) {
    if (requests.size() == 1) return;
    const std::vector<Tensor> g = views(gradients), sum = views(correction_);
    const double weight = requests[index].weight;
    const bool last = index + 1 == requests.size();
    if (index == 0) backend_.zero(correction_.flat);
    if (!last || config_.clips()) {
        backend_.momentum({g, sum, {}, 0.0, 1.0, 1.0, weight});
        return;
    }
    // page's correction counts once: its old result is added afterwards.
    const double c = config_.type == EstimatorType::page ? 1.0 : config_.scale * horizon(applied);
    backend_.momentum({g, sum, {}, c, 1.0 + c * weight, 1.0, weight});
}

std::vector<double> Estimator::squares(const ParameterBuffer& buffer, bool owned) {
    const std::vector<Tensor> tensors = owned ? views(buffer, own_) : views(buffer);
    const int64_t count = static_cast<int64_t>(tensors.size());
    std::vector<double> sums(tensors.size()), result(own_.size(), 0.0);
    if (count > 0) {
        const Tensor to = squares_.slice(0, {count});
        backend_.sum_of_squares({tensors, to, arena_.workspace()});
        backend_.copy_out(sums.data(), to);
    }
    size_t next = 0;
    for (size_t i = 0; i < own_.size(); ++i) {
        if (!owned || own_[i].count > 0) result[i] = sums[next++];
    }
    return result;
}

double Estimator::moved(const ParameterBuffer& weights) {
    leave(weights);
    const std::vector<Tensor> x = views(here_), old = views(previous_);
    backend_.momentum({x, old, {}, -1.0, 1.0, 1.0, 0.0});
    double sum = 0.0;
    for (const double square : squares(here_, false)) sum += square;
    return std::sqrt(sum);
}

// arXiv 2510.10690: gamma clip(H d/gamma, clip_correction) with gamma = ||d||, the rate of
// normalized SGD.
void Estimator::clip(const ParameterBuffer& gradients, double gradient_norm, double correction_norm,
                     double moved, bool corrected, int64_t applied) {
    const auto factor = [](double bound, double norm) {
        return bound > 0.0 && norm > bound ? bound / norm : 1.0;
    };
    const double own = factor(config_.clip, gradient_norm);
    const std::vector<Tensor> g = views(gradients);
    if (!corrected) {
        if (own != 1.0) backend_.momentum({g, {}, {}, 0.0, own, 0.0, 0.0});
        return;
    }
    const double c =
        config_.scale * horizon(applied) * factor(config_.clip_correction * moved, correction_norm);
    const std::vector<Tensor> sum = views(correction_);
    backend_.momentum({g, sum, {}, c, own, 1.0, 0.0});
}

void Estimator::accumulate(const ParameterBuffer& gradients, bool anew) {
    if (estimates_.empty()) return;
    const std::vector<Tensor> g = views(gradients, own_);
    const double old = anew ? 0.0 : 1.0;
    backend_.momentum({g, estimates_, {}, old, 1.0, old, 1.0});
}

}  // namespace lmo
