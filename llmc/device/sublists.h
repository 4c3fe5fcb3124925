// Operations over a part of their lists.
#pragma once

#include "llmc/device/backend.h"

namespace lmo {

// Tensors [first, first + count); none of an empty list.
inline std::span<const Tensor> some_of(std::span<const Tensor> list, size_t first, size_t count) {
    return list.empty() ? list : list.subspan(first, count);
}

inline Momentum some_of(Momentum op, size_t first, size_t count) {
    op.x = some_of(op.x, first, count);
    op.momentum = some_of(op.momentum, first, count);
    return op;
}

// Without size.
inline Apply some_of(Apply op, size_t first, size_t count) {
    assert(op.size.empty());
    op.weights = some_of(op.weights, first, count);
    op.x = some_of(op.x, first, count);
    op.copies = some_of(op.copies, first, count);
    op.radius = op.radius.subspan(first, count);
    op.decay = op.decay.subspan(first, count);
    op.starts = some_of(op.starts, first, count);
    op.remainders = some_of(op.remainders, first, count);
    return op;
}

}  // namespace lmo
