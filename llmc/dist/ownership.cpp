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

Packing::Packing(const std::vector<Piece>& pieces, int owner) {
    for (const Piece& piece : pieces) {
        if (piece.owner != owner) continue;
        pieces_.push_back(piece);
        length_ += piece.count;
    }
}

}  // namespace lmo
