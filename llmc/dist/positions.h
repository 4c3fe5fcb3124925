// Which `kept` of `count` elements a message holds, in as few bytes as a fixed size allows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmo {

// The smallest of these forms, all of a size that is known before the positions are:
//   bitmap     `count` bits, bit p set where p is kept
//   split      the lowest l bits of each position, packed; then a bitmap with bit (p >> l) + i set
//              for the i-th position p, which has kept + ((count - 1) >> l) bits, or is left out
//              where no position has more than l bits (Elias-Fano; l is what makes it smallest)
// For few of many, split takes about log2(count / kept) + 2 bits a position.
class Positions {
  public:
    Positions() = default;                   // none of none
    Positions(int64_t count, int64_t kept);  // 1 <= kept <= count
    size_t bytes() const { return low_bytes() + bytes_of_map(); }

    // `at`: kept increasing positions.
    void write(const std::vector<int64_t>& at, std::byte* to) const;
    // Throws Error where the bytes are no such positions.
    std::vector<int64_t> read(const std::byte* from) const;

  private:
    Positions(int64_t count, int64_t kept, int low_bits)
        : count_(count), kept_(kept), low_bits_(low_bits), step_(1) {}
    size_t low_bytes() const;
    int64_t map_bits() const;
    size_t bytes_of_map() const;

    int64_t count_ = 0, kept_ = 0;
    int low_bits_ = 0;  // l
    int64_t step_ = 0;  // how far the i-th bit is moved: 0 in a bitmap, i in split
};

}  // namespace lmo
