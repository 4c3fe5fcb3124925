// Long sums in double, in an order that depends on the number of elements alone: not on the device,
// nor on the alignment of the data.
#pragma once

#include "llmc/cuda/common.cuh"

namespace lmo::cuda {

constexpr int kInFlight = 4;  // vectors that a thread has asked for at a time

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

// The share of thread number `thread` of Threads in sum(f(x[i])): lane k of its vectors goes to
// sums[k], the ragged end to the first threads.
template <int Threads, typename T, typename F>
__device__ __forceinline__ double thread_sum(const T* x, int64_t count, int thread, F add) {
    constexpr int N = kWidth<T>;
    constexpr int kStride = Threads * N;
    const bool aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    const int64_t whole = count / N * N;
    double sums[N] = {};
    for (int64_t at = thread * N; at < whole; at += kStride * kInFlight) {
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
    if (thread < count - whole) sums[0] = add(sums[0], to_double(x[whole + thread]));
#pragma unroll
    for (int k = 1; k < N; ++k) sums[0] += sums[k];
    return sums[0];
}

// The same for sum(f(x[i], y[i])): in the order of thread_sum over the values of f.
template <int Threads, typename F>
__device__ __forceinline__ double thread_sum_of_pairs(const float* x, const float* y, int64_t count,
                                                      int thread, F add) {
    constexpr int N = kWidth<float>, kStride = Threads * N, kPairs = 2;
    const bool x_aligned = reinterpret_cast<uintptr_t>(x) % 16 == 0;
    const bool y_aligned = reinterpret_cast<uintptr_t>(y) % 16 == 0;
    const int64_t whole = count / N * N;
    double sums[N] = {};
    for (int64_t at = thread * N; at < whole; at += kStride * kPairs) {
        Vector<float, N> left[kPairs], right[kPairs];
#pragma unroll
        for (int v = 0; v < kPairs; ++v) {
            if (at + v * kStride >= whole) break;
            left[v] = load_any<N>(x + at + v * kStride, x_aligned);
            right[v] = load_any<N>(y + at + v * kStride, y_aligned);
        }
#pragma unroll
        for (int v = 0; v < kPairs; ++v) {
            if (at + v * kStride >= whole) break;
#pragma unroll
            for (int k = 0; k < N; ++k) {
                sums[k] = add(sums[k], left[v][k], right[v][k]);
            }
        }
    }
    if (thread < count - whole) {
        sums[0] = add(sums[0], x[whole + thread], y[whole + thread]);
    }
#pragma unroll
    for (int k = 1; k < N; ++k) sums[0] += sums[k];
    return sums[0];
}

__device__ __forceinline__ double plus(double sum, double x) { return sum + x; }
__device__ __forceinline__ double plus_square(double sum, double x) { return fma(x, x, sum); }
// Products of floats are exact in double.
__device__ __forceinline__ double plus_product(double sum, float x, float y) {
    return fma(to_double(x), to_double(y), sum);
}

template <int Threads>
__device__ __forceinline__ double thread_dot(const float* x, const float* y, int64_t count,
                                             int thread) {
    return thread_sum_of_pairs<Threads>(x, y, count, thread, plus_product);
}

}  // namespace lmo::cuda
