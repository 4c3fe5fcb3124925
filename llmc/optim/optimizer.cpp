// Blocks (matrices as norms see them) are assigned to groups once; a step is then one call of each
// stage for each group, over all its blocks. Views and coefficients live as long as the optimizer,
// because captured operations keep spans of them.
#include "llmc/optim/optimizer.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "llmc/core/error.h"

namespace lmo {

// One group and what belongs to its blocks; all vectors are parallel to `blocks`.
struct Optimizer::Group {
    MomentumConfig momentum;
    std::unique_ptr<Norm> norm;
    double lr_scale;
    std::vector<ParameterBlock> blocks;
    std::vector<double> radius, decay;
    std::vector<Tensor> first, second;       // states; empty when the momentum has none
    std::vector<Tensor> weights, copies, x;  // views; x: the gradients
};

namespace {

std::string describe_group(const OptimizerConfig& config, size_t index) {
    return "optimizer.groups[" + std::to_string(index) + "] (" +
           to_string(config.groups[index].match) + ")";
}

// Index of the first group that matches.
size_t group_of(const OptimizerConfig& config, const Parameter& parameter) {
    for (size_t i = 0; i < config.groups.size(); ++i) {
        if (config.groups[i].match.matches(parameter)) return i;
    }
    throw UsageError("optimizer.groups: no group matches the parameter " + parameter.name +
                     " (role " + to_string(parameter.role) +
                     "); add one, for example a last group with {\"match\": {\"role\": \"any\"}}");
}

// The group of a block, whose parameters must agree: they share one norm.
size_t group_of(const OptimizerConfig& config, const ParameterList& parameters,
                const ParameterBlock& block) {
    const Parameter& first = parameters[block.first];
    const size_t group = group_of(config, first);
    for (int i = block.first + 1; i < block.first + block.count; ++i) {
        const size_t other = group_of(config, parameters[i]);
        if (other == group) continue;
        throw UsageError("optimizer.groups: " + first.name + " is taken by " +
                         describe_group(config, group) + " but " + parameters[i].name + " by " +
                         describe_group(config, other) +
                         "; they are one matrix while optimizer.qkv is fused: match them by the "
                         "same group or set optimizer.qkv to split");
    }
    return group;
}

double decay_of(const DecayConfig& decay, double default_weight, Role role) {
    const bool decays =
        decay.type == DecayType::decoupled &&
        std::find(decay.roles.begin(), decay.roles.end(), role) != decay.roles.end();
    return decays ? decay.weight_decay.value_or(default_weight) : 0.0;
}

// What checkpoints call the states of a momentum type, and so how many there are.
std::vector<std::string> state_names(MomentumType type) {
    if (type == MomentumType::none) return {};
    if (type == MomentumType::adam) return {"first", "second"};
    return {"momentum"};
}

struct MomentumWeights {
    double u_m, u_g, m_m, m_g;
};

// u = u_m m + u_g g and m = m_m m + m_g g of the old m: nesterov's u = g + beta (beta m + g).
MomentumWeights momentum_weights(const MomentumConfig& momentum) {
    const double beta = momentum.beta;
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
            break;  // adam is an operation of its own
    }
    return {0.0, 1.0, 0.0, 0.0};
}

// to = factor * from, in the tensors' own type, through host memory.
template <typename Value>
void copy_scaled(Backend& backend, const Tensor& to, const Tensor& from, double factor) {
    std::vector<Value> values(static_cast<size_t>(from.shape.count()));
    backend.copy_out(values.data(), from);
    for (Value& value : values) value *= static_cast<Value>(factor);
    backend.copy_in(to, values.data());
}

// Tensors of these shapes without memory, to ask for workspace sizes.
template <typename List>
std::vector<Tensor> shapes_only(const List& list, DType type) {
    std::vector<Tensor> tensors;
    for (const auto& item : list) tensors.push_back({nullptr, type, item.shape});
    return tensors;
}

}  // namespace

Optimizer::Optimizer(Backend& backend, Arena& arena, const OptimizerConfig& config,
                     const ParameterList& parameters, DType master, const OwnedBlocks& owned)
    : backend_(backend), arena_(arena), clip_norm_(config.clip_norm) {
    assert(master == DType::f32 || master == DType::f64);
    assign_blocks(config, parameters, owned);
    take_states(arena, parameters, master);
    scalars_ = arena.take("optimizer state", DType::f64, {3});
    norms_ = arena.take("optimizer state", DType::f64, {parameters.size() + 1});
    sums_ = {nullptr, DType::f64, {parameters.size()}};
    if (!scalars_.empty()) {
        rate_ = scalars_.slice(0, {1});
        step_ = scalars_.slice(1, {1});
        clip_factor_ = scalars_.slice(2, {1});
        sums_ = norms_.slice(0, sums_.shape);
        gradient_norm_ = norms_.slice(parameters.size(), {1});
    }
    arena.reserve_workspace(workspace_bytes(parameters, master));
}

