// Numbers of a few bits, packed without gaps: the lowest bit first, bytes in order.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmo {

constexpr size_t bytes_of_bits(int64_t bits) { return static_cast<size_t>((bits + 7) / 8); }

// Writes bytes_of_bits(of all numbers) bytes; the spare bits of the last one are zero.
class BitWriter {
  public:
    explicit BitWriter(std::byte* to) : to_(to) {}

    // value < 2^bits, bits <= 56.
    void write(uint64_t value, int bits) {
        held_ |= value << count_;
        for (count_ += bits; count_ >= 8; count_ -= 8, held_ >>= 8) {
            *to_++ = static_cast<std::byte>(held_);
        }
    }
    // The rest, once, after the last number.
    void finish() {
        if (count_ > 0) *to_ = static_cast<std::byte>(held_);
    }

  private:
    std::byte* to_;
    uint64_t held_ = 0;
    int count_ = 0;  // bits held back, fewer than 8 between calls
};

// Reads no byte that holds none of the bits asked for.
class BitReader {
  public:
    explicit BitReader(const std::byte* from) : from_(from) {}

    uint64_t read(int bits) {
        for (; count_ < bits; count_ += 8) {
            held_ |= static_cast<uint64_t>(std::to_integer<uint8_t>(*from_++)) << count_;
        }
        const uint64_t value = held_ & ((uint64_t{1} << bits) - 1);
        held_ >>= bits;
        count_ -= bits;
        return value;
    }

  private:
    const std::byte* from_;
    uint64_t held_ = 0;
    int count_ = 0;
};

}  // namespace lmo
