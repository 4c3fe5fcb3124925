#include "llmc/core/dtype.h"

#include <cmath>

namespace lmo {

size_t size_of(DType type) {
    switch (type) {
        case DType::f64:
            return 8;
        case DType::f32:
            return 4;
        case DType::i32:
            return 4;
        case DType::f16:
            return 2;
        case DType::bf16:
            return 2;
        case DType::u16:
            return 2;
        case DType::i16:
            return 2;
    }
    return 0;
}

std::string to_string(DType type) {
    switch (type) {
        case DType::f64:
            return "fp64";
        case DType::f32:
            return "fp32";
        case DType::f16:
            return "fp16";
        case DType::bf16:
            return "bf16";
        case DType::i32:
            return "int32";
        case DType::u16:
            return "uint16";
        case DType::i16:
            return "int16";
    }
    return "unknown";
}

float f16_to_float(uint16_t bits) {
    const int exponent = (bits >> 10) & 0x1f;
    const int mantissa = bits & 0x3ff;
    const float sign = (bits & 0x8000) ? -1.0f : 1.0f;
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
    if (exponent == 31) return mantissa ? std::nanf("") : sign * INFINITY;
    return sign * std::ldexp(static_cast<float>(mantissa | 0x400), exponent - 25);
}

}  // namespace lmo
