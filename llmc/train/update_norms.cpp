#include "llmc/train/update_norms.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

namespace lmo {

UpdateNorms::UpdateNorms(Backend& backend, Arena& arena, const ParameterList& parameters,
                         DType master, bool split)
    : backend_(backend),
      parameters_(parameters),
      copy_{&parameters,
            arena.take("weights before the update", master, {parameters.buffer_length()})},
      squares_(arena.take("weights before the update", DType::f64, {parameters.size()})),
      one_(arena.take("weights before the update", DType::f64, {1})),
      radii_(static_cast<size_t>(parameters.size()), 1.0),
      decays_(static_cast<size_t>(parameters.size()), 0.0) {
    int64_t largest = 0;
    for (int i = 0; i < parameters.size(); ++i) {
        views_.push_back(copy_[i]);
        largest = std::max(largest, views_.back().count());
    }
    if (split) joined_ = arena.take("weights before the update", master, {largest});
    arena.reserve_workspace(backend.workspace_bytes(SumOfSquares{views_, squares_, {}}));
    if (one_.empty()) return;  // only counted
    const double one = 1.0;
    backend.copy_in(one_, &one);
}

void UpdateNorms::before(const ParameterBuffer& weights, const ParameterBuffer& remainders,
                         const Tensor& workspace) {
    if (remainders.flat.empty()) {
        backend_.copy(copy_.flat, weights.flat);
    } else {
        backend_.join_weights({{&weights.flat, 1}, {&remainders.flat, 1}, {&copy_.flat, 1}});
    }
    old_norms_ = norms(workspace);
}

void UpdateNorms::after(const ParameterBuffer& weights, const ParameterBuffer& remainders,
                        const Tensor& workspace) {
    std::vector<Tensor> now;
    for (int i = 0; i < parameters_.size(); ++i) now.push_back(weights[i]);
    // old = old - 1 * new: an Apply without decay.
    Apply minus{views_, now, {}, one_, 1.0, radii_, decays_};
    if (remainders.flat.empty()) backend_.apply(minus);
    for (size_t i = 0; !remainders.flat.empty() && i < now.size(); ++i) {
        const Tensor low = remainders[static_cast<int>(i)];
        const Tensor joined = joined_.slice(0, now[i].shape);
        backend_.join_weights({{&now[i], 1}, {&low, 1}, {&joined, 1}});
        minus.weights = {&views_[i], 1};
        minus.x = {&joined, 1};
        minus.radius = {&radii_[i], 1};
        minus.decay = {&decays_[i], 1};
        backend_.apply(minus);
    }
    changes_ = norms(workspace);
}

std::vector<double> UpdateNorms::norms(const Tensor& workspace) const {
    backend_.sum_of_squares({views_, squares_, workspace});
    std::vector<double> result(views_.size());
    backend_.copy_out(result.data(), squares_);
    for (double& value : result) value = std::sqrt(value);
    return result;
}

nlohmann::ordered_json UpdateNorms::line(int64_t step) const {
    nlohmann::ordered_json tensors = nlohmann::ordered_json::object();
    for (int i = 0; i < parameters_.size(); ++i) {
        const size_t index = static_cast<size_t>(i);
        tensors[parameters_[i].name] = changes_[index] / old_norms_[index];
    }
    return {{"type", "update_norms"}, {"step", step}, {"tensors", tensors}};
}

}  // namespace lmo
