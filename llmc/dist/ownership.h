// Who updates what: ZeRO-1 by whole blocks. Every rank holds all weights, but gradients are summed,
// optimizer states kept and updates computed by the owner of a block alone, which then shares the
// new weights. A matrix is never cut, as its norm needs all of it.
#pragma once

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
    Packing(const std::vector<Piece>& pieces, int owner);
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

}  // namespace lmo
