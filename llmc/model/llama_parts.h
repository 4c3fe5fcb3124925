// What the files of Llama share: products of a linear layer, first rows of buffers, and the places
// of parameters.
#pragma once

#include "llmc/model/llama.h"

namespace lmo::llama_parts {

inline Gemm product(const Tensor& x, const Tensor& w, const Tensor& y) {
    return {.a = x, .b = w, .c = y, .transpose_b = true, .workspace = {}};
}

inline Gemm input_gradient(const Tensor& dy, const Tensor& w, const Tensor& dx) {
    return {.a = dy, .b = w, .c = dx, .workspace = {}};
}

inline Gemm weight_gradient(const Tensor& dy, const Tensor& x, const Tensor& dw) {
    return {.a = dy, .b = x, .c = dw, .transpose_a = true, .beta = 1.0, .workspace = {}};
}

// The first rows of a buffer that is made for the largest batch.
inline Tensor first(const Tensor& buffer, const Shape& shape) { return buffer.slice(0, shape); }

inline Tensor first_rows(const Tensor& buffer, int64_t rows) {
    if (buffer.shape.rank() == 1) return first(buffer, {rows});
    return first(buffer, {rows, buffer.shape[1]});
}

// Positions of the parameters in llama_parameters().
enum Slot { input_norm, q, k, v, o, post_norm, gate, up, down, slots };
inline int parameter_index(int64_t layer, Slot slot) {
    return 1 + static_cast<int>(layer) * slots + slot;
}

}  // namespace lmo::llama_parts
