// The conformance program's part of llmc/cuda/hopper.cuh. Only for sm_90a.
#include "dev/conformance/conformance.h"
#include "dev/conformance/hopper_gemm.cuh"

namespace lmo::conformance {
namespace {

using namespace cuda;

// ---- stmatrix ----------------------------------------------------------------------------------

template <bool Transposed>
__global__ void stmatrix_kernel(uint16_t* out, const uint32_t* in) {
    LMO_SHARED(uint4, rows, [32]);
    uint16_t* tile = reinterpret_cast<uint16_t*>(rows);
    uint32_t r[4];
    for (int i = 0; i < 4; ++i) r[i] = in[i * 32 + threadIdx.x];
    uint16_t* row = tile + threadIdx.x * 13 % 32 * 8;
    if constexpr (Transposed)
        stmatrix_x4_transposed(row, r);
    else
        stmatrix_x4(row, r);
    __syncthreads();
    for (int i = threadIdx.x; i < 256; i += 32) out[i] = tile[i];
}

template <bool Transposed>
void run_stmatrix(Results& results, const std::string& name) {
    const auto values = random_integers<uint32_t>(10, 128);
    const OnDevice<uint32_t> in(values);
    const OnDevice<uint16_t> out(256);
    launch(LMO_KERNEL(stmatrix_kernel<Transposed>), dim3(1), dim3(32), 0, nullptr, out.data(),
           in.data());
    std::vector<uint16_t> expected(256);
    for (size_t i = 0; i < 128; ++i) {
        const size_t matrix = i / 32, a = i % 32 / 4, b = i % 4 * 2;
        const auto element = [&](size_t row, size_t column) -> uint16_t& {
            return expected[(matrix * 8 + row) * 13 % 32 * 8 + column];
        };
        (Transposed ? element(b, a) : element(a, b)) = static_cast<uint16_t>(values[i]);
        (Transposed ? element(b + 1, a) : element(a, b + 1)) =
            static_cast<uint16_t>(values[i] >> 16);
    }
    results.exact(name, out.read(), expected);
}

// ---- barriers ----------------------------------------------------------------------------------

// Two warps hand numbers to and fro over four phases; then the memory becomes a barrier with
// another count.
__global__ void mbarrier_kernel(uint32_t* out, const uint32_t* in) {
    LMO_SHARED(uint64_t, full, [1]);
    LMO_SHARED(uint64_t, empty, [1]);
    LMO_SHARED(uint32_t, slot, [32]);
    const int lane = threadIdx.x % 32;
    if (threadIdx.x == 0) {
        barrier_init(full, 32);
        barrier_init(empty, 32);
        fence_barrier_init();
    }
    __syncthreads();
    for (int i = 0; i < 4; ++i) {
        if (threadIdx.x < 32) {
            barrier_wait(empty, (i + 1) % 2);
            slot[lane] = in[i * 32 + lane];
            barrier_arrive(full);
        } else {
            barrier_wait(full, i % 2);
            out[i * 32 + lane] = slot[31 - lane];
            barrier_arrive(empty);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        barrier_invalidate(full);
        barrier_init(full, 1);
        fence_barrier_init();
    }
    __syncthreads();
    if (threadIdx.x == 33) {
        slot[0] = in[7];
        barrier_arrive_expect(full, 0);
    }
    barrier_wait(full, 0);
    if (threadIdx.x < 32) out[128 + lane] = slot[0] + lane;
}

void run_mbarrier(Results& results) {
    const OnDevice<uint32_t> in(random_integers<uint32_t>(11, 128)), out(160);
    launch(LMO_KERNEL(mbarrier_kernel), dim3(1), dim3(64), 0, nullptr, out.data(), in.data());
    results.exact("mbarrier", out.read());
}

// Two pairs of warps, each with a barrier of its own.
__global__ void named_barrier_kernel(uint32_t* out, const uint32_t* in) {
    LMO_SHARED(uint32_t, slots, [128]);
    const int pair = threadIdx.x / 64, thread = threadIdx.x % 64;
    for (int i = 0; i < 3; ++i) {
        slots[threadIdx.x] = in[i * 128 + threadIdx.x];
        named_barrier_sync(1 + pair, 64);
        out[i * 128 + threadIdx.x] = slots[pair * 64 + 63 - thread];
        named_barrier_sync(1 + pair, 64);
    }
}

void run_named_barrier(Results& results) {
    const OnDevice<uint32_t> in(random_integers<uint32_t>(12, 384)), out(384);
    launch(LMO_KERNEL(named_barrier_kernel), dim3(1), dim3(128), 0, nullptr, out.data(), in.data());
    results.exact("named_barrier_sync", out.read());
}

// ---- TMA ---------------------------------------------------------------------------------------

struct Place {
    int column, row, matrix;
};

// The tile's bytes as they lie in shared memory.
template <int Rank>
__global__ void tma_load_kernel(uint16_t* out, const __grid_constant__ TensorMap map, Place at,
                                int box_rows) {
    LMO_DYNAMIC_SHARED(uint16_t, tile);
    LMO_SHARED(uint64_t, arrived, [1]);
    if (threadIdx.x == 0) {
        barrier_init(arrived, 1);
        fence_barrier_init();
        barrier_arrive_expect(arrived, box_rows * 128);
        if constexpr (Rank == 2)
            tma_load(tile, &map, at.column, at.row, arrived);
        else
            tma_load(tile, &map, at.column, at.row, at.matrix, arrived);
    }
    __syncthreads();
    barrier_wait(arrived, 0);
    for (int i = threadIdx.x; i < box_rows * 64; i += blockDim.x) out[i] = tile[i];
}

template <int Rank>
__global__ void tma_store_kernel(const __grid_constant__ TensorMap map, const uint16_t* in,
                                 Place at, int box_rows) {
    LMO_DYNAMIC_SHARED(uint16_t, tile);
    for (int i = threadIdx.x; i < box_rows * 64; i += blockDim.x) tile[i] = in[i];
    fence_async();
    __syncthreads();
    if (threadIdx.x != 0) return;
    if constexpr (Rank == 2)
        tma_store(&map, at.column, at.row, tile);
    else
        tma_store(&map, at.column, at.row, at.matrix, tile);
    tma_store_commit();
    tma_store_wait_read<0>();
    tma_store_wait<0>();
}

// Three matrices [70, 104] with rows 112 apart; tiles inside, across each border and outside.
constexpr int kMatrices = 3, kMatrixRows = 70, kMatrixColumns = 104, kRowStride = 112;
constexpr int kMatrixStride = kRowStride * kMatrixRows + 16;
constexpr int kElements = kMatrices * kMatrixStride;
constexpr Place kPlaces[] = {{0, 0, 0},    {64, 0, 1},  {32, 48, 2},  {-24, -8, 1},
                             {100, 66, 2}, {104, 0, 0}, {0, -200, 1}, {8, 8, 3}};

TensorMap map_of(const bf16* data, int rank, int box_rows) {
    if (rank == 2) return make_tensor_map(data, kMatrixRows, kMatrixColumns, kRowStride, box_rows);
    return make_tensor_map(data, kMatrices, kMatrixRows, kMatrixColumns, kMatrixStride, kRowStride,
                           box_rows);
}

// Calls f(element of the tile, element in memory) for all of the tile that is in the matrix.
template <typename F>
void for_elements_inside(int rank, const Place& at, int box_rows, F&& f) {
    const int matrix = rank == 2 ? 0 : at.matrix;
    if (matrix >= kMatrices) return;
    for (int row = 0; row < box_rows; ++row) {
        for (int column = 0; column < kTileColumns; ++column) {
            const int y = at.row + row, x = at.column + column;
            if (y < 0 || y >= kMatrixRows || x < 0 || x >= kMatrixColumns) continue;
            f(swizzled(row, column), matrix * kMatrixStride + y * kRowStride + x);
        }
    }
}

uint16_t bits_of(bf16 x) {
    uint16_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

template <int Rank>
void run_tma_load(Results& results) {
    const auto values = random_values<bf16>(13, kElements);
    const OnDevice<bf16> in(values);
    for (int box_rows : {8, 64}) {
        const TensorMap map = map_of(in.data(), Rank, box_rows);
        for (const Place& at : kPlaces) {
            const OnDevice<uint16_t> out(box_rows * 64);
            launch(LMO_KERNEL(tma_load_kernel<Rank>), dim3(1), dim3(128), box_rows * 128, nullptr,
                   out.data(), map, at, box_rows);
            std::vector<uint16_t> expected(box_rows * 64);
            for_elements_inside(Rank, at, box_rows,
                                [&](int tile, int i) { expected[tile] = bits_of(values[i]); });
            results.exact("tma_load " + std::to_string(Rank) + "d, " + std::to_string(box_rows) +
                              " rows at " + std::to_string(at.column) + ", " +
                              std::to_string(at.row) + ", " + std::to_string(at.matrix),
                          out.read(), expected);
        }
    }
}

template <int Rank>
void run_tma_store(Results& results) {
    for (int box_rows : {8, 64}) {
        const auto values = random_integers<uint16_t>(14, box_rows * 64);
        auto expected = random_values<bf16>(15, kElements);
        const OnDevice<uint16_t> tile(values);
        const OnDevice<bf16> out(expected);
        const TensorMap map = map_of(out.data(), Rank, box_rows);
        for (const Place& at : kPlaces) {
            launch(LMO_KERNEL(tma_store_kernel<Rank>), dim3(1), dim3(128), box_rows * 128, nullptr,
                   map, tile.data(), at, box_rows);
            for_elements_inside(Rank, at, box_rows, [&](int from, int to) {
                memcpy(static_cast<void*>(&expected[to]), &values[from], sizeof(bf16));
            });
        }
        results.exact(
            "tma_store " + std::to_string(Rank) + "d, " + std::to_string(box_rows) + " rows",
            out.read(), expected);
    }
}

// ---- wgmma -------------------------------------------------------------------------------------

// d [64, N] = a [64, 64] b^T, b [N, 64], in one group; the upper half of k once more in another.
// The tiles are written by threads.
template <int N, typename T, bool TransposeA, bool TransposeB>
__global__ void __launch_bounds__(128) wgmma_kernel(float* out, const T* a, const T* b) {
    LMO_DYNAMIC_SHARED(T, a_tile);
    T* b_tiles = a_tile + 64 * 64;
    for (int i = threadIdx.x; i < 64 * 64; i += 128) {
        const int outer = i / 64, k = i % 64;
        a_tile[TransposeA ? swizzled(k, outer) : swizzled(outer, k)] = a[i];
    }
    for (int i = threadIdx.x; i < N * 64; i += 128) {
        const int outer = i / 64, k = i % 64;
        b_tiles[TransposeB ? outer / 64 * 4096 + swizzled(k, outer % 64) : swizzled(outer, k)] =
            b[i];
    }
    fence_async();
    __syncthreads();
    const uint64_t a_operand = TransposeA ? mn_major(a_tile, kTileBytes) : k_major(a_tile);
    const uint64_t b_operand = TransposeB ? mn_major(b_tiles, kTileBytes) : k_major(b_tiles);
    constexpr uint64_t a_step = TransposeA ? kNextRows : kNextK;
    constexpr uint64_t b_step = TransposeB ? kNextRows : kNextK;
    float d[N / 2];
    for (float& sum : d) sum = 1e6f;  // is overwritten
    wgmma_fence(d);
    for (int k = 0; k < 4; ++k) {
        wgmma<N, T, TransposeA, TransposeB>(d, a_operand + k * a_step, b_operand + k * b_step,
                                            k > 0);
    }
    wgmma_commit();
    for (int k = 2; k < 4; ++k) {
        wgmma<N, T, TransposeA, TransposeB>(d, a_operand + k * a_step, b_operand + k * b_step,
                                            true);
    }
    wgmma_commit();
    wgmma_wait<1>();
    wgmma_wait<0>(d);
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int i = 0; i < N / 2; ++i) {
        const int row = warp * 16 + g + i / 2 % 2 * 8, column = i / 4 * 8 + 2 * t + i % 2;
        out[row * N + column] = d[i];
    }
}

template <int N, typename T, bool TransposeA, bool TransposeB>
void run_wgmma(Results& results) {
    const auto a = random_values<T>(16 + N, 64 * 64), b = random_values<T>(17 + N, N * 64);
    const OnDevice<T> on_a(a), on_b(b);
    const OnDevice<float> out(64 * N);
    constexpr size_t bytes = (64 + N) * 128;
    allow_shared(LMO_KERNEL(wgmma_kernel<N, T, TransposeA, TransposeB>), bytes);
    launch(LMO_KERNEL(wgmma_kernel<N, T, TransposeA, TransposeB>), dim3(1), dim3(128), bytes,
           nullptr, out.data(), on_a.data(), on_b.data());
    std::vector<float> bounds(64 * N);
    std::vector<double> sums(64 * N);
    for (size_t i = 0; i < bounds.size(); ++i) {
        double magnitudes = 0;
        for (size_t k = 0; k < 64; ++k) {
            const double product =
                (k < 32 ? 1.0 : 2.0) * to_float(a[i / N * 64 + k]) * to_float(b[i % N * 64 + k]);
            sums[i] += product;
            magnitudes += std::abs(product);
        }
        bounds[i] = bound_of_sum(96, magnitudes);
    }
    results.near("wgmma m64n" + std::to_string(N) + "k16 " +
                     (std::is_same_v<T, bf16> ? "bf16" : "fp16") +
                     (TransposeA ? ", A transposed" : "") + (TransposeB ? ", B transposed" : ""),
                 out.read(), sums, bounds);
}

template <typename T>
void run_wgmma_type(Results& results) {
    run_wgmma<64, T, false, false>(results);
    run_wgmma<64, T, false, true>(results);
    run_wgmma<64, T, true, false>(results);
    run_wgmma<64, T, true, true>(results);
    run_wgmma<128, T, false, false>(results);
    run_wgmma<128, T, false, true>(results);
    run_wgmma<256, T, false, false>(results);
    run_wgmma<256, T, false, true>(results);
}

// ---- all together ------------------------------------------------------------------------------

// Loads, barriers, products, registers and stores as kernels use them; exact sums, so exact
// results.
template <int Columns, typename T, bool TransposeB>
void run_gemm(Results& results, const std::string& name) {
    constexpr int64_t batch = 2, rows = 200, columns = 136, depth = 328;
    const OnDevice<T> a(random_eighths<T>(20, batch * rows * depth));
    const OnDevice<T> b(random_eighths<T>(21, batch * columns * depth));
    const OnDevice<T> d(batch * rows * columns);
    hopper_gemm<Columns, T, TransposeB>(d.data(), a.data(), b.data(), batch, rows, columns, depth,
                                        nullptr);
    results.exact(name, d.read());
}

}  // namespace

void run_hopper_cases(Results& results) {
    run_stmatrix<false>(results, "stmatrix_x4");
    run_stmatrix<true>(results, "stmatrix_x4_transposed");
    run_mbarrier(results);
    run_named_barrier(results);
    run_tma_load<2>(results);
    run_tma_load<3>(results);
    run_tma_store<2>(results);
    run_tma_store<3>(results);
    run_wgmma_type<bf16>(results);
    run_wgmma_type<fp16>(results);
    run_gemm<128, bf16, false>(results, "hopper_gemm bf16");
    run_gemm<128, fp16, true>(results, "hopper_gemm fp16, B transposed");
}

}  // namespace lmo::conformance
