#include "llmc/data/loader.h"

#include <array>
#include <atomic>
#include <cassert>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

namespace lmo {

// A ring of batches: the thread writes batch number `written`, next() hands out batch number
// `read`. Three may wait; two more stay untouched, as what next() returned last and the time before
// is still in use. No batch is allocated after the first round.
struct Loader::Impl {
    static constexpr int64_t kAhead = 3, kHeld = 2, kSlots = kAhead + kHeld;

    Impl(const Dataset& dataset, OrderType order, uint64_t seed, int64_t micro_batch,
         int64_t position, int64_t stride, int64_t epoch_batch)
        : stream_(dataset, order, seed, epoch_batch),
          micro_batch_(micro_batch),
          stride_(stride),
          position_(position) {
        assert(micro_batch >= 1 && position >= 0 && stride >= micro_batch);
        thread_ = std::thread([this] { run(); });
    }

    ~Impl() {
        {
            const std::lock_guard lock(mutex_);
            stop_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }

    const HostBatch& next() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return written_ > read_ || error_ != nullptr; });
        if (written_ == read_) std::rethrow_exception(error_);
        const HostBatch& batch = ring_[static_cast<size_t>(read_ % kSlots)];
        ++read_;
        lock.unlock();
        changed_.notify_all();
        return batch;
    }

  private:
    void run() {
        try {
            while (wait_for_slot()) {
                if (!fill(ring_[static_cast<size_t>(written_ % kSlots)])) return;
                const std::lock_guard lock(mutex_);
                ++written_;
                changed_.notify_all();
            }
        } catch (...) {
            const std::lock_guard lock(mutex_);
            error_ = std::current_exception();
            changed_.notify_all();
        }
    }

    bool wait_for_slot() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return stop_ || written_ - read_ < kAhead; });
        return !stop_;
    }

    // False when asked to stop half way: a cold disk can make one batch slow.
    bool fill(HostBatch& batch) {
        const int64_t length = stream_.dataset().sequence_length();
        batch.sequences = micro_batch_;
        batch.length = length;
        batch.inputs.resize(static_cast<size_t>(micro_batch_ * length));
        batch.targets.resize(static_cast<size_t>(micro_batch_ * length));
        for (int64_t row = 0; row < micro_batch_; ++row) {
            if (stop_) return false;
            stream_.copy(position_ + row, &batch.inputs[row * length],
                         &batch.targets[row * length]);
        }
        position_ += stride_;
        return true;
    }

    SampleStream stream_;  // this and position_: the thread's own
    const int64_t micro_batch_, stride_;
    int64_t position_;

    std::mutex
        mutex_;  // guards what follows, except the slots, which are handed over by the counts
    std::condition_variable changed_;
    std::atomic<bool> stop_{false};
    int64_t written_ = 0, read_ = 0;  // batches
    std::exception_ptr error_;        // in the batch number written_
    std::array<HostBatch, kSlots> ring_;
    std::thread thread_;
};

Loader::Loader(const Dataset& dataset, uint64_t seed, int64_t micro_batch, int64_t position,
               OrderType order, int64_t stride, int64_t epoch_batch)
    : impl_(std::make_unique<Impl>(dataset, order, seed, micro_batch, position,
                                   stride > 0 ? stride : micro_batch,
                                   epoch_batch > 0 ? epoch_batch : micro_batch)) {}

Loader::~Loader() = default;

const HostBatch& Loader::next() { return impl_->next(); }

}  // namespace lmo
