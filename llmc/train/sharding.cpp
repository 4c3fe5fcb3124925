#include "llmc/train/sharding.h"

#include <algorithm>
#include <cstdio>

namespace lmo {

Sharding::Sharding(const OptimizerConfig& config, const ParameterList& parameters, int ranks)
    : owners(static_cast<size_t>(parameters.size()), 0), shares(static_cast<size_t>(ranks)) {
    const std::vector<ParameterBlock> blocks = parameters.blocks(config.fuse_qkv);
    const std::vector<double> costs = update_costs(config, parameters);
    const std::vector<int> sets = update_sets(config, parameters);
    std::vector<double> set_costs;
    double sum = 0.0;
    for (size_t i = 0; i < blocks.size(); ++i) {
        set_costs.resize(std::max(set_costs.size(), static_cast<size_t>(sets[i]) + 1), 0.0);
        set_costs[static_cast<size_t>(sets[i])] += costs[i];
        sum += costs[i];
    }
    const std::vector<int> owner = deal(set_costs, ranks);
    for (size_t i = 0; i < blocks.size(); ++i) {
        const ParameterBlock& block = blocks[i];
        const int rank = owner[static_cast<size_t>(sets[i])];
        for (int p = block.first; p < block.first + block.count; ++p) {
            owners[static_cast<size_t>(p)] = rank;
        }
        const int64_t elements = block.shape.count();
        pieces.push_back({rank, parameters.offset(block.first), elements});
        Share& share = shares[static_cast<size_t>(rank)];
        ++share.blocks;
        share.elements += elements;
        share.cost += costs[i] / sum;
    }
}

OwnedBlocks Sharding::owned_by(int rank) const {
    return [this, rank](const ParameterBlock& block) {
        return owners[static_cast<size_t>(block.first)] == rank;
    };
}

std::string Sharding::describe() const {
    int least = shares[0].blocks, most = 0;
    double busiest = 0.0;
    for (const Share& share : shares) {
        least = std::min(least, share.blocks);
        most = std::max(most, share.blocks);
        busiest = std::max(busiest, share.cost * static_cast<double>(shares.size()));
    }
    char text[96];
    std::snprintf(text, sizeof text, "%d to %d blocks (the busiest rank %.2f of the mean)", least,
                  most, busiest);
    return text;
}

}  // namespace lmo
