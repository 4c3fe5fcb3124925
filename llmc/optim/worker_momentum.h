// Momentum before the communication: each rank smooths its own part of the gradient, and what is
// sent is the result (EF21-Muon, arXiv 2510.00643).
#pragma once

#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"
#include "llmc/optim/config.h"
#include "llmc/optim/state.h"

namespace lmo {

class WorkerMomentum {
  public:
    // States of all parameters whose group has momentum that is linear in the gradient; the others
    // (adam, none) are left alone.
    WorkerMomentum(Backend& backend, Arena& arena, const OptimizerConfig& config,
                   const ParameterList& parameters, DType master);

    void initialise();
    // gradients -> what is sent. `applied`: updates before this one.
    void run(const ParameterBuffer& gradients, int64_t applied);

    const std::vector<StateTensor>& states() const { return states_; }

  private:
    struct Part {  // the parameters of one group
        MomentumConfig momentum;
        std::vector<int> parameters;
        std::vector<Tensor> states;
    };
    Backend& backend_;
    std::vector<Part> parts_;
    Tensor applied_;  // fp64
    std::vector<StateTensor> states_;
};

// The optimizer behind it: the same groups without the momentum that runs on the workers.
OptimizerConfig without_worker_momentum(OptimizerConfig config);

}  // namespace lmo
