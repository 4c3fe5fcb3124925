// Element types, and the conversions between the 16-bit ones and float that host code needs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

namespace lmo {

enum class DType : uint8_t { f64, f32, f16, bf16, i32, u16, i16 };

size_t size_of(DType type);
std::string to_string(DType type);

// bfloat16 is the upper half of a float; rounding to nearest even, NaN stays NaN.
inline float bf16_to_float(uint16_t bits) {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint16_t float_to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE half precision, read only: some Hugging Face folders store it.
float f16_to_float(uint16_t bits);

}  // namespace lmo
