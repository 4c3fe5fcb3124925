// Norms of directions before anything is written.
#pragma once

#include <cuda_runtime_api.h>

#include "llmc/device/backend.h"

namespace lmo::cuda {

// sums[i] (fp64) = the sum of squares of what the momentum makes of x[i]; nothing else is written.
// To the bits of SumOfSquares over the result, and `parts` is that operation's workspace.
void sum_directions(const Momentum& op, double* sums, double* parts, cudaStream_t stream);

}  // namespace lmo::cuda
