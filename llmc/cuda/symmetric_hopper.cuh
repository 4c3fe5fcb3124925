// What the symmetric products of Hopper share: their numbers, the ring of stages, and results in
// shared memory on their way from accumulators to D and to its mirror image.
#pragma once

#include <algorithm>

#include "llmc/cuda/hopper.cuh"
#include "llmc/cuda/symmetric.cuh"
#include "llmc/cuda/symmetric.h"

namespace lmo::cuda {

constexpr int kSide = 128, kDepth = kTileColumns;  // of a result; columns of A and B in a stage
constexpr int kGroup = 128, kConsumers = 2;  // threads of a warpgroup; warpgroups that multiply
constexpr int kThreads = kGroup * (1 + kConsumers);
constexpr int kHalf = kSide / 2;                  // rows of one wgmma
constexpr int kTileBytes = kSide * kDepth * 2;    // of [128, 64]
constexpr int kResultBytes = 2 * kTileBytes;      // [128, 128]: two tiles, the left one first
constexpr int kBlocks = kSide / 16;               // of 16 columns in a result
constexpr uint64_t kNextHalf = kHalf * 128 >> 4;  // descriptors: from the first 64 rows on

struct SymmetricArguments {
    int steps, tiles;  // of 64 columns of A and B; of the batch
    int per_matrix;    // tiles
    int rows;          // of tiles in a matrix
    float alpha, beta, diagonal;
};

struct SymmetricMaps {
    TensorMap a, b, c, d;
};

// A place in the ring of stages, and the parity of their phase there.
template <int Stages>
struct Ring {
    int stage = 0, parity = 0;

    __device__ void advance(int steps) {
        const int next = stage + steps;
        parity ^= next / Stages & 1;
        stage = next % Stages;
    }
};

// The stages in shared memory, which one thread fills and two warpgroups read: A's tile and behind
// it B's in each. `full` tells that a stage's loads have arrived, `empty` that it has been read.
template <int Count, int Bytes>
struct Stages {
    unsigned char* memory;
    uint64_t *full, *empty;

    // Loads the steps of a tile: A's rows from `row` and B's from `column` on.
    __device__ __forceinline__ void load(Ring<Count>& ring, const SymmetricMaps& maps, int steps,
                                         int matrix, int row, int column) const {
        for (int step = 0; step < steps; ++step) {
            uint64_t* const arrived = &full[ring.stage];
            unsigned char* const to = memory + ring.stage * Bytes;
            barrier_wait(&empty[ring.stage], ring.parity ^ 1);
            barrier_arrive_expect(arrived, Bytes);
            tma_load(to, &maps.a, step * kDepth, row, matrix, arrived);
            tma_load(to + kTileBytes, &maps.b, step * kDepth, column, matrix, arrived);
            ring.advance(1);
        }
    }

    // Calls start(descriptor of A's tile, of B's, step), which issues wgmmas, for each step, and
    // frees the stage of the step before. The last stage is returned: its products are under way.
    template <typename Start>
    __device__ __forceinline__ int multiply(Ring<Count>& ring, int steps, Start start) const {
        int before = 0;
        for (int step = 0; step < steps; ++step) {
            barrier_wait(&full[ring.stage], ring.parity);
            const unsigned char* const from = memory + ring.stage * Bytes;
            const uint64_t a = k_major(from), b = k_major(from + kTileBytes);
            wgmma_fence();
            start(a, b, step);
            wgmma_commit();
            wgmma_wait<1>();
            if (step > 0 && threadIdx.x % kGroup == 0) barrier_arrive(&empty[before]);
            before = ring.stage;
            ring.advance(1);
        }
        return before;
    }
};

// ---- strips -------------------------------------------------------------------------------------
// A warp holds strips of results: 16 rows of [128, 128], as 8 blocks of 16 columns. A block is four
// 8 x 8 matrices of ldmatrix and stmatrix: rows 0.. and 8.. of columns 0.., then of columns 8..
// Element e of matrix i belongs to the strip's sum 8 block + 2 i + e.

using StripSums = float[kSide / 2];
using Packed = uint32_t[kBlocks][4];

struct Strip {
    unsigned char* result;
    int number;  // of 8 in the result

