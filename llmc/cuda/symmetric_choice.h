// Which kernel computes a symmetric product fastest: a stored table, so that equal devices take
// equal kernels and give equal bits.
#pragma once

#include <cstdint>

#include "llmc/cuda/symmetric.h"

namespace lmo::cuda {

// blas: the plain product by cuBLASLt, all of D, symmetric up to rounding; the others as in
// symmetric.h.
enum class SymmetricKernel { blas, mma, narrow, wide };

// For D [n, n] of this type on a device of compute capability `capability` (90: 9.0).
SymmetricKernel choose_symmetric_kernel(int capability, DType type, int64_t n);

// Rows of a tile of D that one of those but blas takes for D [n, n].
int64_t symmetric_tile(SymmetricKernel kernel, int64_t n);

// Runs one of those but blas.
void symmetric_gemm(SymmetricKernel kernel, const SymmetricGemm& op, Stream stream);

// Floating-point operations that the kernel does for a batch of products [n, k] [k, n]: our own
// compute whole tiles on and below the diagonal.
double executed_flops(SymmetricKernel kernel, int64_t n, int64_t k, int64_t batch);

}  // namespace lmo::cuda
