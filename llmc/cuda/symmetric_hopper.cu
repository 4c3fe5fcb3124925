// Symmetric products on Hopper: wgmma and TMA, warps with roles, blocks that stay.
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
// Registers: 168 a thread at the start; 40 for the loads, 232 for the products, 128 of them sums.
//
// Predicted, for 48 matrices of 768 x 768 with k = 768: 21 of 36 tiles, 25.4 of the 43.5 GFLOP of a
// plain product, for which 790 TFLOP/s would need 32 us. 1008 tiles on 132 SMs are 7.6 rounds (95
// %), and a step of 16 columns moves 160 bytes a cycle of shared memory's 128 (80 %): 42 us, 600
// TFLOP/s. Memory: X once and D once, 113 MB (26 us at 4.3 TB/s), and 33 MB more for C where the
// caches do not have it; tiles are read 396 MB from the caches.
#include "llmc/cuda/symmetric.h"

#include <algorithm>

#include "llmc/cuda/hopper.cuh"
#include "llmc/cuda/symmetric.cuh"

namespace lmo::cuda {

namespace {

constexpr int kSide = 128, kDepth = kTileColumns, kStages = 5;
constexpr int kGroup = 128, kConsumers = 2;  // threads of a warpgroup; warpgroups that multiply
constexpr int kThreads = kGroup * (1 + kConsumers);
constexpr int kHalf = kSide / 2;                // rows of one wgmma
constexpr int kTileBytes = kSide * kDepth * 2;  // of [128, 64]
constexpr int kStageBytes = 2 * kTileBytes;     // A's and B's
constexpr int kResultBytes = 2 * kTileBytes;    // [128, 128]: two tiles, the left one first
constexpr int kBlocks = kSide / 16;             // of 16 rows or columns in a result
constexpr int kBarriers = 2 * kStages + 3 * kConsumers;
constexpr size_t kSharedBytes =
    kStages * kStageBytes + kConsumers * kResultBytes + sizeof(uint64_t) * kBarriers;

struct Arguments {
    int steps, triangle, tiles;  // triangle: tiles of one matrix; tiles: of all
    float alpha, beta, diagonal;
};

struct Shared {
    unsigned char *stages, *results;
    uint64_t *full, *empty;           // of the stages
    uint64_t *ready, *free, *begins;  // of result tiles; of the warpgroups that multiply

    __device__ explicit Shared(unsigned char* memory) {
        stages = memory;
        results = stages + kStages * kStageBytes;
        full = reinterpret_cast<uint64_t*>(results + kConsumers * kResultBytes);
        empty = full + kStages;
        ready = empty + kStages;
        free = ready + kConsumers;
        begins = free + kConsumers;
    }
};

// A place in the ring of stages, and the parity of their phase there.
struct Ring {
    int stage = 0, parity = 0;

