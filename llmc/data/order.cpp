#include "llmc/data/order.h"

#include <cassert>

#include "llmc/core/random.h"

namespace lmo {
namespace {

constexpr int kRounds = 8;
// Keeps these draws apart from other uses of the same seed ("order" in ASCII).
constexpr uint64_t kStream = 0x6f72646572ull << 24;

int bit_width(uint64_t value) {
    int bits = 0;
    for (; value != 0; value >>= 1) ++bits;
    return bits;
}

}  // namespace

Permutation::Permutation(uint64_t size, uint64_t seed, uint64_t epoch)
    : size_(size), seed_(seed), epoch_(epoch) {
    assert(size >= 1);
    half_bits_ = (bit_width(size - 1) + 1) / 2;
}

// A Feistel network permutes the 2^(2 half_bits) >= size numbers whatever its round function is.
// From a number below size, walking along its cycle until it is below size again therefore
// permutes [0, size); fewer than four steps are expected, as the square is below 4 size.
uint64_t Permutation::operator()(uint64_t index) const {
    assert(index < size_);
    const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
    do {
        uint64_t left = index >> half_bits_, right = index & mask;
        for (uint64_t round = 0; round < kRounds; ++round) {
            const uint64_t key = random_bits(seed_, kStream ^ epoch_, (round << 32) | right);
            const uint64_t next = left ^ (key & mask);
            left = right;
            right = next;
        }
        index = (left << half_bits_) | right;
    } while (index >= size_);
    return index;
}

uint64_t sample_at(uint64_t position, uint64_t size, uint64_t seed) {
    return Permutation(size, seed, position / size)(position % size);
}

}  // namespace lmo
