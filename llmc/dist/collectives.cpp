#include "llmc/dist/collectives.h"

#include <cassert>
#include <exception>
#include <utility>

namespace lmo {

namespace {

std::vector<Piece> all_pieces(const std::vector<Bucket>& buckets) {
    std::vector<Piece> pieces;
    for (const Bucket& bucket : buckets) {
        pieces.insert(pieces.end(), bucket.pieces.begin(), bucket.pieces.end());
    }
    return pieces;
}

class HostCollectives : public Collectives {
  public:
    HostCollectives(Backend& backend, Ranks& ranks) : backend_(backend), ranks_(ranks) {}

    void sum(const Tensor& tensor, const char* what) override {
        on_host(tensor, [&](auto* values) { ranks_.sum(values, tensor.count(), what); });
    }
    void sum_to_owners(const Tensor& flat, const std::vector<Piece>& pieces,
                       const char* what) override {
        on_host(flat, [&](auto* values) { ranks_.sum_to_owners(values, pieces, what); });
    }
    void mean_to_owners(const Tensor& flat, const std::vector<Piece>& pieces,
                        const char* what) override {
        on_host(flat, [&](auto* values) {
            ranks_.sum_to_owners(values, pieces, what);
            using Value = std::decay_t<decltype(*values)>;
            const Value size = static_cast<Value>(ranks_.size());
            for (const Piece& piece : pieces) {
                if (piece.owner != ranks_.rank()) continue;
                Value* const own = values + piece.offset;
                for (int64_t i = 0; i < piece.count; ++i) own[i] /= size;
            }
        });
    }
    void share(const Tensor& flat, const std::vector<Piece>& pieces, const char* what) override {
        const auto share = [&](auto* values) { ranks_.share(values, pieces, what); };
        size_of(flat.dtype) == 2 ? on_host_as<uint16_t>(flat, share) : on_host(flat, share);
    }
    bool overlaps() const override { return false; }
    void sum_to_owners(const Tensor& flat, const std::vector<Bucket>& buckets,
                       const char* what) override {
        sum_to_owners(flat, all_pieces(buckets), what);
    }
    void begin_sharing(const Tensor& flat, const std::vector<Bucket>& buckets,
                       const std::function<void(const Bucket&)>& then, const Tensor& behind,
                       const char* what) override {
        share(flat, all_pieces(buckets), what);
        for (const Bucket& bucket : buckets) then(bucket);
        if (!behind.empty()) share(behind, all_pieces(buckets), what);
    }
    void finish_sharing() override {}
    void abort() override {}
    int64_t bytes_sent() const override { return ranks_.bytes_sent(); }
    std::string describe() const override { return "sockets"; }

  private:
    template <typename Change>
    void on_host(const Tensor& tensor, Change change) {
        assert(tensor.dtype == DType::f32 || tensor.dtype == DType::f64);
        tensor.dtype == DType::f64 ? on_host_as<double>(tensor, change)
                                   : on_host_as<float>(tensor, change);
    }
    template <typename Value, typename Change>
    void on_host_as(const Tensor& tensor, Change change) {
        if (ranks_.size() == 1) return;
        host_.resize(tensor.bytes());
        backend_.copy_out(host_.data(), tensor);
        change(reinterpret_cast<Value*>(host_.data()));
        backend_.copy_in(tensor, host_.data());
    }

    Backend& backend_;
    Ranks& ranks_;
    std::vector<std::byte> host_;
};

// The ranks meet over the sockets before each collective, so that one that is missing or does
// something else is named, and are watched there until it has ended.
class DeviceCollectives : public Collectives {
  public:
    DeviceCollectives(Backend& backend, Ranks& ranks) : backend_(backend), ranks_(ranks) {
        const std::string id =
            ranks.broadcast(ranks.first() ? backend.make_communicator_id() : "", "id of all GPUs");
        communicator_ = backend.connect(id, ranks.rank(), ranks.size());
        wait("connection of the GPUs", [] {}, &Communicator::ended);
    }

    void sum(const Tensor& tensor, const char* what) override {
        run(what, [&] { communicator_->sum(tensor); });
        const int64_t ranks = ranks_.size();
        bytes_sent_ += 2 * (ranks - 1) * static_cast<int64_t>(tensor.bytes()) / ranks;
    }
    void sum_to_owners(const Tensor& flat, const std::vector<Piece>& pieces,
                       const char* what) override {
        run(what, [&] { communicator_->sum_to_owners(parts(flat, pieces)); });
        bytes_sent_ += owned_bytes(flat, pieces, false);
    }
    void mean_to_owners(const Tensor& flat, const std::vector<Piece>& pieces,
                        const char* what) override {
        sum_to_owners(flat, pieces, what);
        std::vector<Tensor> own;
        for (const OwnedTensor& part : parts(flat, pieces)) {
            if (part.owner == ranks_.rank()) own.push_back(part.tensor);
        }
        const double part = 1.0 / static_cast<double>(ranks_.size());
        if (!own.empty()) backend_.momentum({own, {}, {}, 0.0, part, 0.0, 0.0});
    }
    void share(const Tensor& flat, const std::vector<Piece>& pieces, const char* what) override {
        run(what, [&] { communicator_->share(parts(flat, pieces)); });
        bytes_sent_ += (ranks_.size() - 1) * owned_bytes(flat, pieces, true);
    }

