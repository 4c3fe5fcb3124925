// Matrices of one shape on their way into a Newton-Schulz iteration and back.
//
// Inside they lie side by side as X [batch, shorter, longer], 16-bit or fp32, each x or, where it
// has more rows than columns, its transpose: the iteration sees wide matrices alone, and its
// products run along contiguous rows. Both sides are rounded up to multiples of 8 with zeros there,
// which stay zero: rows start at multiples of 16 bytes whatever the shape.
#pragma once

#include <span>

#include "llmc/cuda/stream.h"
#include "llmc/device/backend.h"

namespace lmo::cuda {

constexpr int64_t kBatchMatrices = 256;  // at most: their addresses are kernel parameters

// Of x [rows, columns] and of X [shorter, longer].
struct BatchShape {
    explicit BatchShape(const Shape& shape);

    bool tall() const { return rows > columns; }
    int64_t elements() const { return shorter * longer; }  // of X

    int64_t rows, columns;
    int64_t shorter, longer;
};

// X = x / (sqrt(squares[i]) * norm_scale + eps), squares [batch] fp64.
struct Normalisation {
    const double* squares;
    double norm_scale, eps;
};

// Fills X of type `inner`. x: fp32, at any address. Bytes an element: 4 + size of inner.
void bring_in(std::span<const Tensor> x, const BatchShape& shape,
              const Normalisation& normalisation, DType inner, void* batch, Stream stream);

// The same of what the momentum makes of its x, which stays as it is; the momentum takes its step.
// Bytes an element: 12 + size of inner.
void bring_in(const Momentum& momentum, const BatchShape& shape, const Normalisation& normalisation,
              DType inner, void* batch, Stream stream);

// Fills x.
void write_back(std::span<const Tensor> x, const BatchShape& shape, DType inner, const void* batch,
                Stream stream);

// Applies X to the weights in place of apply.x; without sizes and starts. Bytes an element: 8 +
// size of inner and of the copies, 8 + size of inner where the weights are split.
void write_back(const Apply& apply, const BatchShape& shape, DType inner, const void* batch,
                Stream stream);

// to = scale * from + diagonal I for each [n, n] matrix of a batch; `from` may be `to`.
void affine(void* to, const void* from, DType inner, int64_t matrices, int64_t n, double scale,
            double diagonal, Stream stream);

}  // namespace lmo::cuda
