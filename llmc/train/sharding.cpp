#include "llmc/train/sharding.h"

#include <algorithm>

#include "llmc/optim/optimizer.h"

namespace lmo {

Sharding::Sharding(const OptimizerConfig& config, const ParameterList& parameters, int ranks)
    : owners(static_cast<size_t>(parameters.size()), 0) {
    const std::vector<ParameterBlock> blocks = parameters.blocks(config.fuse_qkv);
    const std::vector<double> costs = update_costs(config, parameters);
    const std::vector<int> dealt = deal(costs, ranks);
    std::vector<double> load(static_cast<size_t>(ranks), 0.0);
    std::vector<int> count(load.size(), 0);
    double sum = 0.0;
    for (size_t i = 0; i < blocks.size(); ++i) {
        const ParameterBlock& block = blocks[i];
        for (int p = block.first; p < block.first + block.count; ++p) {
            owners[static_cast<size_t>(p)] = dealt[i];
        }
        pieces.push_back({dealt[i], parameters.offset(block.first), block.shape.count()});
        load[static_cast<size_t>(dealt[i])] += costs[i];
        ++count[static_cast<size_t>(dealt[i])];
        sum += costs[i];
    }
    least = *std::min_element(count.begin(), count.end());
    most = *std::max_element(count.begin(), count.end());
    balance = *std::max_element(load.begin(), load.end()) * ranks / sum;
}

}  // namespace lmo
