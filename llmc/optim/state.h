// What the stages of an optimizer keep between updates, as checkpoints see it.
#pragma once

#include <string>

#include "llmc/core/tensor.h"

namespace lmo {

// Whose values a state holds where there are several ranks.
enum class Spread {
    owner,  // the rank that owns the parameter has it
    alike,  // every rank has the same
    each,   // every rank has its own; on another number of ranks each gets their mean
    share,  // every rank has a part of a sum; another number of ranks shares the sum out
};

struct StateTensor {
    std::string name;  // "NAME.STATE"
    Tensor tensor;
    bool in_gradients = false;  // no memory of its own
    Spread spread = Spread::owner;
};

}  // namespace lmo
