// The collectives of owned pieces (ownership.h), in rounds of bounded memory.
#include <algorithm>

#include "llmc/dist/ranks.h"

namespace lmo {

namespace {

constexpr int64_t kRound = 1 << 18;  // elements of each rank

// What each rank has to do with in a round: its own elements, or where two steps are taken its
// slice.
class Rounds {
  public:
    Rounds(const OwnedSequence& sequence, int ranks, bool sliced) {
        for (int r = 0; r < ranks; ++r) {
            ranges_.push_back(sliced ? sequence.slice(r) : sequence.owned(r));
            longest_ = std::max(longest_, ranges_.back().length());
        }
    }
    int64_t longest() const { return longest_; }
    // Of the round that begins `done` elements after the first one.
    Range of(int rank, int64_t done) const {
        const Range& all = ranges_[static_cast<size_t>(rank)];
        return all.common({all.begin + done, all.begin + done + kRound});
    }

  private:
    std::vector<Range> ranges_;
    int64_t longest_ = 0;
};

template <typename T>
using Buffers = std::vector<std::vector<T>>;

// The exchange of ranges of the sequence that are held in buffers, each with its first element.
template <typename T>
class Exchange {
  public:
    void send(int rank, const std::vector<T>& values, const Range& held, const Range& part) {
        out_.push_back({rank, values.data() + (part.begin - held.begin), bytes(part)});
    }
    void receive(int rank, std::vector<T>& values, const Range& held, const Range& part) {
        in_.push_back({rank, values.data() + (part.begin - held.begin), bytes(part)});
    }
    void run(Mesh& mesh, const char* what) { mesh.exchange(what, out_, in_); }

  private:
    static size_t bytes(const Range& part) {
        return static_cast<size_t>(part.length()) * sizeof(T);
    }
    std::vector<Outgoing> out_;
    std::vector<Incoming> in_;
};

template <typename T>
void fit(std::vector<T>& buffer, const Range& range) {
    buffer.resize(static_cast<size_t>(range.length()));
}

}  // namespace

template <typename T>
void Ranks::sum_to_owners_typed(T* values, const std::vector<Piece>& pieces, const char* what) {
    if (!mesh_) return;
    const bool two_steps = exchange_plan(pieces, size_).two_steps;
    const OwnedSequence sequence(pieces, size_);
    const Rounds rounds(sequence, size_, two_steps);
    const Range own = sequence.owned(rank_);
    Buffers<T> parts(static_cast<size_t>(size_)), copies(parts.size());
    for (int64_t done = 0; done < rounds.longest(); done += kRound) {
        const Range mine = rounds.of(rank_, done);
        Exchange<T> first;
        for (int r = 0; r < size_; ++r) {
            const Range theirs = rounds.of(r, done);
            std::vector<T>& part = parts[static_cast<size_t>(r)];
            std::vector<T>& copy = copies[static_cast<size_t>(r)];
            fit(part, theirs);
            fit(copy, mine);
            sequence.pack(values, theirs, r == rank_ ? copy.data() : part.data());
            if (r == rank_) continue;
            first.send(r, part, theirs, theirs);
            first.receive(r, copy, mine, mine);
        }
        first.run(*mesh_, what);
        std::vector<T>& sums = copies[0];
        for (size_t r = 1; r < copies.size(); ++r) {  // in the order of the ranks
            for (size_t i = 0; i < sums.size(); ++i) sums[i] += copies[r][i];
        }
        const Range kept = mine.common(own);
        sequence.unpack(sums.data() + (kept.begin - mine.begin), kept, values);
        if (!two_steps) continue;

        Exchange<T> second;  // the sums of my slice go to their owners
        for (int r = 0; r < size_; ++r) {
            if (r == rank_) continue;
            const Range theirs = rounds.of(r, done);
            second.send(r, sums, mine, mine.common(sequence.owned(r)));
            second.receive(r, parts[static_cast<size_t>(r)], theirs, theirs.common(own));
        }
        second.run(*mesh_, what);
        for (int r = 0; r < size_; ++r) {
            if (r == rank_) continue;
            const Range theirs = rounds.of(r, done), part = theirs.common(own);
            sequence.unpack(parts[static_cast<size_t>(r)].data() + (part.begin - theirs.begin),
                            part, values);
        }
    }
}

template <typename T>
void Ranks::share_typed(T* values, const std::vector<Piece>& pieces, const char* what) {
    if (!mesh_) return;
    const bool two_steps = exchange_plan(pieces, size_).two_steps;
    const OwnedSequence sequence(pieces, size_);
    const Rounds rounds(sequence, size_, two_steps);
    const Range own = sequence.owned(rank_);
    Buffers<T> parts(static_cast<size_t>(size_));
    for (int64_t done = 0; done < rounds.longest(); done += kRound) {
        const Range mine = rounds.of(rank_, done);
        for (int r = 0; r < size_; ++r) {
            const Range theirs = rounds.of(r, done);
            std::vector<T>& part = parts[static_cast<size_t>(r)];
            fit(part, theirs);
            const Range known = theirs.common(own);
            sequence.pack(values, known, part.data() + (known.begin - theirs.begin));
        }
        std::vector<T>& complete = parts[static_cast<size_t>(rank_)];
        if (two_steps) {
            Exchange<T> first;  // what others own of my slice
            for (int r = 0; r < size_; ++r) {
                if (r == rank_) continue;
                const Range theirs = rounds.of(r, done);
                first.send(r, parts[static_cast<size_t>(r)], theirs, theirs.common(own));
                first.receive(r, complete, mine, mine.common(sequence.owned(r)));
            }
            first.run(*mesh_, what);
            sequence.unpack(complete.data(), mine, values);
        }
        Exchange<T> second;
        for (int r = 0; r < size_; ++r) {
            if (r == rank_) continue;
            const Range theirs = rounds.of(r, done);
            second.send(r, complete, mine, mine);
            second.receive(r, parts[static_cast<size_t>(r)], theirs, theirs);
        }
        second.run(*mesh_, what);
        for (int r = 0; r < size_; ++r) {
            if (r == rank_) continue;
            sequence.unpack(parts[static_cast<size_t>(r)].data(), rounds.of(r, done), values);
        }
    }
}

void Ranks::sum_to_owners(float* values, const std::vector<Piece>& pieces, const char* what) {
    sum_to_owners_typed(values, pieces, what);
}
void Ranks::sum_to_owners(double* values, const std::vector<Piece>& pieces, const char* what) {
    sum_to_owners_typed(values, pieces, what);
}
void Ranks::share(float* values, const std::vector<Piece>& pieces, const char* what) {
    share_typed(values, pieces, what);
}
void Ranks::share(double* values, const std::vector<Piece>& pieces, const char* what) {
    share_typed(values, pieces, what);
}
void Ranks::share(uint16_t* values, const std::vector<Piece>& pieces, const char* what) {
    share_typed(values, pieces, what);
}

// The others take part by counting it.
void Ranks::hand_to_first(int owner, void* data, size_t bytes, const char* what) {
    if (!mesh_ || owner == 0) return;
    const Outgoing out{0, data, bytes};
    const Incoming in{owner, data, bytes};
    mesh_->exchange(what, {&out, size_t{rank_ == owner}}, {&in, size_t{first()}});
}

}  // namespace lmo
