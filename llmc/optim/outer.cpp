#include "llmc/optim/outer.h"

namespace lmo {

OuterStage::OuterStage(Backend& backend, Arena& arena, const OuterConfig& config,
                       const ParameterList& parameters, DType master,
                       const OwnedElements& owned)
    : backend_(backend), config_(config) {
    for (int i = 0; i < parameters.size(); ++i) {
        const Slice own = owned_of(owned, parameters, i);
        if (own.count == 0) continue;
        owned_.push_back({i, own});
        const Shape& whole = parameters[i].shape;
        const auto take = [&](std::vector<Tensor>& tensors, const char* name) {
            tensors.push_back(arena.take("optimizer state", master, shape_of(whole, own)));
            states_.push_back({parameters[i].name + name, tensors.back(), false, Spread::owner,
                               whole, own.begin});
        };
        take(anchors_, ".anchor");
        if (config.momentum > 0.0) take(velocities_, ".outer_momentum");
    }
}

std::vector<Tensor> OuterStage::owned_views(const ParameterBuffer& weights) const {
    std::vector<Tensor> views;
    for (const auto& [i, own] : owned_) views.push_back(slice_of(weights, i, own));
    return views;
}

void OuterStage::initialise(const ParameterBuffer& weights) {
    const std::vector<Tensor> x = owned_views(weights);
    for (size_t i = 0; i < x.size(); ++i) backend_.copy(anchors_[i], x[i]);
    for (const Tensor& velocity : velocities_) backend_.zero(velocity);
}

void OuterStage::before(const ParameterBuffer& weights) {
    if (config_.type != OuterType::rapp) return;
    const std::vector<Tensor> x = owned_views(weights);
    for (size_t i = 0; i < x.size(); ++i) backend_.copy(x[i], anchors_[i]);
}

// Anchor and weights are one number after it, so both come from one operation.
void OuterStage::step(const ParameterBuffer& weights) {
    const std::vector<Tensor> x = owned_views(weights);
    if (x.empty()) return;
    const double rate = config_.rate, mu = config_.momentum;
    if (mu == 0.0) {
        backend_.momentum({x, anchors_, {}, 1.0 - rate, rate, 1.0 - rate, rate});
        return;
    }
    backend_.momentum({x, anchors_, {}, 1.0, -1.0, 1.0, 0.0});  // x is D now
    const double old = config_.nesterov ? mu * mu : mu, own = config_.nesterov ? 1.0 + mu : 1.0;
    backend_.momentum({x, velocities_, {}, old, own, mu, 1.0});
    backend_.momentum({x, anchors_, {}, 1.0, -rate, 1.0, -rate});
}

}  // namespace lmo