    __device__ void advance(int steps) {
        const int next = stage + steps;
        parity ^= next / kStages & 1;
        stage = next % kStages;
    }
};

struct Place {
    int matrix, row, column;  // row, column: of the tile's first element
};

__device__ __forceinline__ Place place_of(const Arguments& p, int tile) {
    const TilePosition at = lower_tile(tile % p.triangle);
    return {tile / p.triangle, at.row * kSide, at.column * kSide};
}

// ---- loads, by one thread -----------------------------------------------------------------------

__device__ __forceinline__ void load_tiles(const Arguments& p, const Shared& shared,
                                           const TensorMap& a_map, const TensorMap& b_map,
                                           const TensorMap& c_map) {
    Ring ring;
    int turn = 0;  // the block's tiles are counted
    for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x, ++turn) {
        const Place at = place_of(p, tile);
        for (int step = 0; step < p.steps; ++step) {
            uint64_t* const full = &shared.full[ring.stage];
            unsigned char* const to = shared.stages + ring.stage * kStageBytes;
            barrier_wait(&shared.empty[ring.stage], ring.parity ^ 1);
            barrier_arrive_expect(full, kStageBytes);
            tma_load(to, &a_map, step * kDepth, at.row, at.matrix, full);
            tma_load(to + kTileBytes, &b_map, step * kDepth, at.column, at.matrix, full);
            ring.advance(1);
        }
        // After the factors: by now the result tile has been free for long.
        const int consumer = turn % kConsumers;
        uint64_t* const ready = &shared.ready[consumer];
        unsigned char* const to = shared.results + consumer * kResultBytes;
        barrier_wait(&shared.free[consumer], (turn / kConsumers + 1) % 2);
        if (p.beta == 0) {
            barrier_arrive(ready);
            continue;
        }
        barrier_arrive_expect(ready, kResultBytes);
        for (int side = 0; side < 2; ++side) {
            tma_load(to + side * kTileBytes, &c_map, at.column + side * kDepth, at.row, at.matrix,
                     ready);
        }
    }
}

// ---- products, by a warpgroup -------------------------------------------------------------------

using Sums = float[2][kSide / 2];  // of the upper and of the lower half

// The warpgroups begin in turns, each when the other one has started its last product: nobody waits
// for a stage more than one phase ahead, where parities would repeat.
template <typename T>
__device__ __forceinline__ void multiply(Sums& sums, const Shared& shared, int steps, Ring ring,
                                         int consumer, int turn) {
    constexpr uint64_t kNextHalf = kHalf * 128 >> 4;
    const bool first_thread = threadIdx.x % kGroup == 0;
    barrier_wait(&shared.begins[consumer], (turn + (consumer == 0)) % 2);
    int before = 0;
    wgmma_fence(sums[0]);
    wgmma_fence(sums[1]);
    for (int step = 0; step < steps; ++step) {
        barrier_wait(&shared.full[ring.stage], ring.parity);
        const unsigned char* const from = shared.stages + ring.stage * kStageBytes;
        const uint64_t a = k_major(from), b = k_major(from + kTileBytes);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < kDepth / 16; ++k) {
            const bool add = step > 0 || k > 0;
            wgmma<kSide, T>(sums[0], a + k * kNextK, b + k * kNextK, add);
            wgmma<kSide, T>(sums[1], a + kNextHalf + k * kNextK, b + k * kNextK, add);
        }
        wgmma_commit();
        wgmma_wait<1>();
        if (step > 0 && first_thread) barrier_arrive(&shared.empty[before]);
        before = ring.stage;
        ring.advance(1);
    }
    if (first_thread) barrier_arrive(&shared.begins[(consumer + 1) % kConsumers]);
    wgmma_wait<0>(sums[0]);
    wgmma_wait<0>(sums[1]);
    if (first_thread) barrier_arrive(&shared.empty[before]);
}

// ---- the result of a warpgroup ------------------------------------------------------------------
// Blocks of 16 x 16 elements are four 8 x 8 matrices of ldmatrix and stmatrix: rows 0.. and 8.. of
// columns 0.., then of columns 8.. Element e of matrix i belongs to sums[half][8 block + 2 i + e].

using Packed = uint32_t[2][kBlocks][4];

