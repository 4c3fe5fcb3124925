// Blocks (matrices as norms see them) are assigned to groups once; a step runs every group over its
// parts. Views and coefficients live as long as the optimizer, because captured operations keep
// spans of them.
#include "llmc/optim/optimizer.h"

#include <algorithm>
#include <cmath>

#include "llmc/core/error.h"
#include "llmc/optim/block_groups.h"

namespace lmo {

namespace {

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

// visit(parameter, its elements in the block) of each parameter of a block.
template <typename Visit>
void for_parameters(const ParameterList& parameters, const ParameterBlock& block, Visit visit) {
    int64_t begin = 0;
    for (int i = block.first; i < block.first + block.count; ++i) {
        const int64_t count = parameters[i].shape.count();
        visit(i, Slice{begin, count});
        begin += count;
    }
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
        groups_.back().cut(!sampling_.all(), owned);
    }
    own_.resize(static_cast<size_t>(parameters.size()));
    for (const OptimizerGroup& group : groups_) {
        for (const GroupPart& part : group.parts) {
            for (size_t b = 0; b < part.blocks.size(); ++b) {
                for_parameters(parameters, part.blocks[b], [&](int i, const Slice& place) {
                    own_[static_cast<size_t>(i)] = part.slices[b].within(place);
                });
            }
        }
    }
}

// The state of a block by its parameters, as checkpoints have it.
void Optimizer::take_block_states(const ParameterList& parameters, const GroupPart& part,
                                  size_t block, const StateKind& kind, const Tensor& state) {
    int64_t offset = 0;
    for_parameters(parameters, part.blocks[block], [&](int i, const Slice& place) {
        const Shape whole = kind.per_row ? Shape{parameters[i].shape.rows()} : parameters[i].shape;
        const Slice own =
            kind.per_row ? Slice{0, whole.count()} : part.slices[block].within(place);
        if (own.count == 0) return;
        const Shape shape = shape_of(whole, own);
        const Tensor view =
            state.empty() ? Tensor{nullptr, state.dtype, shape} : state.slice(offset, shape);
        states_.push_back({parameters[i].name + "." + kind.name, view, false, Spread::owner, whole,
                           own.begin});
        offset += own.count;
    });
}

void Optimizer::take_states(Arena& arena, const ParameterList& parameters, DType master) {
    for (OptimizerGroup& group : groups_) {
        for (const StateKind& kind : state_kinds(group.config())) {
            for (GroupPart& part : group.parts) {
                for (size_t b = 0; b < part.blocks.size(); ++b) {
                    assert(!kind.per_row || part.slices[b].is_all(part.blocks[b].shape));
                    const Shape shape =
                        kind.per_row ? Shape{part.blocks[b].shape.rows()} : part.shapes[b];
                    const Tensor state = arena.take("optimizer state", master, shape);
                    part.states[static_cast<size_t>(kind.slot)].push_back(state);
                    take_block_states(parameters, part, b, kind, state);
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
            for (const Shape& shape : part.shapes) {
                part.scratch.push_back(scratch.empty() ? Tensor{nullptr, master, shape}
                                                       : scratch.slice(offset, shape));
                offset += shape.count();
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

void Optimizer::copy_weights(const std::vector<Tensor>& to, const GroupPart& part,
                             const ParameterBuffer& weights,
                             const ParameterBuffer& remainders) const {
    const std::vector<Tensor> from = part.views(weights);
    if (!remainders.flat.empty()) {
        const std::vector<Tensor> low = part.views(remainders);
        return backend_.join_weights({from, low, to});
    }
    for (size_t i = 0; i < to.size(); ++i) backend_.copy(to[i], from[i]);
}

void Optimizer::initialise(const ParameterBuffer& weights, const ParameterBuffer& remainders) {
    for (const StateTensor& state : states_) backend_.zero(state.tensor);
    for (const OptimizerGroup& group : groups_) {
        for (const GroupPart& part : group.parts) {
            const std::vector<Tensor>& starts = part.state(StateSlot::start);
            if (!starts.empty()) copy_weights(starts, part, weights, remainders);
        }
    }
}

void Optimizer::start_momentum_from(const ParameterBuffer& weights, double rate,
                                    const ParameterBuffer& remainders) {
    for (const OptimizerGroup& group : groups_) {
        if (!is_sum_momentum(group.config().momentum.type)) continue;
        for (const GroupPart& part : group.parts) {
            copy_weights(part.state(StateSlot::first), part, weights, remainders);
            for (size_t i = 0; i < part.blocks.size(); ++i) {
                const Tensor& to = part.state(StateSlot::first)[i];
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
        const Slice& own = own_[static_cast<size_t>(i)];
        if (own.count > 0) {
            gradient_views_.push_back(slice_of(gradients, i, own));
            viewed_.push_back(i);
        }
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
        for (GroupPart& part : group.parts) part.gradients = part.views(gradients);
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
            part.weights = part.views(weights);
            if (!copies.flat.empty()) part.copies = part.views(copies);
            if (!remainders.flat.empty()) part.remainders = part.views(remainders);
        }
    }
}

// Sums of squares of all parameters, in sums_.
void Optimizer::add_squares(const std::function<void(std::vector<double>&)>& complete) {
    const size_t own = viewed_.size(), all = static_cast<size_t>(sums_.count());
    const Tensor here = sums_.slice(0, {static_cast<int64_t>(own)});
    if (own > 0) backend_.sum_of_squares({gradient_views_, here, arena_.workspace()});
    if (own == all && !complete) return;
    std::vector<double> values(own), sums(all, 0.0);
    if (own > 0) backend_.copy_out(values.data(), here);
    for (size_t i = 0; i < own; ++i) sums[static_cast<size_t>(viewed_[i])] = values[i];
    if (complete) complete(sums);
    backend_.copy_in(sums_, sums.data());
}

double Optimizer::gradient_norm(const ParameterBuffer& gradients,
                                const std::function<void(std::vector<double>&)>& complete) {
    bind_gradients(gradients);
    add_squares(complete);
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

}  // namespace lmo
