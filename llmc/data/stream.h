// The stream of training samples: which tokens the sample at a position has, in either order.
#pragma once

#include <cstdint>
#include <vector>

#include "llmc/data/dataset.h"
#include "llmc/data/order.h"

namespace lmo {

class SampleStream {
  public:
    // own: the sequences of the set, permuted anew in each epoch (order.h); batch does not matter.
    // numpy: the reader of the published code. All files are one text of N tokens; epoch e takes
    // numpy.random.default_rng(seed + e), permutes (N - T - 1)/T - 1 windows of T tokens, shifts
    // them all by one draw from [0, T), and leaves out the last ones that fill no batch. Its table
    // takes 4 bytes a window. Throws Error when the files hold no full batch.
    SampleStream(const Dataset& dataset, OrderType order, uint64_t seed, int64_t batch);

    const Dataset& dataset() const { return dataset_; }
    int64_t epoch_length() const { return epoch_length_; }  // samples
    // Inputs[T] and targets[T] of the sample at this position of the endless stream.
    void copy(int64_t position, int32_t* inputs, int32_t* targets);

  private:
    void shuffle(int64_t epoch);

    const Dataset& dataset_;
    OrderType order_;
    uint64_t seed_;
    int64_t epoch_length_;
    // numpy: the epoch that the table is of.
    int64_t epoch_ = -1, windows_ = 0, offset_ = 0;
    std::vector<uint32_t> table_;
};

}  // namespace lmo
