// Sums over each tensor of a list, in double: a block sums a chunk of one tensor and writes one
// partial sum; then one block a tensor adds those. The borders depend on the sizes alone.
#pragma once

#include <span>

#include "llmc/cuda/sums.cuh"
#include "llmc/cuda/tensor_table.cuh"

namespace lmo::cuda {

constexpr int kPartThreads = 256;
constexpr int64_t kPartChunk = 16384;  // elements of a block

using SquaresTable = TensorTable<TableEntry<1, NoScalars>>;
using PairsTable = TensorTable<TableEntry<2, NoScalars>>;

// The chunk of a block.
struct Part {
    int index;  // of its entry
    int64_t begin, count;
};
template <typename Table>
__device__ __forceinline__ Part part_of(const Table& table) {
    const int block = static_cast<int>(blockIdx.x), index = table.find(block);
    const int64_t begin = (block - table.first_block[index]) * kPartChunk;
    const int64_t rest = table.entries[index].count - begin;
    return {index, begin, rest < kPartChunk ? rest : kPartChunk};
}

// out[tensor] = the sum of the parts of each tensor of the table, which has a block for each.
void add_parts(const SquaresTable& table, const double* parts, double* out, Stream stream);
void add_parts(const PairsTable& table, const double* parts, double* out, Stream stream);

inline size_t parts_bytes(std::span<const Tensor> tensors) {
    int64_t parts = 0;
    for (const Tensor& tensor : tensors) parts += div_up(tensor.count(), kPartChunk);
    return static_cast<size_t>(parts) * sizeof(double);
}

}  // namespace lmo::cuda
