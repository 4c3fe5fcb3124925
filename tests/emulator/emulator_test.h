// Shared by the tests of the emulator.
#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "dev/emulator/settings.h"
#include "llmc/cuda/common.cuh"

namespace lmo::cuda {

// Memory of the device with the values of a host vector.
template <typename T>
class Array {
  public:
    explicit Array(const std::vector<T>& values) : count_(values.size()) {
        EXPECT_EQ(cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(T)), cudaSuccess);
        cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice);
    }
    explicit Array(size_t count) : Array(std::vector<T>(count)) {}
    ~Array() { cudaFree(data_); }
    Array(const Array&) = delete;

    T* data() const { return data_; }
    std::vector<T> values() const {
        std::vector<T> host(count_);
        cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost);
        return host;
    }

  private:
    T* data_ = nullptr;
    size_t count_;
};

// What the emulator says of the body, whose work is waited for.
inline std::string message_of(const std::function<void()>& body) {
    try {
        body();
        cudaDeviceSynchronize();
    } catch (const emulator::Error& error) {
        return error.what();
    }
    return "no error";
}

#define EXPECT_ERROR(part, ...) \
    EXPECT_PRED_FORMAT2(::testing::IsSubstring, part, message_of([&] { __VA_ARGS__; }))

}  // namespace lmo::cuda
