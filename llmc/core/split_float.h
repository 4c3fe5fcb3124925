// An fp32 number as two 16-bit halves, of which the upper one is its bf16 rounding: master weights
// in the memory of fp32 whose bf16 copies cost nothing ("split" in precision.master).
//
//   high = (bits + 0x8000) >> 16,  low = bits - (high << 16) as int16,  bits = (high << 16) + low
//
// The tie is rounded away from zero (float_to_bf16 rounds it to the even one), so that low always
// fits: the sum is exact for every number, zeros, denormals and infinities included. A finite
// number within half a unit of bf16 of infinity has high = infinity, as with float_to_bf16, and is
// itself again in the sum. Of NaN, which must not become a number in bf16, the 2^16 with the
// largest payloads, whose high would overflow into the sign, are taken as the NaN 0x7fff7fff, sign
// kept; the others are exact too. (Payloads below 0x8000 have high = infinity.)
#pragma once

#include <cstdint>
#include <cstring>

namespace lmo {

struct SplitFloat {
    uint16_t high;  // bits of a bf16
    int16_t low;
};

inline SplitFloat split_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    constexpr uint32_t most = 0x7fff7fffu;
    if ((bits & 0x7fffffffu) > most) bits = (bits & 0x80000000u) | most;
    return {static_cast<uint16_t>((bits + 0x8000u) >> 16), static_cast<int16_t>(bits & 0xffffu)};
}

inline float join_float(SplitFloat halves) {
    const uint32_t bits = (static_cast<uint32_t>(halves.high) << 16) +
                          static_cast<uint32_t>(static_cast<int32_t>(halves.low));
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace lmo
