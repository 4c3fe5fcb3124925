// RMSNorm with the residual sum in front of it, and its gradient. Rows of C columns:
//   sum = x + branch,  rstd = 1 / sqrt(mean(sum^2) + eps),  out = sum rstd gain.
// Gradient, with x the normed row, xhat = x rstd and g = dout gain:
//   dx += rstd (g - xhat mean(g xhat)),   dgain += sum over the rows of dout xhat.
// x, sum, dx are of the residual type; branch, gain, out, dout, dbranch of the compute type (fp32
// or bf16 each); rstd, dgain and all arithmetic fp32.
//
// A row stays in registers between its sum and its use, so memory is touched once: per element, for
// a residual of r and a compute type of c bytes, forward reads r + c and writes r + c; backward
// reads x, dout, dx (2r + c) and writes dx, dbranch (r + c). The forward pass has a warp a row up
// to C = 1024, above that a block. In the backward pass a block does a range of rows, whose threads
// own columns and sum their dgain in registers; the ranges depend on N alone, and a second kernel
// adds their sums in order. Rows that are longer than 8192, ragged or not aligned take kernels that
// read them twice, element by element.
// Source: Zhang and Sennrich 2019, "Root mean square layer normalization" (equation 4).
#include <algorithm>

#include "llmc/cuda/common.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

// The longest row that stays in registers.
constexpr int64_t kLongestRow = 8192;

// Elements that one instruction moves of both types.
template <typename C, typename R>
constexpr int kNormWidth = 16 / (sizeof(C) > sizeof(R) ? sizeof(C) : sizeof(R));

// ---- forward ------------------------------------------------------------------------------------

constexpr int kForwardValues = 32;    // of a row in one thread
constexpr int kForwardThreads = 256;  // of a block

template <typename C, typename R>
struct Forward {
    const R* x;
    const C *branch, *gain;  // branch may be null
    R* sum;                  // may be null
    C* out;
    float* rstd;
    int64_t rows, columns;
    float eps;
};

__device__ __forceinline__ float reciprocal_root(float squares, int64_t columns, float eps) {
    return 1.0f / sqrtf(squares / static_cast<float>(columns) + eps);
}

// x + branch of one row as vectors of the residual type, in the registers of its threads.
template <int Threads, int N, int W, typename C, typename R>
__device__ __forceinline__ void load_sum(const Forward<C, R>& a, int64_t row, int thread,
                                         Vector<R, W> (&sum)[N]) {
    const int vectors = static_cast<int>(a.columns / W);
    const R* x = a.x + row * a.columns;
#pragma unroll
    for (int k = 0; k < N; ++k) {
        sum[k] = {};
        const int v = k * Threads + thread;
        if (v < vectors) sum[k] = load<W>(x + v * W);
    }
    if (!a.branch) return;
    const C* branch = a.branch + row * a.columns;
    Vector<C, W> added[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
        added[k] = {};
        const int v = k * Threads + thread;
        if (v < vectors) added[k] = load<W>(branch + v * W);
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
#pragma unroll
        for (int i = 0; i < W; ++i) {
            sum[k][i] = from_float<R>(to_float(sum[k][i]) + to_float(added[k][i]));
        }
    }
}

// `Threads` threads for each row: 32, or those of a block.
template <typename C, typename R, int Threads>
__global__ void __launch_bounds__(kForwardThreads) rmsnorm_forward_kernel(Forward<C, R> a) {
    constexpr int W = kNormWidth<C, R>, N = kForwardValues / W;
    LMO_SHARED(float, scratch, [Threads / 32]);
    const int thread = threadIdx.x % Threads;
    const int64_t row = int64_t{blockIdx.x} * (kForwardThreads / Threads) + threadIdx.x / Threads;
    wait_for_previous();
    if (row >= a.rows) return;  // a whole warp; never where a row has the block

    Vector<R, W> sum[N];
    load_sum<Threads>(a, row, thread, sum);
    float squares = 0;
#pragma unroll
    for (int k = 0; k < N; ++k) {
#pragma unroll
        for (int i = 0; i < W; ++i) squares += to_float(sum[k][i]) * to_float(sum[k][i]);
    }
    squares = block_sum<Threads>(squares, scratch);
    const float rstd = reciprocal_root(squares, a.columns, a.eps);
    if (thread == 0) a.rstd[row] = rstd;

    const int vectors = static_cast<int>(a.columns / W);
#pragma unroll
    for (int k = 0; k < N; ++k) {
        const int v = k * Threads + thread;
        if (v >= vectors) continue;
        const Vector<C, W> gain = load<W>(a.gain + v * W);
        Vector<C, W> out;
#pragma unroll
        for (int i = 0; i < W; ++i) {
            out[i] = from_float<C>(to_float(sum[k][i]) * rstd * to_float(gain[i]));
        }
        if (a.sum) store(a.sum + row * a.columns + v * W, sum[k]);
        store(a.out + row * a.columns + v * W, out);
    }
}

