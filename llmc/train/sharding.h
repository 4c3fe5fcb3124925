// Which rank keeps the optimizer state of which tensors and updates them.
#pragma once

#include <string>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/dist/ownership.h"
#include "llmc/optim/config.h"

namespace lmo {

struct Sharding {
    Sharding(const OptimizerConfig& config, const ParameterList& parameters, int ranks);

    std::vector<int> owners;    // of each parameter
    std::vector<Piece> pieces;  // of a flat buffer of all parameters: one for each block
    int least = 0, most = 0;    // blocks of a rank
    double balance = 1.0;       // cost of the busiest rank over the mean
};

}  // namespace lmo