Optimizer::~Optimizer() = default;

void Optimizer::assign_blocks(const OptimizerConfig& config, const ParameterList& parameters,
                              const OwnedBlocks& owned) {
    for (const GroupConfig& stages : config.groups) {
        Group& group = groups_.emplace_back();
        group.momentum = stages.momentum;
        group.norm = make_norm(stages.norm);
        group.lr_scale = stages.lr_scale;
    }
    for (const ParameterBlock& block : parameters.blocks(config.fuse_qkv)) {
        const size_t index = group_of(config, parameters, block);
        groups_[index].norm->check(describe_group(config, index) + ": " + block.name, block.shape);
        groups_[index].blocks.push_back(block);
    }
    for (size_t i = 0; i < groups_.size(); ++i) {
        Group& group = groups_[i];
        // A role that a model lacks (the head of a tied one) is no mistake; a name that fits
        // nothing is.
        if (group.blocks.empty() && !config.groups[i].match.name.empty()) {
            throw UsageError(describe_group(config, i) +
                             " takes no parameter of this model (the first group that matches "
                             "takes it): remove the group, or correct its match or its place");
        }
        if (owned) std::erase_if(group.blocks, [&](const auto& block) { return !owned(block); });
        // Equal shapes side by side: the spectral norm computes them as one batch.
        std::stable_sort(group.blocks.begin(), group.blocks.end(),
                         [](const ParameterBlock& a, const ParameterBlock& b) {
                             const auto key = [](const Shape& s) {
                                 return std::tuple(s.rank(), s.rows(), s.columns());
                             };
                             return key(a.shape) < key(b.shape);
                         });
        const GroupConfig& stages = config.groups[i];
        for (const ParameterBlock& block : group.blocks) {
            group.radius.push_back(stages.radius.value(block.shape));
            group.decay.push_back(decay_of(stages.decay, config.weight_decay, block.role));
        }
    }
}

void Optimizer::take_states(Arena& arena, const ParameterList& parameters, DType master) {
    for (Group& group : groups_) {
        const std::vector<std::string> names = state_names(group.momentum.type);
        for (size_t s = 0; s < names.size(); ++s) {
            for (const ParameterBlock& block : group.blocks) {
                const Tensor state = arena.take("optimizer state", master, block.shape);
                (s == 0 ? group.first : group.second).push_back(state);
                int64_t offset = 0;
                for (int i = block.first; i < block.first + block.count; ++i) {
                    const Parameter& p = parameters[i];
                    const Tensor part = state.empty() ? Tensor{nullptr, master, p.shape}
                                                      : state.slice(offset, p.shape);
                    states_.push_back({p.name + "." + names[s], part});
                    offset += p.shape.count();
                }
            }
        }
    }
}

size_t Optimizer::workspace_bytes(const ParameterList& parameters, DType master) const {
    const std::vector<Tensor> gradients = shapes_only(parameters, master);
    size_t bytes = backend_.workspace_bytes(SumOfSquares{gradients, sums_, {}});
    for (const Group& group : groups_) {
        const std::vector<Tensor> x = shapes_only(group.blocks, master);
        bytes = std::max(bytes, group.norm->workspace_bytes(backend_, x));
    }
    return bytes;
}

void Optimizer::initialise() {
    for (const Group& group : groups_) {
        for (const Tensor& state : group.first) backend_.zero(state);
        for (const Tensor& state : group.second) backend_.zero(state);
    }
}

void Optimizer::start_momentum_from(const ParameterBuffer& weights, double rate) {
    for (const Group& group : groups_) {
        if (!is_sum_momentum(group.momentum.type)) continue;
        for (size_t i = 0; i < group.blocks.size(); ++i) {
            const Tensor from = weights[group.blocks[i]];
            const double factor = 1.0 - rate * group.lr_scale * group.decay[i];
            if (from.dtype == DType::f64) {
                copy_scaled<double>(backend_, group.first[i], from, factor);
            } else {
                copy_scaled<float>(backend_, group.first[i], from, factor);
            }
        }
    }
}

