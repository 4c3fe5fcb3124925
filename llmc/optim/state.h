// What the stages of an optimizer keep between updates, as checkpoints see it, and which elements a
// rank keeps it of.
#pragma once

#include <algorithm>
#include <functional>
#include <string>

#include "llmc/core/parameter.h"

namespace lmo {

// Elements [begin, begin + count) of a tensor, in memory order.
struct Slice {
    int64_t begin = 0, count = 0;
    bool is_all(const Shape& shape) const { return count == shape.count(); }
    // Those that lie in `other`, counted from its first one.
    Slice within(const Slice& other) const {
        const int64_t from = std::max(begin, other.begin);
        const int64_t to = std::min(begin + count, other.begin + other.count);
        return {from - other.begin, std::max(int64_t{0}, to - from)};
    }
};

// The shape of a slice: whole rows are a matrix, anything else is a vector.
inline Shape shape_of(const Shape& whole, const Slice& slice) {
    const int64_t columns = whole.columns();
    if (slice.is_all(whole)) return whole;
    if (whole.rank() < 2 || slice.begin % columns != 0 || slice.count % columns != 0) {
        return {slice.count};
    }
    return {slice.count / columns, columns};
}

// Which elements of a parameter a rank has to do with; none given: all.
using OwnedElements = std::function<Slice(int parameter)>;

inline Slice owned_of(const OwnedElements& owned, const ParameterList& parameters, int index) {
    return owned ? owned(index) : Slice{0, parameters[index].shape.count()};
}

inline Tensor slice_of(const ParameterBuffer& buffer, int parameter, const Slice& slice) {
    const ParameterList& list = *buffer.list;
    return buffer.flat.slice(list.offset(parameter) + slice.begin,
                             shape_of(list[parameter].shape, slice));
}

// Whose values a state holds where there are several ranks.
enum class Spread {
    owner,  // the rank that owns the parameter has it, or each owner of a slice its slice
    alike,  // every rank has the same
    each,   // every rank has its own; on another number of ranks each gets their mean
    share,  // every rank has a part of a sum; another number of ranks shares the sum out
};

struct StateTensor {
    std::string name;  // "NAME.STATE"
    Tensor tensor;
    bool in_gradients = false;  // no memory of its own
    Spread spread = Spread::owner;
    // Of a state that is cut over ranks `tensor` holds the elements from `begin` on; of one that is
    // not, all.
    Shape whole = tensor.shape;
    int64_t begin = 0;
};

}  // namespace lmo
