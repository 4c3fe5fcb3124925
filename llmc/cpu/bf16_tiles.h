// Products of bf16 matrices with sums in fp32 on processors with AVX512-BF16, for Newton-Schulz.
//
// Its matrices are padded with zeros: rows, columns and what lies between rows to multiples of
// bf16_padding elements, rows at 64-byte addresses. The elements of C are each summed in the order
// of k, whatever the thread or the panel that computes them.
#pragma once

#include <stdint.h>

namespace lmo::cpu {

constexpr int64_t bf16_padding = 32;
// Columns of C that are computed together, the elements of k that stay in the first cache beside
// them, and the most rows of A in registers.
constexpr int64_t bf16_panel_columns = 48, bf16_panel_depth = 768, bf16_block_rows = 8;

// Columns [column, column + width) of C[m, n] = alpha A B + beta D, A [m, k].
struct Bf16Panel {
    // B is given as its transpose [n, k], else as [k, n].
    bool transposed;
    // C is symmetric: only rows from `column` on are computed, and written to both triangles.
    bool symmetric;
    int64_t m, k, column, width;
    float alpha, beta;
    const uint16_t *a, *b, *d;  // d may be null
    uint16_t* c;                // not d
    int64_t a_stride, b_stride, d_stride, c_stride;
    void* scratch;  // bf16_panel_scratch(m) bytes, 64-byte aligned
};
constexpr int64_t bf16_panel_scratch(int64_t m) {
    return bf16_panel_columns * (2 * bf16_panel_depth + 4 * m);
}

// Rows [begin, end) of the padded X [rows, columns], which borders x [rows, columns] fp32, or
// with `tall` its transpose. begin and end: multiples of bf16_padding, `end` at most the padded
// rows.
struct Bf16Border {
    bool tall;
    int64_t rows, columns;
    float* x;  // [rows, columns], tall: [columns, rows]
    uint16_t* padded;
    int64_t stride;
};

struct Bf16Tiles {
    void (*multiply)(const Bf16Panel&);
    // padded = x / divisor, and zeros
    void (*bring_in)(const Bf16Border&, double divisor, int64_t begin, int64_t end);
    // x = padded
    void (*write_back)(const Bf16Border&, int64_t begin, int64_t end);
};

// Null where the processor has no instructions for it.
const Bf16Tiles* bf16_tiles();

}  // namespace lmo::cpu
