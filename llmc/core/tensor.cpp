#include "llmc/core/tensor.h"

namespace lmo {

Shape::Shape(std::initializer_list<int64_t> extents) {
    assert(extents.size() <= extents_.size());
    for (int64_t extent : extents) extents_[rank_++] = extent;
}

int64_t Shape::count() const {
    int64_t product = 1;
    for (int axis = 0; axis < rank_; ++axis) product *= extents_[axis];
    return product;
}

bool Shape::operator==(const Shape& other) const {
    if (rank_ != other.rank_) return false;
    for (int axis = 0; axis < rank_; ++axis) {
        if (extents_[axis] != other.extents_[axis]) return false;
    }
    return true;
}

std::string to_string(const Shape& shape) {
    std::string text = "[";
    for (int axis = 0; axis < shape.rank(); ++axis) {
        text += (axis ? ", " : "") + std::to_string(shape[axis]);
    }
    return text + "]";
}

}  // namespace lmo
