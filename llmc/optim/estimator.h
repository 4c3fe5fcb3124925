// The gradient estimator: which gradients an update asks for, and what it makes of them before
// momentum sees it. x is the weights, d = x_k - x_{k-1} the last update, xi a batch:
//   plain    g(x; xi)
//   igt      g(x + beta/(1-beta) d; xi)                        implicit gradient transport
//   storm    g(x; xi) + c (g(x; xi) - g(x - d; xi))            STORM, momentum variance reduction
//   hessian  g(x; xi) + c H d, H d by a difference of two gradients on the segment of d
//   page     g(x; a large batch) now and then, else v + g(x; xi) - g(x - d; xi) with the old result
//   v
// c = scale beta/(1-beta): behind momentum m = beta m + (1-beta) g these are the published
// recursions (arXiv 2410.16871, 2511.14501, 2510.10690; PAGE: arXiv 2008.10898).
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"
#include "llmc/optim/state.h"

namespace lmo {

enum class EstimatorType { plain, igt, storm, hessian, page };

struct EstimatorConfig {
    EstimatorType type = EstimatorType::plain;
    double beta = 0.0, eta_power = 0.0;  // of the momentum behind it, as MomentumConfig has them
    double scale = 1.0;                  // storm, hessian
    // hessian: by the batch of the update or by one of its own; by a central difference of `step` d
    // around a random point of the segment, or between its ends.
    bool same_batch = false, central = true;
    double step = 0.1;
    // Bounds of the norm of the gradient and of the norm of H d/||d||, of all tensors; 0: none.
    double clip = 0.0, clip_correction = 0.0;
    int64_t small = 0;         // page: sequences of a small batch
    double probability = 0.0;  // page: of a large one
    uint64_t seed = 0;

    bool is_plain() const { return type == EstimatorType::plain && clip == 0.0; }
    bool corrects() const { return type != EstimatorType::plain && type != EstimatorType::igt; }
    bool clips() const { return clip > 0.0 || clip_correction > 0.0; }
    // Batches that an update uses up.
    int batches() const { return type == EstimatorType::hessian && !same_batch ? 2 : 1; }
    // Gradients of the whole batch that an update takes, and such batches that it uses up; of page
    // on average, with `large` sequences in the whole batch.
    double gradients(int64_t large) const;
    double batches(int64_t large) const;
    // page: whether update number `update` takes a small batch.
    bool takes_small(int64_t update) const;
};

// One gradient of an update: at x - back d, over one of its batches, `weight` times in the
// correction. The last request of an update is of the gradient itself.
struct GradientRequest {
    double back = 0.0;
    int batch = 0;  // 0: the update's, 1: the other one
    double weight = 0.0;
};

class Estimator {
  public:
    // Takes memory for the weights of the update before, and what else the type needs. `owned`:
    // of which elements page keeps old results.
    Estimator(Backend& backend, Arena& arena, const EstimatorConfig& config,
              const ParameterList& parameters, DType master,
              const OwnedElements& owned = {});

    const EstimatorConfig& config() const { return config_; }
    // Of update number `update`, `applied` of which were applied: before the first one there is no
    // d.
    std::vector<GradientRequest> requests(int64_t update, int64_t applied) const;

    void initialise(const ParameterBuffer& weights);

    // Around the requests of an update: the weights go to where a gradient is asked for, and back.
    void leave(const ParameterBuffer& weights);
    void move(const ParameterBuffer& weights, double back);
    void come_back(const ParameterBuffer& weights);
    // Before the step: these weights are the next update's x_{k-1}.
    void remember(const ParameterBuffer& weights);

    // After the gradient of a request was computed. Where nothing is clipped, the last one leaves
    // the estimate in `gradients`.
    void add(const ParameterBuffer& gradients, const std::vector<GradientRequest>& requests,
             size_t index, int64_t applied);
    // The estimate where it is clipped, from the norms of gradient and correction (of one batch
    // and all tensors) and that of d.
    void clip(const ParameterBuffer& gradients, double gradient_norm, double correction_norm,
              double moved, bool corrected, int64_t applied);
    const ParameterBuffer& correction() const { return correction_; }
    double moved(const ParameterBuffer& weights);                // ||d||_2; waits
    // Sums of squares of each tensor, or of what is owned of it; waits.
    std::vector<double> squares(const ParameterBuffer& buffer, bool owned);

    // page: gradients = v + gradients, or gradients alone where `anew`: the new v.
    void accumulate(const ParameterBuffer& gradients, bool anew);

    const std::vector<StateTensor>& states() const { return states_; }

  private:
    double horizon(int64_t applied) const;  // beta/(1-beta) of this update

    Backend& backend_;
    Arena& arena_;  // of the workspace
    EstimatorConfig config_;
    ParameterBuffer previous_, here_, correction_;
    std::vector<Slice> own_;         // of each parameter
    std::vector<Tensor> estimates_;  // page: of the parameters of which something is owned
    Tensor squares_;                 // fp64, of each parameter, where something is clipped
    std::vector<StateTensor> states_;
};

// beta of a momentum after `applied` updates: `beta`, or 1 - (applied + 1)^-eta_power.
double beta_of(double beta, double eta_power, int64_t applied);

}  // namespace lmo