constexpr int kPlainThreads = 128;  // of the kernels for all other rows

template <typename C, typename R>
__global__ void __launch_bounds__(kPlainThreads) rmsnorm_forward_plain_kernel(Forward<C, R> a) {
    LMO_SHARED(float, scratch, [kPlainThreads / 32]);
    const int64_t start = int64_t{blockIdx.x} * a.columns;
    wait_for_previous();
    float squares = 0;
    for (int64_t i = threadIdx.x; i < a.columns; i += kPlainThreads) {
        R value = a.x[start + i];
        if (a.branch) value = from_float<R>(to_float(value) + to_float(a.branch[start + i]));
        if (a.sum) a.sum[start + i] = value;
        squares += to_float(value) * to_float(value);
    }
    squares = block_sum<kPlainThreads>(squares, scratch);
    const float rstd = reciprocal_root(squares, a.columns, a.eps);
    if (threadIdx.x == 0) a.rstd[blockIdx.x] = rstd;
    const R* sum = a.sum ? a.sum : a.x;  // each thread reads what it has written itself
    for (int64_t i = threadIdx.x; i < a.columns; i += kPlainThreads) {
        a.out[start + i] = from_float<C>(to_float(sum[start + i]) * rstd * to_float(a.gain[i]));
    }
}

// ---- backward -----------------------------------------------------------------------------------

template <typename C, typename R>
struct Backward {
    const R* x;
    const C *gain, *dout;
    const float* rstd;
    R* dx;
    C* dbranch;    // may be null
    float* parts;  // [blocks, C]: the sums for dgain
    int64_t rows, columns, rows_per_block;
};

template <int Threads, int N, int W, typename C, typename R>
__device__ __forceinline__ void load_row(const Backward<C, R>& a, int64_t row, Vector<R, W> (&x)[N],
                                         Vector<C, W> (&dout)[N], Vector<R, W> (&dx)[N]) {
    const int vectors = static_cast<int>(a.columns / W);
#pragma unroll
    for (int k = 0; k < N; ++k) {
        x[k] = dx[k] = {};
        dout[k] = {};
        const int v = k * Threads + static_cast<int>(threadIdx.x);
        if (v >= vectors) continue;
        x[k] = load<W>(a.x + row * a.columns + v * W);
        dout[k] = load<W>(a.dout + row * a.columns + v * W);
        dx[k] = load<W>(a.dx + row * a.columns + v * W);
    }
}

constexpr int kBackwardValues = 8;  // of a row in one thread; few, so that many rows are under way

// A row has all threads of a block.
template <typename C, typename R, int Threads>
__global__ void __launch_bounds__(Threads, 1024 / Threads)
    rmsnorm_backward_kernel(Backward<C, R> a) {
    constexpr int W = kNormWidth<C, R>, N = kBackwardValues / W;
    LMO_SHARED(float, scratch, [2][Threads / 32]);  // by turns: one barrier a row
    const int vectors = static_cast<int>(a.columns / W);
    wait_for_previous();
    Vector<C, W> gain[N];
    float dgain[N][W] = {};
#pragma unroll
    for (int k = 0; k < N; ++k) {
        gain[k] = {};
        const int v = k * Threads + static_cast<int>(threadIdx.x);
        if (v < vectors) gain[k] = load<W>(a.gain + v * W);
    }
    const int64_t begin = blockIdx.x * a.rows_per_block;
    const int64_t end = begin + a.rows_per_block < a.rows ? begin + a.rows_per_block : a.rows;
    for (int64_t row = begin; row < end; ++row) {
        Vector<R, W> x[N], dx[N];
        Vector<C, W> dout[N];
        load_row<Threads>(a, row, x, dout, dx);
        const float rstd = a.rstd[row];
        float along = 0;
#pragma unroll
        for (int k = 0; k < N; ++k) {
#pragma unroll
            for (int i = 0; i < W; ++i) {
                const float product = to_float(dout[k][i]) * (to_float(x[k][i]) * rstd);
                dgain[k][i] += product;
                along += product * to_float(gain[k][i]);
            }
        }
        along = block_sum<Threads>(along, scratch[row % 2]);
        const float mean = along / static_cast<float>(a.columns);
#pragma unroll
        for (int k = 0; k < N; ++k) {
            const int v = k * Threads + static_cast<int>(threadIdx.x);
            if (v >= vectors) continue;
            Vector<C, W> copy;
#pragma unroll
            for (int i = 0; i < W; ++i) {
                const float g = to_float(dout[k][i]) * to_float(gain[k][i]);
                const float change = rstd * (g - to_float(x[k][i]) * rstd * mean);
                dx[k][i] = from_float<R>(to_float(dx[k][i]) + change);
                copy[i] = from_float<C>(to_float(dx[k][i]));
            }
            store(a.dx + row * a.columns + v * W, dx[k]);
            if (a.dbranch) store(a.dbranch + row * a.columns + v * W, copy);
        }
    }
#pragma unroll
    for (int k = 0; k < N; ++k) {
        const int v = k * Threads + static_cast<int>(threadIdx.x);
        if (v >= vectors) continue;
        for (int i = 0; i < W; ++i) a.parts[blockIdx.x * a.columns + v * W + i] = dgain[k][i];
    }
}

