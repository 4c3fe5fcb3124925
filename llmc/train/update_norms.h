// How far an update moves each tensor (log.update_norms): ||new - old||_F / ||old||_F. Training
// reads none of it: its bits are those of a run without.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"

namespace lmo {

class UpdateNorms {
  public:
    // Takes memory for a copy of the weights: `master` of the list's buffer length; where they are
    // `split` (core/split_float.h) for the largest tensor once more.
    UpdateNorms(Backend& backend, Arena& arena, const ParameterList& parameters, DType master,
                bool split);

    // Around an update, with the weights before and after it. Both wait. The difference is taken in
    // the weights' own type, its norm in fp64.
    void before(const ParameterBuffer& weights, const ParameterBuffer& remainders,
                const Tensor& workspace);
    void after(const ParameterBuffer& weights, const ParameterBuffer& remainders,
               const Tensor& workspace);

    // {"type": "update_norms", "step": S, "tensors": {NAME: quotient, ...}} of the last update. A
    // quotient is not finite where a weight is not, or where the old weights were all zero.
    nlohmann::ordered_json line(int64_t step) const;

  private:
    std::vector<double> norms(const Tensor& workspace) const;  // of copy_

    Backend& backend_;
    const ParameterList& parameters_;
    ParameterBuffer copy_;       // of the old weights; then the difference
    std::vector<Tensor> views_;  // of copy_
    Tensor joined_;              // of split weights, one tensor at a time
    Tensor squares_, one_;       // fp64: one of each tensor; 1.0
    std::vector<double> radii_;  // of Apply: ones, and zeros for no decay
    std::vector<double> decays_;
    std::vector<double> old_norms_, changes_;
};

}  // namespace lmo
