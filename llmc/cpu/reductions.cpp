// Sums in double over blocks with fixed borders, the blocks added in order.
#include <algorithm>
#include <cmath>

#include "llmc/cpu/cpu_backend.h"

namespace lmo::cpu {

namespace {

int64_t total_blocks(std::span<const Tensor> tensors) {
    int64_t blocks = 0;
    for (const Tensor& tensor : tensors) blocks += block_count(tensor.count(), element_block);
    return blocks;
}

}  // namespace

void CpuBackend::sum(const Sum& op) {
    assert(op.out.dtype == DType::f64);
    constexpr int64_t most_parts = 64;
    double parts[most_parts] = {};
    const int64_t count = op.x.count();
    const int64_t block = std::max<int64_t>(1024, block_count(count, most_parts));
    parallel_blocks(threads_, count, block, [&](int64_t begin, int64_t end) {
        parts[begin / block] = kernels_.sum(op.x.dtype, op.x.data, begin, end);
    });
    double total = 0;
    for (int64_t b = 0; b < block_count(count, block); ++b) total += parts[b];
    double& out = *op.out.as<double>();
    out = (op.accumulate ? out : 0.0) + op.scale * total;
}

size_t CpuBackend::workspace_bytes(const SumOfSquares& op) const {
    Scratch scratch;
    scratch.take<double>(total_blocks(op.tensors));
    return scratch.bytes();
}

void CpuBackend::sum_of_squares(const SumOfSquares& op) {
    assert(op.out.dtype == DType::f64 && op.out.count() == int64_t(op.tensors.size()));
    Scratch scratch(op.workspace);
    double* parts = scratch.take<double>(total_blocks(op.tensors));
    parallel_lists(threads_, op.tensors, [&](size_t i, int64_t begin, int64_t end, int64_t block) {
        const Tensor& x = op.tensors[i];
        parts[block] = kernels_.sum_of_squares(x.dtype, x.data, begin, end);
    });
    const double* part = parts;
    for (size_t i = 0; i < op.tensors.size(); ++i) {
        double total = 0;
        for (int64_t b = block_count(op.tensors[i].count(), element_block); b > 0; --b) {
            total += *part++;
        }
        op.out.as<double>()[i] = total;
    }
}

void CpuBackend::clip_factor(const ClipFactor& op) {
    double total = 0;
    for (int64_t i = 0; i < op.sum_of_squares.count(); ++i) {
        total += op.sum_of_squares.as<double>()[i];
    }
    const double norm = std::sqrt(total);
    *op.norm.as<double>() = norm;
    const double ratio = op.max_norm / (norm + 1e-6);
    *op.factor.as<double>() = op.max_norm == 0 || ratio >= 1 ? 1.0 : ratio;  // NaN stays NaN
}

}  // namespace lmo::cpu
