// The collectives of owned pieces (ownership.h), in rounds of bounded memory.
#include <algorithm>

#include "llmc/dist/ranks.h"

namespace lmo {

namespace {

constexpr int64_t kRound = 1 << 18;  // elements of each owner

struct Round {
    std::vector<Packing> packings;  // by owner
    int64_t longest = 0;

    Round(const std::vector<Piece>& pieces, int ranks) {
        for (int r = 0; r < ranks; ++r) {
            packings.emplace_back(pieces, r);
            longest = std::max(longest, packings.back().length());
        }
    }
    // The end of the round that begins at `begin`; `begin` itself where an owner has no more.
    int64_t end(int owner, int64_t begin) const {
        const int64_t length = packings[static_cast<size_t>(owner)].length();
        return std::max(begin, std::min(begin + kRound, length));
    }
};

template <typename T>
Outgoing outgoing(int rank, const std::vector<T>& values) {
    return {rank, values.data(), values.size() * sizeof(T)};
}
template <typename T>
Incoming incoming(int rank, std::vector<T>& values) {
    return {rank, values.data(), values.size() * sizeof(T)};
}

}  // namespace

template <typename T>
void Ranks::sum_to_owners_typed(T* values, const std::vector<Piece>& pieces, const char* what) {
    if (!mesh_) return;
    const Round round(pieces, size_);
    std::vector<std::vector<T>> sent(static_cast<size_t>(size_)), copies(sent.size());
    for (int64_t begin = 0; begin < round.longest; begin += kRound) {
        const int64_t own = round.end(rank_, begin) - begin;
        std::vector<Outgoing> out;
        std::vector<Incoming> in;
        for (int r = 0; r < size_; ++r) {
            const size_t at = static_cast<size_t>(r);
            std::vector<T>& to = r == rank_ ? copies[at] : sent[at];
            const int64_t end = round.end(r, begin);
            to.resize(static_cast<size_t>(end - begin));
            round.packings[at].pack(values, begin, end, to.data());
            if (r == rank_) continue;
            copies[at].resize(static_cast<size_t>(own));
            out.push_back(outgoing(r, sent[at]));
            in.push_back(incoming(r, copies[at]));
        }
        mesh_->exchange(what, out, in);
        for (int r = 1; r < size_; ++r) {
            const std::vector<T>& copy = copies[static_cast<size_t>(r)];
            for (size_t i = 0; i < copy.size(); ++i) copies[0][i] += copy[i];
        }
        round.packings[static_cast<size_t>(rank_)].unpack(copies[0].data(), begin, begin + own,
                                                          values);
    }
}

template <typename T>
void Ranks::share_typed(T* values, const std::vector<Piece>& pieces, const char* what) {
    if (!mesh_) return;
    const Round round(pieces, size_);
    std::vector<std::vector<T>> parts(static_cast<size_t>(size_));
    for (int64_t begin = 0; begin < round.longest; begin += kRound) {
        std::vector<T>& mine = parts[static_cast<size_t>(rank_)];
        std::vector<Outgoing> out;
        std::vector<Incoming> in;
        for (int r = 0; r < size_; ++r) {
            parts[static_cast<size_t>(r)].resize(static_cast<size_t>(round.end(r, begin) - begin));
        }
        round.packings[static_cast<size_t>(rank_)].pack(values, begin, round.end(rank_, begin),
                                                        mine.data());
        for (int r = 0; r < size_; ++r) {
            if (r == rank_) continue;
            out.push_back(outgoing(r, mine));
            in.push_back(incoming(r, parts[static_cast<size_t>(r)]));
        }
        mesh_->exchange(what, out, in);
        for (int r = 0; r < size_; ++r) {
            if (r == rank_) continue;
            round.packings[static_cast<size_t>(r)].unpack(parts[static_cast<size_t>(r)].data(),
                                                          begin, round.end(r, begin), values);
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

// The others take part by counting it.
void Ranks::hand_to_first(int owner, void* data, size_t bytes, const char* what) {
    if (!mesh_ || owner == 0) return;
    const Outgoing out{0, data, bytes};
    const Incoming in{owner, data, bytes};
    mesh_->exchange(what, {&out, size_t{rank_ == owner}}, {&in, size_t{first()}});
}

}  // namespace lmo
