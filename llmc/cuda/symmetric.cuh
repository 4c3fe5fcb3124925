// The tiles of a symmetric matrix that symmetric products compute.
#pragma once

#include "llmc/cuda/common.cuh"

namespace lmo::cuda {

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