    bool overlaps() const override { return true; }
    void sum_to_owners(const Tensor& flat, const std::vector<Bucket>& buckets,
                       const char* what) override {
        ranks_.barrier(what);
        for (const Bucket& bucket : buckets) {
            backend_.aside([&] {
                for (const size_t milestone : bucket.milestones) backend_.await(milestone);
            });
            issue(what, [&] { communicator_->sum_to_owners(parts(flat, bucket.pieces)); });
            bytes_sent_ += owned_bytes(flat, bucket.pieces, false);
        }
        backend_.synchronize();  // what it computes is no rank's delay; waits for nobody else
        finish(what);
    }
    void begin_sharing(const Tensor& flat, const std::vector<Bucket>& buckets,
                       const std::function<void(const Bucket&)>& then, const Tensor& behind,
                       const char* what) override {
        ranks_.barrier(what);
        follow();
        for (const Bucket& bucket : buckets) {
            issue(what, [&] { communicator_->share(parts(flat, bucket.pieces)); });
            backend_.aside([&] {
                then(bucket);
                for (const size_t milestone : bucket.milestones) backend_.reach(milestone);
            });
            bytes_sent_ += (ranks_.size() - 1) * owned_bytes(flat, bucket.pieces, true);
        }
        if (!behind.empty()) {
            const std::vector<Piece> pieces = all_pieces(buckets);
            issue(what, [&] { communicator_->share(parts(behind, pieces)); });
            bytes_sent_ += (ranks_.size() - 1) * owned_bytes(behind, pieces, true);
        }
        sharing_ = what;
    }
    void finish_sharing() override {
        if (const char* const what = std::exchange(sharing_, nullptr)) finish(what);
    }
    void abort() override { communicator_->abort(); }
    int64_t bytes_sent() const override { return bytes_sent_ + ranks_.bytes_sent(); }
    std::string describe() const override { return communicator_->describe(); }

  private:
    static constexpr size_t kBegun = 0;  // a milestone
    static_assert(kBegun < kFirstFreeMilestone);

    template <typename Issue>
    void run(const char* what, Issue begin) {
        ranks_.barrier(what);
        follow();
        issue(what, begin);
        finish(what);
    }
    // What is issued aside from here on waits for what the backend was told so far.
    void follow() {
        backend_.reach(kBegun);
        backend_.aside([&] { backend_.await(kBegun); });
    }
    void finish(const char* what) {
        wait(what, [] {}, &Communicator::ended);
    }
    template <typename Issue>
    void issue(const char* what, Issue calls) {
        wait(what, calls, &Communicator::issued);
    }

    // Calls something and waits until the communicator is `done`. A rank that is gone is often
    // noticed by the library first, which does not know who it was: the sockets tell within
    // moments. What is under way must not keep the device, or this process, waiting.
    template <typename Issue>
    void wait(const char* what, Issue calls, bool (Communicator::*done)()) {
        constexpr double kPatience = 1.0;
        std::exception_ptr reported;
        Timer since_report;
        const auto unless_reported = [&](auto action) {
            try {
                return action();
            } catch (const Error&) {
                reported = std::current_exception();
                since_report.restart();
                return false;
            }
        };
        try {
            unless_reported([&] { return calls(), true; });
            ranks_.wait_together(what, [&] {
                if (!reported) return unless_reported([&] { return (*communicator_.*done)(); });
                if (since_report.seconds() > kPatience) std::rethrow_exception(reported);
                return false;
            });
        } catch (...) {
            communicator_->abort();
            throw;
        }
    }

    // Pieces of one owner that follow one another are one part.
    static std::vector<OwnedTensor> parts(const Tensor& flat, const std::vector<Piece>& pieces) {
        std::vector<OwnedTensor> parts;
        int64_t end = -1;  // of the last part
        for (const Piece& piece : pieces) {
            if (piece.count == 0) continue;
            Tensor tensor = flat.slice(piece.offset, {piece.count});
            if (!parts.empty() && parts.back().owner == piece.owner && end == piece.offset) {
                Tensor& last = parts.back().tensor;
                last.shape = {last.count() + piece.count};
            } else {
                parts.push_back({tensor, piece.owner});
            }
            end = piece.offset + piece.count;
        }
        return parts;
    }

    int64_t owned_bytes(const Tensor& flat, const std::vector<Piece>& pieces, bool own) const {
        int64_t count = 0;
        for (const Piece& piece : pieces) {
            if ((piece.owner == ranks_.rank()) == own) count += piece.count;
        }
        return count * static_cast<int64_t>(size_of(flat.dtype));
    }

    Backend& backend_;
    Ranks& ranks_;
    std::unique_ptr<Communicator> communicator_;
    const char* sharing_ = nullptr;  // under way; its name
    int64_t bytes_sent_ = 0;
};

}  // namespace

std::unique_ptr<Collectives> make_collectives(Backend& backend, Ranks& ranks) {
    if (ranks.size() == 1 || backend.device_id().empty()) {
        return std::make_unique<HostCollectives>(backend, ranks);
    }
    return std::make_unique<DeviceCollectives>(backend, ranks);
}

}  // namespace lmo
