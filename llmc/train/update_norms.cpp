#include "llmc/train/update_norms.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace lmo {

UpdateNorms::UpdateNorms(Backend& backend, Arena& arena, const ParameterList& parameters,
                         DType master)
    : backend_(backend),
      parameters_(parameters),
      copy_{&parameters,
            arena.take("weights before the update", master, {parameters.buffer_length()})},
      squares_(arena.take("weights before the update", DType::f64, {parameters.size()})),
      one_(arena.take("weights before the update", DType::f64, {1})),
      radii_(static_cast<size_t>(parameters.size()), 1.0),
      decays_(static_cast<size_t>(parameters.size()), 0.0) {
    for (int i = 0; i < parameters.size(); ++i) views_.push_back(copy_[i]);
    arena.reserve_workspace(backend.workspace_bytes(SumOfSquares{views_, squares_, {}}));
    if (one_.empty()) return;  // only counted
    const double one = 1.0;
    backend.copy_in(one_, &one);
}

void UpdateNorms::before(const ParameterBuffer& weights, const Tensor& workspace) {
    backend_.copy(copy_.flat, weights.flat);
    old_norms_ = norms(workspace);
}

void UpdateNorms::after(const ParameterBuffer& weights, const Tensor& workspace) {
    std::vector<Tensor> now;
    for (int i = 0; i < parameters_.size(); ++i) now.push_back(weights[i]);
    // old = old - 1 * new: an Apply without decay.
    backend_.apply({views_, now, {}, one_, 1.0, radii_, decays_});
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