template <typename C, typename R>
__global__ void __launch_bounds__(kPlainThreads) rmsnorm_backward_plain_kernel(Backward<C, R> a) {
    LMO_SHARED(float, scratch, [2][kPlainThreads / 32]);
    float* part = a.parts + blockIdx.x * a.columns;
    const int64_t begin = blockIdx.x * a.rows_per_block;
    const int64_t end = begin + a.rows_per_block < a.rows ? begin + a.rows_per_block : a.rows;
    wait_for_previous();
    for (int64_t row = begin; row < end; ++row) {
        const int64_t start = row * a.columns;
        const float rstd = a.rstd[row];
        float along = 0;
        for (int64_t i = threadIdx.x; i < a.columns; i += kPlainThreads) {
            const float product = to_float(a.dout[start + i]) * (to_float(a.x[start + i]) * rstd);
            part[i] = row == begin ? product : part[i] + product;
            along += product * to_float(a.gain[i]);
        }
        along = block_sum<kPlainThreads>(along, scratch[row % 2]);
        const float mean = along / static_cast<float>(a.columns);
        for (int64_t i = threadIdx.x; i < a.columns; i += kPlainThreads) {
            const float g = to_float(a.dout[start + i]) * to_float(a.gain[i]);
            const float change = rstd * (g - to_float(a.x[start + i]) * rstd * mean);
            const R dx = from_float<R>(to_float(a.dx[start + i]) + change);
            a.dx[start + i] = dx;
            if (a.dbranch) a.dbranch[start + i] = from_float<C>(to_float(dx));
        }
    }
}

// dgain += the parts in order: a block adds 32 ranges of them side by side, then the ranges' sums.
constexpr int kRanges = 32;

__global__ void __launch_bounds__(32 * kRanges)
    add_gain_parts_kernel(const float* parts, int64_t count, int64_t columns, float* dgain) {
    LMO_SHARED(float, sums, [kRanges][32]);
    const int64_t column = int64_t{blockIdx.x} * 32 + threadIdx.x % 32;
    const int range = threadIdx.x / 32;
    const int64_t length = div_up<int64_t>(count, kRanges), begin = range * length;
    const int64_t end = begin + length < count ? begin + length : count;
    wait_for_previous();
    float sum = 0;
    if (column < columns) {
#pragma unroll 8
        for (int64_t i = begin; i < end; ++i) sum += parts[i * columns + column];
    }
    sums[range][threadIdx.x % 32] = sum;
    __syncthreads();
    if (range > 0 || column >= columns) return;
    sum = dgain[column];
    for (int i = 0; i < kRanges; ++i) sum += sums[i][threadIdx.x];
    dgain[column] = sum;
}

// ---- launches -----------------------------------------------------------------------------------

// Calls f(Type<compute>(), Type<residual>()).
template <typename F>
void for_types(DType compute, DType residual, F f) {
    for_compute_type(compute,
                     [&](auto c) { for_compute_type(residual, [&](auto r) { f(c, r); }); });
}

// A bf16 residual stream around fp32 products is for tests: it has no kernels of its own.
template <typename C, typename R>
constexpr bool kHasFastKernels = !(std::is_same_v<C, float> && std::is_same_v<R, bf16>);

template <typename C, typename R, typename... Pointers>
bool fits_registers(int64_t columns, Pointers... pointers) {
    using Wide = std::conditional_t<(sizeof(C) > sizeof(R)), C, R>;
    return columns <= kLongestRow && rows_aligned<Wide>(columns, pointers...);
}

template <typename C, typename R>
void forward(const Forward<C, R>& a, Stream stream) {
    const auto blocks = [&](int64_t rows_of_block) {
        return dim3(static_cast<uint32_t>(div_up<int64_t>(a.rows, rows_of_block)));
    };
    if constexpr (kHasFastKernels<C, R>) {
        if (fits_registers<C, R>(a.columns, a.x, a.branch, a.gain, a.sum, a.out)) {
            if (a.columns <= 32 * kForwardValues) {
                launch(LMO_KERNEL(rmsnorm_forward_kernel<C, R, 32>), blocks(kForwardThreads / 32),
                       kForwardThreads, 0, stream, a);
            } else {
                launch(LMO_KERNEL(rmsnorm_forward_kernel<C, R, kForwardThreads>), blocks(1),
                       kForwardThreads, 0, stream, a);
            }
            return;
        }
    }
    launch(LMO_KERNEL(rmsnorm_forward_plain_kernel<C, R>), blocks(1), kPlainThreads, 0, stream, a);
}

