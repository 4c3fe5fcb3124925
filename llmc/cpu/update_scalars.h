// What the elements of a tensor share in an update, from the scalars of its operations.
#pragma once

#include "llmc/cpu/kernels.h"
#include "llmc/device/backend.h"

namespace lmo::cpu {

// Whether this is the first update of a momentum that starts with its gradient: it counts as zero
// then, by other weights.
bool starts(const Momentum& op);

// All but types and pointers.
MomentumRange scalars_of(const Momentum& op);
AdamRange scalars_of(const Adam& op);
// Of tensor number `index`: all but pointers.
ApplyRange scalars_of(const Apply& op, size_t index);

}  // namespace lmo::cpu
