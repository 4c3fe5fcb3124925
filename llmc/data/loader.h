// Batches in the global order, prefetched by one background thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "llmc/data/stream.h"

namespace lmo {

struct HostBatch {
    int64_t sequences = 0, length = 0;
    std::vector<int32_t> inputs, targets;  // [sequences, length]
};

class Loader {
  public:
    // Serves micro-batches of `micro_batch` sequences from stream position `position` (samples read
    // so far) on, in epochs of whole `epoch_batch` sequences (see SampleStream). With several ranks
    // `position` is where the first micro-batch of this one starts, and `stride` is from there to
    // the start of its next one: together they read the stream without a gap. 0: micro_batch.
    Loader(const Dataset& dataset, uint64_t seed, int64_t micro_batch, int64_t position,
           OrderType order = OrderType::own, int64_t stride = 0, int64_t epoch_batch = 0);
    ~Loader();
    Loader(const Loader&) = delete;
    Loader& operator=(const Loader&) = delete;

    // The next micro-batch; rethrows here what went wrong in the background. Valid until the call
    // after the next one.
    const HostBatch& next();

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lmo
