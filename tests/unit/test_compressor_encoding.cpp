// What the compressors write: packed bits, positions, powers of two.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "llmc/core/error.h"
#include "llmc/core/random.h"
#include "llmc/dist/bits.h"
#include "llmc/dist/natural.h"
#include "llmc/dist/positions.h"

namespace lmo {
namespace {

using Bytes = std::vector<std::byte>;

Bytes bytes(std::initializer_list<int> values) {
    Bytes result;
    for (const int value : values) result.push_back(static_cast<std::byte>(value));
    return result;
}

uint64_t below(uint64_t limit, uint64_t stream, uint64_t index) {
    return random_bits(7, stream, index) % limit;
}

// Some `kept` of [0, count), increasing.
std::vector<int64_t> some_of(int64_t count, int64_t kept, uint64_t stream) {
    std::vector<int64_t> at;
    for (int64_t i = 0; i < count; ++i) {
        const auto left = static_cast<uint64_t>(count - i);
        const int64_t wanted = kept - static_cast<int64_t>(at.size());
        if (static_cast<int64_t>(below(left, stream, static_cast<uint64_t>(i))) < wanted) {
            at.push_back(i);
        }
    }
    return at;
}

TEST(CompressorEncoding, BitsAreLowestFirst) {
    Bytes to(3, std::byte{0xff});
    BitWriter writer(to.data());
    writer.write(5, 3);
    writer.write(0x1234, 13);
    writer.write(1, 2);
    writer.finish();
    EXPECT_EQ(to, bytes({(0x1234 << 3 & 0xff) | 5, 0x1234 >> 5, 1}));
    BitReader reader(to.data());
    EXPECT_EQ(reader.read(3), 5u);
    EXPECT_EQ(reader.read(13), 0x1234u);
    EXPECT_EQ(reader.read(2), 1u);
}

TEST(CompressorEncoding, BitsOfEveryWidth) {
    for (int bits = 0; bits <= 56; ++bits) {
        const auto value = [&](uint64_t i) {
            return random_bits(7, static_cast<uint64_t>(bits), i) & ((uint64_t{1} << bits) - 1);
        };
        Bytes to(bytes_of_bits(37 * bits) + 1, std::byte{0x55});  // the last one is not touched
        BitWriter writer(to.data());
        for (uint64_t i = 0; i < 37; ++i) writer.write(value(i), bits);
        writer.finish();
        EXPECT_EQ(to.back(), std::byte{0x55});
        to.pop_back();
        to.shrink_to_fit();  // reading beyond it is found by AddressSanitizer
        BitReader reader(to.data());
        for (uint64_t i = 0; i < 37; ++i) ASSERT_EQ(reader.read(bits), value(i)) << bits;
    }
}

TEST(CompressorEncoding, PositionsByHand) {
    const auto written = [](int64_t count, const std::vector<int64_t>& at) {
        const Positions positions(count, static_cast<int64_t>(at.size()));
        Bytes to(positions.bytes());
        positions.write(at, to.data());
        EXPECT_EQ(positions.read(to.data()), at);
        return to;
    };
    // A bitmap.
    EXPECT_EQ(written(10, {0, 3, 4, 9}), bytes({0b00011001, 0b10}));
    EXPECT_EQ(written(3, {0, 1, 2}), bytes({0b111}));
    // Four bits each; seven of ten bits, and the rest by one bit of eight.
    EXPECT_EQ(written(16, {3, 12}), bytes({0xc3}));
    EXPECT_EQ(written(1000, {5 * 128 + 37}), bytes({37, 1 << 5}));
    // Three low bits each: 0, 7, 1, 3; then bits (0, 1, 8, 12) + (0, 1, 2, 3) of 4 + 12.
    EXPECT_EQ(written(100, {0, 15, 65, 99}), bytes({0x78, 0x06, 0b00000101, 0b10000100}));
}

TEST(CompressorEncoding, PositionsOfAllSizes) {
    for (uint64_t t = 0; t < 400; ++t) {
        const auto count = static_cast<int64_t>(1 + below(t < 200 ? 40 : 5000, 1, t));
        const auto most = static_cast<uint64_t>(t % 2 ? count : 1 + count / 20);
        const auto kept = static_cast<int64_t>(1 + below(most, 2, t));
        const Positions positions(count, kept);
        int64_t width = 0;
        while ((int64_t{1} << width) < count) ++width;
        EXPECT_LE(positions.bytes(), bytes_of_bits(count));
        EXPECT_LE(positions.bytes(), bytes_of_bits(kept * width));
        // No code of a fixed size needs less than log2 of the binomial coefficient.
        const auto n = static_cast<double>(count), k = static_cast<double>(kept);
        const double bits =
            (std::lgamma(n + 1) - std::lgamma(k + 1) - std::lgamma(n - k + 1)) / std::log(2.0);
        EXPECT_GE(8.0 * static_cast<double>(positions.bytes()), bits - 1e-6);
        if (kept <= count / 4) {
            EXPECT_LE(8.0 * static_cast<double>(positions.bytes()), bits + 2.0 * k + 16.0);
        }
        const std::vector<int64_t> at = some_of(count, kept, 3 + t);
        Bytes to(positions.bytes());
        positions.write(at, to.data());
        ASSERT_EQ(positions.read(to.data()), at) << kept << " of " << count;
    }
}

TEST(CompressorEncoding, PositionsThatAreNone) {
    const auto refused = [](int64_t count, int64_t kept, const Bytes& from) {
        const Positions positions(count, kept);
        EXPECT_EQ(positions.bytes(), from.size());
        try {
            positions.read(from.data());
            ADD_FAILURE() << kept << " of " << count;
        } catch (const Error& error) {
            EXPECT_EQ(std::string(error.what()),
                      "a message of compressed numbers is none: it should hold " +
                          std::to_string(kept) + " increasing positions below " +
                          std::to_string(count));
        }
    };
    refused(10, 4, bytes({0b00011001, 0b00}));                     // three
    refused(10, 4, bytes({0b00111001, 0b10}));                     // five
    refused(10, 4, bytes({0b00011001, 0b100}));                    // 10
    refused(16, 2, bytes({0x3c}));                                 // 12, 3
    refused(16, 2, bytes({0x33}));                                 // 3, 3
    refused(1000, 1, bytes({0x68, 1 << 7}));                       // 1000
    refused(1000, 1, bytes({0x68, 0}));                            // none
    refused(100, 4, bytes({0x78, 0x06, 0b00000101, 0b00000100}));  // three
    refused(100, 4, bytes({0x78, 0x06, 0b00010101, 0b10000100}));  // five
    refused(100, 4, bytes({0x41, 0x06, 0b00000011, 0b10000100}));  // 1, 0
    refused(100, 4, bytes({0x78, 0x0e, 0b00000101, 0b10000100}));  // 103
}

TEST(CompressorEncoding, PositionsOfAnyBytes) {
    int64_t read = 0;
    for (uint64_t t = 0; t < 20000; ++t) {
        const auto count = static_cast<int64_t>(1 + below(60, 4, t));
        const auto kept = static_cast<int64_t>(1 + below(static_cast<uint64_t>(count), 5, t));
        const Positions positions(count, kept);
        Bytes from(positions.bytes());
        for (size_t i = 0; i < from.size(); ++i) {
            from[i] = static_cast<std::byte>(below(256, 6, t * 64 + i));
        }
        try {
            const std::vector<int64_t> at = positions.read(from.data());
            ASSERT_EQ(static_cast<int64_t>(at.size()), kept);
            ASSERT_TRUE(std::is_sorted(at.begin(), at.end(), std::less_equal<>()));
            ASSERT_TRUE(at.front() >= 0 && at.back() < count);
            ++read;
        } catch (const Error&) {
        }
    }
    EXPECT_GT(read, 100);
    EXPECT_LT(read, 10000);
}

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
class NaturalOf : public ::testing::Test {
  public:
    // The code byte, and the number that is read.
    static std::pair<int, T> natural(T x) {
        Bytes to(natural_bytes(1));
        write_natural(&x, 1, to.data());
        T value;
        read_natural(to.data(), 1, &value);
        EXPECT_EQ(to[1], std::byte{std::signbit(x)});
        return {std::to_integer<int>(to[0]), value};
    }
};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(NaturalOf, Types);

TYPED_TEST(NaturalOf, NumbersByHand) {
    using T = TypeParam;
    const auto is = [](double x, int code, double value) {
        const auto got = TestFixture::natural(static_cast<T>(x));
        EXPECT_EQ(got.first, code) << x;
        EXPECT_EQ(static_cast<double>(got.second), value) << x;
        EXPECT_EQ(std::signbit(got.second), std::signbit(value)) << x;
    };
    is(1.0, 127, 1.0);
    is(-1.0, 127, -1.0);
    is(1.4999, 127, 1.0);
    is(1.5, 128, 2.0);  // halfway
    is(-1.5, 128, -2.0);
    is(1.9, 128, 2.0);
    is(3.0, 129, 4.0);
    is(-0.3, 125, -0.25);
    is(0.0, 0, 0.0);
    is(-0.0, 0, -0.0);
    // The smallest, and what is less: subnormal numbers of a float.
    is(0x1p-126, 1, 0x1p-126);
    is(0x1.7p-126, 1, 0x1p-126);
    is(0x1.8p-126, 2, 0x1p-125);
    is(0x1.8p-127, 1, 0x1p-126);
    is(0x1p-127, 1, 0x1p-126);  // halfway to zero
    is(-0x1.fep-128, 0, -0.0);
    is(0x1p-149, 0, 0.0);
    // The largest, and what is more.
    is(0x1p127, 254, 0x1p127);
    is(0x1.8p126, 254, 0x1p127);
    is(-static_cast<double>(std::numeric_limits<float>::max()), 254, -0x1p127);
    if (sizeof(T) == 8) {
        is(0x1p128, 254, 0x1p127);
        is(-1e300, 254, -0x1p127);
        is(1e-300, 0, 0.0);
        is(5e-324, 0, 0.0);
    }
    for (const double x : {kInfinity, -kInfinity, std::nan(""), -std::nan("")}) {
        const auto got = TestFixture::natural(static_cast<T>(x));
        EXPECT_EQ(got.first, 255);
        EXPECT_TRUE(std::isnan(got.second));
    }
}

// Against the definition, for numbers of every exponent.
TYPED_TEST(NaturalOf, TheNearestPower) {
    using T = TypeParam;
    for (uint64_t i = 0; i < 20000; ++i) {
        const uint64_t random = random_bits(7, 8, i);
        double x = std::ldexp(1.0 + static_cast<double>(random >> 32) * 0x1p-32,
                              static_cast<int>(random % 300) - 160);
        x = static_cast<double>(static_cast<T>(random & 1024 ? -x : x));
        double nearest = 0.0;
        for (int k = -126; k <= 127; ++k) {
            const double power = std::ldexp(1.0, k);
            if (std::fabs(std::fabs(x) - power) <= std::fabs(std::fabs(x) - nearest))
                nearest = power;
        }
        const auto got = TestFixture::natural(static_cast<T>(x));
        if (std::isinf(x)) {
            ASSERT_EQ(got.first, 255);
            continue;
        }
        ASSERT_EQ(static_cast<double>(got.second), std::copysign(nearest, x)) << x;
    }
}

TYPED_TEST(NaturalOf, ManyAtOnce) {
    using T = TypeParam;
    for (const int64_t count : {1, 7, 8, 9, 63, 4096, 4097, 100001}) {
        std::vector<T> x(static_cast<size_t>(count));
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(random_normal(7, 9, i));
        Bytes to(natural_bytes(count)), again(to.size());
        EXPECT_EQ(to.size(), static_cast<size_t>((9 * count + 7) / 8));
        std::vector<T> rounded = x, got(x.size());
        const double error = round_to_natural(rounded.data(), count, to.data());
        write_natural(x.data(), count, again.data());
        read_natural(to.data(), count, got.data());
        EXPECT_TRUE(to == again);
        EXPECT_TRUE(got == rounded);
        double expected = 0.0, total = 0.0;
        for (size_t i = 0; i < x.size(); ++i) {
            ASSERT_EQ(rounded[i], this->natural(x[i]).second);
            const double a = static_cast<double>(x[i]), b = static_cast<double>(rounded[i]);
            expected += (a - b) * (a - b);
            total += a * a;
        }
        EXPECT_NEAR(error, expected, 1e-12 * expected);
        EXPECT_LE(error, total / 9.0);
        EXPECT_EQ(round_to_natural(rounded.data(), count, again.data()), 0.0);
        EXPECT_TRUE(to == again);
    }
}

}  // namespace
}  // namespace lmo
