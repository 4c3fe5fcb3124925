// Singular values by way of the Gram matrix of the shorter side: for norms that are measured, not
// stepped along. Everything in fp64 on the host.
#pragma once

#include <span>
#include <vector>

#include "llmc/device/backend.h"

namespace lmo {

// All singular values of a row-major matrix [rows, columns], in descending order. The Gram matrix
// squares them: values below about 1e-8 of the largest are lost in rounding. `host` is a backend
// with fp64; the matrix product is its, the eigenvalues are found here.
std::vector<double> singular_values(Backend& host, std::span<const double> matrix,
                                    const Shape& shape);

// All eigenvalues of a symmetric matrix [n, n], in descending order; the matrix is overwritten.
// Householder tridiagonalisation, then the QL algorithm with implicit shifts (Golub & Van Loan,
// Matrix Computations, 8.3). Throws Error for a matrix that is not finite.
std::vector<double> symmetric_eigenvalues(std::span<double> matrix, int64_t n);

}  // namespace lmo
