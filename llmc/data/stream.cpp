#include "llmc/data/stream.h"

#include <limits>
#include <string>

#include "llmc/core/error.h"
#include "llmc/data/numpy_random.h"

namespace lmo {

SampleStream::SampleStream(const Dataset& dataset, OrderType order, uint64_t seed, int64_t batch)
    : dataset_(dataset), order_(order), seed_(seed), epoch_length_(dataset.sequences()) {
    if (order == OrderType::own) return;
    const int64_t length = dataset.sequence_length(), tokens = dataset.tokens();
    windows_ = (tokens - length - 1) / length - 1;
    if (windows_ < batch) {
        throw Error("data.compat.order = \"numpy\": " + std::to_string(tokens) + " tokens make " +
                    std::to_string(windows_ > 0 ? windows_ : 0) + " windows of " +
                    std::to_string(length) + ", fewer than batch.micro_batch = " +
                    std::to_string(batch) + "; give more data or a smaller micro-batch");
    }
    if (windows_ > std::numeric_limits<uint32_t>::max()) {
        throw Error("data.compat.order = \"numpy\": " + std::to_string(windows_) +
                    " windows; the table of the order holds at most 4294967295");
    }
    epoch_length_ = windows_ / batch * batch;
}

void SampleStream::shuffle(int64_t epoch) {
    NumpyGenerator generator(seed_ + static_cast<uint64_t>(epoch));
    table_ = generator.permutation(static_cast<uint32_t>(windows_));
    const uint64_t length = static_cast<uint64_t>(dataset_.sequence_length());
    offset_ = static_cast<int64_t>(generator.below(length));
    epoch_ = epoch;
}

void SampleStream::copy(int64_t position, int32_t* inputs, int32_t* targets) {
    if (order_ == OrderType::own) {
        const uint64_t sample =
            sample_at(static_cast<uint64_t>(position), static_cast<uint64_t>(epoch_length_), seed_);
        dataset_.copy_sequence(static_cast<int64_t>(sample), inputs, targets);
        return;
    }
    const int64_t epoch = position / epoch_length_;
    if (epoch != epoch_) shuffle(epoch);
    const int64_t window = table_[static_cast<size_t>(position % epoch_length_)];
    dataset_.copy_window(window * dataset_.sequence_length() + offset_, inputs, targets);
}

}  // namespace lmo
