// Symmetric products by our own kernels against float64 sums of the same 16-bit numbers: on the
// emulator or on a GPU.
#include <tuple>

#include "dev/emulator/settings.h"
#include "llmc/cuda/check.h"
#include "llmc/cuda/symmetric.h"
#include "tests/unit/backend_test.h"

namespace emulator {
// Nothing on a GPU, where this file is linked without the emulator.
__attribute__((weak)) Settings& settings();
}  // namespace emulator

namespace lmo {
bool launches_may_overlap();  // tests/unit/backends_cuda.cpp
}

namespace lmo::cuda {
namespace {

using Bits = std::vector<uint16_t>;

// Of a number that the type has.
uint16_t to_bits(DType type, double value) {
    if (type == DType::bf16) return float_to_bf16(static_cast<float>(value));
    const int sign = std::signbit(value) ? 0x8000 : 0;
    const double size = std::abs(value);
    if (size < 0x1p-14) return static_cast<uint16_t>(sign | static_cast<int>(size * 0x1p24));
    const int exponent = std::ilogb(size);
    const int mantissa = static_cast<int>(std::ldexp(size, 10 - exponent)) - 1024;
    return static_cast<uint16_t>(sign | (exponent + 15) << 10 | mantissa);
}

double from_bits(DType type, uint16_t bits) {
    return type == DType::bf16 ? bf16_to_float(bits) : f16_to_float(bits);
}

Bits round_bits(DType type, const Values& values) {
    Bits bits;
    for (const double value : round_to(type, values)) bits.push_back(to_bits(type, value));
    return bits;
}

// Memory of the device, an allocation of its own with nothing behind it.
class OnDevice {
  public:
    explicit OnDevice(const Bits& bits) : count_(bits.size()) {
        check(cudaMalloc(&data_, 2 * count_), "allocating");
        check(cudaMemcpy(data_, bits.data(), 2 * count_, cudaMemcpyHostToDevice), "copying");
    }
    ~OnDevice() { cudaFree(data_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    uint16_t* data() const { return static_cast<uint16_t*>(data_); }
    Bits read() const {
        Bits bits(count_);
        check(cudaMemcpy(bits.data(), data_, 2 * count_, cudaMemcpyDeviceToHost), "copying");
        return bits;
    }

  private:
    void* data_ = nullptr;
    size_t count_;
};

struct Sizes {
    int64_t n, k, batch = 1;
    int64_t factor() const { return batch * n * k; }
    int64_t result() const { return batch * n * n; }
};

struct Scalars {
    float alpha = 1.0f, beta = 0.0f, diagonal = 0.0f;
};

struct Variant {
    const char* name;
    void (*run)(const SymmetricGemm&, Stream);
    bool hopper;  // runs on compute capability 9.0 alone
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

const Variant kVariants[] = {{"mma", symmetric_gemm_mma, false},
                             {"narrow", symmetric_gemm_narrow, true},
                             {"wide", symmetric_gemm_wide, true}};

class SymmetricTest : public ::testing::TestWithParam<std::tuple<Variant, DType>> {
  protected:
    void SetUp() override {
        int major = 0, minor = 0;
        check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0), "asking");
        check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), "asking");
        if (variant().hopper && (major != 9 || minor != 0)) {
            GTEST_SKIP() << "wgmma is for compute capability 9.0, this device has " << major << '.'
                         << minor;
        }
        stream_.dependent = kernels_wait() && launches_may_overlap();
    }

    const Variant& variant() const { return std::get<0>(GetParam()); }
    DType type() const { return std::get<1>(GetParam()); }
    double tolerance() const { return type() == DType::f16 ? 6e-4 : 3e-3; }

    Stream stream_;  // launches may overlap where the device can

    Bits random_bits(int64_t count, uint64_t seed, double scale = 1.0) const {
        return round_bits(type(), random_values(count, seed, scale));
    }

    SymmetricGemm operation(const Sizes& sizes, const Scalars& with, const OnDevice& a,
                            const OnDevice& b, const void* c, void* d) const {
        return {type(), sizes.n, sizes.k,    sizes.batch, a.data(),     b.data(),
                c,      d,       with.alpha, with.beta,   with.diagonal};
    }

