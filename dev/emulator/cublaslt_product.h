// Inside the emulator: the arithmetic behind cublasLtMatmul.
#pragma once

#include <library_types.h>

#include <cstdint>

namespace emulator {

// A batch of matrices in memory; strides in elements.
struct Matrix {
    char* data = nullptr;
    cudaDataType_t type = CUDA_R_32F;
    int64_t rows = 0, columns = 0;
    bool row_major = false;
    int64_t leading = 0, batch_stride = 0;

    int64_t element_bytes() const { return type == CUDA_R_32F ? 4 : 2; }
    // Contiguous pieces: rows or columns.
    int64_t lines() const { return row_major ? rows : columns; }
    int64_t line_bytes() const { return (row_major ? columns : rows) * element_bytes(); }
    int64_t pitch() const { return leading * element_bytes(); }
    char* of_batch(int64_t i) const { return data + i * batch_stride * element_bytes(); }
};

// D = alpha op(A) op(B) + beta C, sums and factors in fp32. C is not read where beta is zero.
struct ProductOfMatrices {
    Matrix a, b, c, d;
    bool transpose_a = false, transpose_b = false;
    bool tf32 = false;  // operands are rounded to ten bits of mantissa
    float alpha = 1.0f, beta = 0.0f;
    int64_t batch = 1, k = 0;
    // The sum over k is made in parts, added in the order first_part, first_part + 1, ..., 0, ...
    int parts = 1, first_part = 0;
};

void multiply(const ProductOfMatrices& product);

}  // namespace emulator
