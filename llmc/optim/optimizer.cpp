// Blocks (matrices as norms see them) are assigned to groups once; a step runs every group over its
// parts. Views and coefficients live as long as the optimizer, because captured operations keep
// spans of them.
#include "llmc/optim/optimizer.h"

#include <algorithm>
#include <cmath>

#include "llmc/core/error.h"

namespace lmo {

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

// Names in step.layers that are no block of the group would be constants that nobody uses.
void require_known_layers(const StepConfig& step, const std::vector<ParameterBlock>& blocks,
                          const std::string& group) {
    for (const auto& layer : step.layers) {
        const bool known = std::any_of(blocks.begin(), blocks.end(), [&](const auto& block) {
            return block.name == layer.first;
        });
        if (known) continue;
        throw UsageError(group + ": step.layers names " + layer.first +
                         ", which this group does not take; its blocks are those that "
                         "`train_gpt smoothness` lists (q, k, v are one unless optimizer.qkv is "
                         "split)");
    }
}

// tensor = factor * tensor, in its own type, through host memory.
template <typename Value>
void scale(Backend& backend, const Tensor& tensor, double factor) {
    std::vector<Value> values(static_cast<size_t>(tensor.shape.count()));
    backend.copy_out(values.data(), tensor);
    for (Value& value : values) value *= static_cast<Value>(factor);
    backend.copy_in(tensor, values.data());
}

// Layers of the network, which parameters name.
int count_layers(const ParameterList& parameters) {
    int last = -1;
    for (const Parameter& parameter : parameters) last = std::max(last, parameter.layer);
    return last + 1;
}

}  // namespace

Optimizer::Optimizer(Backend& backend, Arena& arena, const OptimizerConfig& config,
                     const ParameterList& parameters, DType master, const OwnedBlocks& owned)
    : backend_(backend),
      arena_(arena),
      clip_norm_(config.clip_norm),
      sampling_(config.sampling, count_layers(parameters)) {
    assert(master == DType::f32 || master == DType::f64);
    assert((clip_norm_ == 0.0 || !config.keeps_gradients()) && "kept gradients are not clipped");
    assign_blocks(config, parameters, owned);
    take_states(arena, parameters, master);
    take_scratch(arena, master);
    take_scalars(arena, parameters);
    arena.reserve_workspace(workspace_bytes(parameters, master));
}

void Optimizer::assign_blocks(const OptimizerConfig& config, const ParameterList& parameters,
                              const OwnedBlocks& owned) {
    std::vector<std::vector<ParameterBlock>> blocks(config.groups.size());
    for (const ParameterBlock& block : parameters.blocks(config.fuse_qkv)) {
        blocks[group_of(config, parameters, block)].push_back(block);
    }
    for (size_t i = 0; i < config.groups.size(); ++i) {
        const std::string name = describe_group(config, i);
        // A role that a model lacks (the head of a tied one) is no mistake; a name that fits
        // nothing is.
        if (blocks[i].empty() && !config.groups[i].match.name.empty()) {
            throw UsageError(name +
                             " takes no parameter of this model (the first group that matches "
                             "takes it): remove the group, or correct its match or its place");
        }
        groups_.emplace_back(config.groups[i], blocks[i], config.weight_decay, name);
        require_known_layers(config.groups[i].step, blocks[i], name);
        groups_.back().keep(owned);
        groups_.back().cut(!sampling_.all());
    }
}