    // D of an operation whose output held NaN before.
    Bits run(const Sizes& sizes, const Scalars& with, const Bits& a, const Bits& b,
             const Bits& c = {}) const {
        const OnDevice on_a(a), on_b(b), on_d(Bits(sizes.result(), 0xffff));
        const auto call = [&](const void* on_c) {
            variant().run(operation(sizes, with, on_a, on_b, on_c, on_d.data()), stream_);
        };
        if (c.empty()) {
            call(nullptr);
            return on_d.read();
        }
        const OnDevice on_c(c);
        call(on_c.data());
        return on_d.read();
    }

    // The same in float64, from the numbers below the diagonal.
    Values exact(const Sizes& sizes, const Scalars& with, const Bits& a, const Bits& b,
                 const Bits& c = {}) const {
        const auto value = [&](const Bits& bits, int64_t i) { return from_bits(type(), bits[i]); };
        Values wide_a, wide_b, d(sizes.result());
        for (const uint16_t bits : a) wide_a.push_back(from_bits(type(), bits));
        for (const uint16_t bits : b) wide_b.push_back(from_bits(type(), bits));
        const int64_t n = sizes.n, k = sizes.k;
        for (int64_t row = 0; row < sizes.batch * n; ++row) {
            const int64_t first = row / n * n, i = row - first;
            for (int64_t j = 0; j <= i; ++j) {
                const double *left = &wide_a[row * k], *right = &wide_b[(first + j) * k];
                double sum = 0;
                for (int64_t l = 0; l < k; ++l) sum += left[l] * right[l];
                sum *= with.alpha;
                if (with.beta != 0) sum += with.beta * value(c, row * n + j);
                if (i == j) sum += with.diagonal;
                d[row * n + j] = d[(first + j) * n + i] = sum;
            }
        }
        return d;
    }

    void expect_close(const Bits& actual, const Values& expected) const {
        ASSERT_EQ(actual.size(), expected.size());
        double error = 0, norm = 0;
        for (size_t i = 0; i < actual.size(); ++i) {
            const double difference = from_bits(type(), actual[i]) - expected[i];
            error += difference * difference;
            norm += expected[i] * expected[i];
        }
        EXPECT_LE(std::sqrt(error), tolerance() * std::sqrt(norm));
    }

    static void expect_symmetric(const Sizes& sizes, const Bits& d) {
        int64_t different = 0;
        for (int64_t row = 0; row < sizes.batch * sizes.n; ++row) {
            const int64_t first = row / sizes.n * sizes.n, i = row - first;
            for (int64_t j = 0; j < i; ++j) {
                different += d[row * sizes.n + j] != d[(first + j) * sizes.n + i];
            }
        }
        EXPECT_EQ(different, 0) << "elements differ from their mirror image";
    }