class Result {
  public:
    __device__ Result(const Shared& shared, int consumer)
        : tiles_(shared.results + consumer * kResultBytes), barrier_(1 + consumer) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x % kGroup / 32;
        row_ = 2 * swizzled(16 * warp + lane % 16, lane / 16 * 8);
        mirrored_ = 2 * swizzled(lane % 8 + lane / 16 * 8, 16 * warp + lane / 8 % 2 * 8);
    }

    // The row of blocks that a half of this warp's sums lies in.
    __device__ static int block_row(int half) {
        return half * (kHalf / 16) + threadIdx.x % kGroup / 32;
    }
    // Where this lane's row of a block lies, and that of its mirror image, transposed. Swizzled
    // places of one row differ in these bits alone.
    __device__ unsigned char* row(int half, int block) const {
        return tiles_ + (row_ ^ block % 4 * 32) + (block / 4 * kTileBytes + half * kHalf * 128);
    }
    __device__ unsigned char* mirrored_row(int half, int block) const {
        return tiles_ + mirrored_ + (half * kTileBytes + 16 * block * 128);
    }

    __device__ void meet() const { named_barrier_sync(barrier_, kGroup); }

    // To D at this place, from what the warpgroup has written; it may be written anew then.
    __device__ void store(const TensorMap& d_map, int matrix, int row, int column) const {
        fence_async();
        meet();
        if (threadIdx.x % kGroup == 0) {
            for (int side = 0; side < 2; ++side) {
                tma_store(&d_map, column + side * kDepth, row, matrix, tiles_ + side * kTileBytes);
            }
            tma_store_commit();
            tma_store_wait_read<0>();
        }
    }

  private:
    unsigned char* tiles_;
    int barrier_;         // of the warpgroup
    int row_, mirrored_;  // of the first block
};

// Two neighbours of the result, rounded, from their sums and C.
template <typename T>
__device__ __forceinline__ uint32_t finished_pair(const Arguments& p, float sum0, float sum1,
                                                  uint32_t c, bool diagonal0, bool diagonal1) {
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
__device__ __forceinline__ void finish(Packed& packed, const Result& result, const Arguments& p,
                                       const Sums& sums, bool on_diagonal) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int block_row = Result::block_row(half);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            unsigned char* const row = result.row(half, block);
            const bool diagonal = on_diagonal && block == block_row;
            uint32_t c[4] = {};
            if (p.beta != 0) ldmatrix_x4(c, row);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                // How far the pair's first column lies to the right of its row, in the block.
                const int right = 8 * (i / 2) + lane % 4 * 2 - (8 * (i % 2) + lane / 4);
                packed[half][block][i] = finished_pair<T>(
                    p, sums[half][8 * block + 2 * i], sums[half][8 * block + 2 * i + 1], c[i],
                    diagonal && right == 0, diagonal && right == -1);
            }
            stmatrix_x4(row, packed[half][block]);
        }
    }
}

// What lies below the diagonal of the result tile takes the place of what lies above it.
__device__ __forceinline__ void mirror_in_place(Packed& packed, const Result& result) {
    const int lane = threadIdx.x % 32;
    result.meet();  // all of the tile is there
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int block_row = Result::block_row(half);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            if (block < block_row) continue;
            uint32_t mirrored[4];
            ldmatrix_x4_transposed(mirrored, result.mirrored_row(half, block));
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int right = 16 * (block - block_row) + 8 * (i / 2) + lane % 4 * 2 -
                                  (8 * (i % 2) + lane / 4);
                const uint32_t keep = right > 0 ? 0 : right == 0 ? 0xffffu : 0xffffffffu;
                packed[half][block][i] = (packed[half][block][i] & keep) | (mirrored[i] & ~keep);
            }
        }
    }
    __syncwarp();  // blocks on the diagonal have been read
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int block_row = Result::block_row(half);
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            if (block >= block_row) stmatrix_x4(result.row(half, block), packed[half][block]);
        }
    }
}

__device__ __forceinline__ void write_mirrored(const Packed& packed, const Result& result) {
    result.meet();  // the tile has been stored
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int block = 0; block < kBlocks; ++block) {
            stmatrix_x4_transposed(result.mirrored_row(half, block), packed[half][block]);
        }
    }
}

