// A dense, row-major view of memory that somebody else owns. All operations of the backend border
// (llmc/device/backend.h) take these.
#pragma once

#include <array>
#include <cassert>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "llmc/core/dtype.h"

namespace lmo {

// Up to four extents; row-major, the last one is contiguous.
class Shape {
  public:
    Shape() = default;
    Shape(std::initializer_list<int64_t> extents);

    int rank() const { return rank_; }
    int64_t operator[](int axis) const {
        assert(axis >= 0 && axis < rank_);
        return extents_[axis];
    }
    int64_t count() const;  // number of elements; 1 for rank 0
    // A matrix is rank 2; a vector counts as count() rows of one column.
    int64_t rows() const { return rank_ == 0 ? 1 : extents_[0]; }
    int64_t columns() const { return rank_ < 2 ? 1 : count() / extents_[0]; }
    bool operator==(const Shape& other) const;
    bool operator!=(const Shape& other) const { return !(*this == other); }

  private:
    std::array<int64_t, 4> extents_{};
    int rank_ = 0;
};

std::string to_string(const Shape& shape);  // "[768, 2048]"

struct Tensor {
    void* data = nullptr;
    DType dtype = DType::f32;
    Shape shape;

    int64_t count() const { return shape.count(); }
    size_t bytes() const { return static_cast<size_t>(count()) * size_of(dtype); }
    bool empty() const { return data == nullptr; }

    template <typename T>
    T* as() const {
        return static_cast<T*>(data);
    }
    // The same memory under another shape of equal count.
    Tensor reshaped(Shape other) const {
        assert(other.count() == count());
        return {data, dtype, other};
    }
    // `shape.count()` elements from element `offset` on.
    Tensor slice(int64_t offset, Shape other) const {
        assert(offset >= 0 && offset + other.count() <= count());
        return {static_cast<char*>(data) + offset * static_cast<int64_t>(size_of(dtype)), dtype,
                other};
    }
};

}  // namespace lmo
