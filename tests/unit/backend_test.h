// What the tests of backend operations share. They are written over the Backend interface, so that
// each new backend runs the same tests: it links these files with its own definitions of the two
// functions below (backends_cpu.cpp, backends_cuda.cpp).
//
// Tests work with values in double: put() rounds them to a tensor's type, get() reads them back,
// and references are templates over the type of their arithmetic. The criterion for fp32 and bf16
// is FlashAttention's: the error against float64 may be at most twice that of the plain algorithm
// in the same precision.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "llmc/core/random.h"
#include "llmc/device/backend.h"

namespace lmo {

using Values = std::vector<double>;

// The backends under test in this program, and one of them. `threads` matters on the CPU only.
std::vector<std::string> test_backends();
std::unique_ptr<Backend> make_test_backend(const std::string& name, int threads);

inline DType master_of(DType compute) { return compute == DType::f64 ? DType::f64 : DType::f32; }

// Normal random values, a function of the seed.
inline Values random_values(int64_t count, uint64_t seed, double scale = 1.0) {
    Values values(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
        values[i] = scale * random_normal(seed, 0, static_cast<uint64_t>(i));
    }
    return values;
}

// To IEEE half precision: 11 bits, fewer below 2^-14, infinite from 65520 on.
inline double round_to_f16(double value) {
    if (value == 0 || !std::isfinite(value)) return value;
    const double unit = std::ldexp(1.0, std::max(std::ilogb(value) - 10, -24));
    const double rounded = std::nearbyint(value / unit) * unit;
    return std::abs(rounded) > 65504 ? std::copysign(INFINITY, value) : rounded;
}

// The values as a tensor of this type holds them.
inline Values round_to(DType type, Values values) {
    for (double& value : values) {
        if (type != DType::f64) value = static_cast<float>(value);
        if (type == DType::bf16) value = bf16_to_float(float_to_bf16(static_cast<float>(value)));
        if (type == DType::f16) value = round_to_f16(value);
    }
    return values;
}

inline double largest(const Values& values) {
    double top = 0;
    for (const double value : values) top = std::max(top, std::abs(value));
    return top;
}

inline double largest_difference(const Values& a, const Values& b) {
    double top = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        if (std::isnan(a[i]) != std::isnan(b[i])) return INFINITY;
        if (a[i] != b[i]) top = std::max(top, std::abs(a[i] - b[i]));
    }
    return top;
}

// d f / d x by central differences.
template <typename F>
Values differences(Values x, F f) {
    Values gradient(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const double h = 1e-5, old = x[i];
        x[i] = old + h;
        const double up = f(x);
        x[i] = old - h;
        const double down = f(x);
        x[i] = old;
        gradient[i] = (up - down) / (2 * h);
    }
    return gradient;
}

