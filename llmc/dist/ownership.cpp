#include "llmc/dist/ownership.h"

#include <algorithm>
#include <numeric>

namespace lmo {

std::vector<int> deal(const std::vector<double>& costs, int ranks) {
    std::vector<size_t> order(costs.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return costs[a] > costs[b]; });
    std::vector<double> load(static_cast<size_t>(ranks), 0.0);
    std::vector<int> owners(costs.size());
    for (const size_t item : order) {
        const auto least = std::min_element(load.begin(), load.end());
        owners[item] = static_cast<int>(least - load.begin());
        *least += costs[item];
    }
    return owners;
}

void Packing::add(const Piece& piece) {
    pieces_.push_back(piece);
    length_ += piece.count;
}

Range Range::common(const Range& other) const {
    const int64_t from = std::max(begin, other.begin);
    return {from, std::max(from, std::min(end, other.end))};
}

OwnedSequence::OwnedSequence(const std::vector<Piece>& pieces, int ranks)
    : packings_(static_cast<size_t>(ranks)), starts_{0} {
    for (const Piece& piece : pieces) packings_[static_cast<size_t>(piece.owner)].add(piece);
    for (const Packing& packing : packings_) starts_.push_back(starts_.back() + packing.length());
}

Range OwnedSequence::owned(int rank) const {
    return {starts_[static_cast<size_t>(rank)], starts_[static_cast<size_t>(rank) + 1]};
}

Range OwnedSequence::slice(int rank) const {
    const int64_t ranks = static_cast<int64_t>(packings_.size()), length = starts_.back();
    const int64_t part = length / ranks, rest = length % ranks;
    const auto cut = [&](int64_t r) { return r * part + std::min(r, rest); };
    return {cut(rank), cut(rank + 1)};
}

ExchangePlan exchange_plan(const std::vector<Piece>& pieces, int ranks) {
    const OwnedSequence sequence(pieces, ranks);
    const double n = ranks;
    double length = 0.0, most = 0.0, kept = 0.0, most_handed = 0.0;
    for (int r = 0; r < ranks; ++r) {
        const double own = static_cast<double>(sequence.owned(r).length());
        const double stays =
            static_cast<double>(sequence.slice(r).common(sequence.owned(r)).length());
        length += own;
        most = std::max(most, own);
        kept += stays;
        most_handed = std::max(most_handed, own - stays);
    }
    constexpr double kWorth = 1.25;  // a second exchange waits for all ranks once more
    const double even = length * (n - 1) / n;
    if ((n - 1) * most <= kWorth * (even + most_handed)) return {false, even, (n - 1) * most};
    return {true, even + (length - kept) / n, even + most_handed};
}

}  // namespace lmo
