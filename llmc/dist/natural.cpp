#include "llmc/dist/natural.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <vector>

#include "llmc/dist/bits.h"
#include "llmc/dist/squares.h"

namespace lmo {

namespace {

static_assert(std::endian::native == std::endian::little, "messages are little-endian");

// Numbers that are worked on while they are in the first cache, and whose signs fill whole bytes.
constexpr int64_t kBlock = 4096;

// The code of a float is the biased exponent of the rounded number: adding half a unit of the last
// place that is kept carries into it from 1.5 * 2^k on. Subnormal numbers do the same.
inline uint8_t code_of(float x) {
    const uint32_t key = std::bit_cast<uint32_t>(x) & 0x7fffffffu;
    const uint32_t rounded = (key + 0x400000u) >> 23;
    const uint32_t finite = rounded < 254u ? rounded : 254u;
    return static_cast<uint8_t>(key < 0x7f800000u ? finite : 255u);
}

inline uint8_t code_of(double x) {
    constexpr uint64_t shift = 1023 - 127;          // between the biases
    constexpr uint64_t least = shift << 52;         // 2^-127
    constexpr uint64_t most = (shift + 254) << 52;  // 2^127
    constexpr uint64_t infinite = uint64_t{0x7ff} << 52;
    const uint64_t key = std::bit_cast<uint64_t>(x) & ~(uint64_t{1} << 63);
    if (key >= infinite) return 255;
    if (key < least) return 0;
    const uint64_t inside = std::clamp(key, least + (uint64_t{1} << 52), most);
    return static_cast<uint8_t>(((inside + (uint64_t{1} << 51)) >> 52) - shift);
}

// `sign`: 0 or 0x80.
inline float value_of(uint8_t code, uint8_t sign, float) {
    const uint32_t quiet = code == 255 ? 0x400000u : 0u;  // NaN, else it were infinity
    const uint32_t bits = static_cast<uint32_t>(sign) << 24 | static_cast<uint32_t>(code) << 23;
    return std::bit_cast<float>(bits | quiet);
}

// Of the float's value.
inline double value_of(uint8_t code, uint8_t sign, double) {
    return static_cast<double>(value_of(code, sign, 0.0f));
}

inline uint8_t sign_of(float x) { return static_cast<uint8_t>(std::bit_cast<uint32_t>(x) >> 31); }
inline uint8_t sign_of(double x) { return static_cast<uint8_t>(std::bit_cast<uint64_t>(x) >> 63); }

// Eight bytes of 0 or 1 become the bits of one.
inline std::byte gathered(const uint8_t* bits) {
    uint64_t word;
    std::memcpy(&word, bits, 8);
    return static_cast<std::byte>(word * 0x0102040810204080ull >> 56);
}

// The bits of one byte become eight bytes of 0 or 0x80.
inline void spread(std::byte bits, uint8_t* to) {
    const uint64_t copies = std::to_integer<uint64_t>(bits) * 0x0101010101010101ull;
    const uint64_t one_each = copies & 0x8040201008040201ull;
    const uint64_t top = (one_each + 0x7f7f7f7f7f7f7f7full) & 0x8080808080808080ull;
    std::memcpy(to, &top, 8);
}

// At most kBlock numbers.
template <class T>
void write_block(const T* x, int64_t count, std::byte* codes, std::byte* signs) {
    uint8_t bits[kBlock + 8];
    uint8_t* code = reinterpret_cast<uint8_t*>(codes);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        code[i] = code_of(x[i]);
        bits[i] = sign_of(x[i]);
    }
    for (int64_t i = count; i % 8 != 0; ++i) bits[i] = 0;
    for (int64_t i = 0; i < count; i += 8) signs[i / 8] = gathered(bits + i);
}

template <class T>
void read_block(const std::byte* codes, const std::byte* signs, int64_t count, T* to) {
    uint8_t bits[kBlock + 8];
    for (int64_t i = 0; i < count; i += 8) spread(signs[i / 8], bits + i);
    const uint8_t* code = reinterpret_cast<const uint8_t*>(codes);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) to[i] = value_of(code[i], bits[i], T{});
}

// Calls body(block, begin, count) for all blocks, on several threads.
template <class Body>
void each_block(int64_t count, Body body) {
    const int64_t blocks = (count + kBlock - 1) / kBlock;
#pragma omp parallel for schedule(static) if (blocks > 16)
    for (int64_t b = 0; b < blocks; ++b) {
        body(b, b * kBlock, std::min(kBlock, count - b * kBlock));
    }
}

}  // namespace

size_t natural_bytes(int64_t count) { return static_cast<size_t>(count) + bytes_of_bits(count); }

template <class T>
void write_natural(const T* x, int64_t count, std::byte* to) {
    std::byte* signs = to + count;
    each_block(count, [&](int64_t, int64_t begin, int64_t n) {
        write_block(x + begin, n, to + begin, signs + begin / 8);
    });
}

template <class T>
void read_natural(const std::byte* from, int64_t count, T* to) {
    const std::byte* signs = from + count;
    each_block(count, [&](int64_t, int64_t begin, int64_t n) {
        read_block(from + begin, signs + begin / 8, n, to + begin);
    });
}

template <class T>
double round_to_natural(T* x, int64_t count, std::byte* to) {
    std::byte* signs = to + count;
    std::vector<double> errors(static_cast<size_t>((count + kBlock - 1) / kBlock));
    each_block(count, [&](int64_t block, int64_t begin, int64_t n) {
        T rounded[kBlock];
        T* values = x + begin;
        write_block(values, n, to + begin, signs + begin / 8);
        read_block(to + begin, signs + begin / 8, n, rounded);
        errors[static_cast<size_t>(block)] = square_of_distance(rounded, values, n);
        std::copy(rounded, rounded + n, values);
    });
    double error = 0.0;
    for (const double part : errors) error += part;
    return error;
}

template void write_natural(const float*, int64_t, std::byte*);
template void write_natural(const double*, int64_t, std::byte*);
template void read_natural(const std::byte*, int64_t, float*);
template void read_natural(const std::byte*, int64_t, double*);
template double round_to_natural(float*, int64_t, std::byte*);
template double round_to_natural(double*, int64_t, std::byte*);

}  // namespace lmo
