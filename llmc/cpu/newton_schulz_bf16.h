// The standard form of a Newton-Schulz iteration with matrices in bf16 (bf16_tiles.h), sums in
// fp32:
//   A = X X^T,  M = b A + c A^2,  X = a X + M X.
// What is added to a product is added before it is rounded. By the tiles half of each symmetric
// product is computed; where a library is given its products are taken: whole ones, for AMX.
#pragma once

#include "llmc/cpu/bf16_matmul.h"
#include "llmc/cpu/bf16_tiles.h"
#include "llmc/cpu/parallel.h"
#include "llmc/device/optimizer_operations.h"

namespace lmo::cpu {

class Bf16NewtonSchulz {
  public:
    // For one matrix of `op` by so many threads. `library` may be null, and is not to be used by
    // two threads at once.
    Bf16NewtonSchulz(const NewtonSchulz& op, int threads, Bf16Matmul* library);

    size_t workspace_bytes() const;
    double executed_flops() const;
    // x = the iteration on x / divisor
    void run(const Bf16Tiles& tiles, const Tensor& x, double divisor, Scratch& scratch) const;

  private:
    struct Buffers;
    enum class Product { general, symmetric };  // a b, or a b^T

    Buffers take(Scratch& scratch) const;
    void multiply(const Bf16Tiles& tiles, const Buffers& buffers, Product kind, int64_t columns,
                  const Bf16Panel& product) const;

    bool multiply_by_library(Product kind, int64_t columns, const Bf16Panel& product) const;

    std::span<const NewtonSchulzStep> steps_;
    Bf16Matmul* library_;
    int threads_;
    bool tall_;
    int64_t rows_, columns_;                // rows <= columns
    int64_t padded_rows_, padded_columns_;  // and rows of A and M
    int64_t stride_, square_stride_;
};

}  // namespace lmo::cpu
