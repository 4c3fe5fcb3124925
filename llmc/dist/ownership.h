// Who updates what: ZeRO-1 by blocks and slices of them. Every rank holds all weights, but
// gradients are summed, optimizer states kept and updates computed by the owner of a block alone,
// which then shares the new weights. Blocks whose update is elementwise are cut, so that every rank
// owns a slice; a matrix whose norm needs all of it is not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lmo {

// Elements [offset, offset + count) of a buffer that all ranks have.
struct Piece {
    int owner;
    int64_t offset, count;
};

// The owner of each item: by cost, the largest first, each to the rank with the least so far
// (longest processing time first). A pure function, alike on all ranks; at equal cost the earlier
// item and the lower rank come first.
std::vector<int> deal(const std::vector<double>& costs, int ranks);

// The elements of one owner, piece after piece, as one sequence.
class Packing {
  public:
    void add(const Piece& piece);
    int64_t length() const { return length_; }

    // Copies elements [begin, end) of the sequence out of the buffer, or back into it.
    template <typename T>
    void pack(const T* buffer, int64_t begin, int64_t end, T* to) const {
        each_run(begin, end, [&](int64_t at, int64_t offset, int64_t count) {
            for (int64_t i = 0; i < count; ++i) to[at + i] = buffer[offset + i];
        });
    }
    template <typename T>
    void unpack(const T* from, int64_t begin, int64_t end, T* buffer) const {
        each_run(begin, end, [&](int64_t at, int64_t offset, int64_t count) {
            for (int64_t i = 0; i < count; ++i) buffer[offset + i] = from[at + i];
        });
    }

  private:
    template <typename Copy>
    void each_run(int64_t begin, int64_t end, Copy copy) const {
        int64_t start = 0;  // of the piece in the sequence
        for (const Piece& piece : pieces_) {
            const int64_t from = begin > start ? begin : start;
            const int64_t to = end < start + piece.count ? end : start + piece.count;
            if (from < to) copy(from - begin, piece.offset + from - start, to - from);
            start += piece.count;
        }
    }

    std::vector<Piece> pieces_;
    int64_t length_ = 0;
};

// A part of a sequence: elements [begin, end).
struct Range {
    int64_t begin = 0, end = 0;
    int64_t length() const { return end - begin; }
    Range common(const Range& other) const;  // empty where they do not meet
};

// The elements of all owners as one sequence, those of rank 0 first, and its cut into even slices,
// one for each rank.
class OwnedSequence {
  public:
    OwnedSequence(const std::vector<Piece>& pieces, int ranks);

    Range owned(int rank) const;
    Range slice(int rank) const;

    template <typename T>
    void pack(const T* buffer, const Range& range, T* to) const {
        each_owner(range, [&](const Packing& packing, const Range& own, int64_t at) {
            packing.pack(buffer, own.begin, own.end, to + at);
        });
    }
    template <typename T>
    void unpack(const T* from, const Range& range, T* buffer) const {
        each_owner(range, [&](const Packing& packing, const Range& own, int64_t at) {
            packing.unpack(from + at, own.begin, own.end, buffer);
        });
    }

  private:
    template <typename Copy>
    void each_owner(const Range& range, Copy copy) const {
        for (std::size_t r = 0; r < packings_.size(); ++r) {
            const Range part = range.common(owned(static_cast<int>(r)));
            if (part.length() == 0) continue;
            copy(packings_[r], Range{part.begin - starts_[r], part.end - starts_[r]},
                 part.begin - range.begin);
        }
    }

    std::vector<Packing> packings_;
    std::vector<int64_t> starts_;  // of each owner, and the end
};

// How pieces are summed to their owners or shared by them. Directly, each rank deals with each
// owner, so that an owner takes in (N-1) times its own. In two steps the sums are made slice by
// slice, on all ranks evenly, and handed on: more bytes in all, but no rank has much more than the
// others. The numbers are the same.
struct ExchangePlan {
    bool two_steps = false;
    // Elements that a rank sends on average, and that the busiest one receives (to sum) or sends
    // (to share).
    double mean = 0.0, busiest = 0.0;
};
// The one whose busiest rank has clearly less to do.
ExchangePlan exchange_plan(const std::vector<Piece>& pieces, int ranks);

}  // namespace lmo
