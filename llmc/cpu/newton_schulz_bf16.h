// The standard form of a Newton-Schulz iteration with matrices in bf16 (bf16_tiles.h), sums in
// fp32:
//   A = X X^T,  M = b A + c A^2,  X = a X + M X.
// Half of each symmetric product is computed, and what is added to a product is added before it is
// rounded.
#pragma once

#include "llmc/cpu/bf16_tiles.h"
#include "llmc/cpu/parallel.h"
#include "llmc/device/optimizer_operations.h"

namespace lmo::cpu {

class Bf16NewtonSchulz {
  public:
    // For one matrix of `op` by so many threads.
    Bf16NewtonSchulz(const NewtonSchulz& op, int threads);

    size_t workspace_bytes() const;
    double executed_flops() const;
    // x = the iteration on x / divisor
    void run(const Bf16Tiles& tiles, const Tensor& x, double divisor, Scratch& scratch) const;

  private:
    struct Buffers;
    struct Matrix;
    enum class Product { general, symmetric };

    Buffers take(Scratch& scratch) const;
    void multiply(const Bf16Tiles& tiles, const Buffers& buffers, Product kind, int64_t columns,
                  const Bf16Panel& product) const;

    std::span<const NewtonSchulzStep> steps_;
    int threads_;
    bool tall_;
    int64_t rows_, columns_;                // rows <= columns
    int64_t padded_rows_, padded_columns_;  // and rows of A and M
    int64_t stride_, square_stride_;
};

}  // namespace lmo::cpu
