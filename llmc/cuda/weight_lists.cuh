// Master weights in the forms that an update may find them in, as lists of an elementwise operation
// (tensor_table.cuh); bytes an element that an update moves:
//
//   FloatWeights           fp32                                                      8
//   CopiedWeights<Copy>    fp32, and a copy of type Copy that is only written       10 with bf16
//   SplitWeights           the halves of core/split_float.h, of which one is bf16    8
//
// change(next, weight...) with a value of each list gives the weight its next value, next(w).
#pragma once

#include "llmc/cuda/tensor_table.cuh"
#include "llmc/device/backend.h"

namespace lmo::cuda {

// ---- split weights ------------------------------------------------------------------------------

__device__ __forceinline__ float join(bf16 high, int16_t low) {
    const uint32_t upper = static_cast<__nv_bfloat16_raw>(high).x;
    return __uint_as_float((upper << 16) + static_cast<uint32_t>(static_cast<int32_t>(low)));
}

// NaN stays NaN: beyond this one the upper half would overflow.
constexpr uint32_t kLargestNaN = 0x7fff7fffu;

__device__ __forceinline__ void split(float w, bf16& high, int16_t& low) {
    const uint32_t given = __float_as_uint(w), size = given & 0x7fffffffu;
    const uint32_t bits = (given & 0x80000000u) | (size > kLargestNaN ? kLargestNaN : size);
    high = __nv_bfloat16_raw{static_cast<unsigned short>((bits + 0x8000u) >> 16)};
    low = static_cast<int16_t>(bits & 0xffffu);
}

// ---- forms --------------------------------------------------------------------------------------

struct FloatWeights {
    template <typename Scalars, typename... Others>
    using Lists = TensorLists<Scalars, Others..., InOut<float>>;
};
template <typename Copy>
struct CopiedWeights {
    template <typename Scalars, typename... Others>
    using Lists = TensorLists<Scalars, Others..., InOut<float>, Out<Copy>>;
};
struct SplitWeights {
    template <typename Scalars, typename... Others>
    using Lists = TensorLists<Scalars, Others..., InOut<bf16>, InOut<int16_t>>;
};

template <typename Next>
__device__ __forceinline__ void change(const Next& next, float& w) {
    w = next(w);
}
template <typename Next, typename Copy>
__device__ __forceinline__ void change(const Next& next, float& w, Copy& copy) {
    w = next(w);
    copy = from_float<Copy>(w);
}
template <typename Next>
__device__ __forceinline__ void change(const Next& next, bf16& high, int16_t& low) {
    split(next(join(high, low)), high, low);
}

// Calls f(Type<form>(), its lists...) for the weights of an Apply.
template <typename F>
void for_weights(const Apply& op, F&& f) {
    if (op.is_split()) return f(Type<SplitWeights>(), op.weights, op.remainders);
    if (op.copies.empty()) return f(Type<FloatWeights>(), op.weights);
    for_compute_type(op.copies[0].dtype, [&](auto type) {
        f(Type<CopiedWeights<typename decltype(type)::type>>(), op.weights, op.copies);
    });
}

inline bool all_of_type(std::span<const Tensor> tensors, DType type) {
    return std::all_of(tensors.begin(), tensors.end(),
                       [&](const Tensor& tensor) { return tensor.dtype == type; });
}

// Lists belong together: as many tensors, of equal sizes.
inline bool same_counts(std::span<const Tensor> a, std::span<const Tensor> b) {
    return std::equal(a.begin(), a.end(), b.begin(), b.end(),
                      [](const Tensor& x, const Tensor& y) { return x.count() == y.count(); });
}

// The lists of an Apply are of one of these forms.
inline bool has_weights(const Apply& op) {
    if (op.is_split()) {
        return all_of_type(op.weights, DType::bf16) && all_of_type(op.remainders, DType::i16) &&
               same_counts(op.weights, op.remainders) && op.copies.empty();
    }
    return all_of_type(op.weights, DType::f32) &&
           (op.copies.empty() ||
            (same_counts(op.weights, op.copies) && all_of_type(op.copies, op.copies[0].dtype)));
}

}  // namespace lmo::cuda
