// Element access and the exponential for the kernels: included by *_kernels.cpp only, and all of it
// inside the namespace of their instruction set (see kernels.h).
#pragma once

#include <stdint.h>

#include "llmc/cpu/kernels.h"

#ifndef LMO_ISA
#error "kernels are compiled with -DLMO_ISA=baseline, avx2 or avx512"
#endif

namespace lmo::cpu::LMO_ISA {

// Storage types: double, float and bf16; arithmetic is in Wide<T>.
struct bf16 {
    uint16_t bits;
};

template <typename T>
struct WideOf {
    using type = float;
};
template <>
struct WideOf<double> {
    using type = double;
};
template <typename T>
using Wide = typename WideOf<T>::type;

static inline double widen(double value) { return value; }
static inline float widen(float value) { return value; }
static inline float widen(bf16 value) {
    return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}

static inline void store(double& to, double value) { to = value; }
static inline void store(float& to, float value) { to = value; }
static inline void store(float& to, double value) { to = static_cast<float>(value); }
static inline void store(bf16& to, float value) {  // to nearest even; NaN stays NaN
    const uint32_t bits = __builtin_bit_cast(uint32_t, value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const uint32_t nan = (bits >> 16) | 0x40u;
    to.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
}
static inline void store(bf16& to, double value) { store(to, static_cast<float>(value)); }

// Calls f with a value of the storage type.
template <typename F>
static inline void with_type(DType type, F f) {
    switch (type) {
        case DType::f64:
            f(double());
            return;
        case DType::f32:
            f(float());
            return;
        case DType::bf16:
            f(bf16());
            return;
        default:
            __builtin_trap();  // the callers assert on types
    }
}

static inline double exponential(double x) { return __builtin_exp(x); }

// exp(x) for float, about 1 ulp, in a form that compilers vectorise. x = n ln 2 + r, |r| <= ln 2 /
// 2, and the Taylor polynomial of degree 7 in r. Results below 2^-125 are 0; NaN stays NaN.
static inline float exponential(float x) {
    constexpr float shift = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const float limited = x > 89.0f ? 89.0f : (x < -87.0f ? -87.0f : x);
    const float shifted = limited * 1.44269504f + shift;
    const float n = shifted - shift;
    // ln 2 in two parts: the first has few bits, so that n times it is exact.
    const float r = (limited - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    // 2^(n-1) from its bits, then times 2: n may be 128.
    const uint32_t steps = __builtin_bit_cast(uint32_t, shifted) - 0x4b400000u;
    const float power = __builtin_bit_cast(float, (steps + 126u) << 23);
    return x < -87.0f ? 0.0f : p * power * 2.0f;
}

}  // namespace lmo::cpu::LMO_ISA
