// Symmetric products on Hopper, the form for sides of 2048 and more: as symmetric_narrow.cuh, but
// two warpgroups multiply one tile [128, 256] together, 64 rows each. A step of 16 columns then
// moves 128 bytes a cycle of shared memory, what it can do, where tiles [128, 128] need 160.
//
// A tile is two results [128, 128]. One below the diagonal is stored as it is and mirrored, one on
// the diagonal once, from its part below, and one above (the right one in every other row of tiles)
// is not stored. The tiles of two rows that have the same columns follow each other, so that they
// share B in the caches.
//
// Shared memory: 3 stages of 48 KB, 2 results of 32 KB, barriers: 208 KB, one block an SM.
// Registers: 168 a thread at the start; 24 for the loads, 240 for the products, 128 of them sums.
//
// Predicted, for one matrix of 4096 x 4096 with k = 4096: 272 tiles, 73.0 of the 137.4 GFLOP of a
// plain product, for which 790 TFLOP/s would need 92 us; 272 tiles on 132 SMs are 2.06 rounds, that
// is 3: 134 us. A batch of 16 is 33 rounds and meets the rate of plain products but for the
// results, which nothing hides: 5 % at k = 4096, 10 % at k = 2048. Memory: X once and D once, 67
// MB.
#pragma once

#include "llmc/cuda/symmetric_hopper.cuh"

namespace lmo::cuda::wide {

constexpr int kStages = 3;                   // as the trainer runs it
constexpr int kStageBytes = 3 * kTileBytes;  // A's tile, and B's of 256 rows
constexpr int kColumns = 2 * kSide;
constexpr int kTogether = kConsumers * kGroup;  // threads that multiply

__host__ __device__ constexpr int barriers(int stages) { return 2 * stages + 2; }
constexpr size_t shared_bytes(int stages) {
    return stages * kStageBytes + 2 * kResultBytes + sizeof(uint64_t) * barriers(stages);
}

template <int Count>
struct Shared {
    Stages<Count, kStageBytes> stages;
    unsigned char* results;
    uint64_t *ready, *free;  // of the results

    __device__ explicit Shared(unsigned char* memory) {
        results = memory + Count * kStageBytes;
        uint64_t* const full = reinterpret_cast<uint64_t*>(results + 2 * kResultBytes);
        stages = {memory, full, full + Count};
        ready = full + 2 * Count;
        free = ready + 1;
    }
};

struct Place {
    int matrix, row, column;  // row, column: of the tile's first element

    // Of its two results: how far the first column lies to the right of the first row. Negative
    // below the diagonal, positive above.
    __device__ int right(int part) const { return column + part * kSide - row; }
};

// Rows of tiles come in pairs, 2 i and 2 i + 1, with i + 1 tiles each; the last one may be alone.
__device__ __forceinline__ Place place_of(const SymmetricArguments& p, int tile) {
    const int matrix = tile / p.per_matrix, index = tile % p.per_matrix;
    const int pairs = p.rows / 2, in_pairs = pairs * (pairs + 1);
    if (index >= in_pairs) return {matrix, (p.rows - 1) * kSide, (index - in_pairs) * kColumns};
    const TilePosition at = lower_tile(index / 2);
    return {matrix, (2 * at.row + index % 2) * kSide, at.column * kColumns};
}

// ---- loads, by one thread -----------------------------------------------------------------------

template <int Count>
__device__ __forceinline__ void load_tiles(const SymmetricArguments& p, const Shared<Count>& shared,
                                           const SymmetricMaps& maps) {
    Ring<Count> ring;
    int turn = 0;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x, ++turn) {
        const Place at = place_of(p, tile);
        shared.stages.load(ring, maps, p.steps, at.matrix, at.row, at.column);
        barrier_wait(shared.free, (turn + 1) % 2);
        if (p.beta == 0) {
            barrier_arrive(shared.ready);
            continue;
        }
        const int parts = at.right(1) > 0 ? 1 : 2;
        barrier_arrive_expect(shared.ready, parts * kResultBytes);
        for (int part = 0; part < parts; ++part) {
            load_result(shared.results + part * kResultBytes, &maps.c, at.matrix, at.row,
                        at.column + part * kSide, shared.ready);
        }
    }
}

// ---- products, by two warpgroups ----------------------------------------------------------------

using Sums = float[kColumns / 2];  // of both results

