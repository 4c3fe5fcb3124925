// What follows from the groups of all blocks, without an optimizer.
#include "llmc/optim/block_groups.h"

#include <algorithm>

#include "llmc/core/error.h"
#include "llmc/optim/optimizer.h"

namespace lmo {

std::string describe_group(const OptimizerConfig& config, size_t index) {
    return "optimizer.groups[" + std::to_string(index) + "] (" +
           to_string(config.groups[index].match) + ")";
}

namespace {

// Index of the first group that matches.
size_t group_of(const OptimizerConfig& config, const Parameter& parameter) {
    for (size_t i = 0; i < config.groups.size(); ++i) {
        if (config.groups[i].match.matches(parameter)) return i;
    }
    throw UsageError("optimizer.groups: no group matches the parameter " + parameter.name +
                     " (role " + to_string(parameter.role) +
                     "); add one, for example a last group with {\"match\": {\"role\": \"any\"}}");
}

}  // namespace

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

std::vector<int64_t> update_units(const OptimizerConfig& config, const ParameterList& parameters) {
    std::vector<int64_t> units;
    for (const ParameterBlock& block : parameters.blocks(config.fuse_qkv)) {
        const GroupConfig& group = config.groups[group_of(config, parameters, block)];
        units.push_back(update_unit(group, block.shape));
    }
    return units;
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
