// numpy.random.default_rng(seed) as far as a sample order needs it: PCG64 (XSL-RR, O'Neill 2014)
// seeded through NumPy's SeedSequence, bounded integers by Lemire's method (2019), permutations by
// Fisher-Yates with masked rejection. The numbers are NumPy's, bit by bit.
#pragma once

#include <cstdint>
#include <vector>

namespace lmo {

class NumpyGenerator {
  public:
    explicit NumpyGenerator(uint64_t seed);

    uint64_t next64();
    // Halves of a 64-bit draw, the low one first; the high one waits for the next call.
    uint32_t next32();
    // Generator.integers(bound): a number in [0, bound), bound >= 1.
    uint64_t below(uint64_t bound);
    // Generator.permutation(count), count < 2^32.
    std::vector<uint32_t> permutation(uint32_t count);

  private:
    // A number in [0, last]: draws of as many bits as `last` has until one is not above it.
    uint32_t masked(uint32_t last);

    __extension__ using uint128 = unsigned __int128;
    void step();

    uint128 state_ = 0, increment_ = 0;
    bool has_half_ = false;
    uint32_t half_ = 0;
};

}  // namespace lmo
