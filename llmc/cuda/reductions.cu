// Sums in double, in an order that depends on the number of elements alone: not on the device, nor
// on the alignment of the data.
//
// SumOfSquares reads each element once (4 bytes). A block sums a chunk of one tensor and writes one
// partial sum; then one block a tensor adds those. A square of a float is exact in double. An
// element takes two operations of the fp64 units (conversion, multiply-add): far below the memory's
// time on A100 and H100, about even with it on an RTX 4090 (2 such units a multiprocessor, 1.3 TB/s
// of floats), and up to twice as long on its smaller relatives.
//
// Sum is for losses, a value a row: one block of 1024 threads, as its contract has no workspace for
// partial sums. One multiprocessor reads some 0.1 TB/s, so a checkpoint's look at all weights of a
// large model takes fractions of a second.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/tensor_table.cuh"

namespace lmo::cuda {

namespace {

constexpr int kSquaresThreads = 256;
constexpr int64_t kSquaresChunk = 16384;  // elements of a block
constexpr int kSumThreads = 1024;
constexpr int kInFlight = 4;  // vectors that a thread has asked for at a time

using SquaresTable = TensorTable<TableEntry<1, NoScalars>>;

__device__ __forceinline__ double to_double(double x) { return x; }
__device__ __forceinline__ double to_double(float x) { return x; }
__device__ __forceinline__ double to_double(bf16 x) { return to_float(x); }

// N neighbours, by one access where the address allows it.
template <int N, typename T>
__device__ __forceinline__ Vector<T, N> load_any(const T* from, bool aligned) {
    if (aligned) return load<N>(from);
    Vector<T, N> vector;
#pragma unroll
    for (int k = 0; k < N; ++k) vector[k] = from[k];
    return vector;
}

// A thread's share of sum(f(x[i])): lane k of its vectors goes to sums[k], the ragged end to the
// first threads.
template <int Threads, typename T, typename F>
__device__ __forceinline__ double thread_sum(const T* x, int64_t count, F add) {
    constexpr int N = kWidth<T>;
    constexpr int kStride = Threads * N;
    const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    const int64_t whole = count / N * N;
    double sums[N] = {};
    for (int64_t at = threadIdx.x * N; at < whole; at += kStride * kInFlight) {
        Vector<T, N> vectors[kInFlight];
#pragma unroll
        for (int v = 0; v < kInFlight; ++v) {
            if (at + v * kStride < whole) vectors[v] = load_any<N>(x + at + v * kStride, aligned);
        }
#pragma unroll
        for (int v = 0; v < kInFlight; ++v) {
            if (at + v * kStride >= whole) break;
#pragma unroll
            for (int k = 0; k < N; ++k) sums[k] = add(sums[k], to_double(vectors[v][k]));
        }
    }
    if (threadIdx.x < count - whole) sums[0] = add(sums[0], to_double(x[whole + threadIdx.x]));
#pragma unroll
    for (int k = 1; k < N; ++k) sums[0] += sums[k];
    return sums[0];
}

__device__ __forceinline__ double plus(double sum, double x) { return sum + x; }
__device__ __forceinline__ double plus_square(double sum, double x) { return fma(x, x, sum); }

// ---- sums of squares ----------------------------------------------------------------------------

// parts[block] = the sum of a chunk's squares.
__global__ void __launch_bounds__(kSquaresThreads)
    squares_kernel(const __grid_constant__ SquaresTable table, double* parts) {
    LMO_SHARED(double, scratch, [kSquaresThreads / 32]);
    const int index = table.find(static_cast<int>(blockIdx.x));
    const auto& entry = table.entries[index];
    const int64_t chunk = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int64_t begin = chunk * kSquaresChunk, rest = entry.count - begin;
    const double sum =
        thread_sum<kSquaresThreads>(static_cast<const float*>(entry.data[0]) + begin,
                                    rest < kSquaresChunk ? rest : kSquaresChunk, plus_square);
    const double total = block_sum<kSquaresThreads>(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// out[tensor] = the sum of the tensor's parts; a block a tensor.
__global__ void __launch_bounds__(kSquaresThreads)
    add_parts_kernel(const __grid_constant__ SquaresTable table, const double* parts, double* out) {
    LMO_SHARED(double, scratch, [kSquaresThreads / 32]);
    const int index = static_cast<int>(blockIdx.x);
    const int begin = table.first_block[index];
    const int end = index + 1 < table.size ? table.first_block[index + 1] : table.blocks;
    const double sum = thread_sum<kSquaresThreads>(parts + begin, end - begin, plus);
    const double total = block_sum<kSquaresThreads>(sum, scratch);
    if (threadIdx.x == 0) out[index] = total;
}

// ---- single results -----------------------------------------------------------------------------

template <typename T>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const T* x, int64_t count, double scale, bool accumulate, double* out) {
    LMO_SHARED(double, scratch, [kSumThreads / 32]);
    const double sum = thread_sum<kSumThreads>(x, count, plus);
    const double total = block_sum<kSumThreads>(sum, scratch);
    if (threadIdx.x == 0) *out = (accumulate ? *out : 0.0) + scale * total;
}

__global__ void __launch_bounds__(kSquaresThreads)
    clip_factor_kernel(const double* squares, int64_t count, double max_norm, double* norm,
                       double* factor) {
    LMO_SHARED(double, scratch, [kSquaresThreads / 32]);
    const double sum = thread_sum<kSquaresThreads>(squares, count, plus);
    const double total = block_sum<kSquaresThreads>(sum, scratch);
    if (threadIdx.x != 0) return;
    *norm = sqrt(total);
    const double ratio = max_norm / (sqrt(total) + 1e-6);
    *factor = max_norm == 0 || ratio >= 1 ? 1.0 : ratio;  // NaN stays NaN
}

}  // namespace

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
    int64_t parts = 0;
    for (const Tensor& tensor : op.tensors) parts += div_up(tensor.count(), kSquaresChunk);
    return static_cast<size_t>(parts) * sizeof(double);
}

void CudaBackend::sum_of_squares(const SumOfSquares& op) {
    assert(op.out.dtype == DType::f64 && op.out.count() == static_cast<int64_t>(op.tensors.size()));
    assert(workspace_bytes(op) == 0 || op.workspace.bytes() >= workspace_bytes(op));
    double* parts = op.workspace.as<double>();
    for_each_table<SquaresTable>(
        op.tensors.size(), kSquaresChunk,
        [&](size_t i) -> SquaresTable::Entry {
            assert(op.tensors[i].dtype == DType::f32);
            return {{op.tensors[i].data}, op.tensors[i].count(), {}};
        },
        [&](const SquaresTable& table, size_t first) {
            launch(LMO_KERNEL(squares_kernel), table.blocks, kSquaresThreads, 0, stream_, table,
                   parts);
            launch(LMO_KERNEL(add_parts_kernel), table.size, kSquaresThreads, 0, stream_, table,
                   parts, op.out.as<double>() + first);
        });
}

void CudaBackend::clip_factor(const ClipFactor& op) {
    assert(op.sum_of_squares.dtype == DType::f64);
    assert(op.norm.dtype == DType::f64 && op.factor.dtype == DType::f64);
    launch(LMO_KERNEL(clip_factor_kernel), 1, kSquaresThreads, 0, stream_,
           op.sum_of_squares.as<double>(), op.sum_of_squares.count(), op.max_norm,
           op.norm.as<double>(), op.factor.as<double>());
}

}  // namespace lmo::cuda
