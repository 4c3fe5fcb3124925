// The device language of the emulator: warp functions, barriers, shared memory, atomics, tensor
// cores and asynchronous copies, in every order. test_bugs_*.cu plants bugs that it has to find.
#include <cmath>
#include <numeric>

#include "llmc/cuda/ptx.cuh"
#include "tests/emulator/emulator_test.h"

namespace lmo::cuda {
namespace {

using emulator::Landing;
using emulator::Order;
using emulator::settings;
using emulator::SettingsGuard;

constexpr uint32_t kAll = 0xffffffffu;

// ---- warps --------------------------------------------------------------------------------------

// Each test runs in the orders asc, desc and of three seeds.
class InEveryOrder : public ::testing::TestWithParam<int> {
  protected:
    InEveryOrder() {
        if (GetParam() < 2) {
            settings().order = GetParam() == 0 ? Order::ascending : Order::descending;
        } else {
            settings().order = Order::random;
            settings().async_copies = Landing::random;
            settings().seed = static_cast<uint64_t>(GetParam());
        }
    }

  private:
    const SettingsGuard guard_;
};
INSTANTIATE_TEST_SUITE_P(Orders, InEveryOrder, ::testing::Range(0, 5));

constexpr int kWarpResults = 16;

__global__ void warp_functions_kernel(int* out) {
    const int lane = threadIdx.x;
    int* mine = out + lane * kWarpResults;
    mine[0] = __shfl_sync(kAll, lane * 3, 7);
    mine[1] = __shfl_sync(kAll, lane, 5, 8);
    mine[2] = __shfl_xor_sync(kAll, lane, 9);
    mine[3] = __shfl_xor_sync(kAll, lane, 20, 8);
    mine[4] = __shfl_down_sync(kAll, lane, 3);
    mine[5] = __shfl_down_sync(kAll, lane, 3, 16);
    mine[6] = __shfl_up_sync(kAll, lane, 2);
    mine[7] = __shfl_up_sync(kAll, lane, 2, 4);
    mine[8] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
    mine[9] = __any_sync(kAll, lane == 31);
    mine[10] = __all_sync(kAll, lane < 31);
    mine[11] = __reduce_add_sync(kAll, lane);
    mine[12] = __reduce_max_sync(kAll, -lane);
    mine[13] = static_cast<int>(__reduce_xor_sync(kAll, static_cast<uint32_t>(lane)));
    // Half a warp of its own.
    const uint32_t half = lane < 16 ? 0xffffu : 0xffff0000u;
    mine[14] = __reduce_min_sync(half, lane);
    mine[15] = static_cast<int>(__shfl_sync(half, 1.5 * lane, 3, 16) * 2);
}

TEST_P(InEveryOrder, WarpFunctions) {
    Array<int> out(32 * kWarpResults);
    launch(LMO_KERNEL(warp_functions_kernel), 1, 32, 0, nullptr, out.data());
    const std::vector<int> values = out.values();
    for (int lane = 0; lane < 32; ++lane) {
        const int half = lane / 16 * 16;
        const std::vector<int> expected = {
            21,
            lane / 8 * 8 + 5,
            lane ^ 9,
            (lane ^ 20) < lane / 8 * 8 + 8 ? lane ^ 20 : lane,
            lane + 3 < 32 ? lane + 3 : lane,
            lane % 16 + 3 < 16 ? lane + 3 : lane,
            lane >= 2 ? lane - 2 : lane,
            lane % 4 >= 2 ? lane - 2 : lane,
            0x49249249,
            1,
            0,
            496,
            0,
            0,
            half,
            (half + 3) * 3,
        };
        const auto first = values.begin() + lane * kWarpResults;
        EXPECT_EQ(std::vector<int>(first, first + kWarpResults), expected) << "lane " << lane;
    }
}

template <typename T>
__global__ void warp_sum_kernel(const T* in, T* out) {
    const T value = in[threadIdx.x];
    out[threadIdx.x] = warp_sum(value);
    T by_shuffles = value;
    for (int step = 16; step > 0; step /= 2)
        by_shuffles += __shfl_xor_sync(kAll, by_shuffles, step);
    out[threadIdx.x + blockDim.x] = by_shuffles;
}

template <typename T>
std::vector<T> uneven(int count) {
    std::vector<T> values(count);
    for (int i = 0; i < count; ++i) {
        values[i] = static_cast<T>(std::sin(i * 12.9898) * std::pow(10.0, i % 7));
    }
    return values;
}

template <typename T>
void expect_sums_equal() {
    const std::vector<T> in = uneven<T>(96);
    for (const bool real : {false, true}) {
        const SettingsGuard guard;
        settings().real_shuffles = real;
        Array<T> from(in), to(2 * in.size());
        launch(LMO_KERNEL(warp_sum_kernel<T>), 1, 96, 0, nullptr, from.data(), to.data());
        const std::vector<T> out = to.values();
        for (size_t i = 0; i < in.size(); ++i) {
            EXPECT_EQ(memcmp(&out[i], &out[i + in.size()], sizeof(T)), 0) << i;
            EXPECT_EQ(out[i], out[i / 32 * 32]);
        }
    }
}

TEST_P(InEveryOrder, WarpSumIsTheShufflesBitByBit) {
    expect_sums_equal<float>();
    expect_sums_equal<double>();
    expect_sums_equal<int>();
}

__global__ void warp_max_kernel(const float* in, float* out) {
    out[threadIdx.x] = warp_max(in[threadIdx.x]);
}

TEST_P(InEveryOrder, WarpMaxSkipsNan) {
    std::vector<float> in = uneven<float>(32);
    in[4] = NAN;
    in[9] = 7e30f;
    Array<float> from(in), to(32);
    for (const bool real : {false, true}) {
        const SettingsGuard guard;
        settings().real_shuffles = real;
        launch(LMO_KERNEL(warp_max_kernel), 1, 32, 0, nullptr, from.data(), to.data());
        EXPECT_EQ(to.values(), std::vector<float>(32, 7e30f));
    }
}

// ---- blocks -------------------------------------------------------------------------------------

__global__ void block_kernel(int* out) {
    LMO_SHARED(int, values, [2][64]);
    const int i = threadIdx.x;
    values[0][i] = i + static_cast<int>(blockIdx.x);
    __syncthreads();
    values[1][i] = values[0][63 - i];
    const int odd = __syncthreads_count(i % 2);
    const int any = __syncthreads_or(i == 63), all = __syncthreads_and(i != 63);
    out[blockIdx.x * 64 + i] = values[1][i] + 1000 * odd + 100000 * any + 200000 * all;
}

TEST_P(InEveryOrder, BarriersAndSharedMemory) {
    Array<int> out(3 * 64);
    launch(LMO_KERNEL(block_kernel), 3, 64, 0, nullptr, out.data());
    const std::vector<int> values = out.values();
    for (int i = 0; i < 3 * 64; ++i) EXPECT_EQ(values[i], 63 - i % 64 + i / 64 + 132000);
}

__global__ void shape_kernel(int* out) {
    const int i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    const int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    atomicAdd(out + b * blockDim.x * blockDim.y * blockDim.z + i, 1);
}

TEST_P(InEveryOrder, EveryThreadOfEveryBlockRunsOnce) {
    const dim3 grid(3, 2, 4), block(5, 3, 2);
    Array<int> out(24 * 30);
    launch(LMO_KERNEL(shape_kernel), grid, block, 0, nullptr, out.data());
    EXPECT_EQ(out.values(), std::vector<int>(24 * 30, 1));
}

__global__ void atomics_kernel(int* ints, float* floats, unsigned long long* wide) {
    const int i = threadIdx.x;
    atomicAdd(ints, i);
    atomicMax(ints + 1, i);
    atomicMin(ints + 2, -i);
    atomicOr(ints + 3, 1 << (i % 8));
    if (i == 5) atomicCAS(ints + 4, 0, 77);
    atomicAdd(floats, 0.5f);
    atomicAdd(wide, 1ull << 40);
}

TEST_P(InEveryOrder, Atomics) {
    Array<int> ints(5);
    Array<float> floats(1);
    Array<unsigned long long> wide(1);
    launch(LMO_KERNEL(atomics_kernel), 2, 64, 0, nullptr, ints.data(), floats.data(), wide.data());
    EXPECT_EQ(ints.values(), (std::vector<int>{2 * 2016, 63, -63, 255, 77}));
    EXPECT_EQ(floats.values()[0], 64.0f);
    EXPECT_EQ(wide.values()[0], 128ull << 40);
}

// ---- tensor cores and asynchronous copies -------------------------------------------------------

// C = A B^T of a 16 x 16 and an 8 x 16 matrix; both come through cp.async and ldmatrix.
template <typename T>
__global__ void mma_kernel(const T* a, const T* b, float* c) {
    LMO_DYNAMIC_SHARED(T, tiles);
    const int lane = threadIdx.x;
    cp_async_16(tiles + lane * 8, a + lane * 8);
    if (lane < 16) cp_async_16(tiles + 256 + lane * 8, b + lane * 8);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    uint32_t fragment[4], other[4];
    ldmatrix_x4(fragment, tiles + (lane % 16) * 16 + lane / 16 * 8);
    ldmatrix_x4(other, tiles + 256 + (lane % 8) * 16 + lane / 8 % 2 * 8);
    float sum[4] = {1, 2, 3, 4};
    mma_m16n8k16<T>(sum, fragment, other[0], other[1]);
    for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

template <typename T>
void expect_product() {
    std::vector<T> a(256), b(128);
    for (int i = 0; i < 256; ++i) a[i] = from_float<T>(static_cast<float>(i * 7 % 19 - 9));
    for (int i = 0; i < 128; ++i) b[i] = from_float<T>(static_cast<float>(i * 5 % 13 - 6));
    Array<T> left(a), right(b);
    Array<float> out(128);
    launch(LMO_KERNEL(mma_kernel<T>), 1, 32, 768, nullptr, left.data(), right.data(), out.data());
    const std::vector<float> c = out.values();
    for (int row = 0; row < 16; ++row) {
        for (int column = 0; column < 8; ++column) {
            float sum = static_cast<float>(1 + row / 8 * 2 + column % 2);
            for (int k = 0; k < 16; ++k) {
                sum += to_float(a[row * 16 + k]) * to_float(b[column * 16 + k]);
            }
            EXPECT_EQ(c[row * 8 + column], sum) << row << ", " << column;
        }
    }
}

TEST_P(InEveryOrder, MatrixProducts) {
    for (const Landing landing : {Landing::late, Landing::early, Landing::random}) {
        const SettingsGuard guard;
        settings().async_copies = landing;
        expect_product<bf16>();
        expect_product<fp16>();
    }
}

__global__ void transposed_kernel(const uint16_t* in, uint16_t* out) {
    LMO_SHARED(uint4, rows, [32]);
    const int lane = threadIdx.x;
    rows[lane] = reinterpret_cast<const uint4*>(in)[lane];
    __syncwarp();
    uint32_t r[4];
    ldmatrix_x4_transposed(r, rows + lane);
    for (int i = 0; i < 4; ++i) {
        out[i * 64 + (lane % 4 * 2) * 8 + lane / 4] = static_cast<uint16_t>(r[i] & 0xffff);
        out[i * 64 + (lane % 4 * 2 + 1) * 8 + lane / 4] = static_cast<uint16_t>(r[i] >> 16);
    }
}

TEST_P(InEveryOrder, TransposedMatrices) {
    std::vector<uint16_t> in(256);
    std::iota(in.begin(), in.end(), uint16_t{1});
    Array<uint16_t> from(in), to(256);
    launch(LMO_KERNEL(transposed_kernel), 1, 32, 0, nullptr, from.data(), to.data());
    EXPECT_EQ(to.values(), in);
}

__global__ void short_copy_kernel(const int* in, int* out) {
    LMO_SHARED(int, tile, [4]);
    if (threadIdx.x == 0) cp_async_16(tile, in, 8);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    if (threadIdx.x < 4) out[threadIdx.x] = tile[threadIdx.x];
}

TEST_P(InEveryOrder, AShortCopyFillsWithZeros) {
    Array<int> in(std::vector<int>{5, 6}), out(4);
    launch(LMO_KERNEL(short_copy_kernel), 1, 32, 0, nullptr, in.data(), out.data());
    EXPECT_EQ(out.values(), (std::vector<int>{5, 6, 0, 0}));
}

__global__ void exp2_kernel(const float* in, float* out) {
    out[threadIdx.x] = fast_exp2(in[threadIdx.x]);
}

TEST(Emulator, FastExp2FlushesToZero) {
    Array<float> in(std::vector<float>{-INFINITY, -200, -127, -126, 0, 1e-40f, 3, INFINITY, NAN}),
        out(9);
    launch(LMO_KERNEL(exp2_kernel), 1, 9, 0, nullptr, in.data(), out.data());
    const std::vector<float> y = out.values();
    EXPECT_EQ(std::vector<float>(y.begin(), y.end() - 1),
              (std::vector<float>{0, 0, 0, 0x1p-126f, 1, 1, 8, INFINITY}));
    EXPECT_TRUE(std::isnan(y[8]));
}

}  // namespace
}  // namespace lmo::cuda
