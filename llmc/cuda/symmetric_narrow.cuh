// Symmetric products on Hopper: wgmma and TMA, warps with roles, blocks that stay. The form for
// sides below 2048; symmetric_wide.cuh is the other one (symmetric_choice.cpp).
//
// A block walks over tiles [128, 128] of D, on or below the diagonal, number blockIdx.x,
// blockIdx.x + gridDim.x, ... of the batch. One warpgroup, with few registers, keeps TMA loads of A
// and B under way, 64 columns a stage; two others take the tiles in turn, so that one multiplies
// while the other one finishes its tile: C, which TMA has brought into that warpgroup's own result
// tile, is added in the layout of the accumulators, and the rounded sums are stored by TMA, as they
// are and, by stmatrix's transposition, mirrored. Tiles on the diagonal are stored once, their part
// above it read from the part below. So D equals its transpose bit by bit. What the result tile has
// beyond the matrix TMA leaves out, and what A and B lack is zero.
//
// Shared memory: 5 stages of 32 KB, 2 result tiles of 32 KB, barriers: 224 KB, one block an SM.
// Registers: 168 a thread at the start; 24 for the loads, 240 for the products, 128 of them sums.
//
// Predicted, for 48 matrices of 768 x 768 with k = 768: 21 of 36 tiles, 25.4 of the 43.5 GFLOP of a
// plain product, for which 790 TFLOP/s would need 32 us. 1008 tiles on 132 SMs are 7.6 rounds (95
// %), and a step of 16 columns moves 160 bytes a cycle of shared memory's 128 (80 %): 42 us, 600
// TFLOP/s. Memory: X once and D once, 113 MB (26 us at 4.3 TB/s), and 33 MB more for C where the
// caches do not have it; tiles are read 396 MB from the caches.
#pragma once

#include "llmc/cuda/symmetric_hopper.cuh"

namespace lmo::cuda::narrow {

constexpr int kStages = 5;                   // as the trainer runs it
constexpr int kStageBytes = 2 * kTileBytes;  // A's tile and B's

__host__ __device__ constexpr int barriers(int stages) { return 2 * stages + 3 * kConsumers; }
constexpr size_t shared_bytes(int stages) {
    return stages * kStageBytes + kConsumers * kResultBytes + sizeof(uint64_t) * barriers(stages);
}

template <int Count>
struct Shared {
    Stages<Count, kStageBytes> stages;
    unsigned char* results;
    uint64_t *ready, *free, *begins;  // of result tiles; of the warpgroups that multiply

    __device__ explicit Shared(unsigned char* memory) {
        results = memory + Count * kStageBytes;
        uint64_t* const full = reinterpret_cast<uint64_t*>(results + kConsumers * kResultBytes);
        stages = {memory, full, full + Count};
        ready = full + 2 * Count;
        free = ready + kConsumers;
        begins = free + kConsumers;
    }
};

struct Place {
    int matrix, row, column;  // row, column: of the tile's first element
};

__device__ __forceinline__ Place place_of(const SymmetricArguments& p, int tile) {
    const TilePosition at = lower_tile(tile % p.per_matrix);
    return {tile / p.per_matrix, at.row * kSide, at.column * kSide};
}

// ---- loads, by one thread -----------------------------------------------------------------------

template <int Count>
__device__ __forceinline__ void load_tiles(const SymmetricArguments& p, const Shared<Count>& shared,
                                           const SymmetricMaps& maps) {
    Ring<Count> ring;
    int turn = 0;  // the block's tiles are counted
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x, ++turn) {
        const Place at = place_of(p, tile);
        shared.stages.load(ring, maps, p.steps, at.matrix, at.row, at.column);
        // After the factors: by now the result tile has been free for long.
        const int consumer = turn % kConsumers;
        uint64_t* const ready = &shared.ready[consumer];
        barrier_wait(&shared.free[consumer], (turn / kConsumers + 1) % 2);
        if (p.beta == 0) {
            barrier_arrive(ready);
            continue;
        }
        barrier_arrive_expect(ready, kResultBytes);
        load_result(shared.results + consumer * kResultBytes, &maps.c, at.matrix, at.row, at.column,
                    ready);
    }
}

// ---- products, by a warpgroup -------------------------------------------------------------------

using Sums = StripSums[2];  // of the upper and of the lower half

