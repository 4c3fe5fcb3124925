// The products and the orthonormal basis of a low-rank approximation X = P Q, X [m, n], P [m, r],
// Q [r, n], all row-major.
//
// Every element is a sum in an order that depends on the shapes alone, whatever the threads.
#pragma once

#include <cstdint>
#include <vector>

namespace lmo {

struct LowRankShape {
    int64_t rows = 0, columns = 0, rank = 0;  // m, n, r
};

// P = X Q^T.
template <class T>  // float, double
void multiply_transposed(const LowRankShape& s, const T* x, const T* q, T* p);

// Q = P^T X.
template <class T>
void transposed_multiply(const LowRankShape& s, const T* p, const T* x, T* q);

// Y = P Q.
template <class T>
void multiply(const LowRankShape& s, const T* p, const T* q, T* y);

// X = P Q, the bits of multiply(). Returns ||P Q - X||^2 of the X before.
template <class T>
double replace_by_product(const LowRankShape& s, const T* p, const T* q, T* x);

// Makes the columns of P orthonormal and keeps their span: Gram-Schmidt, each column twice, inside
// in fp64. A column that is zero or, but for rounding, a combination of the ones before (what is
// left of it is shorter than 4 sqrt(n) epsilon of it) becomes zero. NaN and infinity make NaN.
template <class T>
void orthonormalise(const LowRankShape& s, T* p);

// P^T P, [r, r].
template <class T>
std::vector<double> gram_matrix(const LowRankShape& s, const T* p);

// Row k of Q, given that it holds row k of P^T X and that the rows before are those to be sent:
// what makes ||X - the sum over i <= k of column i of P times row i of Q|| least. Zero where column
// k of P is.
template <class T>
void fit_row(const LowRankShape& s, const std::vector<double>& gram, int64_t k, T* q);

}  // namespace lmo