template <typename T>
__device__ __forceinline__ void multiply_tiles(const Arguments& p, const Shared& shared,
                                               const TensorMap& d_map) {
    const int consumer = threadIdx.x / kGroup - 1, blocks = gridDim.x;
    const Result result(shared, consumer);
    Ring ring;
    ring.advance(consumer * p.steps);
    int turn = 0;  // this warpgroup's tiles are counted
    for (int tile = blockIdx.x + consumer * blocks; tile < p.tiles; tile += kConsumers * blocks) {
        const Place at = place_of(p, tile);
        const bool on_diagonal = at.row == at.column;
        Sums sums;
        multiply<T>(sums, shared, p.steps, ring, consumer, turn);
        ring.advance(kConsumers * p.steps);
        barrier_wait(&shared.ready[consumer], turn % 2);
        ++turn;
        Packed packed;
        finish<T>(packed, result, p, sums, on_diagonal);
        if (on_diagonal) mirror_in_place(packed, result);
        result.store(d_map, at.matrix, at.row, at.column);
        if (!on_diagonal) {
            write_mirrored(packed, result);
            result.store(d_map, at.matrix, at.column, at.row);
        }
        if (threadIdx.x % kGroup == 0) barrier_arrive(&shared.free[consumer]);
    }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    symmetric_wgmma_kernel(const __grid_constant__ TensorMap a_map,
                           const __grid_constant__ TensorMap b_map,
                           const __grid_constant__ TensorMap c_map,
                           const __grid_constant__ TensorMap d_map, const Arguments p) {
    LMO_DYNAMIC_SHARED(unsigned char, memory);
    const Shared shared(memory);
    if (threadIdx.x == 0) {
        for (int i = 0; i < kBarriers; ++i) barrier_init(&shared.full[i], 1);
        fence_barrier_init();
    }
    __syncthreads();
    if (threadIdx.x < kGroup) {
        decrease_registers<40>();
        if (threadIdx.x == 0) load_tiles(p, shared, a_map, b_map, c_map);
    } else {
        increase_registers<232>();
        multiply_tiles<T>(p, shared, d_map);
    }
}

int multiprocessors() {
    int device = 0, count = 0;
    check(cudaGetDevice(&device), "asking for the device");
    check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device),
          "asking for multiprocessors");
    return count;
}

template <typename T>
void launch_tiles(const SymmetricGemm& op, cudaStream_t stream) {
    const auto map = [&](const void* data, int64_t columns) {
        return make_tensor_map(static_cast<const T*>(data), op.batch, op.n, columns, op.n * columns,
                               columns, kSide);
    };
    const TensorMap a_map = map(op.a, op.k), b_map = map(op.b, op.k), d_map = map(op.d, op.n);
    const TensorMap c_map = op.beta == 0 ? d_map : map(op.c, op.n);
    const int64_t rows = div_up<int64_t>(op.n, kSide), triangle = rows * (rows + 1) / 2;
    const int64_t tiles = triangle * op.batch;
    assert(tiles <= INT32_MAX / 2);  // a tile after the last one has a number, too
    const Arguments p{static_cast<int>(div_up<int64_t>(op.k, kDepth)),
                      static_cast<int>(triangle),
                      static_cast<int>(tiles),
                      op.alpha,
                      op.beta,
                      op.diagonal};
    const int blocks = static_cast<int>(std::min<int64_t>(tiles, multiprocessors()));
    allow_shared("symmetric_wgmma_kernel", symmetric_wgmma_kernel<T>, kSharedBytes);
    launch(LMO_KERNEL(symmetric_wgmma_kernel<T>), blocks, kThreads, kSharedBytes, stream, a_map,
           b_map, c_map, d_map, p);
}

}  // namespace

void symmetric_gemm_hopper(const SymmetricGemm& op, cudaStream_t stream) {
    assert(op.n > 0 && op.n % 8 == 0 && op.n <= INT32_MAX);
    assert(op.k > 0 && op.k % 8 == 0 && op.k <= INT32_MAX && op.batch > 0);
    assert(op.beta == 0 || op.c != nullptr);
    assert(rows_aligned<uint16_t>(op.n, op.a, op.b, op.d, op.beta == 0 ? nullptr : op.c));
    assert(op.type == DType::f16 || op.type == DType::bf16);
    op.type == DType::f16 ? launch_tiles<fp16>(op, stream) : launch_tiles<bf16>(op, stream);
}

}  // namespace lmo::cuda
