// Norms of directions before anything is written.
#pragma once

#include "llmc/cuda/stream.h"
#include "llmc/device/backend.h"

namespace lmo::cuda {

// sums[i] (fp64) = the sum of squares of what the momentum makes of x[i]; nothing else is written.
// To the bits of SumOfSquares over the result, and `parts` is that operation's workspace.
void sum_directions(const Momentum& op, double* sums, double* parts, Stream stream);

}  // namespace lmo::cuda