// The warpgroups begin in turns, each when the other one has started its last product: nobody waits
// for a stage more than one phase ahead, where parities would repeat.
template <typename T, int Count>
__device__ __forceinline__ void multiply(Sums& sums, const Shared<Count>& shared, int steps,
                                         Ring<Count> ring, int consumer, int turn) {
    const bool first_thread = threadIdx.x % kGroup == 0;
    barrier_wait(&shared.begins[consumer], (turn + (consumer == 0)) % 2);
    wgmma_fence(sums[0]);
    wgmma_fence(sums[1]);
    const int last = shared.stages.multiply(ring, steps, [&](uint64_t a, uint64_t b, int step) {
#pragma unroll
        for (int k = 0; k < kDepth / 16; ++k) {
            const bool add = step > 0 || k > 0;
            wgmma<kSide, T>(sums[0], a + k * kNextK, b + k * kNextK, add);
            wgmma<kSide, T>(sums[1], a + kNextHalf + k * kNextK, b + k * kNextK, add);
        }
    });
    if (first_thread) barrier_arrive(&shared.begins[(consumer + 1) % kConsumers]);
    wgmma_wait<0>(sums[0]);
    wgmma_wait<0>(sums[1]);
    if (first_thread) barrier_arrive(&shared.stages.empty[last]);
}

// ---- results ------------------------------------------------------------------------------------

// The result of a warpgroup, two strips a warp.
template <typename T>
__device__ __forceinline__ void store_tile(const SymmetricArguments& p, unsigned char* result,
                                           const Sums& sums, const Place& at,
                                           const TensorMap* d_map) {
    const int warp = threadIdx.x % kGroup / 32, barrier = threadIdx.x / kGroup;
    const bool on_diagonal = at.row == at.column, first_thread = threadIdx.x % kGroup == 0;
    const Strip upper{result, warp}, lower{result, kBlocks / 2 + warp};
    const auto store = [&](int row, int column) {
        fence_async();
        named_barrier_sync(barrier, kGroup);
        if (!first_thread) return;
        store_result(d_map, at.matrix, row, column, result);
        tma_store_commit();
        tma_store_wait_read<0>();
    };
    Packed packed[2];
    finish<T>(packed[0], upper, p, sums[0], on_diagonal);
    finish<T>(packed[1], lower, p, sums[1], on_diagonal);
    if (on_diagonal) {
        named_barrier_sync(barrier, kGroup);
        read_mirrored(packed[0], upper);
        read_mirrored(packed[1], lower);
    }
    store(at.row, at.column);
    if (on_diagonal) return;
    named_barrier_sync(barrier, kGroup);  // it has been read
    write_mirrored(packed[0], upper);
    write_mirrored(packed[1], lower);
    store(at.column, at.row);
}

template <typename T, int Count>
__device__ __forceinline__ void multiply_tiles(const SymmetricArguments& p,
                                               const Shared<Count>& shared,
                                               const SymmetricMaps& maps) {
    const int consumer = threadIdx.x / kGroup - 1, blocks = gridDim.x;
    Ring<Count> ring;
    ring.advance(consumer * p.steps);
    int turn = 0;  // this warpgroup's tiles are counted
    for (int tile = blockIdx.x + consumer * blocks; tile < p.tiles; tile += kConsumers * blocks) {
        const Place at = place_of(p, tile);
        Sums sums;
        multiply<T>(sums, shared, p.steps, ring, consumer, turn);
        ring.advance(kConsumers * p.steps);
        barrier_wait(&shared.ready[consumer], turn % 2);
        ++turn;
        store_tile<T>(p, shared.results + consumer * kResultBytes, sums, at, &maps.d);
        if (threadIdx.x % kGroup == 0) barrier_arrive(&shared.free[consumer]);
    }
}

template <typename T, int Count>
__global__ void __launch_bounds__(kThreads, 1)
    symmetric_narrow_kernel(const __grid_constant__ SymmetricMaps maps,
                            const SymmetricArguments p) {
    LMO_DYNAMIC_SHARED(unsigned char, memory);
    const Shared<Count> shared(memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < barriers(Count); ++i) barrier_init(&shared.stages.full[i], 1);
        fence_barrier_init();
    }
    wait_for_previous();
    __syncthreads();
    if (threadIdx.x < kGroup) {
        decrease_registers<24>();
        if (threadIdx.x == 0) load_tiles(p, shared, maps);
    } else {
        increase_registers<240>();
        multiply_tiles<T>(p, shared, maps);
    }
}

// By Count stages; op.type is that of T.
template <typename T, int Count>
void launch_tiles(const SymmetricGemm& op, Stream stream) {
    const int64_t rows = div_up<int64_t>(op.n, kSide);
    const SymmetricArguments p = symmetric_arguments(op, rows * (rows + 1) / 2);
    allow_shared("symmetric_narrow_kernel", symmetric_narrow_kernel<T, Count>, shared_bytes(Count));
    launch(LMO_KERNEL(symmetric_narrow_kernel<T, Count>), symmetric_blocks(p.tiles), kThreads,
           shared_bytes(Count), stream, symmetric_maps<T>(op, kSide), p);
}

}  // namespace lmo::cuda::narrow