    // Where this lane's row of a block lies, and that of its mirror image, transposed. Swizzled
    // places of one row differ in a few bits alone.
    __device__ __forceinline__ unsigned char* row(int block) const {
        const int lane = threadIdx.x % 32;
        const int first = 2 * swizzled(lane % 16, lane / 16 * 8);
        return result + (first ^ block % 4 * 32) + (block / 4 * kTileBytes + number * 16 * 128);
    }
    __device__ __forceinline__ unsigned char* mirrored_row(int block) const {
        const int lane = threadIdx.x % 32;
        const int first =
            2 * swizzled(lane % 8 + lane / 16 * 8, number % 4 * 16 + lane / 8 % 2 * 8);
        return result + first + (number / 4 * kTileBytes + block * 16 * 128);
    }
};

// Two neighbours of the result, rounded, from their sums and C.
template <typename T>
__device__ __forceinline__ uint32_t finished_pair(const SymmetricArguments& p, float sum0,
                                                  float sum1, uint32_t c, bool diagonal0,
                                                  bool diagonal1) {
    Vector<T, 2> old;
    memcpy(&old, &c, sizeof old);
    float x0 = fmaf(p.beta, to_float(old[0]), p.alpha * sum0);
    float x1 = fmaf(p.beta, to_float(old[1]), p.alpha * sum1);
    if (diagonal0) x0 += p.diagonal;
    if (diagonal1) x1 += p.diagonal;
    return pack_pair<T>(x0, x1);
}

// alpha sums + beta C + diagonal, rounded, in place of C; `packed` keeps it.
template <typename T>
__device__ __forceinline__ void finish(Packed& packed, const Strip& strip,
                                       const SymmetricArguments& p, const StripSums& sums,
                                       bool on_diagonal) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        unsigned char* const row = strip.row(block);
        const bool diagonal = on_diagonal && block == strip.number;
        uint32_t c[4] = {};
        if (p.beta != 0) ldmatrix_x4(c, row);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            // How far the pair's first column lies to the right of its row, in the block.
            const int right = 8 * (i / 2) + lane % 4 * 2 - (8 * (i % 2) + lane / 4);
            packed[block][i] =
                finished_pair<T>(p, sums[8 * block + 2 * i], sums[8 * block + 2 * i + 1], c[i],
                                 diagonal && right == 0, diagonal && right == -1);
        }
        stmatrix_x4(row, packed[block]);
    }
}

// In a result on the diagonal, what lies below it replaces what lies above it: first in `packed`.
// All of the result has to be there, what lies above or in the blocks of the diagonal may change
// afterwards.
__device__ __forceinline__ void read_mirrored(Packed& packed, const Strip& strip) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        if (block < strip.number) continue;
        uint32_t mirrored[4];
        ldmatrix_x4_transposed(mirrored, strip.mirrored_row(block));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            const int right =
                16 * (block - strip.number) + 8 * (i / 2) + lane % 4 * 2 - (8 * (i % 2) + lane / 4);
            const uint32_t keep = right > 0 ? 0 : right == 0 ? 0xffffu : 0xffffffffu;
            packed[block][i] = (packed[block][i] & keep) | (mirrored[i] & ~keep);
        }
    }
    __syncwarp();  // the block on the diagonal has been read
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        if (block >= strip.number) stmatrix_x4(strip.row(block), packed[block]);
    }
}

__device__ __forceinline__ void write_mirrored(const Packed& packed, const Strip& strip) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
        stmatrix_x4_transposed(strip.mirrored_row(block), packed[block]);
    }
}

// ---- results and TMA, by one thread -------------------------------------------------------------

__device__ __forceinline__ void load_result(unsigned char* result, const TensorMap* c_map,
                                            int matrix, int row, int column, uint64_t* barrier) {
    for (int side = 0; side < 2; ++side) {
        tma_load(result + side * kTileBytes, c_map, column + side * kDepth, row, matrix, barrier);
    }
}

__device__ __forceinline__ void store_result(const TensorMap* d_map, int matrix, int row,
                                             int column, const unsigned char* result) {
    for (int side = 0; side < 2; ++side) {
        tma_store(d_map, column + side * kDepth, row, matrix, result + side * kTileBytes);
    }
}

// ---- launches -----------------------------------------------------------------------------------

template <typename T>
SymmetricMaps symmetric_maps(const SymmetricGemm& op, int b_rows) {
    const auto map = [&](const void* data, int64_t columns, int box_rows) {
        return make_tensor_map(static_cast<const T*>(data), op.batch, op.n, columns, op.n * columns,
                               columns, box_rows);
    };
    const TensorMap d = map(op.d, op.n, kSide);
    return {map(op.a, op.k, kSide), map(op.b, op.k, b_rows),
            op.beta == 0 ? d : map(op.c, op.n, kSide), d};
}

// A block for each multiprocessor, where there are tiles enough.
inline int symmetric_blocks(int tiles) {
    int device = 0, multiprocessors = 0;
    check(cudaGetDevice(&device), "asking for the device");
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
          "asking for multiprocessors");
    return std::min(tiles, multiprocessors);
}

inline SymmetricArguments symmetric_arguments(const SymmetricGemm& op, int64_t per_matrix) {
    const int64_t tiles = per_matrix * op.batch;
    assert(tiles <= INT32_MAX / 2);  // tiles after the last one have numbers, too
    return {static_cast<int>(div_up<int64_t>(op.k, kDepth)),
            static_cast<int>(tiles),
            static_cast<int>(per_matrix),
            static_cast<int>(div_up<int64_t>(op.n, kSide)),
            op.alpha,
            op.beta,
            op.diagonal};
}

}  // namespace lmo::cuda
