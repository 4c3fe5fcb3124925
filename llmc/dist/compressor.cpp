#include "llmc/dist/compressor.h"

#include <algorithm>
#include <cassert>
#include <charconv>
#include <cmath>
#include <cstring>

#include "llmc/core/random.h"
#include "llmc/dist/largest.h"
#include "llmc/dist/natural.h"
#include "llmc/dist/squares.h"

namespace lmo {

std::string to_string(const CompressorConfig& config) {
    const auto number = [](double value) {
        char text[32];
        return std::string(text, std::to_chars(text, text + sizeof text, value).ptr);
    };
    std::string text;
    switch (config.type) {
        case CompressorType::identity:
            return "identity";
        case CompressorType::natural:
            return "natural";
        case CompressorType::topk:
            text = "topk " + number(config.fraction);
            break;
        case CompressorType::columns:
            text = "columns " + number(config.fraction);
            break;
        case CompressorType::rank:
            text = "rank " + std::to_string(config.rank);
            break;
    }
    return config.natural ? text + " natural" : text;
}

namespace {

// `fraction` of `count`, rounded up, but not from a product that is whole but for rounding.
int64_t part_of(int64_t count, double fraction) {
    assert(fraction > 0.0 && fraction <= 1.0);
    const double part = fraction * static_cast<double>(count) * (1.0 - 0x1p-50);
    return std::clamp(static_cast<int64_t>(std::ceil(part)), int64_t{1}, count);
}

}  // namespace

Compressor::Compressor(const CompressorConfig& config, const Shape& shape, DType type)
    : rows_(shape.rows()),
      columns_(shape.columns()),
      type_(type),
      natural_(config.natural || config.type == CompressorType::natural) {
    assert(type == DType::f32 || type == DType::f64);
    assert(shape.count() > 0);
    if (config.type == CompressorType::topk || config.type == CompressorType::columns) {
        if (config.type == CompressorType::topk) {
            columns_ *= rows_;
            rows_ = 1;
        }
        kept_ = part_of(columns_, config.fraction);
        if (kept_ == columns_) return;
        form_ = Form::sparse;
        positions_ = Positions(columns_, kept_);
    }
    if (config.type == CompressorType::rank) {
        assert(config.rank >= 1);
        const int64_t rank = std::min({config.rank, rows_, columns_});
        if (rank * (rows_ + columns_) >= rows_ * columns_) return;
        form_ = Form::low_rank;
        low_rank_ = {rows_, columns_, rank};
    }
}

// ---- values ----

size_t Compressor::value_bytes(int64_t count) const {
    return natural_ ? natural_bytes(count) : static_cast<size_t>(count) * size_of(type_);
}

// Replaces them by what read_values() yields; returns the square of the change.
template <class T>
double Compressor::write_values(T* values, int64_t count, std::byte* to) const {
    if (natural_) return round_to_natural(values, count, to);
    std::memcpy(to, values, value_bytes(count));
    return 0.0;
}

template <class T>
void Compressor::read_values(const std::byte* from, int64_t count, T* values) const {
    if (natural_) return read_natural(from, count, values);
    std::memcpy(values, from, value_bytes(count));
}

size_t Compressor::message_bytes() const {
    switch (form_) {
        case Form::whole:
            return value_bytes(rows_ * columns_);
        case Form::sparse:
            return positions_.bytes() + value_bytes(rows_ * kept_);
        case Form::low_rank:
            break;
    }
    return value_bytes(low_rank_.rank * (rows_ + columns_));
}

template <class T>
Kept Compressor::compress(T* x, T* factor, std::byte* message) const {
    assert(sizeof(T) == size_of(type_));
    if (form_ == Form::sparse) return compress_sparse(x, message);
    if (form_ == Form::low_rank) return compress_low_rank(x, factor, message);
    Kept kept;
    kept.total = sum_of_squares(x, rows_ * columns_);
    kept.error = write_values(x, rows_ * columns_, message);
    return kept;
}

// ---- some of the elements or columns ----

namespace {

// The square of each column's norm.
template <class T>
std::vector<double> column_squares(const T* x, int64_t rows, int64_t columns) {
    constexpr int64_t chunk = 256;
    std::vector<double> squares(static_cast<size_t>(columns));
#pragma omp parallel for schedule(static) if (rows * columns > 1 << 16)
    for (int64_t begin = 0; begin < columns; begin += chunk) {
        const int64_t end = std::min(columns, begin + chunk);
        double* to = squares.data();
        for (int64_t i = 0; i < rows; ++i) {
            const T* row = x + i * columns;
#pragma omp simd
            for (int64_t j = begin; j < end; ++j) {
                to[j] += static_cast<double>(row[j]) * static_cast<double>(row[j]);
            }
        }
    }
    return squares;
}

// Calls each(element, number of the value) for the kept columns of every row.
template <class T, class Each>
void each_kept(T* x, int64_t rows, int64_t columns, const std::vector<int64_t>& at, Each each) {
    const int64_t kept = static_cast<int64_t>(at.size());
#pragma omp parallel for schedule(static) if (rows > 1 && rows * kept > 1 << 15)
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t k = 0; k < kept; ++k) {
            each(x[i * columns + at[static_cast<size_t>(k)]], static_cast<size_t>(i * kept + k));
        }
    }
}

}  // namespace