    void check_run(const Sizes& sizes, const Scalars& with, const Bits& a, const Bits& b,
                   const Bits& c = {}) const {
        SCOPED_TRACE("n " + std::to_string(sizes.n) + ", k " + std::to_string(sizes.k) +
                     ", batch " + std::to_string(sizes.batch) + ", alpha " +
                     std::to_string(with.alpha) + ", beta " + std::to_string(with.beta) +
                     ", diagonal " + std::to_string(with.diagonal));
        const Bits d = run(sizes, with, a, b, c);
        expect_symmetric(sizes, d);
        expect_close(d, exact(sizes, with, a, b, c));
    }
};

// Smaller than a tile, of several tiles, and everything that is no multiple of one.
TEST_P(SymmetricTest, AnyShape) {
    const Sizes all[] = {{8, 8},     {8, 200, 3}, {16, 16},   {72, 24, 3},   {64, 64},
                         {128, 64},  {136, 136},  {256, 32},  {264, 8},      {264, 104, 3},
                         {384, 128}, {392, 40},   {200, 264}, {136, 520, 2}, {520, 8}};
    for (const Sizes& sizes : all) {
        const Bits a = random_bits(sizes.factor(), 1);
        check_run(sizes, {}, a, a);
    }
}

class LargeSymmetricTest : public SymmetricTest {};

// Sides that the wide form is made for, and odd numbers of its tiles.
TEST_P(LargeSymmetricTest, ManyTilesOfOneMatrix) {
    for (const Sizes& sizes : {Sizes{2040, 8}, Sizes{2056, 8}}) {
        const Bits a = random_bits(sizes.factor(), 1);
        check_run(sizes, {}, a, a);
    }
}

// A B^T and C are not symmetric at all: what lies below the diagonal counts.
TEST_P(SymmetricTest, ScaledSumWithLowerTriangle) {
    const Scalars all[] = {{1.0f, 0.0f, 0.0f},   {-0.5f, 0.0f, 3.0f}, {2.0f, 1.0f, 0.0f},
                           {0.25f, -1.5f, 2.0f}, {0.0f, 1.0f, 0.0f},  {0.0f, 0.0f, -1.0f}};
    for (const Sizes& sizes : {Sizes{136, 72, 3}, Sizes{264, 72, 1}}) {
        const Bits a = random_bits(sizes.factor(), 1), b = random_bits(sizes.factor(), 2),
                   c = random_bits(sizes.result(), 3, 8.0);
        for (const Scalars& with : all) check_run(sizes, with, a, b, c);
    }
}

// Two polynomials of one symmetric matrix: all of the product, not just its lower part.
TEST_P(SymmetricTest, ProductsOfCommutingMatrices) {
    const int64_t n = 264;
    const Bits x = random_bits(n * 40, 5, 0.1);
    const Bits a = run({n, 40}, {}, x, x);
    const Bits b = run({n, n}, {0.5f, -1.5f, 1.0f}, a, a, a);
    const Bits d = run({n, n}, {}, a, b);
    Values product(n * n), wide_a(n * n), wide_b(n * n);
    for (int64_t i = 0; i < n * n; ++i) {
        wide_a[i] = from_bits(type(), a[i]);
        wide_b[i] = from_bits(type(), b[i]);
    }
    for (int64_t i = 0; i < n; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            for (int64_t l = 0; l < n; ++l) sum += wide_a[i * n + l] * wide_b[j * n + l];
            product[i * n + j] = sum;
        }
    }
    expect_symmetric({n, n}, d);
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n * n; ++i) {
        error += std::pow(from_bits(type(), d[i]) - product[i], 2);
        norm += product[i] * product[i];
    }
    // Rounded factors commute up to their rounding.
    EXPECT_LE(std::sqrt(error / norm), 2 * tolerance());
}

TEST_P(SymmetricTest, CInPlaceOfD) {
    for (const Sizes& sizes : {Sizes{72, 40, 3}, Sizes{392, 136, 1}}) {
        const Scalars with{0.5f, 2.0f, -1.0f};
        const Bits a = random_bits(sizes.factor(), 1), b = random_bits(sizes.factor(), 2),
                   c = random_bits(sizes.result(), 3);
        const OnDevice on_a(a), on_b(b), on_d(c);
        variant().run(operation(sizes, with, on_a, on_b, on_d.data(), on_d.data()), stream_);
        EXPECT_EQ(on_d.read(), run(sizes, with, a, b, c));
    }
}

// NaN where nobody may look: above the diagonal of C, and in all of it where beta is 0.
TEST_P(SymmetricTest, WhatIsNotReadOfC) {
    for (const Sizes& sizes : {Sizes{72, 40, 2}, Sizes{264, 40, 1}}) {
        const Bits a = random_bits(sizes.factor(), 1);
        check_run(sizes, {1.0f, 0.0f, 1.0f}, a, a, Bits(sizes.result(), 0xffff));
        Bits c = random_bits(sizes.result(), 3);
        for (int64_t at = 0; at < sizes.result(); ++at) {
            if (at % sizes.n > at / sizes.n % sizes.n) c[at] = 0xffff;
        }
        check_run(sizes, {1.0f, 2.0f, 1.0f}, a, a, c);
    }
}