template <typename C, typename R>
void backward(const Backward<C, R>& a, dim3 blocks, Stream stream) {
    if constexpr (kHasFastKernels<C, R>) {
        if (fits_registers<C, R>(a.columns, a.x, a.gain, a.dout, a.dx, a.dbranch)) {
            const auto launch_for = [&](auto threads) {
                constexpr int kThreads = decltype(threads)::value;
                launch(LMO_KERNEL(rmsnorm_backward_kernel<C, R, kThreads>), blocks, kThreads, 0,
                       stream, a);
            };
            const int64_t threads = div_up<int64_t>(a.columns, kBackwardValues);
            if (threads <= 128)
                launch_for(std::integral_constant<int, 128>());
            else if (threads <= 256)
                launch_for(std::integral_constant<int, 256>());
            else if (threads <= 512)
                launch_for(std::integral_constant<int, 512>());
            else
                launch_for(std::integral_constant<int, 1024>());
            return;
        }
    }
    launch(LMO_KERNEL(rmsnorm_backward_plain_kernel<C, R>), blocks, kPlainThreads, 0, stream, a);
}

// At least 16, so that the sums for dgain are a small part of the traffic, and at most 2048 ranges.
int64_t rows_per_block(int64_t rows) { return std::max<int64_t>(16, div_up<int64_t>(rows, 2048)); }

}  // namespace

void CudaBackend::rmsnorm_forward(const RmsNormForward& op) {
    const int64_t rows = op.rstd.count(), columns = op.gain.count();
    assert(op.x.count() == rows * columns && op.out.count() == rows * columns);
    assert(op.gain.dtype == op.out.dtype && op.rstd.dtype == DType::f32);
    assert(op.branch.empty() || (op.branch.dtype == op.out.dtype && !op.sum.empty()));
    assert(op.sum.empty() || op.sum.dtype == op.x.dtype);
    for_types(op.out.dtype, op.x.dtype, [&](auto compute, auto residual) {
        using C = typename decltype(compute)::type;
        using R = typename decltype(residual)::type;
        const bool sum_is_x = op.branch.empty() && op.sum.data == op.x.data;
        forward(Forward<C, R>{op.x.as<R>(), op.branch.as<C>(), op.gain.as<C>(),
                              sum_is_x ? nullptr : op.sum.as<R>(), op.out.as<C>(),
                              op.rstd.as<float>(), rows, columns, static_cast<float>(op.eps)},
                stream_);
    });
}

size_t CudaBackend::workspace_bytes(const RmsNormBackward& op) const {
    const int64_t rows = op.rstd.count();
    return static_cast<size_t>(div_up(rows, rows_per_block(rows)) * op.gain.count()) *
           sizeof(float);
}

void CudaBackend::rmsnorm_backward(const RmsNormBackward& op) {
    const int64_t rows = op.rstd.count(), columns = op.gain.count();
    assert(op.x.count() == rows * columns && op.dout.count() == rows * columns);
    assert(op.dx.count() == rows * columns && op.dx.dtype == op.x.dtype);
    assert(op.gain.dtype == op.dout.dtype);
    assert(op.dgain.dtype == DType::f32 && op.rstd.dtype == DType::f32);
    assert(op.dbranch.empty() || op.dbranch.dtype == op.dout.dtype);
    assert(workspace_bytes(op) <= op.workspace.bytes());
    const int64_t range = rows_per_block(rows), parts = div_up(rows, range);
    for_types(op.dout.dtype, op.x.dtype, [&](auto compute, auto residual) {
        using C = typename decltype(compute)::type;
        using R = typename decltype(residual)::type;
        backward(Backward<C, R>{op.x.as<R>(), op.gain.as<C>(), op.dout.as<C>(), op.rstd.as<float>(),
                                op.dx.as<R>(), op.dbranch.as<C>(), op.workspace.as<float>(), rows,
                                columns, range},
                 dim3(static_cast<uint32_t>(parts)), stream_);
    });
    launch(LMO_KERNEL(add_gain_parts_kernel),
           dim3(static_cast<uint32_t>(div_up<int64_t>(columns, 32))), 32 * kRanges, 0, stream_,
           op.workspace.as<float>(), parts, columns, op.dgain.as<float>());
}

}  // namespace lmo::cuda
