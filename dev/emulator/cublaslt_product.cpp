// Products of matrices for the stand-in of cublasLt, at a fair part of the processor's speed: the
// operands become float panels once, then 4 x 16 sums at a time stay in registers.
#include "dev/emulator/cublaslt_product.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "dev/emulator/runtime.h"

namespace emulator {

namespace {

// One register of AVX2. What is wider than a register, g++ keeps in memory.
typedef float Lanes __attribute__((vector_size(32)));
constexpr int kColumns = 16;  // two registers
constexpr int kRows = 4;
// Sums of so many terms are added to the total, which keeps rounding errors small.
constexpr int64_t kDepth = 256;

float value(const char* at, cudaDataType_t type) {
    if (type == CUDA_R_32F) {
        float x;
        memcpy(&x, at, 4);
        return x;
    }
    uint16_t bits;
    memcpy(&bits, at, 2);
    if (type == CUDA_R_16F) return __half2float(__ushort_as_half(bits));
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

void set_value(char* at, cudaDataType_t type, float x) {
    if (type == CUDA_R_32F) {
        memcpy(at, &x, 4);
        return;
    }
    const uint16_t bits = type == CUDA_R_16F ? __half_as_ushort(__float2half_rn(x))
                                             : __bfloat16_as_ushort(__float2bfloat16_rn(x));
    memcpy(at, &bits, 2);
}

// To nearest, ties away from zero, as the tensor cores' conversion does.
float round_to_tf32(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x);
    if ((bits & 0x7f800000) == 0x7f800000) return x;
    return __builtin_bit_cast(float, (bits + 0x1000) & 0xffffe000);
}

// Calls f(outer, inner, value) for all elements, line by line as they lie in memory.
template <typename F>
void for_elements(const Matrix& m, int64_t batch, const char* what, F&& f) {
    const int64_t bytes = m.element_bytes(), count = m.line_bytes() / bytes;
    for (int64_t line = 0; line < m.lines(); ++line) {
        const char* at = m.of_batch(batch) + line * m.pitch();
        check_host_read(at, m.line_bytes(), what);
        for (int64_t i = 0; i < count; ++i) f(line, i, value(at + i * bytes, m.type));
    }
}

// op(X) [outer, k] with Width neighbours of the outer index side by side; the rest of the last
// panel is zero.
template <int Width>
struct Panels {
    int64_t depth;
    std::vector<float> data;

    Panels(int64_t outer, int64_t k) : depth(k), data((outer + Width - 1) / Width * Width * k) {}
    int64_t index(int64_t outer, int64_t inner) const {
        return (outer / Width * depth + inner) * Width + outer % Width;
    }
    const float* panel(int64_t outer) const { return &data[index(outer, 0)]; }
};

// rows_are_outer: the matrix's rows are the outer index, its columns run along k.
template <int Width>
void pack(const Matrix& m, int64_t batch, bool rows_are_outer, bool tf32, const char* what,
          Panels<Width>& to) {
    const bool lines_are_outer = m.row_major == rows_are_outer;
    for_elements(m, batch, what, [&](int64_t line, int64_t i, float x) {
        if (tf32) x = round_to_tf32(x);
        to.data[lines_are_outer ? to.index(line, i) : to.index(i, line)] = x;
    });
}

// sums[row][column] += over k. Without fused multiply-add, so that all processors give equal bits.
__attribute__((target_clones("avx2", "default"))) void add_products(const float* a, const float* b,
                                                                    int64_t k, float* sums) {
    Lanes left[kRows] = {}, right[kRows] = {};
    for (int64_t i = 0; i < k; ++i, a += kRows, b += kColumns) {
        Lanes b_left, b_right;
        memcpy(&b_left, b, sizeof b_left);
        memcpy(&b_right, b + kColumns / 2, sizeof b_right);
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) {
            left[row] += a[row] * b_left;
            right[row] += a[row] * b_right;
        }
    }
    for (int row = 0; row < kRows; ++row) {
        for (int i = 0; i < kColumns / 2; ++i) {
            sums[row * kColumns + i] += left[row][i];
            sums[row * kColumns + kColumns / 2 + i] += right[row][i];
        }
    }
}

// One 4 x 16 piece of op(A) op(B), the parts of the sum in their order.
void multiply_piece(const ProductOfMatrices& p, const float* a, const float* b, float* sums) {
    std::fill_n(sums, kRows * kColumns, 0.0f);
    const int64_t part = (p.k + p.parts - 1) / p.parts;
    for (int i = 0; i < p.parts; ++i) {
        const int64_t first = (p.first_part + i) % p.parts * part;
        const int64_t last = std::min(p.k, first + part);
        for (int64_t k = first; k < last; k += kDepth) {
            const int64_t depth = std::min(kDepth, last - k);
            add_products(a + k * kRows, b + k * kColumns, depth, sums);
        }
    }
}

// Adds beta C and writes one piece of row-major D.
void write_piece(const ProductOfMatrices& p, int64_t batch, int64_t row, int64_t column,
                 const float* sums) {
    const int64_t columns = std::min<int64_t>(kColumns, p.d.columns - column);
    for (int64_t r = 0; r < std::min<int64_t>(kRows, p.d.rows - row); ++r) {
        const char* c = nullptr;
        if (p.beta != 0.0f) {
            c = p.c.of_batch(batch) + (row + r) * p.c.pitch() + column * p.c.element_bytes();
        }
        char* d = p.d.of_batch(batch) + (row + r) * p.d.pitch() + column * p.d.element_bytes();
        for (int64_t i = 0; i < columns; ++i) {
            float x = p.alpha * sums[r * kColumns + i];
            if (c) x += p.beta * value(c + i * p.c.element_bytes(), p.c.type);
            set_value(d + i * p.d.element_bytes(), p.d.type, x);
        }
    }
}

// Of row-major C and D.
void multiply_one(const ProductOfMatrices& p, int64_t batch) {
    Panels<kRows> a(p.d.rows, p.k);
    Panels<kColumns> b(p.d.columns, p.k);
    pack(p.a, batch, !p.transpose_a, p.tf32, "cublasLtMatmul reading A", a);
    pack(p.b, batch, p.transpose_b, p.tf32, "cublasLtMatmul reading B", b);
    for (int64_t row = 0; row < p.d.rows; ++row) {
        if (p.beta != 0.0f) {
            check_host_read(p.c.of_batch(batch) + row * p.c.pitch(), p.c.line_bytes(),
                            "cublasLtMatmul reading C");
        }
        mark_written(p.d.of_batch(batch) + row * p.d.pitch(), p.d.line_bytes(),
                     "cublasLtMatmul writing D");
    }
    for (int64_t column = 0; column < p.d.columns; column += kColumns) {
        for (int64_t row = 0; row < p.d.rows; row += kRows) {
            float sums[kRows * kColumns];
            multiply_piece(p, a.panel(row), b.panel(column), sums);
            write_piece(p, batch, row, column, sums);
        }
    }
}

// The same memory as the transposed matrix.
Matrix transposed(Matrix m) {
    std::swap(m.rows, m.columns);
    m.row_major = !m.row_major;
    return m;
}

}  // namespace

void multiply(const ProductOfMatrices& product) {
    ProductOfMatrices p = product;
    if (!p.d.row_major) {  // D^T = op(B)^T op(A)^T
        p.a = transposed(product.b);
        p.b = transposed(product.a);
        std::swap(p.transpose_a, p.transpose_b);
        p.c = transposed(p.c);
        p.d = transposed(p.d);
    }
    for (int64_t batch = 0; batch < p.batch; ++batch) multiply_one(p, batch);
}

}  // namespace emulator
