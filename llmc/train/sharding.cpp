#include "llmc/train/sharding.h"

#include <algorithm>
#include <cstdio>

namespace lmo {

namespace {

constexpr int64_t kAlignment = 64;  // elements

// Where the slices of a block begin, and its end; empty where it stays whole. `unit`: the elements
// that stay together.
std::vector<int64_t> cuts_of(const Shape& shape, int64_t unit, int ranks) {
    const int64_t count = shape.count();
    if (unit == 1) unit = kAlignment;
    const int64_t units = (count + unit - 1) / unit;
    if (shape.rank() < 2 || ranks == 1 || count / ranks < kSmallestSlice || units < ranks) {
        return {};
    }
    std::vector<int64_t> cuts;
    for (int64_t r = 0; r <= ranks; ++r) cuts.push_back(std::min(count, units * r / ranks * unit));
    return cuts;
}

}  // namespace

Sharding::Sharding(const OptimizerConfig& config, const ParameterList& parameters, int ranks,
                   CutBlocks cut)
    : parts(static_cast<size_t>(parameters.size())), shares(static_cast<size_t>(ranks)) {
    const std::vector<ParameterBlock> blocks = parameters.blocks(config.fuse_qkv);
    const std::vector<double> costs = update_costs(config, parameters);
    const std::vector<int> sets = update_sets(config, parameters);
    const std::vector<int64_t> units = update_units(config, parameters);
    std::vector<std::vector<int64_t>> cuts(blocks.size());
    std::vector<double> set_costs(blocks.size(), 0.0);  // without blocks that are cut
    double sum = 0.0;
    for (size_t i = 0; i < blocks.size(); ++i) {
        if (cut != CutBlocks::none) {
            cuts[i] = cuts_of(blocks[i].shape, cut == CutBlocks::all ? 1 : units[i], ranks);
        }
        if (cuts[i].empty()) set_costs[static_cast<size_t>(sets[i])] += costs[i];
        sum += costs[i];
    }
    const std::vector<int> owners = deal(set_costs, ranks);
    for (size_t i = 0; i < blocks.size(); ++i) {
        const int64_t count = blocks[i].shape.count();
        const auto give = [&](int rank, int64_t begin, int64_t end) -> Share& {
            add(parameters, blocks[i], {rank, begin, end - begin});
            Share& share = shares[static_cast<size_t>(rank)];
            share.elements += end - begin;
            share.cost +=
                costs[i] / sum * static_cast<double>(end - begin) / static_cast<double>(count);
            return share;
        };
        if (cuts[i].empty()) ++give(owners[static_cast<size_t>(sets[i])], 0, count).blocks;
        for (size_t r = 0; r + 1 < cuts[i].size(); ++r) {
            ++give(static_cast<int>(r), cuts[i][r], cuts[i][r + 1]).slices;
        }
    }
}

// A piece of a block, counted from its first element.
void Sharding::add(const ParameterList& parameters, const ParameterBlock& block,
                   const Piece& piece) {
    pieces.push_back({piece.owner, parameters.offset(block.first) + piece.offset, piece.count});
    int64_t begin = 0;  // of the parameter in the block
    for (int p = block.first; p < block.first + block.count; ++p) {
        const int64_t count = parameters[p].shape.count();
        const Slice own = Slice{piece.offset, piece.count}.within({begin, count});
        if (own.count > 0) {
            parts[static_cast<size_t>(p)].push_back({piece.owner, own.begin, own.count});
        }
        begin += count;
    }
}

Slice Sharding::part(int parameter, int rank) const {
    for (const Piece& piece : parts[static_cast<size_t>(parameter)]) {
        if (piece.owner == rank) return {piece.offset, piece.count};
    }
    return {};
}

int Sharding::owner(int parameter) const {
    const std::vector<Piece>& all = parts[static_cast<size_t>(parameter)];
    assert(all.size() == 1 && "a parameter that is cut");
    return all[0].owner;
}

OwnedBlocks Sharding::owned_by(int rank) const {
    return [this, rank](const ParameterBlock& block) {
        Slice own;
        int64_t begin = 0;
        for (int p = block.first; p < block.first + block.count; ++p) {
            const std::vector<Piece>& all = parts[static_cast<size_t>(p)];
            const Slice here = part(p, rank);
            if (own.count == 0 && here.count > 0) own.begin = begin + here.begin;
            own.count += here.count;
            begin += all.back().offset + all.back().count;
        }
        return own;
    };
}

std::string Sharding::describe() const {
    int least = shares[0].blocks, most = 0;
    double busiest = 0.0;
    for (const Share& share : shares) {
        least = std::min(least, share.blocks);
        most = std::max(most, share.blocks);
        busiest = std::max(busiest, share.cost * static_cast<double>(shares.size()));
    }
    char text[128], cut[64] = "";
    if (shares[0].slices > 0) {
        std::snprintf(cut, sizeof cut, "1/%zu of %d %s and ", shares.size(), shares[0].slices,
                      shares[0].slices == 1 ? "block" : "blocks");
    }
    std::snprintf(text, sizeof text, "%s%d to %d %s (the busiest rank %.2f of the mean)", cut,
                  least, most, *cut ? "others" : "blocks", busiest);
    return text;
}

}  // namespace lmo
