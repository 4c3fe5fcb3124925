// Products whose result is symmetric, by kernels of our own: tiles on and below the diagonal are
// computed, half of the work of a plain product, and each is stored twice, as it is and mirrored,
// so that D equals its transpose bit by bit.
//
// Newton-Schulz iterations consist of such products: X X^T, and polynomials of that one matrix,
// which commute, so that their products are symmetric, too.
#pragma once

#include <cstdint>

#include "llmc/core/dtype.h"
#include "llmc/cuda/stream.h"

namespace lmo::cuda {

// For each matrix of the batch: D = alpha A B^T + beta C + diagonal I, of which the part on and
// below the diagonal is computed. A, B [batch, n, k], C, D [batch, n, n], dense, row-major and of
// one 16-bit type (f16 or bf16), at multiples of 16 bytes; sums in fp32, in an order that depends
// on the shape alone. n and k are positive multiples of 8. C is not read where beta is 0; it may be
// D, but neither A nor B may.
struct SymmetricGemm {
    DType type = DType::f16;
    int64_t n = 0, k = 0, batch = 1;
    const void* a = nullptr;
    const void* b = nullptr;
    const void* c = nullptr;
    void* d = nullptr;
    float alpha = 1.0f, beta = 0.0f, diagonal = 0.0f;
};

// With mma.sync and cp.async: any device of compute capability 8.0 or more.
void symmetric_gemm_mma(const SymmetricGemm& op, Stream stream);

// With wgmma, TMA and specialised warps: compute capability 9.0 alone. Two forms with the same
// results in other times:
// tiles [128, 128] by one warpgroup each: little is computed that is not wanted, and results are
// stored while the next tile is multiplied;
void symmetric_gemm_narrow(const SymmetricGemm& op, Stream stream);
// tiles [128, 256] by two warpgroups together: less traffic in shared memory a product.
void symmetric_gemm_wide(const SymmetricGemm& op, Stream stream);

}  // namespace lmo::cuda