void Optimizer::take_states(Arena& arena, const ParameterList& parameters, DType master) {
    for (OptimizerGroup& group : groups_) {
        for (const StateKind& kind : state_kinds(group.config())) {
            for (GroupPart& part : group.parts) {
                for (const ParameterBlock& block : part.blocks) {
                    const Shape shape = kind.per_row ? Shape{block.shape.rows()} : block.shape;
                    const Tensor state = arena.take("optimizer state", master, shape);
                    part.states[static_cast<size_t>(kind.slot)].push_back(state);
                    int64_t offset = 0;
                    for (int i = block.first; i < block.first + block.count; ++i) {
                        const Parameter& p = parameters[i];
                        const Shape own = kind.per_row ? Shape{p.shape.rows()} : p.shape;
                        const Tensor view =
                            state.empty() ? Tensor{nullptr, master, own} : state.slice(offset, own);
                        states_.push_back({p.name + "." + kind.name, view});
                        offset += own.count();
                    }
                }
            }
        }
        if (group.config().momentum.type != MomentumType::gradient) continue;
        for (const GroupPart& part : group.parts) {
            for (const ParameterBlock& block : part.blocks) {
                for (int i = block.first; i < block.first + block.count; ++i) {
                    kept_.push_back(i);
                    states_.push_back({parameters[i].name + ".momentum",
                                       {nullptr, master, parameters[i].shape},
                                       true});
                }
            }
        }
    }
}

// Copies of gradients, for one part at a time.
void Optimizer::take_scratch(Arena& arena, DType master) {
    int64_t elements = 0;
    for (const OptimizerGroup& group : groups_) {
        elements = std::max(elements, group.scratch_elements());
    }
    if (elements == 0) return;
    const Tensor scratch = arena.take("optimizer scratch", master, {elements});
    for (OptimizerGroup& group : groups_) {
        if (!group.needs_scratch()) continue;
        for (GroupPart& part : group.parts) {
            int64_t offset = 0;
            for (const ParameterBlock& block : part.blocks) {
                part.scratch.push_back(scratch.empty() ? Tensor{nullptr, master, block.shape}
                                                       : scratch.slice(offset, block.shape));
                offset += block.shape.count();
            }
        }
    }
}

void Optimizer::take_scalars(Arena& arena, const ParameterList& parameters) {
    const int64_t steps = sampling_.all() ? 1 : sampling_.layers() + 1;
    int64_t most = 0;  // blocks of a part with scalars of their own
    for (const OptimizerGroup& group : groups_) {
        if (group.config().step.is_plain() && !group.varies()) continue;
        for (const GroupPart& part : group.parts) {
            most = std::max(most, static_cast<int64_t>(part.blocks.size()));
        }
    }
    scalars_ = arena.take("optimizer state", DType::f64, {2 + steps + 4 * most});
    norms_ = arena.take("optimizer state", DType::f64, {parameters.size() + 1});
    sums_ = {nullptr, DType::f64, {parameters.size()}};
    if (scalars_.empty()) return;
    sums_ = norms_.slice(0, sums_.shape);
    gradient_norm_ = norms_.slice(parameters.size(), {1});
    group_scalars_.rate = scalars_.slice(0, {1});
    group_scalars_.clip_factor = scalars_.slice(1 + steps, {1});
    if (most > 0) {
        group_scalars_.dot = scalars_.slice(2 + steps, {most});
        group_scalars_.size = scalars_.slice(2 + steps + most, {most});
        group_scalars_.range = scalars_.slice(2 + steps + 2 * most, {2 * most});
    }
    for (OptimizerGroup& group : groups_) {
        for (GroupPart& part : group.parts) {
            const int layer = part.blocks[0].layer;
            const int64_t at = sampling_.all() || layer < 0 ? steps - 1 : layer;
            part.step = scalars_.slice(1 + at, {1});
        }
    }
}

size_t Optimizer::workspace_bytes(const ParameterList& parameters, DType master) const {
    std::vector<Tensor> gradients;
    for (const Parameter& p : parameters) gradients.push_back({nullptr, master, p.shape});
    size_t bytes = backend_.workspace_bytes(SumOfSquares{gradients, sums_, {}});
    for (const OptimizerGroup& group : groups_) {
        bytes = std::max(bytes, group.workspace_bytes(backend_, master));
    }
    return bytes;
}

void Optimizer::copy_weights(const Tensor& to, const ParameterBlock& block,
                             const ParameterBuffer& weights,
                             const ParameterBuffer& remainders) const {
    const Tensor from = weights[block];
    if (remainders.flat.empty()) return backend_.copy(to, from);
    const Tensor low = remainders[block];
    backend_.join_weights({{&from, 1}, {&low, 1}, {&to, 1}});
}