// Takes the views of the gradients; later calls must bring the same buffer.
void Optimizer::bind(const ParameterBuffer& gradients) {
    assert((gradients_.empty() || gradients.flat.data == gradients_.data) &&
           "the gradient buffer changed");
    if (!gradients_.empty()) return;
    gradients_ = gradients.flat;
    for (int i = 0; i < gradients.list->size(); ++i) gradient_views_.push_back(gradients[i]);
    for (Group& group : groups_) {
        for (const ParameterBlock& block : group.blocks) group.x.push_back(gradients[block]);
    }
}

void Optimizer::bind(const ParameterBuffer& weights, const ParameterBuffer& copies) {
    assert((weights_.empty() ||
            (weights.flat.data == weights_.data && copies.flat.data == copies_.data)) &&
           "the weight buffers changed");
    if (!weights_.empty()) return;
    weights_ = weights.flat;
    copies_ = copies.flat;
    for (Group& group : groups_) {
        for (const ParameterBlock& block : group.blocks) {
            group.weights.push_back(weights[block]);
            if (!copies.flat.empty()) group.copies.push_back(copies[block]);
        }
    }
}

double Optimizer::gradient_norm(const ParameterBuffer& gradients,
                                const std::function<void(std::vector<double>&)>& complete) {
    bind(gradients);
    backend_.sum_of_squares({gradient_views_, sums_, arena_.workspace()});
    if (complete) {
        std::vector<double> sums(static_cast<size_t>(sums_.count()));
        backend_.copy_out(sums.data(), sums_);
        complete(sums);
        backend_.copy_in(sums_, sums.data());
    }
    backend_.clip_factor({sums_, gradient_norm_, clip_factor_, clip_norm_});
    gradient_norms_.resize(static_cast<size_t>(norms_.count()));
    backend_.copy_out(gradient_norms_.data(), norms_);
    const double norm = gradient_norms_.back();
    gradient_norms_.pop_back();
    for (double& each : gradient_norms_) each = std::sqrt(each);
    return norm;
}

void Optimizer::set_scalars(double rate, int64_t updates_done) {
    const double values[2] = {rate, static_cast<double>(updates_done)};
    backend_.copy_in(scalars_.slice(0, {2}), values);
}

void Optimizer::momentum_stage(const Group& group) {
    const MomentumConfig& m = group.momentum;
    if (m.type == MomentumType::adam) {
        backend_.adam({group.x, group.first, group.second, clip_factor_, step_, m.beta1, m.beta2,
                       m.eps, m.eps_inside});
    } else {
        const MomentumWeights w = momentum_weights(m);
        backend_.momentum({group.x, group.first, clip_factor_, w.u_m, w.u_g, w.m_m, w.m_g});
    }
}

void Optimizer::step(const ParameterBuffer& weights, const ParameterBuffer& copies,
                     const ParameterBuffer& gradients) {
    bind(gradients);
    bind(weights, copies);
    for (const Group& group : groups_) {
        momentum_stage(group);
        group.norm->direction(backend_, group.x, arena_.workspace());
        backend_.apply({group.weights, group.x, group.copies, rate_, group.lr_scale, group.radius,
                        group.decay});
    }
}

std::unique_ptr<Norm> matrix_norm(const OptimizerConfig& config, const ParameterList& parameters) {
    const auto matrix = std::find_if(parameters.begin(), parameters.end(),
                                     [](const Parameter& p) { return p.role == Role::matrix; });
    assert(matrix != parameters.end() && "a model without a matrix");
    return make_norm(config.groups[group_of(config, *matrix)].norm);
}

std::vector<double> update_costs(const OptimizerConfig& config, const ParameterList& parameters) {
    // Momentum and the step move about 28 bytes an element, for which a core takes as long as for
    // so many operations of a product. An estimate, for the balance alone.
    constexpr double kElement = 100.0;
    std::vector<double> costs;
    for (const ParameterBlock& block : parameters.blocks(config.fuse_qkv)) {
        const GroupConfig& group = config.groups[group_of(config, parameters, block)];
        costs.push_back(make_norm(group.norm)->flops(block.shape) +
                        kElement * static_cast<double>(block.shape.count()));
    }
    return costs;
}

double warmup_kappa(const OptimizerConfig& config, const ParameterList& parameters) {
    const std::unique_ptr<Norm> norm = matrix_norm(config, parameters);
    double kappa = 0.0;
    for (const ParameterBlock& block : parameters.blocks(true)) {
        if (block.shape.rank() == 2) kappa += norm->kappa(block.shape);
    }
    return kappa;
}

}  // namespace lmo
