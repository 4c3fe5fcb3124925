// Pieces of tensors that stay in the first cache while one loop after another runs over them.
#pragma once

#include <algorithm>

#include "llmc/cpu/parallel.h"
#include "llmc/cpu/update_scalars.h"

namespace lmo::cpu {

// Elements of a piece: those of five lists of floats are 20 KB.
constexpr int64_t kPiece = 1024;
static_assert(kPiece % square_lanes == 0 && element_block % kPiece == 0);

// A piece of any master type.
struct alignas(64) Buffer {
    double memory[kPiece];
};

inline void* at(const Tensor& tensor, int64_t element) {
    return tensor.as<char>() + element * static_cast<int64_t>(size_of(tensor.dtype));
}

// `count` elements of tensor number `index` from `begin` on.
struct Piece {
    size_t index;
    int64_t begin, count;
};

// Calls body(piece) for the pieces of [begin, end).
template <typename F>
void for_pieces(size_t index, int64_t begin, int64_t end, F body) {
    for (int64_t i = begin; i < end; i += kPiece) {
        body(Piece{index, i, std::min(kPiece, end - i)});
    }
}

// A piece of the weights takes its step along x, the direction of the piece alone. `r`: the scalars
// of its tensor.
void apply_piece(const Kernels& kernels, const Apply& op, ApplyRange r, const Piece& piece,
                 const void* x);

}  // namespace lmo::cpu
