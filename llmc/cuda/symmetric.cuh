// What all symmetric products share.
#pragma once

#include "llmc/cuda/common.cuh"
#include "llmc/cuda/symmetric.h"

namespace lmo::cuda {

inline void check_operation([[maybe_unused]] const SymmetricGemm& op) {
    assert(op.type == DType::f16 || op.type == DType::bf16);
    assert(op.n > 0 && op.n % 8 == 0 && op.n <= INT32_MAX);
    assert(op.k > 0 && op.k % 8 == 0 && op.k <= INT32_MAX && op.batch > 0);
    assert(op.beta == 0 || op.c != nullptr);
    assert(rows_aligned<uint16_t>(op.n, op.a, op.b, op.d, op.beta == 0 ? nullptr : op.c));
}

struct TilePosition {
    int row, column;  // of the tile, not of its elements
};

// Number `index` of the tiles on and below the diagonal, counted row by row.
__device__ __forceinline__ TilePosition lower_tile(int index) {
    int row = static_cast<int>((sqrtf(8.0f * index + 1.0f) - 1.0f) * 0.5f);  // or one beside it
    while ((row + 1) * (row + 2) / 2 <= index) ++row;
    while (row * (row + 1) / 2 > index) --row;
    return {row, index - row * (row + 1) / 2};
}

}  // namespace lmo::cuda
