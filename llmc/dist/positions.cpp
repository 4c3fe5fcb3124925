#include "llmc/dist/positions.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <string>

#include "llmc/core/error.h"
#include "llmc/dist/bits.h"

namespace lmo {

static_assert(std::endian::native == std::endian::little, "messages are little-endian");

Positions::Positions(int64_t count, int64_t kept) : count_(count), kept_(kept) {
    assert(kept >= 1 && kept <= count);
    const int most = static_cast<int>(std::bit_width(static_cast<uint64_t>(count - 1)));
    for (int bits = 0; bits <= most; ++bits) {
        const Positions split(count, kept, bits);
        if (split.bytes() < bytes()) *this = split;
    }
}

size_t Positions::low_bytes() const { return bytes_of_bits(kept_ * low_bits_); }

int64_t Positions::map_bits() const {
    if (step_ == 0) return count_;
    const int64_t highest = (count_ - 1) >> low_bits_;
    return highest == 0 ? 0 : kept_ + highest;
}

size_t Positions::bytes_of_map() const { return bytes_of_bits(map_bits()); }

void Positions::write(const std::vector<int64_t>& at, std::byte* to) const {
    assert(static_cast<int64_t>(at.size()) == kept_);
    BitWriter low(to);
    const uint64_t mask = (uint64_t{1} << low_bits_) - 1;
    if (low_bits_ > 0) {
        for (const int64_t position : at)
            low.write(static_cast<uint64_t>(position) & mask, low_bits_);
    }
    low.finish();
    if (map_bits() == 0) return;
    std::byte* map = to + low_bytes();
    std::memset(map, 0, bytes_of_map());
    int64_t moved = 0;
    for (const int64_t position : at) {
        const int64_t bit = (position >> low_bits_) + moved;
        map[bit >> 3] |= static_cast<std::byte>(1 << (bit & 7));
        moved += step_;
    }
}

namespace {

[[noreturn]] void refuse(int64_t count, int64_t kept) {
    throw Error("a message of compressed numbers is none: it should hold " + std::to_string(kept) +
                " increasing positions below " + std::to_string(count));
}

// Calls each(bit) for the bits that are set, in order.
template <class Each>
void each_bit(const std::byte* map, size_t bytes, Each each) {
    for (size_t begin = 0; begin < bytes; begin += 8) {
        uint64_t word = 0;
        std::memcpy(&word, map + begin, std::min<size_t>(8, bytes - begin));
        for (; word != 0; word &= word - 1) {
            each(static_cast<int64_t>(begin) * 8 + std::countr_zero(word));
        }
    }
}

}  // namespace

std::vector<int64_t> Positions::read(const std::byte* from) const {
    std::vector<int64_t> at(static_cast<size_t>(kept_));
    size_t found = at.size();
    if (map_bits() > 0) {
        found = 0;
        int64_t moved = 0;
        each_bit(from + low_bytes(), bytes_of_map(), [&](int64_t bit) {
            if (found == at.size()) refuse(count_, kept_);
            at[found++] = (bit - moved) << low_bits_;
            moved += step_;
        });
    }
    if (low_bits_ > 0) {
        BitReader low(from);
        for (int64_t& position : at) position |= static_cast<int64_t>(low.read(low_bits_));
    }
    int64_t previous = -1;
    for (const int64_t position : at) {
        if (position <= previous || position >= count_) refuse(count_, kept_);
        previous = position;
    }
    if (found != at.size()) refuse(count_, kept_);
    return at;
}

}  // namespace lmo
