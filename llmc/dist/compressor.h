// Contractive compressors C of EF21-Muon (arXiv 2510.00643): ||C(x) - x||^2 <= (1 - alpha) ||x||^2.
// Rank r sends C(x) instead of x, in a message whose size depends on the shape alone.
//
//   identity  x itself; alpha = 1.
//   natural   every number rounded to the nearest power of two, 9 bits (natural.h); alpha = 8/9.
//   topk      the K elements of largest magnitude; alpha = K / elements.
//   columns   the K columns of largest Euclidean norm; alpha = K / columns.
//   rank      X ~ P Q, sent as P [m, r] and Q [r, n]. One step of the power method that starts from
//             the last message's Q, the factor: P = orthonormal basis of X Q^T, Q = P^T X, so
//             C(X) = P P^T X is a projection of X: alpha is the part of ||X||^2 in that span.
//
// A block is sent whole where that is no longer than its parts: a vector or one column by
// `columns`, a vector or r (m + n) >= m n by `rank`. The values that are sent, those of whole
// blocks too, are rounded to powers of two where the configuration says `natural`: alpha is 8/9 of
// what it was. By `rank` P is rounded first, then each row of Q is fitted to what P and the rows
// before have left of X, and rounded: alpha is at least 8/9 of the part of ||X||^2 along the first
// column of the rounded P.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "llmc/core/tensor.h"
#include "llmc/dist/low_rank.h"
#include "llmc/dist/positions.h"

namespace lmo {

enum class CompressorType { identity, topk, columns, rank, natural };

struct CompressorConfig {
    CompressorType type = CompressorType::identity;
    // topk: of the elements; columns: of the columns. In (0, 1]; rounded up to a whole number.
    double fraction = 0.0;
    int64_t rank = 0;      // rank, >= 1
    bool natural = false;  // topk, columns, rank: values are sent rounded to powers of two
};
std::string to_string(const CompressorConfig& config);  // "topk 0.1 natural"

struct Kept {
    double error = 0.0, total = 0.0;  // ||C(x) - x||^2, ||x||^2
};

// Of one block: m rows and n columns, row-major. T is float or double, as the type says.
//
// Numbers that are not finite never become finite unless they are left out; by `rank` one of them
// makes all of C(x) so. Results do not depend on the number of threads.
class Compressor {
  public:
    Compressor(const CompressorConfig& config, const Shape& shape, DType type);

    size_t message_bytes() const;
    // Of the state of a sender by `rank`, [r, n]; otherwise there is none, count 0.
    int64_t factor_elements() const;
    Shape factor_shape() const { return {low_rank_.rank, low_rank_.columns}; }
    // The factor before the first message: random, a function of (seed, name) alone.
    template <class T>
    void start_factor(T* factor, uint64_t seed, const std::string& name) const;

    // Writes C(x) as a message, replaces x by C(x), and puts the rows of the new Q, of length one,
    // into the factor; a row that is zero or not finite leaves the one before.
    template <class T>
    Kept compress(T* x, T* factor, std::byte* message) const;

    // Writes C(x), all elements, to `to`: bit for bit what compress() left in x. Throws Error where
    // the bytes are no such message.
    template <class T>
    void read(const std::byte* message, T* to) const;

  private:
    enum class Form { whole, sparse, low_rank };

    size_t value_bytes(int64_t count) const;
    template <class T>
    double write_values(T* values, int64_t count, std::byte* to) const;
    template <class T>
    void read_values(const std::byte* from, int64_t count, T* values) const;

    template <class T>
    std::vector<int64_t> choose(const T* x) const;
    template <class T>
    Kept compress_sparse(T* x, std::byte* message) const;
    template <class T>
    Kept compress_low_rank(T* x, T* factor, std::byte* message) const;
    int64_t rows_, columns_;  // by `topk`, all elements are columns of one row
    DType type_;
    bool natural_;
    Form form_ = Form::whole;
    Positions positions_;    // sparse: of the columns that are kept
    int64_t kept_ = 0;       // sparse: their number
    LowRankShape low_rank_;  // zeros unless low_rank
};

}  // namespace lmo
