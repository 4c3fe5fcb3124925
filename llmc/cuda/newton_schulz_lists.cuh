// What goes into a Newton-Schulz iteration and comes out of it (newton_schulz_batch.cu), a few
// neighbours at a time.
//
// A Source says what the elements of x are: the tensors' own, or what a momentum makes of gradients
// on the way. A Sink says what becomes of the result: written to the tensors, or applied to
// weights. The arithmetic is that of update_elements.cuh, so the bits are those of the operations
// one after another.
#pragma once

#include "llmc/cuda/newton_schulz_batch.h"
#include "llmc/cuda/update_elements.cuh"

namespace lmo::cuda {

template <typename T>
struct Addresses {
    T* data[kBatchMatrices];
};
using Matrices = Addresses<float>;

// ---- eight neighbours ---------------------------------------------------------------------------

template <typename T>
__device__ __forceinline__ void store_eight(T* to, const float (&values)[8]) {
    constexpr int N = kWidth<T>;
#pragma unroll
    for (int part = 0; part < 8; part += N) {
        Vector<T, N> vector;
#pragma unroll
        for (int k = 0; k < N; ++k) vector[k] = from_float<T>(values[part + k]);
        store(to + part, vector);
    }
}

template <typename T>
__device__ __forceinline__ void load_eight(const T* from, float (&values)[8]) {
    constexpr int N = kWidth<T>;
#pragma unroll
    for (int part = 0; part < 8; part += N) {
        const Vector<T, N> vector = load<N>(from + part);
#pragma unroll
        for (int k = 0; k < N; ++k) values[part + k] = to_float(vector[k]);
    }
}

// Elements of a row of x from column j on, `count` of which exist; the others are 0, or not
// written.
template <int Count, typename T>
__device__ __forceinline__ void load_some(const T* from, int64_t count, T (&values)[Count]) {
    constexpr int N = kWidth<T> < Count ? kWidth<T> : Count;
    if (count >= Count && reinterpret_cast<uintptr_t>(from) % (N * sizeof(T)) == 0) {
#pragma unroll
        for (int part = 0; part < Count; part += N) {
            const Vector<T, N> vector = load<N>(from + part);
#pragma unroll
            for (int k = 0; k < N; ++k) values[part + k] = vector[k];
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < Count; ++k) values[k] = k < count ? from[k] : T{};
}

template <typename T, typename Value>
__device__ __forceinline__ T converted(Value value) {
    if constexpr (std::is_same_v<T, Value>) {
        return value;
    } else {
        return from_float<T>(value);
    }
}

template <int Count, typename T, typename Value>
__device__ __forceinline__ void store_some(T* to, int64_t count, const Value (&values)[Count]) {
    constexpr int N = kWidth<T> < Count ? kWidth<T> : Count;
    if (count >= Count && reinterpret_cast<uintptr_t>(to) % (N * sizeof(T)) == 0) {
#pragma unroll
        for (int part = 0; part < Count; part += N) {
            Vector<T, N> vector;
#pragma unroll
            for (int k = 0; k < N; ++k) vector[k] = converted<T>(values[part + k]);
            store(to + part, vector);
        }
        return;
    }
#pragma unroll
    for (int k = 0; k < Count; ++k) {
        if (k < count) to[k] = converted<T>(values[k]);
    }
}

// What one thread of a block computes for all: double arithmetic is slow on many devices.
__device__ __forceinline__ double factor_of(const Normalisation& n) {
    return 1.0 / (sqrt(n.squares[blockIdx.y]) * n.norm_scale + n.eps);
}

template <int Count>
__device__ __forceinline__ void scale_all(double factor, float (&values)[Count]) {
#pragma unroll
    for (int k = 0; k < Count; ++k) values[k] = static_cast<float>(factor * values[k]);
}

// ---- sources ------------------------------------------------------------------------------------
// read: `count` elements from number `at` on of this block's matrix; beyond them 0.

struct PlainSource {
    using Coefficients = NoCoefficients;
    Matrices x;

    __device__ Coefficients coefficients() const { return {}; }
    template <int Count>
    __device__ __forceinline__ void read(const Coefficients&, int64_t at, int64_t count,
                                         float (&values)[Count]) const {
        load_some(x.data[blockIdx.y] + at, count, values);
    }
};

struct StatelessSource {
    using Coefficients = StatelessUpdate::Coefficients;
    Matrices x;
    StatelessUpdate update;

    __device__ Coefficients coefficients() const { return update.coefficients({}); }
    template <int Count>
    __device__ __forceinline__ void read(const Coefficients& c, int64_t at, int64_t count,
                                         float (&values)[Count]) const {
        load_some(x.data[blockIdx.y] + at, count, values);
#pragma unroll
        for (int k = 0; k < Count; ++k) StatelessUpdate::update(c, values[k]);
    }
};

// The momentum takes its step.
struct MomentumSource {
    using Coefficients = StartedMomentumUpdate::Coefficients;
    Matrices x, momentum;
    StartedMomentumUpdate update;

    __device__ Coefficients coefficients() const { return update.coefficients({}); }
    template <int Count>
    __device__ __forceinline__ void read(const Coefficients& c, int64_t at, int64_t count,
                                         float (&values)[Count]) const {
        float m[Count];
        load_some(x.data[blockIdx.y] + at, count, values);
        load_some(momentum.data[blockIdx.y] + at, count, m);
#pragma unroll
        for (int k = 0; k < Count; ++k) StartedMomentumUpdate::update(c, values[k], m[k]);
        store_some(momentum.data[blockIdx.y] + at, count, m);
    }
};

// ---- sinks --------------------------------------------------------------------------------------

struct PlainSink {
    using Coefficients = NoCoefficients;
    Matrices x;

    __device__ Coefficients coefficients() const { return {}; }
    template <int Count>
    __device__ __forceinline__ void write(const Coefficients&, int64_t at, int64_t count,
                                          const float (&values)[Count]) const {
        store_some(x.data[blockIdx.y] + at, count, values);
    }
};

// The addresses of weights in a form of weight_lists.cuh. change_some: `count` weights from number
// `at` on of this block's matrix get their next values, next(k, w).
template <typename Weights>
struct WeightMatrices;

template <>
struct WeightMatrices<FloatWeights> {
    Matrices weights;

    template <int Count, typename Next>
    __device__ __forceinline__ void change_some(int64_t at, int64_t count, const Next& next) const {
        float w[Count];
        load_some(weights.data[blockIdx.y] + at, count, w);
#pragma unroll
        for (int k = 0; k < Count; ++k) w[k] = next(k, w[k]);
        store_some(weights.data[blockIdx.y] + at, count, w);
    }
};

template <typename Copy>
struct WeightMatrices<CopiedWeights<Copy>> {
    Matrices weights;
    Addresses<Copy> copies;

    template <int Count, typename Next>
    __device__ __forceinline__ void change_some(int64_t at, int64_t count, const Next& next) const {
        float w[Count];
        load_some(weights.data[blockIdx.y] + at, count, w);
#pragma unroll
        for (int k = 0; k < Count; ++k) w[k] = next(k, w[k]);
        store_some(weights.data[blockIdx.y] + at, count, w);
        store_some(copies.data[blockIdx.y] + at, count, w);
    }
};

template <>
struct WeightMatrices<SplitWeights> {
    Addresses<bf16> high;
    Addresses<int16_t> low;

    template <int Count, typename Next>
    __device__ __forceinline__ void change_some(int64_t at, int64_t count, const Next& next) const {
        bf16 upper[Count];
        int16_t lower[Count];
        load_some(high.data[blockIdx.y] + at, count, upper);
        load_some(low.data[blockIdx.y] + at, count, lower);
#pragma unroll
        for (int k = 0; k < Count; ++k) {
            change([&](float w) { return next(k, w); }, upper[k], lower[k]);
        }
        store_some(high.data[blockIdx.y] + at, count, upper);
        store_some(low.data[blockIdx.y] + at, count, lower);
    }
};

// The weights take their step.
template <typename Weights>
struct WeightSink {
    using Coefficients = VariedCoefficients;
    WeightMatrices<Weights> weights;
    double radius[kBatchMatrices], decay[kBatchMatrices];
    const double* rate;
    double lr_scale;
    bool cautious;

    __device__ Coefficients coefficients() const {
        const double lr = lr_scale * *rate;
        return {{static_cast<float>(lr * decay[blockIdx.y]),
                 static_cast<float>(lr * radius[blockIdx.y])},
                0.0f,
                cautious};
    }
    template <int Count>
    __device__ __forceinline__ void write(const Coefficients& c, int64_t at, int64_t count,
                                          const float (&values)[Count]) const {
        weights.template change_some<Count>(
            at, count, [&](int k, float w) { return new_weight(c, w, values[k]); });
    }
};

}  // namespace lmo::cuda
