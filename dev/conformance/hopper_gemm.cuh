// A product as Hopper's kernels do it: one warpgroup keeps TMA loads under way, two others multiply
// by wgmma and store by TMA. It exists for its mistakes: tests switch them on one at a time and
// demand that the emulator finds each. The conformance program runs it without any.
//
// D [M, N] = A [M, K] B, for each matrix of a batch; B is [N, K] and used transposed, or [K, N]. A
// block computes 128 x Columns of D. Shared memory: kStages times (A's tile [128, 64], B's tiles),
// then D's tiles, then the barriers.
#pragma once

#include "llmc/cuda/hopper.cuh"

namespace lmo::cuda {

enum class Bug {
    none,
    expects_too_few_bytes,
    expects_too_many_bytes,
    parity_never_toggles,
    no_wait_for_tile,
    no_wait_before_refill,
    frees_tile_before_wgmma_wait,
    no_wgmma_wait,
    no_wgmma_fence,
    diverging_warpgroup,
    warp_leaves,
    barrier_not_initialised,
    no_sync_after_initialisation,
    one_arrival_too_many,
    one_arrival_too_few,
    wrong_descriptor_stride,
    descriptors_differ,
    tile_misaligned,
    box_outside_shared_memory,
    two_coordinates_of_three,
    no_sync_before_store,
    no_wait_for_store,
    refills_stored_tile,
    wrong_named_barrier_count,
    overwrites_barrier,
    too_many_registers,
    count,
};

constexpr int kGemmRows = 128, kGemmDepth = 64, kGemmStages = 3, kGemmThreads = 384;
constexpr int kTileBytes = 64 * 128;  // of [64, 64]

template <int Columns>
constexpr int kGemmStageBytes = kGemmRows * 128 + Columns * 128;
template <int Columns>
constexpr size_t kGemmSharedBytes =
    kGemmStages* kGemmStageBytes<Columns> + kGemmRows* Columns * 2 + 2 * kGemmStages * 8;

struct GemmShared {
    unsigned char* stages;
    unsigned char* result;
    uint64_t* full;
    uint64_t* empty;
};

template <int Columns>
__device__ __forceinline__ GemmShared gemm_shared(unsigned char* memory) {
    unsigned char* result = memory + kGemmStages * kGemmStageBytes<Columns>;
    auto* full = reinterpret_cast<uint64_t*>(result + kGemmRows * Columns * 2);
    return {memory, result, full, full + kGemmStages};
}

// The loads of one block, by one thread.
template <int Columns, bool TransposeB>
__device__ __forceinline__ void load_stages(const GemmShared& shared, const TensorMap& a_map,
                                            const TensorMap& b_map, int depth_tiles, Bug bug) {
    constexpr int bytes = kGemmStageBytes<Columns>;
    const int row = static_cast<int>(blockIdx.y) * kGemmRows;
    const int column = static_cast<int>(blockIdx.x) * Columns;
    const int matrix = static_cast<int>(blockIdx.z);
    for (int tile = 0; tile < depth_tiles; ++tile) {
        const int stage = tile % kGemmStages, parity = (tile / kGemmStages + 1) % 2;
        if (bug != Bug::no_wait_before_refill) barrier_wait(&shared.empty[stage], parity);
        const int announced = bug == Bug::expects_too_few_bytes    ? bytes - kTileBytes
                              : bug == Bug::expects_too_many_bytes ? bytes + 16
                                                                   : bytes;
        barrier_arrive_expect(&shared.full[stage], announced);
        unsigned char* to = shared.stages + stage * bytes;
        if (bug == Bug::tile_misaligned && tile == 1) to += 128;
        if (bug == Bug::box_outside_shared_memory && tile == 1) to += 1 << 17;
        if (bug == Bug::two_coordinates_of_three) {
            tma_load(to, &a_map, tile * kGemmDepth, row, &shared.full[stage]);
        } else {
            tma_load(to, &a_map, tile * kGemmDepth, row, matrix, &shared.full[stage]);
        }
        to += kGemmRows * 128;
        if constexpr (TransposeB) {
            for (int c = 0; c < Columns; c += 64) {
                tma_load(to + c * 128, &b_map, column + c, tile * kGemmDepth, matrix,
                         &shared.full[stage]);
            }
        } else {
            tma_load(to, &b_map, tile * kGemmDepth, column, matrix, &shared.full[stage]);
        }
    }
}

// The 64 rows of a consumer, from fragments to its tiles [64, 64].
template <int Columns, typename T>
__device__ __forceinline__ void store_fragments(unsigned char* tiles,
                                                const float (&d)[Columns / 2]) {
    const int warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < Columns / 16; ++c) {  // 16 columns are four 8 x 8 matrices
        uint32_t r[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) r[i] = pack_pair<T>(d[c * 8 + i * 2], d[c * 8 + i * 2 + 1]);
        const int row = warp * 16 + lane % 16, column = c * 16 + lane / 16 * 8;
        unsigned char* tile = tiles + column / 64 * kTileBytes;
        stmatrix_x4(tile + swizzled(row, column % 64) * 2, r);
    }
}

