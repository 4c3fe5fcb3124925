// The conformance program's part of llmc/cuda/ptx.cuh: one warp for each function.
#include "dev/conformance/conformance.h"
#include "llmc/cuda/ptx.cuh"

namespace lmo::conformance {
namespace {

using namespace cuda;

constexpr int kTimes = 8;  // independent operands, one block each

// ---- mma ---------------------------------------------------------------------------------------

// d [16, 8] += a [16, 16] b [16, 8], row-major. The operands' elements are loaded one by one, so
// that this case depends on mma alone.
template <typename T>
__global__ void mma_kernel(float* d, const T* a, const T* b) {
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    d += blockIdx.x * 128;
    a += blockIdx.x * 256;
    b += blockIdx.x * 128;
    uint32_t a_pairs[4], b_pairs[2];
    for (int i = 0; i < 4; ++i) {
        const T* at = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
        a_pairs[i] = pack_pair<T>(to_float(at[0]), to_float(at[1]));
    }
    for (int i = 0; i < 2; ++i) {
        const T* at = b + (2 * t + 8 * i) * 8 + g;
        b_pairs[i] = pack_pair<T>(to_float(at[0]), to_float(at[8]));
    }
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    mma_m16n8k16<T>(sums, a_pairs, b_pairs[0], b_pairs[1]);
    for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = sums[i];
}

template <typename T>
void run_mma(Results& results, const std::string& type) {
    const auto a = random_values<T>(1, kTimes * 256), b = random_values<T>(2, kTimes * 128);
    const auto c = random_values<float>(3, kTimes * 128);
    const OnDevice<T> on_a(a), on_b(b);
    const OnDevice<float> on_d(c);
    launch(LMO_KERNEL(mma_kernel<T>), dim3(kTimes), dim3(32), 0, nullptr, on_d.data(), on_a.data(),
           on_b.data());
    std::vector<float> bounds(c.size());
    std::vector<double> sums(c.begin(), c.end());
    for (size_t i = 0; i < c.size(); ++i) {
        const size_t block = i / 128, row = i % 128 / 8, column = i % 8;
        double magnitudes = std::abs(c[i]);
        for (size_t k = 0; k < 16; ++k) {
            const double product = double{to_float(a[block * 256 + row * 16 + k])} *
                                   to_float(b[block * 128 + k * 8 + column]);
            sums[i] += product;
            magnitudes += std::abs(product);
        }
        bounds[i] = bound_of_sum(16, magnitudes);
    }
    results.near("mma_m16n8k16 " + type, on_d.read(), sums, bounds);
}

// ---- ldmatrix ----------------------------------------------------------------------------------

// The lanes' rows lie in an order of their own.
template <bool Transposed>
__global__ void ldmatrix_kernel(uint32_t* out, const uint16_t* in) {
    LMO_SHARED(uint4, rows, [32]);
    uint16_t* tile = reinterpret_cast<uint16_t*>(rows);
    for (int i = threadIdx.x; i < 256; i += 32) tile[i] = in[blockIdx.x * 256 + i];
    __syncthreads();
    const uint16_t* row = tile + (threadIdx.x * 13 + blockIdx.x) % 32 * 8;
    uint32_t r[4];
    if constexpr (Transposed)
        ldmatrix_x4_transposed(r, row);
    else
        ldmatrix_x4(r, row);
    for (int i = 0; i < 4; ++i) out[(blockIdx.x * 4 + i) * 32 + threadIdx.x] = r[i];
}

template <bool Transposed>
void run_ldmatrix(Results& results, const std::string& name) {
    const auto values = random_integers<uint16_t>(4, kTimes * 256);
    const OnDevice<uint16_t> in(values);
    const OnDevice<uint32_t> out(kTimes * 128);
    launch(LMO_KERNEL(ldmatrix_kernel<Transposed>), dim3(kTimes), dim3(32), 0, nullptr, out.data(),
           in.data());
    std::vector<uint32_t> expected(kTimes * 128);
    for (size_t i = 0; i < expected.size(); ++i) {
        const size_t block = i / 128, matrix = i / 32 % 4, lane = i % 32;
        const auto element = [&](size_t row, size_t column) -> uint32_t {
            const size_t line = ((matrix * 8 + row) * 13 + block) % 32;
            return values[block * 256 + line * 8 + column];
        };
        const size_t a = lane / 4, b = lane % 4 * 2;
        expected[i] = Transposed ? element(b, a) | element(b + 1, a) << 16
                                 : element(a, b) | element(a, b + 1) << 16;
    }
    results.exact(name, out.read(), expected);
}

// ---- cp.async ----------------------------------------------------------------------------------

// Every number of bytes, in two groups of which the first is waited for first.
__global__ void cp_async_kernel(uint32_t* out, const uint32_t* in) {
    LMO_SHARED(uint4, first, [32]);
    LMO_SHARED(uint4, second, [32]);
    const int lane = threadIdx.x;
    in += blockIdx.x * 256;
    out += blockIdx.x * 256;
    cp_async_16(&first[lane], in + lane * 4);
    cp_async_commit();
    cp_async_16(&second[lane], in + 128 + lane * 4, (lane + static_cast<int>(blockIdx.x)) % 17);
    cp_async_commit();
    cp_async_wait<1>();
    const uint4 a = first[lane];
    cp_async_wait<0>();
    const uint4 b = second[lane];
    const uint32_t words[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    for (int i = 0; i < 8; ++i) out[lane * 8 + i] = words[i];
}

void run_cp_async(Results& results) {
    const auto values = random_integers<uint32_t>(5, kTimes * 256);
    const OnDevice<uint32_t> in(values), out(kTimes * 256);
    launch(LMO_KERNEL(cp_async_kernel), dim3(kTimes), dim3(32), 0, nullptr, out.data(), in.data());
    std::vector<uint32_t> expected(kTimes * 256);
    for (size_t block = 0; block < kTimes; ++block) {
        for (size_t lane = 0; lane < 32; ++lane) {
            uint32_t* words = &expected[block * 256 + lane * 8];
            memcpy(words, &values[block * 256 + lane * 4], 16);
            memcpy(words + 4, &values[block * 256 + 128 + lane * 4], (lane + block) % 17);
        }
    }
    results.exact("cp_async_16", out.read(), expected);
}

// ---- exp2 --------------------------------------------------------------------------------------

__global__ void exp2_kernel(float* out, const float* in, int count) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    if (i < count) out[i] = fast_exp2(in[i]);
}

void run_exp2(Results& results) {
    std::vector<float> in;
    for (int i = 0; i < 2000; ++i) {
        in.push_back(static_cast<float>(random_bits(6, i) % 300000) / 1000 - 150);
    }
    for (float x : {0.0f, -0.0f, 1.0f, -1.0f, -126.0f, -126.5f, -127.0f, -149.0f, -200.0f, 127.0f,
                    127.9f, 128.0f, 1e30f, -1e30f, 1e-40f, -1e-40f, HUGE_VALF, -HUGE_VALF}) {
        in.push_back(x);
    }
    const OnDevice<float> on_in(in), out(in.size());
    const int count = static_cast<int>(in.size());
    launch(LMO_KERNEL(exp2_kernel), dim3(div_up(count, 128)), dim3(128), 0, nullptr, out.data(),
           on_in.data(), count);
    const auto values = out.read();
    std::vector<double> expected(values.size());
    std::vector<float> bounds(values.size());
    // Two ulp; infinities and what would be denormal are exact.
    for (size_t i = 0; i < values.size(); ++i) {
        const float exact = static_cast<float>(std::exp2(double{in[i]}));
        expected[i] = exact < 0x1p-126f ? 0 : exact;
        bounds[i] = std::isfinite(exact) ? static_cast<float>(expected[i]) * 0x1p-22f : 0;
    }
    results.near("fast_exp2", values, expected, bounds);
}

}  // namespace

void run_ptx_cases(Results& results) {
    run_mma<bf16>(results, "bf16");
    run_mma<fp16>(results, "fp16");
    run_ldmatrix<false>(results, "ldmatrix_x4");
    run_ldmatrix<true>(results, "ldmatrix_x4_transposed");
    run_cp_async(results);
    run_exp2(results);
}

}  // namespace lmo::conformance
