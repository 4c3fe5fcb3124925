// Rows and columns of matrices: their norms, NorMuon's second moment, heads of attention.
#include <algorithm>
#include <cmath>

#include "llmc/cpu/cpu_backend.h"
#include "llmc/cpu/pieces.h"

namespace lmo::cpu {

namespace {

// body(type tag of the tensor's elements)
template <typename Body>
void with_master_type(DType type, Body body) {
    assert(type == DType::f64 || type == DType::f32);
    type == DType::f64 ? body(double{}) : body(float{});
}

int64_t row_block(int64_t columns) {
    return std::max<int64_t>(1, element_block / std::max<int64_t>(1, columns));
}

template <typename T>
void scale(T* x, int64_t count, double factor) {
    for (int64_t i = 0; i < count; ++i) x[i] = static_cast<T>(x[i] * factor);
}

// Columns begin to end of x [rows, columns], each divided by its norm.
template <typename T>
void normalize_columns(T* x, int64_t rows, int64_t columns, int64_t begin, int64_t end,
                       double eps) {
    constexpr int64_t most = 64;
    assert(end - begin <= most);
    double squares[most] = {};
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = begin; j < end; ++j) {
            const double value = x[i * columns + j];
            squares[j - begin] += value * value;
        }
    }
    for (double& square : squares) square = 1.0 / (std::sqrt(square) + eps);
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = begin; j < end; ++j) {
            x[i * columns + j] = static_cast<T>(x[i * columns + j] * squares[j - begin]);
        }
    }
}

}  // namespace

void CpuBackend::line_normalize(const LineNormalize& op) {
    for (const Tensor& tensor : op.x) {
        const int64_t rows = tensor.shape.rows(), columns = tensor.shape.columns();
        with_master_type(tensor.dtype, [&](auto tag) {
            using T = decltype(tag);
            T* x = tensor.as<T>();
            if (op.columns) {
                parallel_blocks(threads_, columns, 64, [&](int64_t begin, int64_t end) {
                    normalize_columns(x, rows, columns, begin, end, op.eps);
                });
                return;
            }
            parallel_blocks(threads_, rows, row_block(columns), [&](int64_t begin, int64_t end) {
                for (int64_t i = begin; i < end; ++i) {
                    T* row = x + i * columns;
                    const double squares = kernels_.dot(tensor.dtype, row, row, columns);
                    scale(row, columns, 1.0 / (std::sqrt(squares) + op.eps));
                }
            });
        });
    }
}

size_t CpuBackend::workspace_bytes(const RowMomentNormalize& op) const {
    int64_t rows = 0;
    for (const Tensor& x : op.x) rows = std::max(rows, x.shape.rows());
    Scratch scratch;
    scratch.take<double>(rows);
    scratch.take<double>(rows);
    return scratch.bytes();
}

void CpuBackend::row_moment_normalize(const RowMomentNormalize& op) {
    assert(op.second.size() == op.x.size());
    for (size_t k = 0; k < op.x.size(); ++k) {
        const Tensor& tensor = op.x[k];
        const int64_t rows = tensor.shape.rows(), columns = tensor.shape.columns();
        assert(op.second[k].count() == rows && op.second[k].dtype == tensor.dtype);
        Scratch scratch(op.workspace);
        double* squares = scratch.take<double>(rows);
        double* factors = scratch.take<double>(rows);
        with_master_type(tensor.dtype, [&](auto tag) {
            using T = decltype(tag);
            T* x = tensor.as<T>();
            T* second = op.second[k].as<T>();
            const auto by_rows = [&](auto body) {
                parallel_blocks(threads_, rows, row_block(columns), [&](int64_t from, int64_t to) {
                    for (int64_t i = from; i < to; ++i) body(i, x + i * columns);
                });
            };
            by_rows([&](int64_t i, const T* row) {
                squares[i] = kernels_.dot(tensor.dtype, row, row, columns);
                const double mean = squares[i] / static_cast<double>(columns);
                const double moment = op.beta2 * second[i] + (1.0 - op.beta2) * mean;
                second[i] = static_cast<T>(moment);
                factors[i] = 1.0 / (std::sqrt(moment) + op.eps);
            });
            double before = 0.0, after = 0.0;
            for (int64_t i = 0; i < rows; ++i) {
                before += squares[i];
                after += squares[i] * factors[i] * factors[i];
            }
            const double restore = std::sqrt(before) / (std::sqrt(after) + op.eps);
            by_rows([&](int64_t i, T* row) { scale(row, columns, factors[i] * restore); });
        });
    }
}

void CpuBackend::head_maxima(const HeadMaxima& op) {
    assert(op.x.shape.rank() == 3 && op.out.count() == op.x.shape[1]);
    assert(op.x.dtype == op.out.dtype);
    const int64_t sequences = op.x.shape[0], heads = op.x.shape[1], positions = op.x.shape[2];
    with_master_type(op.x.dtype, [&](auto tag) {
        using T = decltype(tag);
        for (int64_t h = 0; h < heads; ++h) {
            T& top = op.out.as<T>()[h];
            for (int64_t b = 0; b < sequences; ++b) {
                const T* x = op.x.as<T>() + (b * heads + h) * positions;
                top = std::max(top, *std::max_element(x, x + positions));
            }
        }
    });
}

void CpuBackend::qk_clip(const QkClip& op) {
    assert(op.heads % op.kv_heads == 0 && op.maxima.count() == op.heads);
    const int64_t size = op.q.shape[0] / op.heads, group = op.heads / op.kv_heads;
    assert(op.k.shape[0] == size * op.kv_heads && op.q.shape[1] == op.k.shape[1]);
    const int64_t count = size * op.q.shape[1];  // of a head
    const auto shrink_split = [&](const Tensor& high, const Tensor& low, int64_t h, double by) {
        assert(high.dtype == DType::bf16 && low.dtype == DType::i16);
        alignas(64) float joined[kPiece];
        for_pieces(0, h * count, (h + 1) * count, [&](const Piece& piece) {
            uint16_t* const upper = high.as<uint16_t>() + piece.begin;
            int16_t* const lower = low.as<int16_t>() + piece.begin;
            kernels_.join(upper, lower, joined, piece.count);
            scale(joined, piece.count, by);
            kernels_.split(joined, upper, lower, piece.count);
        });
    };
    with_master_type(op.maxima.dtype, [&](auto tag) {
        using T = decltype(tag);
        const T* maxima = op.maxima.as<T>();
        const auto gain = [&](int64_t h) {
            return maxima[h] > op.limit ? op.limit / maxima[h] : 1.0;
        };
        const auto shrink = [&](const Tensor& weights, const Tensor& copy, const Tensor& low,
                                int64_t h, double by) {
            if (!low.empty()) {
                if (by != 1.0) shrink_split(weights, low, h, by);
                return;
            }
            T* w = weights.as<T>() + h * count;
            if (by != 1.0) scale(w, count, by);
            if (copy.empty()) return;
            const Tensor part = copy.slice(h * count, {count});
            convert(copy.dtype, part.data, weights.dtype, w, count);
        };
        for (int64_t k = 0; k < op.kv_heads; ++k) {
            double least = 1.0;
            for (int64_t h = k * group; h < (k + 1) * group; ++h) least = std::min(least, gain(h));
            const double key = std::sqrt(least);
            shrink(op.k, op.k_copy, op.k_remainder, k, key);
            for (int64_t h = k * group; h < (k + 1) * group; ++h) {
                shrink(op.q, op.q_copy, op.q_remainder, h, gain(h) / key);
            }
        }
    });
}

}  // namespace lmo::cpu
