// Sums in double, in a fixed order (sums.cuh).
//
// SumOfSquares and DotProducts read each element once (4 bytes, 8 a pair). A block sums a chunk of
// one tensor and writes one partial sum; then one block a tensor adds those. A square of a float is
// exact in double. An element takes two operations of the fp64 units (conversion, multiply-add):
// far below the memory's time on A100 and H100, about even with it on an RTX 4090 (2 such units a
// multiprocessor, 1.3 TB/s of floats), and up to twice as long on its smaller relatives.
//
// Sum is for losses, a value a row: one block of 1024 threads, as its contract has no workspace for
// partial sums. One multiprocessor reads some 0.1 TB/s, so a checkpoint's look at all weights of a
// large model takes fractions of a second.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/parts.cuh"

namespace lmo::cuda {

namespace {

constexpr int kSumThreads = 1024;

// ---- sums of squares and of products ------------------------------------------------------------

// parts[block] = the sum of a chunk's squares.
__global__ void __launch_bounds__(kPartThreads)
    squares_kernel(const __grid_constant__ SquaresTable table, double* parts) {
    LMO_SHARED(double, scratch, [kPartThreads / 32]);
    const Part part = part_of(table);
    const float* x = static_cast<const float*>(table.entries[part.index].data[0]) + part.begin;
    wait_for_previous();
    const double sum =
        thread_sum<kPartThreads>(x, part.count, static_cast<int>(threadIdx.x), plus_square);
    const double total = block_sum<kPartThreads>(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// parts[block] = the sum of a chunk's products.
__global__ void __launch_bounds__(kPartThreads)
    dots_kernel(const __grid_constant__ PairsTable table, double* parts) {
    LMO_SHARED(double, scratch, [kPartThreads / 32]);
    const Part part = part_of(table);
    const auto& data = table.entries[part.index].data;
    const float* a = static_cast<const float*>(data[0]) + part.begin;
    const float* b = static_cast<const float*>(data[1]) + part.begin;
    wait_for_previous();
    const double sum = thread_dot<kPartThreads>(a, b, part.count, static_cast<int>(threadIdx.x));
    const double total = block_sum<kPartThreads>(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// out[tensor] = the sum of the tensor's parts; a block a tensor.
template <typename Table>
__global__ void __launch_bounds__(kPartThreads)
    add_parts_kernel(const __grid_constant__ Table table, const double* parts, double* out) {
    LMO_SHARED(double, scratch, [kPartThreads / 32]);
    const int index = static_cast<int>(blockIdx.x);
    const int begin = table.first_block[index];
    const int end = index + 1 < table.size ? table.first_block[index + 1] : table.blocks;
    wait_for_previous();
    const double sum =
        thread_sum<kPartThreads>(parts + begin, end - begin, static_cast<int>(threadIdx.x), plus);
    const double total = block_sum<kPartThreads>(sum, scratch);
    if (threadIdx.x == 0) out[index] = total;
}

// ---- single results -----------------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const T* x, int64_t count, double scale, bool accumulate, double* out) {
    LMO_SHARED(double, scratch, [kSumThreads / 32]);
    wait_for_previous();
    const double sum = thread_sum<kSumThreads>(x, count, static_cast<int>(threadIdx.x), plus);
    const double total = block_sum<kSumThreads>(sum, scratch);
    if (threadIdx.x == 0) *out = (accumulate ? *out : 0.0) + scale * total;
}

__global__ void __launch_bounds__(kPartThreads)
    clip_factor_kernel(const double* squares, int64_t count, double max_norm, double* norm,
                       double* factor) {
    LMO_SHARED(double, scratch, [kPartThreads / 32]);
    wait_for_previous();
    const double sum =
        thread_sum<kPartThreads>(squares, count, static_cast<int>(threadIdx.x), plus);
    const double total = block_sum<kPartThreads>(sum, scratch);
    if (threadIdx.x != 0) return;
    *norm = sqrt(total);
    const double ratio = max_norm / (sqrt(total) + 1e-6);
    *factor = max_norm == 0 || ratio >= 1 ? 1.0 : ratio;  // NaN stays NaN
}

}  // namespace

void add_parts(const SquaresTable& table, const double* parts, double* out, Stream stream) {
    launch(LMO_KERNEL(add_parts_kernel<SquaresTable>), table.size, kPartThreads, 0, stream, table,
           parts, out);
}
void add_parts(const PairsTable& table, const double* parts, double* out, Stream stream) {
    launch(LMO_KERNEL(add_parts_kernel<PairsTable>), table.size, kPartThreads, 0, stream, table,
           parts, out);
}

void CudaBackend::sum(const Sum& op) {
    assert(op.out.dtype == DType::f64 && op.out.count() == 1);
    const auto run = [&](auto type) {
        using T = typename decltype(type)::type;
        launch(LMO_KERNEL(sum_kernel<T>), 1, kSumThreads, 0, stream_, op.x.as<T>(), op.x.count(),
               op.scale, op.accumulate, op.out.as<double>());
    };
    if (op.x.dtype == DType::f64) {
        run(Type<double>());
    } else {
        for_compute_type(op.x.dtype, run);
    }
}

size_t CudaBackend::workspace_bytes(const SumOfSquares& op) const {
    return parts_bytes(op.tensors);
}

void CudaBackend::sum_of_squares(const SumOfSquares& op) {
    assert(op.out.dtype == DType::f64 && op.out.count() == static_cast<int64_t>(op.tensors.size()));
    assert(workspace_bytes(op) == 0 || op.workspace.bytes() >= workspace_bytes(op));
    double* parts = op.workspace.as<double>();
    for_each_table<SquaresTable>(
        op.tensors.size(), kPartChunk,
        [&](size_t i) -> SquaresTable::Entry {
            assert(op.tensors[i].dtype == DType::f32);
            return {{op.tensors[i].data}, op.tensors[i].count(), {}};
        },
        [&](const SquaresTable& table, size_t first) {
            launch(LMO_KERNEL(squares_kernel), table.blocks, kPartThreads, 0, stream_, table,
                   parts);
            add_parts(table, parts, op.out.as<double>() + first, stream_);
        });
}

size_t CudaBackend::workspace_bytes(const DotProducts& op) const { return parts_bytes(op.a); }

void CudaBackend::dot_products(const DotProducts& op) {
    assert(op.a.size() == op.b.size());
    assert(op.out.dtype == DType::f64 && op.out.count() == static_cast<int64_t>(op.a.size()));
    assert(workspace_bytes(op) == 0 || op.workspace.bytes() >= workspace_bytes(op));
    double* parts = op.workspace.as<double>();
    for_each_table<PairsTable>(
        op.a.size(), kPartChunk,
        [&](size_t i) -> PairsTable::Entry {
            assert(op.a[i].dtype == DType::f32 && op.b[i].dtype == DType::f32);
            assert(op.a[i].count() == op.b[i].count());
            return {{op.a[i].data, op.b[i].data}, op.a[i].count(), {}};
        },
        [&](const PairsTable& table, size_t first) {
            launch(LMO_KERNEL(dots_kernel), table.blocks, kPartThreads, 0, stream_, table, parts);
            add_parts(table, parts, op.out.as<double>() + first, stream_);
        });
}

void CudaBackend::clip_factor(const ClipFactor& op) {
    assert(op.sum_of_squares.dtype == DType::f64);
    assert(op.norm.dtype == DType::f64 && op.factor.dtype == DType::f64);
    launch(LMO_KERNEL(clip_factor_kernel), 1, kPartThreads, 0, stream_,
           op.sum_of_squares.as<double>(), op.sum_of_squares.count(), op.max_norm,
           op.norm.as<double>(), op.factor.as<double>());
}

}  // namespace lmo::cuda
