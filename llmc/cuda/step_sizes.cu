// The lengths of steps from dual norms: a few numbers a tensor, in double.
//
// Radii and smoothness constants are the host's and travel in the kernel's parameters, so a
// recorded graph keeps them; lists longer than a table take several launches, and a sum over all
// tensors one of its own between them.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/sums.cuh"
#include "llmc/cuda/tensor_table.cuh"

namespace lmo::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kRows = 600;  // of a table

struct StepTable {
    int64_t first;  // number of its first tensor
    int size;
    double radius[kRows], l0[kRows], l1[kRows];
};

__device__ __forceinline__ int place() {
    return static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
}

// out = d_i
__global__ void __launch_bounds__(kThreads)
    dual_norms_kernel(const __grid_constant__ StepTable table, const double* dot, double* out) {
    wait_for_previous();
    const int i = place();
    if (i < table.size) out[table.first + i] = table.radius[i] * dot[table.first + i];
}

// out = their sum, for all
__global__ void __launch_bounds__(kThreads) add_dual_norms_kernel(int64_t count, double* out) {
    LMO_SHARED(double, scratch, [kThreads / 32]);
    wait_for_previous();
    const double sum = thread_sum<kThreads>(out, count, static_cast<int>(threadIdx.x), plus);
    const double total = block_sum<kThreads>(sum, scratch);
    for (int64_t i = threadIdx.x; i < count; i += kThreads) out[i] = total;
}

__device__ __forceinline__ double size_of_step(StepRule rule, double limit, double d, double l0,
                                               double l1) {
    switch (rule) {
        case StepRule::unit:
            return 1.0;
        case StepRule::dual:
            return d;
        case StepRule::clipped:
            return d > limit ? limit : d;  // NaN stays NaN
        case StepRule::gluon:
            return d > 0.0 ? d / (l0 + l1 * d) : d * 0.0;
    }
    return 0.0;
}

// out = the sizes, from d_i in the same place
__global__ void __launch_bounds__(kThreads)
    step_sizes_kernel(const __grid_constant__ StepTable table, StepRule rule, double limit,
                      const double* range, double* out) {
    wait_for_previous();
    const int i = place();
    if (i >= table.size) return;
    double& size = out[table.first + i];
    size = size_of_step(rule, limit, rule == StepRule::unit ? 0.0 : size, table.l0[i], table.l1[i]);
    if (!range) return;
    const double above = range[2 * (table.first + i)] - 1.0;
    const double below = 1.0 - range[2 * (table.first + i) + 1];
    const double error = fmin(1.0, fmax(above, below));
    size *= (1.0 - error) / ((1.0 + error) * (1.0 + error));
}

// Calls launch_table(table, its blocks) for tables of all tensors.
template <typename LaunchTable>
void for_each_part(const StepSizes& op, LaunchTable launch_table) {
    const int64_t count = op.out.count();
    for (int64_t first = 0; first < count; first += kRows) {
        StepTable table{};
        table.first = first;
        table.size = static_cast<int>(std::min<int64_t>(kRows, count - first));
        const auto fill = [&](std::span<const double> from, double* to) {
            if (!from.empty()) std::copy_n(from.begin() + first, table.size, to);
        };
        fill(op.radius, table.radius);
        fill(op.l0, table.l0);
        fill(op.l1, table.l1);
        launch_table(table, div_up(table.size, kThreads));
    }
}

}  // namespace

void CudaBackend::step_sizes(const StepSizes& op) {
    const int64_t count = op.out.count();
    const size_t tensors = static_cast<size_t>(count);
    const bool measured = op.rule != StepRule::unit;
    assert(op.out.dtype == DType::f64);
    assert(!measured || (op.dot.dtype == DType::f64 && op.dot.count() == count));
    assert(!measured || op.radius.size() == tensors);
    assert(op.rule != StepRule::gluon || (op.l0.size() == tensors && op.l1.size() == tensors));
    assert(op.range.empty() || (op.range.dtype == DType::f64 && op.range.count() == 2 * count));
    if (count == 0) return;
    double* out = op.out.as<double>();
    if (measured) {
        for_each_part(op, [&](const StepTable& table, int blocks) {
            launch(LMO_KERNEL(dual_norms_kernel), blocks, kThreads, 0, stream_, table,
                   op.dot.as<double>(), out);
        });
    }
    if (measured && op.together) {
        launch(LMO_KERNEL(add_dual_norms_kernel), 1, kThreads, 0, stream_, count, out);
    }
    for_each_part(op, [&](const StepTable& table, int blocks) {
        launch(LMO_KERNEL(step_sizes_kernel), blocks, kThreads, 0, stream_, table, op.rule,
               op.limit, op.range.as<double>(), out);
    });
}

}  // namespace lmo::cuda
