// Which group takes a block.
#pragma once

#include <string>

#include "llmc/core/parameter.h"
#include "llmc/optim/config.h"

namespace lmo {

// "optimizer.groups[1] (any role)", for messages.
std::string describe_group(const OptimizerConfig& config, size_t index);

// Index of the group of a block, whose parameters must agree: they share one norm. Throws
// UsageError where they do not, or where no group matches.
size_t group_of(const OptimizerConfig& config, const ParameterList& parameters,
                const ParameterBlock& block);

}  // namespace lmo
