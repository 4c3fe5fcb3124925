#include "llmc/data/numpy_random.h"

#include <array>
#include <cassert>
#include <cstddef>
#include <numeric>
#include <utility>

namespace lmo {
namespace {

// NumPy's SeedSequence: an entropy pool of four words, mixed so that each reaches all.
class SeedSequence {
  public:
    // An entropy of at most two words; the rest of the pool is hashed zeros.
    explicit SeedSequence(uint64_t seed)
        : pool_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), 0, 0} {
        uint32_t constant = 0x43b0d7e5;
        const auto hash = [&](uint32_t value) {
            value ^= constant;
            constant *= 0x931e8875;
            value *= constant;
            return value ^ (value >> 16);
        };
        for (uint32_t& word : pool_) word = hash(word);
        for (const uint32_t& from : pool_) {
            for (uint32_t& to : pool_) {
                if (&to == &from) continue;
                const uint32_t mixed = 0xca01f9dd * to - 0x4973f715 * hash(from);
                to = mixed ^ (mixed >> 16);
            }
        }
    }

    // The first four 64-bit words, low halves first.
    std::array<uint64_t, 4> words() const {
        std::array<uint64_t, 4> result{};
        uint32_t constant = 0x8b51f9dd;
        for (std::size_t i = 0; i < 8; ++i) {
            uint32_t value = pool_[i % 4] ^ constant;
            constant *= 0x58f38ded;
            value *= constant;
            value ^= value >> 16;
            result[i / 2] |= uint64_t{value} << (32 * (i % 2));
        }
        return result;
    }

  private:
    std::array<uint32_t, 4> pool_;
};

}  // namespace

NumpyGenerator::NumpyGenerator(uint64_t seed) {
    const std::array<uint64_t, 4> words = SeedSequence(seed).words();
    increment_ = (((uint128{words[2]} << 64) | words[3]) << 1) | 1;
    step();
    state_ += (uint128{words[0]} << 64) | words[1];
    step();
}

void NumpyGenerator::step() {
    constexpr uint128 multiplier = (uint128{0x2360ed051fc65da4} << 64) | 0x4385df649fccf645;
    state_ = state_ * multiplier + increment_;
}

uint64_t NumpyGenerator::next64() {
    step();
    const uint64_t mixed = static_cast<uint64_t>(state_ >> 64) ^ static_cast<uint64_t>(state_);
    const unsigned turn = static_cast<unsigned>(state_ >> 122);
    return (mixed >> turn) | (mixed << ((64 - turn) % 64));
}

uint32_t NumpyGenerator::next32() {
    if (std::exchange(has_half_, !has_half_)) return half_;
    const uint64_t both = next64();
    half_ = static_cast<uint32_t>(both >> 32);
    return static_cast<uint32_t>(both);
}

// Multiplies a draw by the bound; the high half is the number, unless the low half is in the part
// that would favour some numbers. NumPy draws nothing for a bound of 1, a plain word for 2^32, and
// 64-bit words above.
uint64_t NumpyGenerator::below(uint64_t bound) {
    assert(bound >= 1);
    constexpr uint64_t kWord = uint64_t{1} << 32;
    if (bound == 1) return 0;
    if (bound == kWord) return next32();
    if (bound < kWord) {
        uint64_t product = next32() * bound;
        if (static_cast<uint32_t>(product) < bound) {
            const uint32_t threshold = static_cast<uint32_t>((kWord - bound) % bound);
            while (static_cast<uint32_t>(product) < threshold) product = next32() * bound;
        }
        return product >> 32;
    }
    uint128 product = uint128{next64()} * bound;
    if (static_cast<uint64_t>(product) < bound) {
        const uint64_t threshold = (0 - bound) % bound;
        while (static_cast<uint64_t>(product) < threshold) product = uint128{next64()} * bound;
    }
    return static_cast<uint64_t>(product >> 64);
}

uint32_t NumpyGenerator::masked(uint32_t last) {
    uint32_t mask = last;
    for (unsigned shift = 1; shift < 32; shift *= 2) mask |= mask >> shift;
    uint32_t draw;
    do draw = next32() & mask;
    while (draw > last);
    return draw;
}

std::vector<uint32_t> NumpyGenerator::permutation(uint32_t count) {
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    for (uint32_t i = count; i-- > 1;) std::swap(order[i], order[masked(i)]);
    return order;
}

}  // namespace lmo
