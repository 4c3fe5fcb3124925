// What the cases of the conformance program (conformance.cu) share.
#pragma once

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "llmc/cuda/common.cuh"

namespace lmo::conformance {

using cuda::bf16;
using cuda::fp16;

// ---- results -----------------------------------------------------------------------------------

struct Result {
    std::string name;
    std::vector<unsigned char> bytes;
    // The bytes are floats and may differ by so much; empty: they are equal.
    std::vector<float> bounds;
    bool wrong = false;  // not what the case itself computed on the host
};

class Results {
  public:
    // `expected` is what the case knows from the definition; cases may leave it out.
    template <typename T>
    void exact(const std::string& name, const std::vector<T>& values,
               const std::vector<T>& expected = {}) {
        Result& result = add(name, values);
        result.wrong =
            !expected.empty() && (expected.size() != values.size() ||
                                  memcmp(expected.data(), values.data(), result.bytes.size()) != 0);
    }
    void near(const std::string& name, const std::vector<float>& values,
              const std::vector<double>& expected, const std::vector<float>& bounds) {
        Result& result = add(name, values);
        result.bounds = bounds;
        for (size_t i = 0; i < values.size(); ++i) {
            const bool equal = values[i] == expected[i];  // infinities too
            if (!equal && !(std::abs(values[i] - expected[i]) <= bounds[i])) result.wrong = true;
        }
    }
    const std::vector<Result>& all() const { return all_; }

  private:
    template <typename T>
    Result& add(const std::string& name, const std::vector<T>& values) {
        Result result{name, std::vector<unsigned char>(values.size() * sizeof(T)), {}, false};
        memcpy(result.bytes.data(), values.data(), result.bytes.size());
        return all_.emplace_back(std::move(result));
    }
    std::vector<Result> all_;
};

// The wrappers of llmc/cuda/ptx.cuh, and those of llmc/cuda/hopper.cuh.
void run_ptx_cases(Results& results);
void run_hopper_cases(Results& results);

// ---- inputs ------------------------------------------------------------------------------------

// Bits that are a function of the two numbers (splitmix64).
inline uint64_t random_bits(uint64_t seed, uint64_t index) {
    uint64_t x = seed * 0x9e3779b97f4a7c15u + index * 0xd1b54a32d192ed03u + 1;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

// Numbers of both signs from 2^-6 to 2.
template <typename T>
std::vector<T> random_values(uint64_t seed, size_t count) {
    std::vector<T> values(count);
    for (size_t i = 0; i < count; ++i) {
        const uint64_t bits = random_bits(seed, i);
        const float magnitude =
            std::ldexp(1.0f + (bits & 0xffff) / 65536.0f, -static_cast<int>(bits >> 16 & 0xff) % 7);
        values[i] = cuda::from_float<T>(bits >> 32 & 1 ? magnitude : -magnitude);
    }
    return values;
}

// Multiples of 1/8 in [-1, 1]: sums of their products are exact in any order.
template <typename T>
std::vector<T> random_eighths(uint64_t seed, size_t count) {
    std::vector<T> values(count);
    for (size_t i = 0; i < count; ++i) {
        values[i] = cuda::from_float<T>(static_cast<float>(random_bits(seed, i) % 17) / 8 - 1);
    }
    return values;
}

template <typename T>
std::vector<T> random_integers(uint64_t seed, size_t count) {
    std::vector<T> values(count);
    for (size_t i = 0; i < count; ++i) values[i] = static_cast<T>(random_bits(seed, i));
    return values;
}

// How far sums of `terms` products, of this sum of magnitudes, may be apart that were added in
// different orders and with other roundings than to nearest: tensor cores cut off bits below the
// last one of the largest term.
inline float bound_of_sum(int terms, double magnitudes) {
    return static_cast<float>((terms + 1) * 0x1p-22 * magnitudes);
}

// ---- device memory -----------------------------------------------------------------------------

template <typename T>
class OnDevice {
  public:
    explicit OnDevice(size_t count) : count_(count) {
        cuda::check(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)), "allocating");
    }
    explicit OnDevice(const std::vector<T>& values) : OnDevice(values.size()) {
        cuda::check(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice),
                    "copying to the device");
    }
    ~OnDevice() { cudaFree(data_); }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;

    T* data() const { return data_; }
    std::vector<T> read() const {
        cuda::check(cudaDeviceSynchronize(), "running a case");
        std::vector<T> values(count_);
        cuda::check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost),
                    "copying from the device");
        return values;
    }

  private:
    T* data_ = nullptr;
    size_t count_;
};

}  // namespace lmo::conformance
