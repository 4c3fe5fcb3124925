// Numbers rounded to powers of two: 9 bits each.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmo {

// A code byte for each number, then a sign bit for each. Code 0 is zero, codes 1 to 254 are 2^-126
// to 2^127, code 255 is a number that is not finite. Each number becomes the nearest of these, with
// its sign; halfway, the one that is larger in magnitude. So
//   * x from 2^k to 2^(k+1) becomes 2^k below 1.5 * 2^k and 2^(k+1) from there on: it moves by a
//     third of itself at most;
//   * below 2^-127 it becomes zero; above 1.5 * 2^127 (fp64 goes beyond 2^128) it becomes 2^127;
//   * infinities and NaN become NaN, for what went wrong must not turn finite on the way.
size_t natural_bytes(int64_t count);

template <class T>  // float, double
void write_natural(const T* x, int64_t count, std::byte* to);
template <class T>
void read_natural(const std::byte* from, int64_t count, T* to);

// Writes, and replaces x by what read_natural() yields. Returns ||x after - x before||^2.
template <class T>
double round_to_natural(T* x, int64_t count, std::byte* to);

}  // namespace lmo