// One consumer's 64 rows: the products, then the result.
template <int Columns, typename T, bool TransposeB>
__device__ __forceinline__ void consume(const GemmShared& shared, const TensorMap& d_map,
                                        int depth_tiles, Bug bug) {
    const int consumer = threadIdx.x / 128 - 1, thread = threadIdx.x % 128;
    const bool stray = bug == Bug::diverging_warpgroup && thread / 32 == 2;
    float d[Columns / 2];
    for (float& sum : d) sum = 0.0f;
    for (int tile = 0; tile < depth_tiles; ++tile) {
        const int stage = tile % kGemmStages;
        const int parity = bug == Bug::parity_never_toggles ? 0 : tile / kGemmStages % 2;
        if (bug != Bug::no_wait_for_tile) barrier_wait(&shared.full[stage], parity);
        unsigned char* at = shared.stages + stage * kGemmStageBytes<Columns>;
        uint64_t a = k_major(at + consumer * kTileBytes);
        if (bug == Bug::descriptors_differ && thread == 77) a += kNextK;
        if (bug == Bug::wrong_descriptor_stride) a ^= uint64_t{1} << 32;
        uint64_t b = k_major(at + kGemmRows * 128);
        if (TransposeB) b = mn_major(at + kGemmRows * 128, kTileBytes);
        if (bug != Bug::no_wgmma_fence) wgmma_fence(d);
        if (stray && tile == 1) wgmma_commit();
#pragma unroll
        for (int k = 0; k < kGemmDepth / 16; ++k) {
            wgmma<Columns, T, false, TransposeB>(d, a + k * kNextK,
                                                 b + k * (TransposeB ? kNextRows : kNextK), true);
        }
        wgmma_commit();
        if (bug != Bug::frees_tile_before_wgmma_wait && bug != Bug::no_wgmma_wait) wgmma_wait<0>(d);
        const bool twice = bug == Bug::one_arrival_too_many && tile == 1 && consumer == 1;
        if (bug == Bug::warp_leaves && tile == 2 && thread / 32 == 3) return;
        if (bug == Bug::one_arrival_too_few && tile == 1 && consumer == 1) continue;
        if (thread == 0 || (twice && thread == 1)) barrier_arrive(&shared.empty[stage]);
    }
    if (bug != Bug::no_wgmma_wait) wgmma_wait<0>(d);

    unsigned char* tiles = shared.result + consumer * Columns / 64 * kTileBytes;
    store_fragments<Columns, T>(tiles, d);
    fence_async();
    const int others = bug == Bug::wrong_named_barrier_count ? 256 : 128;
    if (bug != Bug::no_sync_before_store) named_barrier_sync(1 + consumer, others);
    if (thread == 0) {
        const int row = static_cast<int>(blockIdx.y) * kGemmRows + consumer * 64;
        for (int c = 0; c < Columns; c += 64) {
            tma_store(&d_map, static_cast<int>(blockIdx.x) * Columns + c, row,
                      static_cast<int>(blockIdx.z), tiles + c / 64 * kTileBytes);
        }
        tma_store_commit();
        if (bug != Bug::no_wait_for_store && bug != Bug::refills_stored_tile) {
            tma_store_wait_read<0>();
        }
    }
    if (bug == Bug::refills_stored_tile) {
        tiles[thread * 2] = 0;
        if (thread == 0) tma_store_wait_read<0>();
    }
}

// WithBugs = false is the kernel without a trace of them.
template <int Columns, typename T, bool TransposeB, bool WithBugs>
__global__ void __launch_bounds__(kGemmThreads, 1)
    hopper_gemm_kernel(const __grid_constant__ TensorMap a_map,
                       const __grid_constant__ TensorMap b_map,
                       const __grid_constant__ TensorMap d_map, int depth_tiles, Bug bug) {
    LMO_DYNAMIC_SHARED(unsigned char, memory);
    if constexpr (!WithBugs) bug = Bug::none;
    const GemmShared shared = gemm_shared<Columns>(memory);
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < kGemmStages; ++stage) {
            if (bug == Bug::barrier_not_initialised && stage == 2) continue;
            barrier_init(&shared.full[stage], 1);
            barrier_init(&shared.empty[stage], 2);
        }
        fence_barrier_init();
        if (bug == Bug::overwrites_barrier) shared.full[1] = 0;
    }
    if (bug != Bug::no_sync_after_initialisation) __syncthreads();
    wait_for_previous_kernel();
    if (threadIdx.x < 128) {
        decrease_registers<40>();
        if (threadIdx.x == 0) {
            load_stages<Columns, TransposeB>(shared, a_map, b_map, depth_tiles, bug);
        }
    } else {
        if (bug == Bug::too_many_registers) {
            increase_registers<240>();
        } else {
            increase_registers<232>();
        }
        consume<Columns, T, TransposeB>(shared, d_map, depth_tiles, bug);
    }
    allow_next_kernel();
}

// Runs it on matrices without padding between rows and matrices; columns is N.
template <int Columns, typename T, bool TransposeB, bool WithBugs = false>
void hopper_gemm(T* d, const T* a, const T* b, int64_t batch, int64_t rows, int64_t columns,
                 int64_t depth, cudaStream_t stream, Bug bug = Bug::none) {
    constexpr size_t bytes = kGemmSharedBytes<Columns>;
    const auto map = [batch](const T* data, int64_t r, int64_t c, int box_rows) {
        return make_tensor_map(data, batch, r, c, r * c, c, box_rows);
    };
    const TensorMap a_map = map(a, rows, depth, kGemmRows);
    const TensorMap b_map =
        TransposeB ? map(b, depth, columns, 64) : map(b, columns, depth, Columns);
    const TensorMap d_map = map(d, rows, columns, 64);
    const dim3 grid(static_cast<unsigned>(div_up<int64_t>(columns, Columns)),
                    static_cast<unsigned>(div_up<int64_t>(rows, kGemmRows)),
                    static_cast<unsigned>(batch));
    allow_shared(LMO_KERNEL(hopper_gemm_kernel<Columns, T, TransposeB, WithBugs>), bytes);
    launch(LMO_KERNEL(hopper_gemm_kernel<Columns, T, TransposeB, WithBugs>), grid,
           dim3(kGemmThreads), bytes, stream, a_map, b_map, d_map,
           static_cast<int>(div_up<int64_t>(depth, kGemmDepth)), bug);
}

}  // namespace lmo::cuda
