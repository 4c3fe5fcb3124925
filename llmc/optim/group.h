// A parameter group at work: its stages (momentum, norm, post, step size, decay) over its blocks.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"
#include "llmc/optim/config.h"
#include "llmc/optim/state.h"

namespace lmo {

// The states that the stages of a group keep for each block. per_row: one value a row, else one an
// element.
enum class StateSlot { first, second, row_moment, start };
constexpr size_t kStateSlots = 4;
struct StateKind {
    StateSlot slot;
    std::string name;  // in checkpoints, "NAME.name"
    bool per_row = false;
};
std::vector<StateKind> state_kinds(const GroupConfig& config);

// Which elements of a block an optimizer updates; empty: all of every block.
using OwnedBlocks = std::function<Slice(const ParameterBlock&)>;

// At multiples of how many elements a block of this shape may be cut, see update_units().
int64_t update_unit(const GroupConfig& config, const Shape& shape);

// Momentum that is linear in the gradient g: u = u_m m + u_g g and m = m_m m + m_g g of the old m,
// after `applied` updates. (0, 1, 0, 0) for the types that have operations of their own.
struct MomentumWeights {
    double u_m, u_g, m_m, m_g;
};
MomentumWeights momentum_weights(const MomentumConfig& momentum, int64_t applied);

// Some blocks of a group, and what belongs to each: all vectors are parallel to `blocks`, or empty
// where the group has no use for them. Radii and decay are those of whole blocks; tensors are
// slices, of these shapes.
struct GroupPart {
    std::vector<ParameterBlock> blocks;
    std::vector<Slice> slices;
    std::vector<Shape> shapes;
    std::vector<double> radius, other_radius, decay, l0, l1;
    std::vector<Tensor> states[kStateSlots];
    std::vector<Tensor> weights, copies, remainders, gradients, scratch;  // views
    Tensor step;  // fp64: updates done of these blocks

    const std::vector<Tensor>& state(StateSlot slot) const {
        return states[static_cast<size_t>(slot)];
    }
    GroupPart only(const std::vector<bool>& chosen) const;
    // The slices of a buffer.
    std::vector<Tensor> views(const ParameterBuffer& buffer) const;
};

// Scalars that the operations read from the device, fp64; and memory for those of a part.
struct GroupScalars {
    Tensor rate, clip_factor;
    Tensor dot, range, size;  // [n], [n, 2], [n] of the largest part; empty where not needed
};

class OptimizerGroup {
  public:
    // Radii, decay and step constants of the blocks; `weight_decay` is the optimizer's. Throws
    // UsageError, naming `group`, for a block that its norms do not take.
    OptimizerGroup(const GroupConfig& config, std::vector<ParameterBlock> blocks,
                   double weight_decay, const std::string& group);

    const GroupConfig& config() const { return config_; }

    // Cuts the owned blocks, or slices of them, into parts that are updated together: all, or those
    // of one layer where layers are sampled, or those of one shape where the stages need a copy of
    // the gradient.
    void cut(bool by_layer, const OwnedBlocks& owned);
    std::vector<GroupPart> parts;

    bool needs_scratch() const;        // a copy of a part's gradients
    int64_t scratch_elements() const;  // of the largest part
    // Whether the operations of an update depend on its number or on values of the host: then they
    // cannot be captured once.
    bool varies() const { return config_.alternate || config_.momentum.eta_power > 0.0; }
    size_t workspace_bytes(const Backend& backend, DType master) const;

    // One update of a part, number `update` of its blocks. Issues operations; where the group
    // varies by stable rank it waits for the device.
    void run(Backend& backend, const GroupPart& part, const GroupScalars& scalars,
             const Tensor& workspace, int64_t update) const;

  private:
    struct Direction {
        const Norm* norm;
        const std::vector<double>& radius;
        double lr_scale;
    };
    bool keeps_gradient() const { return config_.momentum.type == MomentumType::gradient; }
    // Momentum, a direction and the step of the schedule's length, no more.
    bool is_plain() const;
    // The direction of a FusedUpdate, where the stages are no more than one does.
    std::optional<FusedDirection> fused() const;
    std::variant<Momentum, Adam> momentum_operation(const GroupPart& part,
                                                    const GroupScalars& scalars,
                                                    int64_t update) const;
    Apply apply_operation(const GroupPart& part, const Direction& direction,
                          const GroupScalars& scalars) const;
    void momentum(Backend& backend, const GroupPart& part, const GroupScalars& scalars,
                  int64_t update) const;
    void move(Backend& backend, const GroupPart& part, const Direction& direction,
              const GroupScalars& scalars, const Tensor& workspace) const;
    void post(Backend& backend, const GroupPart& part, std::span<const Tensor> x,
              const Tensor& workspace) const;
    Tensor step_sizes(Backend& backend, const GroupPart& part, const Direction& direction,
                      const GroupScalars& scalars, const Tensor& range,
                      const Tensor& workspace) const;
    std::vector<bool> low_stable_rank(Backend& backend, const GroupPart& part,
                                      const GroupScalars& scalars, const Tensor& workspace) const;

    GroupConfig config_;
    std::unique_ptr<Norm> norm_, other_norm_;
    std::vector<ParameterBlock> blocks_;
    double weight_decay_;
};

}  // namespace lmo