void Optimizer::initialise(const ParameterBuffer& weights, const ParameterBuffer& remainders) {
    for (const StateTensor& state : states_) backend_.zero(state.tensor);
    for (const OptimizerGroup& group : groups_) {
        for (const GroupPart& part : group.parts) {
            const std::vector<Tensor>& starts = part.state(StateSlot::start);
            for (size_t i = 0; i < starts.size(); ++i) {
                copy_weights(starts[i], part.blocks[i], weights, remainders);
            }
        }
    }
}

void Optimizer::start_momentum_from(const ParameterBuffer& weights, double rate,
                                    const ParameterBuffer& remainders) {
    for (const OptimizerGroup& group : groups_) {
        if (!is_sum_momentum(group.config().momentum.type)) continue;
        for (const GroupPart& part : group.parts) {
            for (size_t i = 0; i < part.blocks.size(); ++i) {
                const Tensor& to = part.state(StateSlot::first)[i];
                copy_weights(to, part.blocks[i], weights, remainders);
                const double factor = 1.0 - rate * group.config().lr_scale * part.decay[i];
                if (to.dtype == DType::f64) {
                    scale<double>(backend_, to, factor);
                } else {
                    scale<float>(backend_, to, factor);
                }
            }
        }
    }
}

void Optimizer::bind_gradients(const ParameterBuffer& gradients) {
    assert((gradients_.empty() || gradients.flat.data == gradients_.data) &&
           "the gradient buffer changed");
    if (!gradients_.empty()) return;
    gradients_ = gradients.flat;
    const ParameterList& list = *gradients.list;
    for (int i = 0; i < list.size(); ++i) {
        gradient_views_.push_back(gradients[i]);
        const bool kept = std::find(kept_.begin(), kept_.end(), i) != kept_.end();
        if (!kept) {
            cleared_.push_back(gradients[i]);
            continue;
        }
        for (StateTensor& state : states_) {
            if (state.name == list[i].name + ".momentum") state.tensor = gradients[i];
        }
    }
    for (OptimizerGroup& group : groups_) {
        for (GroupPart& part : group.parts) {
            for (const ParameterBlock& block : part.blocks) {
                part.gradients.push_back(gradients[block]);
            }
        }
    }
}

void Optimizer::clear(const ParameterBuffer& gradients) {
    bind_gradients(gradients);
    if (kept_.empty()) return backend_.zero(gradients.flat);
    for (const Tensor& gradient : cleared_) backend_.zero(gradient);
}

void Optimizer::bind_weights(const ParameterBuffer& weights, const ParameterBuffer& copies,
                             const ParameterBuffer& remainders) {
    assert((weights.flat.dtype != DType::bf16) == remainders.flat.empty());
    assert((weights_.empty() ||
            (weights.flat.data == weights_.data && copies.flat.data == copies_.data)) &&
           "the weight buffers changed");
    if (!weights_.empty()) return;
    weights_ = weights.flat;
    copies_ = copies.flat;
    for (OptimizerGroup& group : groups_) {
        for (GroupPart& part : group.parts) {
            for (const ParameterBlock& block : part.blocks) {
                part.weights.push_back(weights[block]);
                if (!copies.flat.empty()) part.copies.push_back(copies[block]);
                if (!remainders.flat.empty()) part.remainders.push_back(remainders[block]);
            }
        }
    }
}

double Optimizer::gradient_norm(const ParameterBuffer& gradients,
                                const std::function<void(std::vector<double>&)>& complete) {
    bind_gradients(gradients);
    backend_.sum_of_squares({gradient_views_, sums_, arena_.workspace()});
    if (complete) {
        std::vector<double> sums(static_cast<size_t>(sums_.count()));
        backend_.copy_out(sums.data(), sums_);
        complete(sums);
        backend_.copy_in(sums_, sums.data());
    }
    backend_.clip_factor({sums_, gradient_norm_, group_scalars_.clip_factor, clip_norm_});
    gradient_norms_.resize(static_cast<size_t>(norms_.count()));
    backend_.copy_out(gradient_norms_.data(), norms_);
    const double norm = gradient_norms_.back();
    gradient_norms_.pop_back();
    for (double& each : gradient_norms_) each = std::sqrt(each);
    return norm;
}

