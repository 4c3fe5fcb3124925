// Softmax cross-entropy over rows of V logits, and its gradient in place:
//   loss = log sum_v exp(x_v - top) + top - x_target,     top = max_v x_v
//   x_v <- scale (exp(x_v - top) / sum - [v = target])    where the scale is not 0.
// Logits are fp32 or bf16, arithmetic and losses fp32. A target of -1 gives loss 0 and gradient 0.
//
// One block has one row. It reads it once, with a running maximum and sum a thread that are put
// together in a fixed order, and keeps it in shared memory for the gradient where it fits (bf16:
// V <= 115000 on Hopper), else reads it again. Memory traffic per logit, bf16: 2 bytes read, 2
// written (4 and 2 for longer rows; 2 and 0 without gradient). Accesses have 16 bytes for any V:
// the few elements in front of the first multiple of 16 bytes of a row, and those behind the last,
// are taken one by one. So the order of the sum depends on a row's place in memory too.
// Source: Milakov and Gimelshein 2018, "Online normalizer calculation for softmax" (algorithm 3).
#include <cfloat>

#include "llmc/cuda/common.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

constexpr int kBatch = 4;  // vectors that a thread has under way

// fp32 logits get the exact function. bf16 logits have errors of 2^-9 themselves.
template <typename T>
__device__ __forceinline__ float exponential(float x) {
    return std::is_same_v<T, float> ? expf(x) : __expf(x);
}

// The largest value so far and the sum of exp(value - top). The lowest float in place of minus
// infinity, because the difference of two infinities is NaN. A NaN among the values ends in total.
struct Softmax {
    float top = -FLT_MAX, total = 0;
};

template <typename T, int N>
__device__ __forceinline__ void include(Softmax& softmax, const Vector<T, N>& values) {
    float top = softmax.top;
#pragma unroll
    for (int i = 0; i < N; ++i) top = fmaxf(top, to_float(values[i]));
    float total = softmax.total * exponential<T>(softmax.top - top);
#pragma unroll
    for (int i = 0; i < N; ++i) total += exponential<T>(to_float(values[i]) - top);
    softmax = {top, total};
}

// How a row is cut: `head` single elements, `vectors` of 16 bytes from `body` on, single elements.
// The first threads of the block have one of the single elements each, at `edge`, the others -1.
template <typename T>
struct Cut {
    T* body;
    int64_t vectors, head, edge;

    __device__ Cut(T* row, int64_t columns) {
        constexpr int W = kWidth<T>;
        const int past = static_cast<int>(reinterpret_cast<uintptr_t>(row) % 16 / sizeof(T));
        head = past == 0 ? 0 : W - past;
        if (head > columns) head = columns;
        body = row + head;
        vectors = (columns - head) / W;
        const int64_t thread = threadIdx.x, tail = head + vectors * W - W;
        edge = -1;
        if (thread < head) edge = thread;
        if (thread >= W && thread < 2 * W && tail + thread < columns) edge = tail + thread;
    }
};

template <typename T, int Threads>
__device__ void clear_row(T* row, const Cut<T>& cut) {
    for (int64_t v = threadIdx.x; v < cut.vectors; v += Threads) {
        store(cut.body + v * kWidth<T>, Vector<T, kWidth<T>>{});
    }
    if (cut.edge >= 0) row[cut.edge] = from_float<T>(0.0f);
}

// This thread's part of a row; its vectors go to `kept` unless that is null.
template <typename T, int Threads>
__device__ Softmax read_row(const T* row, const Cut<T>& cut, T* kept) {
    constexpr int W = kWidth<T>;
    Softmax softmax;
    if (cut.edge >= 0) include(softmax, load<1>(row + cut.edge));
    for (int64_t first = threadIdx.x; first < cut.vectors; first += kBatch * Threads) {
        Vector<T, W> batch[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int64_t v = first + i * Threads;
            if (v < cut.vectors) batch[i] = load_streaming<W>(cut.body + v * W);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int64_t v = first + i * Threads;
            if (v >= cut.vectors) break;
            if (kept) store_shared(kept + v * W, batch[i]);
            include(softmax, batch[i]);
        }
    }
    return softmax;
}

