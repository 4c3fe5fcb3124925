#include "llmc/optim/group.h"

#include <algorithm>
#include <cmath>
#include <tuple>

namespace lmo {

namespace {

constexpr int kRangeIterations = 20;      // of the power method, for the error of an inexact oracle
constexpr int kStableRankIterations = 3;  // as published (arXiv 2605.19811)

double decay_of(const DecayConfig& decay, double default_weight, Role role) {
    if (decay.type == DecayType::none || decay.type == DecayType::start) return 0.0;
    if (std::find(decay.roles.begin(), decay.roles.end(), role) == decay.roles.end()) return 0.0;
    if (decay.type == DecayType::constrained) return 1.0;
    return decay.weight_decay.value_or(default_weight);
}

// The elements of `values` (empty: stays empty) whose `chosen` is true.
template <typename Value>
std::vector<Value> pick(const std::vector<Value>& values, const std::vector<bool>& chosen) {
    std::vector<Value> result;
    for (size_t i = 0; i < values.size(); ++i) {
        if (chosen[i]) result.push_back(values[i]);
    }
    return result;
}

// Tensors of these shapes without memory, to ask for workspace sizes.
std::vector<Tensor> shapes_only(const std::vector<Shape>& shapes, DType type) {
    std::vector<Tensor> tensors;
    for (const Shape& shape : shapes) tensors.push_back({nullptr, type, shape});
    return tensors;
}

Tensor first(const Tensor& tensor, size_t count, int64_t of_each = 1) {
    return tensor.slice(0, {static_cast<int64_t>(count) * of_each});
}

}  // namespace

// nesterov's u = g + beta (beta m + g).
MomentumWeights momentum_weights(const MomentumConfig& momentum, int64_t applied) {
    const double beta = beta_of(momentum.beta, momentum.eta_power, applied);
    switch (momentum.type) {
        case MomentumType::ema:
            return {beta, 1.0 - beta, beta, 1.0 - beta};
        case MomentumType::heavy_ball:
            return {beta, 1.0, beta, 1.0};
        case MomentumType::nesterov:
            return {beta * beta, 1.0 + beta, beta, 1.0};
        case MomentumType::nesterov_ema:
            return {beta * beta, 1.0 - beta * beta, beta, 1.0 - beta};
        case MomentumType::lion:
            return {momentum.beta1, 1.0 - momentum.beta1, momentum.beta2, 1.0 - momentum.beta2};
        case MomentumType::none:
        case MomentumType::adam:
        case MomentumType::gradient:
            break;  // operations of their own
    }
    return {0.0, 1.0, 0.0, 0.0};
}

std::vector<StateKind> state_kinds(const GroupConfig& config) {
    std::vector<StateKind> kinds;
    switch (config.momentum.type) {
        case MomentumType::none:
        case MomentumType::gradient:
            break;
        case MomentumType::adam:
            kinds = {{StateSlot::first, "first"}, {StateSlot::second, "second"}};
            break;
        default:
            kinds = {{StateSlot::first, "momentum"}};
    }
    if (config.post.type == PostType::row_moment) {
        kinds.push_back({StateSlot::row_moment, "row_moment", true});
    }
    if (config.decay.type == DecayType::start) kinds.push_back({StateSlot::start, "start"});
    return kinds;
}

GroupPart GroupPart::only(const std::vector<bool>& chosen) const {
    GroupPart part;
    part.blocks = pick(blocks, chosen);
    part.slices = pick(slices, chosen);
    part.shapes = pick(shapes, chosen);
    part.radius = pick(radius, chosen);
    part.other_radius = pick(other_radius, chosen);
    part.decay = pick(decay, chosen);
    part.l0 = pick(l0, chosen);
    part.l1 = pick(l1, chosen);
    for (size_t s = 0; s < kStateSlots; ++s) part.states[s] = pick(states[s], chosen);
    part.weights = pick(weights, chosen);
    part.copies = pick(copies, chosen);
    part.remainders = pick(remainders, chosen);
    part.gradients = pick(gradients, chosen);
    part.scratch = pick(scratch, chosen);
    part.step = step;
    return part;
}

std::vector<Tensor> GroupPart::views(const ParameterBuffer& buffer) const {
    std::vector<Tensor> tensors;
    for (size_t i = 0; i < blocks.size(); ++i) {
        const int64_t first = buffer.list->offset(blocks[i].first) + slices[i].begin;
        tensors.push_back(buffer.flat.slice(first, shapes[i]));
    }
    return tensors;
}

// Momentum of all types and decay are elementwise; what is kept in the gradients' memory stays in
// one piece, so that what else is there can be cleared by tensors.
int64_t update_unit(const GroupConfig& config, const Shape& shape) {
    const bool elementwise = config.momentum.type != MomentumType::gradient &&
                             config.post.type == PostType::none && config.step.is_plain();
    if (!elementwise) return shape.count();
    Cut cut = make_norm(config.norm)->cut();
    if (config.alternate) {
        if (config.alternate->stable_rank > 0.0) return shape.count();
        cut = std::min(cut, make_norm(config.alternate->norm)->cut());
    }
    switch (cut) {
        case Cut::anywhere:
            return 1;
        case Cut::between_rows:
            return shape.columns();
        case Cut::nowhere:
            break;
    }
    return shape.count();
}

OptimizerGroup::OptimizerGroup(const GroupConfig& config, std::vector<ParameterBlock> blocks,
                               double weight_decay, const std::string& group)
    : config_(config),
      norm_(make_norm(config.norm)),
      blocks_(std::move(blocks)),
      weight_decay_(weight_decay) {
    if (config.alternate) other_norm_ = make_norm(config.alternate->norm);
    for (const ParameterBlock& block : blocks_) {
        norm_->check(group + ": " + block.name, block.shape);
        if (other_norm_) other_norm_->check(group + ": " + block.name, block.shape);
    }
}

void OptimizerGroup::cut(bool by_layer, const OwnedBlocks& owned) {
    // Equal shapes side by side: the spectral norm computes them as one batch.
    const auto key = [&](const ParameterBlock& block) {
        return std::tuple(by_layer ? block.layer : 0, block.shape.rank(), block.shape.rows(),
                          block.shape.columns());
    };
    std::stable_sort(blocks_.begin(), blocks_.end(),
                     [&](const auto& a, const auto& b) { return key(a) < key(b); });
    parts.clear();
    for (const ParameterBlock& block : blocks_) {
        const Slice slice = owned ? owned(block) : Slice{0, block.shape.count()};
        if (slice.count == 0) continue;
        const ParameterBlock* last = parts.empty() ? nullptr : &parts.back().blocks.back();
        const bool together = last && (!by_layer || last->layer == block.layer) &&
                              (!needs_scratch() || last->shape == block.shape);
        GroupPart& part = together ? parts.back() : parts.emplace_back();
        part.blocks.push_back(block);
        part.slices.push_back(slice);
        part.shapes.push_back(shape_of(block.shape, slice));
        // Behind `frobenius` a direction has unit size, whatever the norm's scale.
        const auto scale = [&](const Norm& norm) {
            return config_.post.type == PostType::frobenius ? 1.0 : norm.scale(block.shape);
        };
        part.radius.push_back(config_.radius.value(block.shape) * scale(*norm_));
        if (config_.alternate) {
            part.other_radius.push_back(config_.alternate->radius.value(block.shape) *
                                        scale(*other_norm_));
        }
        part.decay.push_back(decay_of(config_.decay, weight_decay_, block.role));
        const auto layer = config_.step.layers.find(block.name);
        const bool known = layer != config_.step.layers.end();
        part.l0.push_back(known ? layer->second.first : config_.step.l0);
        part.l1.push_back(known ? layer->second.second : config_.step.l1);
    }
}

bool OptimizerGroup::needs_scratch() const { return config_.step.needs_dual() || keeps_gradient(); }

bool OptimizerGroup::is_plain() const {
    return !keeps_gradient() && !config_.alternate && config_.step.is_plain() &&
           config_.post.type == PostType::none && config_.decay.type != DecayType::start;
}

std::optional<FusedDirection> OptimizerGroup::fused() const {
    const auto direction = is_plain() ? norm_->fused() : std::nullopt;
    const bool needs_adam_twice = direction && direction->type == FusedDirection::Type::frobenius &&
                                  config_.momentum.type == MomentumType::adam;
    return needs_adam_twice ? std::nullopt : direction;
}

int64_t OptimizerGroup::scratch_elements() const {
    if (!needs_scratch()) return 0;
    int64_t most = 0;
    for (const GroupPart& part : parts) {
        int64_t elements = 0;
        for (const Slice& slice : part.slices) elements += slice.count;
        most = std::max(most, elements);
    }
    return most;
}

size_t OptimizerGroup::workspace_bytes(const Backend& backend, DType master) const {
    size_t bytes = 0;
    for (const GroupPart& part : parts) {
        const std::vector<Tensor> x = shapes_only(part.shapes, master);
        const auto reserve = [&](size_t size) { bytes = std::max(bytes, size); };
        reserve(norm_->workspace_bytes(backend, x));
        if (const auto direction = fused()) {
            reserve(backend.workspace_bytes(
                FusedUpdate{Momentum{x, {}, {}, 0.0, 1.0, 0.0, 0.0}, *direction, {}}));
        }
        if (other_norm_) {  // a choice of blocks needs no more than all, shape by shape
            reserve(other_norm_->workspace_bytes(backend, x));
            reserve(backend.workspace_bytes(SumOfSquares{x, {}, {}}));
        }
        if (config_.post.type == PostType::frobenius) {
            reserve(backend.workspace_bytes(FrobeniusNormalize{x, config_.post.eps, {}}));
        }
        if (config_.post.type == PostType::row_moment) {
            reserve(backend.workspace_bytes(RowMomentNormalize{x, {}, 0.0, 0.0, {}}));
        }
        if (config_.step.needs_dual()) reserve(backend.workspace_bytes(DotProducts{x, x, {}, {}}));
        if (config_.step.inexact || (config_.alternate && config_.alternate->stable_rank > 0)) {
            reserve(backend.workspace_bytes(SingularRange{x, 1, true, {}, {}}));
        }
    }
    return bytes;
}

std::variant<Momentum, Adam> OptimizerGroup::momentum_operation(const GroupPart& part,
                                                                const GroupScalars& scalars,
                                                                int64_t update) const {
    const MomentumConfig& m = config_.momentum;
    if (m.type == MomentumType::adam) {
        return Adam{part.gradients,
                    part.state(StateSlot::first),
                    part.state(StateSlot::second),
                    scalars.clip_factor,
                    part.step,
                    m.beta1,
                    m.beta2,
                    m.eps,
                    m.eps_inside};
    }
    const MomentumWeights w = momentum_weights(m, update);
    Momentum operation{
        part.gradients, part.state(StateSlot::first), scalars.clip_factor, w.u_m, w.u_g, w.m_m,
        w.m_g};
    if (m.starts_with_gradient) operation.step = part.step;
    return operation;
}

// gradients -> what the norm is taken of, in scratch where the gradients' memory is the momentum.
void OptimizerGroup::momentum(Backend& backend, const GroupPart& part, const GroupScalars& scalars,
                              int64_t update) const {
    if (!keeps_gradient()) {
        const auto operation = momentum_operation(part, scalars, update);
        if (const Adam* adam = std::get_if<Adam>(&operation)) {
            backend.adam(*adam);
        } else {
            backend.momentum(std::get<Momentum>(operation));
        }
    }
    if (!needs_scratch()) return;
    for (size_t i = 0; i < part.blocks.size(); ++i) {
        backend.copy(part.scratch[i], part.gradients[i]);
    }
}

void OptimizerGroup::post(Backend& backend, const GroupPart& part, std::span<const Tensor> x,
                          const Tensor& workspace) const {
    const PostConfig& c = config_.post;
    if (c.type == PostType::frobenius) backend.frobenius_normalize({x, c.eps, workspace});
    if (c.type == PostType::row_moment) {
        backend.row_moment_normalize(
            {x, part.state(StateSlot::row_moment), c.beta2, c.eps, workspace});
    }
}

// Factors of the radii, or an empty tensor where a step has its radius' length. The direction is in
// the scratch where the gradients' memory is the momentum, else the other way round. `range`: of
// the orthogonalised matrices, or empty.
Tensor OptimizerGroup::step_sizes(Backend& backend, const GroupPart& part,
                                  const Direction& direction, const GroupScalars& scalars,
                                  const Tensor& range, const Tensor& workspace) const {
    const StepConfig& step = config_.step;
    if (!step.needs_dual() && range.empty()) return {};
    const size_t count = part.blocks.size();
    StepSizes operation{step.rule, direction.radius, part.l0, part.l1, {}, range, {}};
    if (step.needs_dual()) {
        operation.dot = first(scalars.dot, count);
        backend.dot_products({part.gradients, part.scratch, operation.dot, workspace});
    }
    operation.out = first(scalars.size, count);
    operation.limit = step.limit;
    operation.together = step.together;
    backend.step_sizes(operation);
    return operation.out;
}

// Without a direction's tensors, sizes and starts.
Apply OptimizerGroup::apply_operation(const GroupPart& part, const Direction& direction,
                                      const GroupScalars& scalars) const {
    Apply apply{part.weights,     {},        part.copies, scalars.rate, direction.lr_scale,
                direction.radius, part.decay};
    apply.cautious = config_.decay.type == DecayType::cautious;
    apply.remainders = part.remainders;
    return apply;
}

// Everything behind the momentum, along one direction.
void OptimizerGroup::move(Backend& backend, const GroupPart& part, const Direction& direction,
                          const GroupScalars& scalars, const Tensor& workspace) const {
    if (part.blocks.empty()) return;
    const std::vector<Tensor>& x = keeps_gradient() ? part.scratch : part.gradients;
    direction.norm->direction(backend, x, workspace);
    Tensor range;  // of what is orthogonalised, before anything else is done to it
    if (config_.step.inexact && direction.norm->type() == NormType::spectral) {
        range = first(scalars.range, part.blocks.size(), 2);
        backend.singular_range({x, kRangeIterations, true, range, workspace});
    }
    post(backend, part, x, workspace);
    Apply apply = apply_operation(part, direction, scalars);
    apply.x = x;
    apply.size = step_sizes(backend, part, direction, scalars, range, workspace);
    apply.starts = part.state(StateSlot::start);
    apply.step = part.step;
    backend.apply(apply);
    if (keeps_gradient()) {
        backend.momentum({part.gradients, {}, {}, 0.0, config_.momentum.beta, 0.0, 0.0});
    }
}

std::vector<bool> OptimizerGroup::low_stable_rank(Backend& backend, const GroupPart& part,
                                                  const GroupScalars& scalars,
                                                  const Tensor& workspace) const {
    const size_t count = part.blocks.size();
    const Tensor squares = first(scalars.dot, count), range = first(scalars.range, count, 2);
    backend.sum_of_squares({part.gradients, squares, workspace});
    backend.singular_range({part.gradients, kStableRankIterations, false, range, workspace});
    std::vector<double> sums(count), values(2 * count);
    backend.copy_out(sums.data(), squares);
    backend.copy_out(values.data(), range);
    std::vector<bool> low(count);
    for (size_t i = 0; i < count; ++i) {
        const double top = values[2 * i];
        const double rank = top > 0.0 ? sums[i] / (top * top) : 0.0;
        const Shape& shape = part.blocks[i].shape;
        const double side = static_cast<double>(std::min(shape.rows(), shape.columns()));
        low[i] = rank * rank <= config_.alternate->stable_rank * side;
    }
    return low;
}

void OptimizerGroup::run(Backend& backend, const GroupPart& part, const GroupScalars& scalars,
                         const Tensor& workspace, int64_t update) const {
    const Direction main{norm_.get(), part.radius, config_.lr_scale};
    if (is_plain()) {
        const auto before = momentum_operation(part, scalars, update);
        const Apply after = apply_operation(part, main, scalars);
        if (const auto direction = fused()) {
            return backend.fused_update({before, *direction, after, workspace});
        }
        const Momentum* linear = std::get_if<Momentum>(&before);
        if (linear && norm_->update(backend, *linear, after, workspace)) return;
    }
    momentum(backend, part, scalars, update);
    if (!config_.alternate) return move(backend, part, main, scalars, workspace);

    const AlternateConfig& alternate = *config_.alternate;
    const auto move_some = [&](const std::vector<bool>& chosen, bool other) {
        const GroupPart some = part.only(chosen);
        const Direction direction =
            other ? Direction{other_norm_.get(), some.other_radius, alternate.lr_scale}
                  : Direction{norm_.get(), some.radius, config_.lr_scale};
        move(backend, some, direction, scalars, workspace);
    };
    std::vector<bool> is_main(part.blocks.size(), update % alternate.period == 0);
    if (alternate.stable_rank > 0.0) {
        is_main = low_stable_rank(backend, part, scalars, workspace);
    }
    move_some(is_main, false);
    is_main.flip();
    move_some(is_main, true);
}

}  // namespace lmo
