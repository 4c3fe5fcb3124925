// The two forms of symmetric_gemm_hopper, which takes one by the size of the matrices. The same
// results in other times; compute capability 9.0 alone.
#pragma once

#include "llmc/cuda/symmetric.h"

namespace lmo::cuda {

// Tiles [128, 128] by one warpgroup each: little is computed that is not wanted, and results are
// stored while the next tile is multiplied.
void symmetric_gemm_narrow(const SymmetricGemm& op, cudaStream_t stream);

// Tiles [128, 256] by two warpgroups together: less traffic in shared memory a product.
void symmetric_gemm_wide(const SymmetricGemm& op, cudaStream_t stream);

}  // namespace lmo::cuda