template <typename T, int Count>
__device__ __forceinline__ void multiply(Sums& sums, const Shared<Count>& shared, int steps,
                                         Ring<Count>& ring) {
    const int consumer = threadIdx.x / kGroup - 1;
    wgmma_fence(sums);
    const int last = shared.stages.multiply(ring, steps, [&](uint64_t a, uint64_t b, int step) {
        const uint64_t own = a + consumer * kNextHalf;
#pragma unroll
        for (int k = 0; k < kDepth / 16; ++k) {
            wgmma<kColumns, T>(sums, own + k * kNextK, b + k * kNextK, step > 0 || k > 0);
        }
    });
    wgmma_wait<0>(sums);
    if (threadIdx.x % kGroup == 0) barrier_arrive(&shared.stages.empty[last]);
}

// ---- results ------------------------------------------------------------------------------------

__device__ __forceinline__ void meet() { named_barrier_sync(1, kTogether); }

// A strip a warp of each result.
template <typename T>
__device__ __forceinline__ void store_tile(const SymmetricArguments& p, unsigned char* results,
                                           const Sums& sums, const Place& at,
                                           const TensorMap* d_map) {
    const int number = threadIdx.x / 32 - kGroup / 32;
    const Strip strips[2] = {{results, number}, {results + kResultBytes, number}};
    Packed packed[2];
#pragma unroll
    for (int part = 0; part < 2; ++part) {
        if (at.right(part) > 0) continue;
        finish<T>(packed[part], strips[part], p,
                  reinterpret_cast<const StripSums&>(sums[part * kSide / 2]), at.right(part) == 0);
    }
    meet();  // all of the results is there
#pragma unroll
    for (int part = 0; part < 2; ++part) {
        if (at.right(part) == 0) read_mirrored(packed[part], strips[part]);
    }
    const auto store = [&](bool mirrored) {
        fence_async();
        meet();
        if (threadIdx.x != kGroup) return;
        for (int part = 0; part < 2; ++part) {
            const int right = at.right(part), column = at.column + part * kSide;
            if (right > 0 || (mirrored && right == 0)) continue;
            store_result(d_map, at.matrix, mirrored ? column : at.row, mirrored ? at.row : column,
                         results + part * kResultBytes);
        }
        tma_store_commit();
        tma_store_wait_read<0>();
    };
    store(false);
    if (at.right(0) == 0) return;  // nothing lies below the diagonal
    meet();                        // results have been read
#pragma unroll
    for (int part = 0; part < 2; ++part) {
        if (at.right(part) < 0) write_mirrored(packed[part], strips[part]);
    }
    store(true);
}

template <typename T, int Count>
__global__ void __launch_bounds__(kThreads, 1)
    symmetric_wide_kernel(const __grid_constant__ SymmetricMaps maps, const SymmetricArguments p) {
    LMO_DYNAMIC_SHARED(unsigned char, memory);
    const Shared<Count> shared(memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < barriers(Count); ++i) {
            const bool of_empty = i / Count == 1;
            barrier_init(&shared.stages.full[i], of_empty ? kConsumers : 1);
        }
        fence_barrier_init();
    }
    wait_for_previous();
    __syncthreads();
    if (threadIdx.x < kGroup) {
        decrease_registers<24>();
        if (threadIdx.x == 0) load_tiles(p, shared, maps);
        return;
    }
    increase_registers<240>();
    Ring<Count> ring;
    int turn = 0;
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x, ++turn) {
        Sums sums;
        multiply<T>(sums, shared, p.steps, ring);
        barrier_wait(shared.ready, turn % 2);
        store_tile<T>(p, shared.results, sums, place_of(p, tile), &maps.d);
        if (threadIdx.x == kGroup) barrier_arrive(shared.free);
    }
}

// By Count stages; op.type is that of T.
template <typename T, int Count>
void launch_tiles(const SymmetricGemm& op, Stream stream) {
    const int64_t rows = div_up<int64_t>(op.n, kSide), pairs = rows / 2;
    const SymmetricArguments p =
        symmetric_arguments(op, pairs * (pairs + 1) + rows % 2 * (pairs + 1));
    allow_shared("symmetric_wide_kernel", symmetric_wide_kernel<T, Count>, shared_bytes(Count));
    launch(LMO_KERNEL(symmetric_wide_kernel<T, Count>), symmetric_blocks(p.tiles), kThreads,
           shared_bytes(Count), stream, symmetric_maps<T>(op, kColumns), p);
}

}  // namespace lmo::cuda::wide