// Each thread turns the elements that it has read. `from` holds the body's vectors.
template <typename T, int Threads>
__device__ void write_gradient(T* row, const Cut<T>& cut, const T* from, float top, float factor) {
    constexpr int W = kWidth<T>;
    for (int64_t first = threadIdx.x; first < cut.vectors; first += kBatch * Threads) {
        Vector<T, W> batch[kBatch];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int64_t v = first + i * Threads;
            if (v < cut.vectors) batch[i] = load<W>(from + v * W);
        }
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
            const int64_t v = first + i * Threads;
            if (v >= cut.vectors) break;
#pragma unroll
            for (int j = 0; j < W; ++j) {
                const float p = exponential<T>(to_float(batch[i][j]) - top);
                batch[i][j] = from_float<T>(factor * p);
            }
            store(cut.body + v * W, batch[i]);
        }
    }
    if (cut.edge < 0) return;
    row[cut.edge] = from_float<T>(factor * exponential<T>(to_float(row[cut.edge]) - top));
}

template <typename T, int Threads, bool InShared>
__global__ void __launch_bounds__(Threads, 1024 / Threads)
    classifier_kernel(T* logits, const int32_t* targets, float* losses, int64_t columns,
                      float gradient_scale) {
    LMO_SHARED(float, tops, [Threads / 32]);
    LMO_SHARED(float, totals, [Threads / 32]);
    LMO_DYNAMIC_SHARED(T, kept);
    T* row = logits + int64_t{blockIdx.x} * columns;
    const Cut<T> cut(row, columns);
    wait_for_previous();
    const int64_t target = targets[blockIdx.x];
    if (target < 0) {
        if (threadIdx.x == 0) losses[blockIdx.x] = 0;
        if (gradient_scale != 0) clear_row<T, Threads>(row, cut);
        return;
    }
    const float at_target = to_float(row[target]);
    const Softmax own = read_row<T, Threads>(row, cut, InShared ? kept : nullptr);
    const float top = block_max<Threads>(own.top, tops);
    const float total = block_sum<Threads>(own.total * exponential<T>(own.top - top), totals);
    if (threadIdx.x == 0) losses[blockIdx.x] = logf(total) + (top - at_target);
    if (gradient_scale == 0) return;

    write_gradient<T, Threads>(row, cut, InShared ? kept : cut.body, top, gradient_scale / total);
    // The thread that has written the target's element writes it again.
    const int64_t place = target - cut.head, vector = place / kWidth<T>;
    const bool in_body = place >= 0 && vector < cut.vectors;
    if (in_body ? vector % Threads == threadIdx.x : cut.edge == target) {
        const float p = exponential<T>(at_target - top) / total;
        row[target] = from_float<T>(gradient_scale * (p - 1.0f));
    }
}

template <typename T, int Threads, bool InShared>
void classify(const Classifier& op, int64_t columns, Stream stream) {
    const size_t shared = InShared ? static_cast<size_t>(columns) * sizeof(T) : 0;
    allow_shared(LMO_KERNEL(classifier_kernel<T, Threads, InShared>), shared);
    launch(LMO_KERNEL(classifier_kernel<T, Threads, InShared>),
           dim3(static_cast<uint32_t>(op.targets.count())), Threads, shared, stream,
           op.logits.as<T>(), op.targets.as<int32_t>(), op.losses.as<float>(), columns,
           static_cast<float>(op.gradient_scale));
}

}  // namespace

void CudaBackend::classifier(const Classifier& op) {
    const int64_t rows = op.targets.count();
    assert(rows > 0 && op.logits.count() % rows == 0 && op.losses.count() == rows);
    assert(op.losses.dtype == DType::f32 && op.targets.dtype == DType::i32);
    const int64_t columns = op.logits.count() / rows;
    for_compute_type(op.logits.dtype, [&](auto type) {
        using T = typename decltype(type)::type;
        // Beside the row a block has its scratch, and 1 KB that CUDA takes.
        const size_t needed = static_cast<size_t>(columns) * sizeof(T) + 2048;
        if (columns <= 4096) {
            classify<T, 128, true>(op, columns, stream_);
        } else if (op.gradient_scale != 0 && needed <= device_.sharedMemPerBlockOptin) {
            classify<T, 512, true>(op, columns, stream_);
        } else {
            classify<T, 512, false>(op, columns, stream_);
        }
    });
}

}  // namespace lmo::cuda
