// The elements that are largest in magnitude.
#pragma once

#include <cstdint>
#include <vector>

namespace lmo {

// Their positions, increasing. Of equal ones the lower positions; infinity is larger than any
// number, NaN larger still. 1 <= kept <= count. Reads x three times.
template <class T>  // float, double
std::vector<int64_t> largest(const T* x, int64_t count, int64_t kept);

}  // namespace lmo
