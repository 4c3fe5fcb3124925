// How the CPU backend divides work among its threads, and how operations carve up their workspace.
#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <span>

#include "llmc/core/tensor.h"

namespace lmo::cpu {

// Elements that one thread takes at a time in elementwise loops and sums.
constexpr int64_t element_block = 1 << 15;

inline int64_t block_count(int64_t count, int64_t block) { return (count + block - 1) / block; }

// Calls body(begin, end) for the blocks of [0, count).
template <typename F>
void parallel_blocks([[maybe_unused]] int threads, int64_t count, int64_t block, F body) {
    const int64_t blocks = block_count(count, block);
#pragma omp parallel for num_threads(threads) schedule(static) if (blocks > 1)
    for (int64_t b = 0; b < blocks; ++b) {
        body(b * block, b + 1 == blocks ? count : (b + 1) * block);
    }
}

// Calls body(index of the tensor, begin, end, number of the block over all tensors) for the element
// blocks of a list, in one parallel
// region however many small tensors there are.
template <typename F>
void parallel_lists(int threads, std::span<const Tensor> tensors, F body) {
    int64_t total = 0;
    for (const Tensor& tensor : tensors) total += block_count(tensor.count(), element_block);
    const int64_t share = block_count(total, threads);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t thread = 0; thread < threads; ++thread) {
        int64_t number = 0;  // of the block, over all tensors
        for (size_t i = 0; i < tensors.size(); ++i) {
            const int64_t count = tensors[i].count();
            for (int64_t begin = 0; begin < count; begin += element_block, ++number) {
                if (number / share != thread) continue;
                const int64_t rest = count - begin;
                body(i, begin, begin + (rest < element_block ? rest : element_block), number);
            }
        }
    }
}

// Hands out aligned pieces of a workspace. Without one it only counts, so an operation's need is
// found by the code that uses it.
class Scratch {
  public:
    Scratch() = default;
    // From byte `offset` of the workspace on.
    explicit Scratch(const Tensor& workspace, size_t offset = 0)
        : base_(workspace.as<char>()),
          available_(workspace.empty() ? 0 : workspace.bytes()),
          used_(offset) {}

    template <typename T>
    T* take(int64_t count) {
        const size_t begin = used_;
        used_ += (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
        if (base_ == nullptr) return nullptr;
        assert(used_ <= available_ && "workspace too small");
        return reinterpret_cast<T*>(base_ + begin);
    }
    size_t bytes() const { return used_; }

  private:
    char* base_ = nullptr;
    size_t available_ = 0, used_ = 0;
};

}  // namespace lmo::cpu
