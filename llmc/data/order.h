// The global order of samples: for each epoch a permutation of all sequences, a pure function of
// (seed, epoch), independent of ranks and micro-batch. Position p of the endless stream is sample
// permutation(seed, p / n)[p % n]; a run's whole data state is therefore the number of samples
// read.
#pragma once

#include <cstdint>

namespace lmo {

// own: the permutation below; numpy: the published code's (llmc/data/stream.h).
enum class OrderType { own, numpy };

// A bijection of [0, size) by a keyed Feistel network with cycle walking: no table, any size.
class Permutation {
  public:
    Permutation(uint64_t size, uint64_t seed, uint64_t epoch);
    uint64_t operator()(uint64_t index) const;

  private:
    uint64_t size_, seed_, epoch_;
    int half_bits_;
};

// Sample index at stream position `position` of a set of `size` samples.
uint64_t sample_at(uint64_t position, uint64_t size, uint64_t seed);

}  // namespace lmo