inline double dot(const Values& a, const Values& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

// One half unit in the last place of numbers of size 1.
inline double half_ulp(DType type) {
    if (type == DType::f64) return std::ldexp(1.0, -53);
    if (type == DType::f16) return std::ldexp(1.0, -11);
    return type == DType::f32 ? std::ldexp(1.0, -24) : std::ldexp(1.0, -9);
}

// `actual` has storage type `type`; `exact` is the reference in double, `plain` the plain algorithm
// in fp32 (used for fp32 and bf16 only).
inline void expect_accurate(DType type, const Values& actual, const Values& exact,
                            const Values& plain, double tolerance64 = 1e-12) {
    ASSERT_EQ(actual.size(), exact.size());
    const double scale = largest(exact);
    const double error = largest_difference(actual, exact);
    if (type == DType::f64) {
        EXPECT_LE(error, tolerance64 * scale);
        return;
    }
    ASSERT_EQ(plain.size(), exact.size());
    // The plain algorithm's own error may be small by luck where there are few elements.
    const double slack = (type == DType::f32 ? 4 : 1) * half_ulp(type) * scale;
    const double allowed = 2 * largest_difference(round_to(type, plain), exact);
    EXPECT_LE(error, allowed + slack) << "type " << to_string(type);
}

class BackendTest : public ::testing::TestWithParam<std::string> {
  protected:
    void SetUp() override { use_threads(2); }

    // A fresh backend; tensors of the old one are gone.
    void use_threads(int threads) {
        release_all();
        backend_ = make_test_backend(GetParam(), threads);
    }

    // fp64 is the oracle's: the CPU has it, a GPU does not.
    bool has_fp64() const { return backend_->has_fp64(); }
    std::vector<DType> compute_types() const {
        if (has_fp64()) return {DType::f64, DType::f32, DType::bf16};
        return {DType::f32, DType::bf16};
    }
    std::vector<DType> master_types() const {
        if (has_fp64()) return {DType::f64, DType::f32};
        return {DType::f32};
    }

    ~BackendTest() override { release_all(); }

    Tensor raw(DType type, Shape shape) {
        Tensor tensor{nullptr, type, shape};
        tensor.data = backend_->allocate(tensor.bytes());
        blocks_.push_back(tensor.data);
        return tensor;
    }

    Tensor put(DType type, Shape shape, const Values& values) {
        const Tensor tensor = raw(type, shape);
        EXPECT_EQ(static_cast<size_t>(tensor.count()), values.size());
        std::vector<char> host(tensor.bytes());
        for (size_t i = 0; i < values.size(); ++i) {
            const float single = static_cast<float>(values[i]);
            const uint16_t half = float_to_bf16(single);
            switch (type) {
                case DType::f64:
                    std::memcpy(&host[8 * i], &values[i], 8);
                    break;
                case DType::f32:
                    std::memcpy(&host[4 * i], &single, 4);
                    break;
                default:
                    std::memcpy(&host[2 * i], &half, 2);
                    break;
            }
        }
        backend_->copy_in(tensor, host.data());
        return tensor;
    }

    // The same, but not at a multiple of 16 bytes.
    Tensor put_unaligned(DType type, Shape shape, Values values) {
        values.insert(values.begin(), NAN);
        return put(type, {static_cast<int64_t>(values.size())}, values).slice(1, shape);
    }

    Tensor put_ids(const std::vector<int32_t>& ids) {
        const Tensor tensor = raw(DType::i32, {static_cast<int64_t>(ids.size())});
        backend_->copy_in(tensor, ids.data());
        return tensor;
    }

    // A tensor that must be overwritten: full of NaN.
    Tensor blank(DType type, Shape shape) {
        return put(type, shape, Values(static_cast<size_t>(shape.count()), NAN));
    }

    Values get(const Tensor& tensor) {
        std::vector<char> host(tensor.bytes());
        backend_->copy_out(host.data(), tensor);
        Values values(static_cast<size_t>(tensor.count()));
        for (size_t i = 0; i < values.size(); ++i) {
            float single;
            uint16_t half;
            switch (tensor.dtype) {
                case DType::f64:
                    std::memcpy(&values[i], &host[8 * i], 8);
                    break;
                case DType::f32:
                    std::memcpy(&single, &host[4 * i], 4);
                    values[i] = single;
                    break;
                default:
                    std::memcpy(&half, &host[2 * i], 2);
                    values[i] = bf16_to_float(half);
                    break;
            }
        }
        return values;
    }

    // Exactly the workspace that the operation asks for, full of NaN, with a guard behind it.
    template <typename Op>
    void give_workspace(Op& op) {
        const int64_t bytes = static_cast<int64_t>(backend_->workspace_bytes(op));
        const Tensor block = raw(DType::u16, {bytes / 2 + 33});
        std::vector<char> garbage(block.bytes(), static_cast<char>(0xff));
        backend_->copy_in(block, garbage.data());
        op.workspace = block.slice(0, {(bytes + 1) / 2});
        guards_.push_back({block, bytes});
    }

    // Nothing was written behind any workspace.
    void check_guards() {
        for (const Guard& guard : guards_) {
            std::vector<char> host(guard.block.bytes());
            backend_->copy_out(host.data(), guard.block);
            for (size_t i = static_cast<size_t>(guard.bytes); i < host.size(); ++i) {
                ASSERT_EQ(host[i], static_cast<char>(0xff)) << "written behind the workspace";
            }
        }
    }

    std::unique_ptr<Backend> backend_;

  private:
    struct Guard {
        Tensor block;
        int64_t bytes;
    };

    void release_all() {
        if (backend_) check_guards();
        guards_.clear();
        for (void* block : blocks_) backend_->release(block);
        blocks_.clear();
    }

    std::vector<void*> blocks_;
    std::vector<Guard> guards_;
};

// Tests in fp64 alone, such as finite differences, run on the oracle only, which the other backends
// are compared with; tests of what only GPUs have, on those.
inline std::vector<std::string> test_backends_that(bool are_cpu) {
    std::vector<std::string> names = test_backends();
    names.erase(std::remove_if(names.begin(), names.end(),
                               [&](const std::string& name) { return (name == "cpu") != are_cpu; }),
                names.end());
    return names;
}

#define LMO_ON_SOME_BACKENDS(Prefix, Suite, are_cpu)                     \
    GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Suite);                \
    INSTANTIATE_TEST_SUITE_P(                                            \
        Prefix, Suite, ::testing::ValuesIn(test_backends_that(are_cpu)), \
        [](const ::testing::TestParamInfo<std::string>& info) { return info.param; })
#define LMO_ON_THE_ORACLE(Suite) LMO_ON_SOME_BACKENDS(Oracle, Suite, true)
#define LMO_ON_GPUS(Suite) LMO_ON_SOME_BACKENDS(Gpus, Suite, false)

#define LMO_ON_ALL_BACKENDS(Suite)                             \
    INSTANTIATE_TEST_SUITE_P(                                  \
        Backends, Suite, ::testing::ValuesIn(test_backends()), \
        [](const ::testing::TestParamInfo<std::string>& info) { return info.param; })

}  // namespace lmo
