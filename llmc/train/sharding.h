// Which rank keeps the optimizer state of which elements and updates them.
#pragma once

#include <string>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/dist/ownership.h"
#include "llmc/optim/optimizer.h"

namespace lmo {

// Which blocks are cut evenly over the ranks: none, those whose update allows it, or all.
enum class CutBlocks { none, by_update, all };

// A matrix is cut where every rank gets at least so many elements of it.
constexpr int64_t kSmallestSlice = 1024;

struct Sharding {
    Sharding(const OptimizerConfig& config, const ParameterList& parameters, int ranks,
             CutBlocks cut);

    // Of a flat buffer of all parameters: one for each block, or each slice of one, in the order of
    // memory.
    std::vector<Piece> pieces;
    // The same of each parameter, from its first element on.
    std::vector<std::vector<Piece>> parts;

    // Of each rank: how many whole blocks, slices of blocks and elements it owns, and its share of
    // the cost of all updates.
    struct Share {
        int blocks = 0, slices = 0;
        int64_t elements = 0;
        double cost = 0.0;
    };
    std::vector<Share> shares;

    // What a rank owns of a parameter: nothing, or elements that follow one another.
    Slice part(int parameter, int rank) const;
    // The owner of a parameter that is not cut.
    int owner(int parameter) const;
    // The elements of blocks that a rank owns, while this lives.
    OwnedBlocks owned_by(int rank) const;
    // "1/4 of 2 blocks and 6 to 8 others (the busiest rank 1.02 of the mean)"
    std::string describe() const;

  private:
    void add(const ParameterList& parameters, const ParameterBlock& block, const Piece& piece);
};

}  // namespace lmo