template <class T>
std::vector<int64_t> Compressor::choose(const T* x) const {
    if (rows_ == 1) return largest(x, columns_, kept_);
    return largest(column_squares(x, rows_, columns_).data(), columns_, kept_);
}

template <class T>
Kept Compressor::compress_sparse(T* x, std::byte* message) const {
    const std::vector<int64_t> at = choose(x);
    std::vector<T> values(static_cast<size_t>(rows_ * kept_));
    const int64_t count = static_cast<int64_t>(values.size());
    each_kept(x, rows_, columns_, at, [&](T& element, size_t k) {
        values[k] = element;
        element = T{};
    });
    Kept kept;
    kept.error = sum_of_squares(x, rows_ * columns_);
    kept.total = kept.error + sum_of_squares(values.data(), count);
    positions_.write(at, message);
    kept.error += write_values(values.data(), count, message + positions_.bytes());
    std::fill_n(x, rows_ * columns_, T{});
    each_kept(x, rows_, columns_, at, [&](T& element, size_t k) { element = values[k]; });
    return kept;
}

// ---- low rank ----

int64_t Compressor::factor_elements() const { return low_rank_.rank * low_rank_.columns; }

template <class T>
void Compressor::start_factor(T* factor, uint64_t seed, const std::string& name) const {
    uint64_t stream = 0xcbf29ce484222325ull;  // FNV-1a of the name
    for (const char c : name) stream = (stream ^ static_cast<unsigned char>(c)) * 0x100000001b3ull;
    const double scale = 1.0 / std::sqrt(static_cast<double>(columns_));
    for (int64_t i = 0; i < factor_elements(); ++i) {
        factor[i] = static_cast<T>(scale * random_normal(seed, stream, static_cast<uint64_t>(i)));
    }
}

namespace {

template <class T>
void update_factor(const LowRankShape& s, const T* q, T* factor) {
    for (int64_t k = 0; k < s.rank; ++k) {
        const T* row = q + k * s.columns;
        const double length = std::sqrt(sum_of_squares(row, s.columns));
        if (length == 0.0 || !std::isfinite(length)) continue;
        T* to = factor + k * s.columns;
        for (int64_t j = 0; j < s.columns; ++j) {
            to[j] = static_cast<T>(static_cast<double>(row[j]) / length);
        }
    }
}

}  // namespace

template <class T>
Kept Compressor::compress_low_rank(T* x, T* factor, std::byte* message) const {
    const LowRankShape& s = low_rank_;
    const int64_t count = s.rank * (s.rows + s.columns);
    std::vector<T> factors(static_cast<size_t>(count));
    T* p = factors.data();
    T* q = p + s.rows * s.rank;
    multiply_transposed(s, x, factor, p);
    orthonormalise(s, p);
    std::vector<std::byte> unsent(natural_ ? natural_bytes(count) : 0);
    if (natural_) round_to_natural(p, s.rows * s.rank, unsent.data());
    transposed_multiply(s, p, x, q);
    update_factor(s, q, factor);
    if (natural_) {
        const std::vector<double> gram = gram_matrix(s, p);
        for (int64_t k = 0; k < s.rank; ++k) {
            fit_row(s, gram, k, q);
            round_to_natural(q + k * s.columns, s.columns, unsent.data());
        }
    }
    write_values(factors.data(), count, message);
    Kept kept;
    kept.total = sum_of_squares(x, s.rows * s.columns);
    kept.error = replace_by_product(s, p, q, x);
    return kept;
}

// ---- reading ----

template <class T>
void Compressor::read(const std::byte* message, T* to) const {
    assert(sizeof(T) == size_of(type_));
    if (form_ == Form::whole) return read_values(message, rows_ * columns_, to);
    if (form_ == Form::low_rank) {
        const LowRankShape& s = low_rank_;
        std::vector<T> factors(static_cast<size_t>(s.rank * (s.rows + s.columns)));
        read_values(message, static_cast<int64_t>(factors.size()), factors.data());
        multiply(s, factors.data(), factors.data() + s.rows * s.rank, to);
        return;
    }
    const std::vector<int64_t> at = positions_.read(message);
    std::vector<T> values(static_cast<size_t>(rows_ * kept_));
    read_values(message + positions_.bytes(), static_cast<int64_t>(values.size()), values.data());
    std::fill_n(to, rows_ * columns_, T{});
    each_kept(to, rows_, columns_, at, [&](T& element, size_t k) { element = values[k]; });
}

template void Compressor::start_factor(float*, uint64_t, const std::string&) const;
template void Compressor::start_factor(double*, uint64_t, const std::string&) const;
template Kept Compressor::compress(float*, float*, std::byte*) const;
template Kept Compressor::compress(double*, double*, std::byte*) const;
template void Compressor::read(const std::byte*, float*) const;
template void Compressor::read(const std::byte*, double*) const;

}  // namespace lmo