void Optimizer::set_scalars(double rate, int64_t updates_done) {
    std::vector<double> values = {rate};
    if (sampling_.all()) {
        values.push_back(static_cast<double>(updates_done));
    } else {
        if (counts_.empty() || updates_done != updates_done_ + 1) {
            counts_ = sampling_.counts(updates_done);
        } else {
            for (int layer = 0; layer < sampling_.layers(); ++layer) {
                counts_[static_cast<size_t>(layer)] += sampling_.chosen(updates_done_, layer);
            }
            counts_.back() = updates_done;
        }
        values.insert(values.end(), counts_.begin(), counts_.end());
    }
    updates_done_ = updates_done;
    backend_.copy_in(scalars_.slice(0, {static_cast<int64_t>(values.size())}), values.data());
}

bool Optimizer::repeats() const {
    return sampling_.all() && std::none_of(groups_.begin(), groups_.end(),
                                           [](const auto& group) { return group.varies(); });
}

void Optimizer::step(const ParameterBuffer& weights, const ParameterBuffer& copies,
                     const ParameterBuffer& gradients, const ParameterBuffer& remainders) {
    bind_gradients(gradients);
    bind_weights(weights, copies, remainders);
    for (const OptimizerGroup& group : groups_) {
        for (const GroupPart& part : group.parts) {
            const int layer = part.blocks[0].layer;
            if (!sampling_.chosen(updates_done_, layer)) continue;
            const int64_t own = sampling_.all() ? updates_done_
                                : layer < 0     ? counts_.back()
                                                : counts_[static_cast<size_t>(layer)];
            group.run(backend_, part, group_scalars_, arena_.workspace(), own);
        }
    }
}

std::unique_ptr<Norm> matrix_norm(const OptimizerConfig& config, const ParameterList& parameters) {
    const auto matrix = std::find_if(parameters.begin(), parameters.end(),
                                     [](const Parameter& p) { return p.role == Role::matrix; });
    assert(matrix != parameters.end() && "a model without a matrix");
    return make_norm(config.groups[group_of(config, *matrix)].norm);
}

std::vector<BlockNorm> block_norms(const OptimizerConfig& config, const ParameterList& parameters) {
    std::vector<BlockNorm> norms;
    for (const ParameterBlock& block : parameters.blocks(config.fuse_qkv)) {
        const GroupConfig& group = config.groups[group_of(config, parameters, block)];
        // Not times Norm::scale(): primal() and dual() have it in them.
        norms.push_back({block, make_norm(group.norm), group.radius.value(block.shape)});
    }
    return norms;
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

DirectionFlops direction_flops(const Backend& backend, const OptimizerConfig& config,
                               const ParameterList& parameters) {
    DirectionFlops sum;
    for (const ParameterBlock& block : parameters.blocks(config.fuse_qkv)) {
        const auto norm = make_norm(config.groups[group_of(config, parameters, block)].norm);
        sum.plain += norm->flops(block.shape);
        sum.executed += norm->executed_flops(backend, block.shape);
    }
    return sum;
}

std::vector<int> update_sets(const OptimizerConfig& config, const ParameterList& parameters) {
    const bool by_layer = config.sampling.type != LayerSamplingType::all;
    const auto same_set = [&](const ParameterBlock& a, const ParameterBlock& b) {
        const size_t group = group_of(config, parameters, a);
        return config.groups[group].step.together && group == group_of(config, parameters, b) &&
               a.shape == b.shape && (!by_layer || a.layer == b.layer);
    };
    const std::vector<ParameterBlock> blocks = parameters.blocks(config.fuse_qkv);
    std::vector<int> sets;
    int count = 0;
    for (size_t i = 0; i < blocks.size(); ++i) {
        size_t first = 0;
        while (first < i && !same_set(blocks[first], blocks[i])) ++first;
        sets.push_back(first < i ? sets[first] : count++);
    }
    return sets;
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
