// fp32 as two halves: every bit pattern.
#include <gtest/gtest.h>

#include <cmath>

#include "llmc/core/dtype.h"
#include "llmc/core/split_float.h"

namespace lmo {
namespace {

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

struct Faults {
    int64_t joined = 0, rounded = 0, lost_nan = 0;

    void check(uint32_t bits) {
        const SplitFloat halves = split_float(float_of(bits));
        const uint32_t size = bits & 0x7fffffffu, again = bits_of(join_float(halves));
        const bool last = size > 0x7fff7fffu;  // NaN whose upper half would overflow
        joined += again != (last ? (bits & 0x80000000u) | 0x7fff7fffu : bits);
        if (size > 0x7f800000u) {
            lost_nan += !std::isnan(float_of(again)) || std::isfinite(bf16_to_float(halves.high));
            return;
        }
        // As float_to_bf16, but for ties, which go away from zero.
        const bool tie = (bits & 0xffffu) == 0x8000u;
        const uint32_t away = (bits >> 16) + 1;
        rounded += halves.high != (tie ? away : float_to_bf16(float_of(bits)));
    }
};

TEST(SplitFloat, EveryUpperHalfWithTheLowerOnesThatMatter) {
    Faults faults;
    for (uint32_t upper = 0; upper <= 0xffffu; ++upper) {
        for (uint32_t lower : {0x0000u, 0x0001u, 0x1234u, 0x7ffeu, 0x7fffu, 0x8000u, 0x8001u,
                               0xabcdu, 0xfffeu, 0xffffu}) {
            faults.check((upper << 16) | lower);
        }
    }
    EXPECT_EQ(faults.joined, 0);
    EXPECT_EQ(faults.rounded, 0);
    EXPECT_EQ(faults.lost_nan, 0);
}

TEST(SplitFloat, EveryLowerHalfOfTheUpperOnesThatMatter) {
    Faults faults;
    for (uint32_t upper : {0x0000u, 0x0001u, 0x007fu, 0x0080u, 0x3f80u, 0x3f81u, 0x7f7fu, 0x7f80u,
                           0x7f81u, 0x7fc0u, 0x7ffeu, 0x7fffu}) {
        for (uint32_t lower = 0; lower <= 0xffffu; ++lower) {
            faults.check((upper << 16) | lower);
            faults.check(0x80000000u | (upper << 16) | lower);
        }
    }
    EXPECT_EQ(faults.joined, 0);
    EXPECT_EQ(faults.rounded, 0);
    EXPECT_EQ(faults.lost_nan, 0);
}

TEST(SplitFloat, NearInfinity) {
    const SplitFloat largest = split_float(float_of(0x7f7fffffu));
    EXPECT_TRUE(std::isinf(bf16_to_float(largest.high)));
    EXPECT_EQ(bits_of(join_float(largest)), 0x7f7fffffu);
    EXPECT_EQ(largest.low, -1);
}

}  // namespace
}  // namespace lmo
