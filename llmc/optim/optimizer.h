// The composed optimizer: every parameter group runs its stages (group.h) over its blocks.
// Gradients are consumed: their memory may become the update direction, stage by stage.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"
#include "llmc/optim/config.h"
#include "llmc/optim/group.h"
#include "llmc/optim/sampling.h"
#include "llmc/optim/state.h"

namespace lmo {

class Optimizer {
  public:
    // Assigns parameters to groups and takes state memory and workspace from the arena. Throws
    // UsageError when a parameter matches no group, a name pattern no parameter, or a norm no
    // shape. `master` is the type of weights, gradients and states (fp32 or fp64). With a counting
    // arena `backend` is only asked for workspace sizes. States, step() and gradient_norm() are of
    // the `owned` elements, which update_units() must allow.
    Optimizer(Backend& backend, Arena& arena, const OptimizerConfig& config,
              const ParameterList& parameters, DType master, const OwnedBlocks& owned = {});

    // The start of a run: states become zero, those that remember the first weights these ones.
    // Here and below `remainders` belong to bf16 weights that are split (core/split_float.h).
    void initialise(const ParameterBuffer& weights, const ParameterBuffer& remainders = {});
    // Names the buffer that all later calls bring. Momentum that is kept in the gradients lives
    // there from then on.
    void bind_gradients(const ParameterBuffer& gradients);
    // Sets gradients to zero before those of a batch are added, but for momentum that is kept
    // there.
    void clear(const ParameterBuffer& gradients);

    // Published start of compat.momentum_init: heavy_ball and nesterov momenta become the weights
    // after the decay of a first update at `rate`. Before the first step(), in place of zeros.
    void start_momentum_from(const ParameterBuffer& weights, double rate,
                             const ParameterBuffer& remainders = {});

    // Global L2 norm of the gradients, before clipping; prepares the clip factor of step(). Waits.
    // `complete`, if given, adds what other ranks own to the sums of squares of the parameters.
    double gradient_norm(const ParameterBuffer& gradients,
                         const std::function<void(std::vector<double>&)>& complete = {});
    // Those of each parameter's gradient, in the same call.
    const std::vector<double>& gradient_norms() const { return gradient_norms_; }

    // Scalars of the next step(): rate, and the number of updates done so far.
    void set_scalars(double rate, int64_t updates_done);

    // The lowest layer whose gradient update number `updates_done` needs.
    int lowest_layer(int64_t updates_done) const { return sampling_.lowest(updates_done); }
    // Whether every update issues the same operations, so that step() may be captured once.
    bool repeats() const;

    // One update of `weights` (master) and, when not empty, `copies` (compute). Issues operations;
    // when they run, gradient_norm() of these gradients must have run. The buffers are the same at
    // every call: captured operations keep views of them.
    void step(const ParameterBuffer& weights, const ParameterBuffer& copies,
              const ParameterBuffer& gradients, const ParameterBuffer& remainders = {});

    const std::vector<StateTensor>& states() const { return states_; }

  private:
    void assign_blocks(const OptimizerConfig& config, const ParameterList& parameters,
                       const OwnedBlocks& owned);
    void take_block_states(const ParameterList& parameters, const GroupPart& part, size_t block,
                           const StateKind& kind, const Tensor& state);
    void take_states(Arena& arena, const ParameterList& parameters, DType master);
    void take_scratch(Arena& arena, DType master);
    void take_scalars(Arena& arena, const ParameterList& parameters);
    size_t workspace_bytes(const ParameterList& parameters, DType master) const;
    void bind_weights(const ParameterBuffer& weights, const ParameterBuffer& copies,
                      const ParameterBuffer& remainders);
    void copy_weights(const std::vector<Tensor>& to, const GroupPart& part,
                      const ParameterBuffer& weights, const ParameterBuffer& remainders) const;
    void add_squares(const std::function<void(std::vector<double>&)>& complete);

    Backend& backend_;
    Arena& arena_;  // of the workspace
    double clip_norm_;
    LayerSampling sampling_;
    std::vector<OptimizerGroup> groups_;
    std::vector<StateTensor> states_;
    // fp64: scalars that operations read from the device (the rate, the updates done of each
    // layer), and the sum of squares of each gradient with the global norm behind them, so that one
    // copy brings all to the host.
    Tensor scalars_, norms_, sums_, gradient_norm_;
    GroupScalars group_scalars_;
    int64_t updates_done_ = 0;
    std::vector<int64_t> counts_;  // of updates_done_, where layers are sampled
    std::vector<double> gradient_norms_;
    // The buffers of the first call and views of them; operations keep spans of the views.
    Tensor weights_, copies_, gradients_;
    std::vector<Tensor> gradient_views_, cleared_;
    std::vector<int> kept_;    // parameters whose gradients hold their momentum
    std::vector<Slice> own_;   // of each parameter
    std::vector<int> viewed_;  // the parameters of gradient_views_: those of which something is own
};

// The norm that the `matrix` role uses: the scale of the adaptive warm-up, and what the smoothness
// analyzer measures by.
std::unique_ptr<Norm> matrix_norm(const OptimizerConfig& config, const ParameterList& parameters);

// What the directions of an update cost over all blocks: floating-point operations of plain
// products, and those that the backend does.
struct DirectionFlops {
    double plain = 0.0, executed = 0.0;
};
DirectionFlops direction_flops(const Backend& backend, const OptimizerConfig& config,
                               const ParameterList& parameters);

// The norms of all blocks; a group without a norm counts by the sign norm.
std::vector<BlockNorm> block_norms(const OptimizerConfig& config, const ParameterList& parameters);

// What an update of each of parameters.blocks(config.fuse_qkv) costs, in floating-point operations
// of a matrix product.
std::vector<double> update_costs(const OptimizerConfig& config, const ParameterList& parameters);

// Which of those must be updated by one rank: each block's number among such sets, from 0 in order.
// Blocks that step.together sums over are one set, any other block is its own.
std::vector<int> update_sets(const OptimizerConfig& config, const ParameterList& parameters);

// How each of those may be cut over ranks: at multiples of so many elements. 1: anywhere, as every
// element's update follows from its own gradients alone; all: not at all.
std::vector<int64_t> update_units(const OptimizerConfig& config, const ParameterList& parameters);

// kappa of the adaptive warm-up: the sum over all 2-D blocks (q, k, v as one matrix, the embedding
// once, an untied head too) of matrix_norm; a group without a norm (adamw)
// counts by the sign norm. arXiv 2602.05813, section 3; algorithms.md 1.2.
double warmup_kappa(const OptimizerConfig& config, const ParameterList& parameters);

}  // namespace lmo
