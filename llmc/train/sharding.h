// Which rank keeps the optimizer state of which tensors and updates them.
#pragma once

#include <string>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/dist/ownership.h"
#include "llmc/optim/optimizer.h"

namespace lmo {

struct Sharding {
    Sharding(const OptimizerConfig& config, const ParameterList& parameters, int ranks);

    std::vector<int> owners;    // of each parameter
    std::vector<Piece> pieces;  // of a flat buffer of all parameters: one for each block

    // Of each rank: how many blocks and elements it owns, and its share of the cost of all updates.
    struct Share {
        int blocks = 0;
        int64_t elements = 0;
        double cost = 0.0;
    };
    std::vector<Share> shares;

    // The blocks of a rank, while this lives.
    OwnedBlocks owned_by(int rank) const;
    // "6 to 8 blocks (the busiest rank 1.02 of the mean)"
    std::string describe() const;
};

}  // namespace lmo