TEST_P(SymmetricTest, NothingBesideDIsWritten) {
    const size_t margin = 512;
    for (const Sizes& sizes : {Sizes{8, 8, 3}, Sizes{72, 8, 2}, Sizes{264, 8, 2}}) {
        const Bits a = random_bits(sizes.factor(), 1);
        const OnDevice on_a(a), around(Bits(sizes.result() + 2 * margin, 0xabcd));
        variant().run(operation(sizes, {}, on_a, on_a, nullptr, around.data() + margin), stream_);
        const Bits all = around.read();
        EXPECT_EQ(Bits(all.begin(), all.begin() + margin), Bits(margin, 0xabcd));
        EXPECT_EQ(Bits(all.end() - margin, all.end()), Bits(margin, 0xabcd));
        EXPECT_EQ(Bits(all.begin() + margin, all.end() - margin), run(sizes, {}, a, a));
    }
}

// Each matrix of a batch has the bits that it would have alone.
TEST_P(SymmetricTest, BatchOfAnySize) {
    for (const Sizes& sizes : {Sizes{136, 72, 3}, Sizes{264, 72, 2}}) {
        const Scalars with{0.5f, 2.0f, -1.0f};
        const Bits a = random_bits(sizes.factor(), 1), c = random_bits(sizes.result(), 3);
        Bits alone;
        const auto part = [](const Bits& of, int64_t z, int64_t size) {
            return Bits(of.begin() + z * size, of.begin() + (z + 1) * size);
        };
        for (int64_t z = 0; z < sizes.batch; ++z) {
            const Bits a_z = part(a, z, sizes.n * sizes.k), c_z = part(c, z, sizes.n * sizes.n);
            const Bits d = run({sizes.n, sizes.k}, with, a_z, a_z, c_z);
            alone.insert(alone.end(), d.begin(), d.end());
        }
        EXPECT_EQ(run(sizes, with, a, a, c), alone);
    }
}

// Blocks that compute many tiles, some of them of other matrices than before.
TEST_P(SymmetricTest, MoreTilesThanFit) {
    const bool emulated = emulator::settings != nullptr;  // has few multiprocessors
    for (const int64_t k : {8, 328}) {
        const Sizes sizes{136, k, emulated ? 6 : 140};
        const Bits a = random_bits(sizes.factor(), 1), c = random_bits(sizes.result(), 2);
        check_run(sizes, {}, a, a);
        check_run(sizes, {0.5f, 2.0f, -1.0f}, a, a, c);
    }
}

// In every order of blocks and threads, and whenever copies arrive; on a GPU just once more.
TEST_P(SymmetricTest, EqualBitsInEveryOrder) {
    for (const Sizes& sizes : {Sizes{72, 200, 2}, Sizes{264, 264, 1}}) {
        const Scalars with{0.5f, 2.0f, -1.0f};
        const Bits a = random_bits(sizes.factor(), 1), b = random_bits(sizes.factor(), 2),
                   c = random_bits(sizes.result(), 3);
        const Bits once = run(sizes, with, a, b, c);
        if (emulator::settings == nullptr) {
            EXPECT_EQ(run(sizes, with, a, b, c), once);
            continue;
        }
        const emulator::SettingsGuard restore;
        for (const auto order :
             {emulator::Order::ascending, emulator::Order::descending, emulator::Order::random}) {
            for (const auto landing :
                 {emulator::Landing::late, emulator::Landing::early, emulator::Landing::random}) {
                emulator::settings().order = order;
                emulator::settings().async_copies = landing;
                EXPECT_EQ(run(sizes, with, a, b, c), once);
            }
        }
    }
}

std::string name_of(const ::testing::TestParamInfo<std::tuple<Variant, DType>>& info) {
    return std::string(std::get<0>(info.param).name) + "_" + to_string(std::get<1>(info.param));
}

INSTANTIATE_TEST_SUITE_P(, SymmetricTest,
                         ::testing::Combine(::testing::ValuesIn(kVariants),
                                            ::testing::Values(DType::f16, DType::bf16)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(, LargeSymmetricTest,
                         ::testing::Combine(::testing::Values(kVariants[1]),
                                            ::testing::Values(DType::f16)),
                         name_of);

}  // namespace
}  // namespace lmo::cuda
