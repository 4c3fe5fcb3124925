// Inputs of the compressors' tests, and a sender whose messages are received.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "llmc/core/random.h"
#include "llmc/dist/compressor.h"

namespace lmo {

using Bytes = std::vector<std::byte>;
using Type = CompressorType;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

inline CompressorConfig topk(double fraction, bool natural = false) {
    return {Type::topk, fraction, 0, natural};
}
inline CompressorConfig columns(double fraction, bool natural = false) {
    return {Type::columns, fraction, 0, natural};
}
inline CompressorConfig rank_of(int64_t rank, bool natural = false) {
    return {Type::rank, 0.0, rank, natural};
}

template <class T>
constexpr DType dtype = sizeof(T) == 4 ? DType::f32 : DType::f64;

// A sender of one block, and what it sent last.
template <class T>
struct Sender {
    Sender(const CompressorConfig& config, const Shape& shape)
        : compressor(config, shape, dtype<T>),
          factor(static_cast<size_t>(compressor.factor_elements())) {
        compressor.start_factor(factor.data(), 5, "w");
    }
    // C(x). The message is as long as it says, and the receiver has the same bits.
    std::vector<T> send(std::vector<T> x) {
        constexpr std::byte mark{0xa7};
        message.assign(compressor.message_bytes() + 1, mark);
        kept = compressor.compress(x.data(), factor.data(), message.data());
        EXPECT_EQ(message.back(), mark);
        message.pop_back();
        message.shrink_to_fit();  // reading beyond it is found by AddressSanitizer
        std::vector<T> received(x.size(), T{3});
        compressor.read(message.data(), received.data());
        EXPECT_EQ(std::memcmp(received.data(), x.data(), x.size() * sizeof(T)), 0);
        return x;
    }

    Compressor compressor;
    std::vector<T> factor;
    Bytes message;
    Kept kept;
};

template <class T>
double squares(const std::vector<T>& x) {
    double sum = 0.0;
    for (const T value : x) sum += static_cast<double>(value) * static_cast<double>(value);
    return sum;
}

template <class T>
double square_of_change(const std::vector<T>& a, const std::vector<T>& b) {
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); ++i) {
        sum += std::pow(static_cast<double>(a[i]) - static_cast<double>(b[i]), 2);
    }
    return sum;
}

template <class T>
std::vector<T> gaussian(int64_t count, uint64_t stream) {
    std::vector<T> x(static_cast<size_t>(count));
    for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(random_normal(11, stream, i));
    return x;
}

// Of rank `rank` at most.
template <class T>
std::vector<T> low_rank(int64_t rows, int64_t columns, int64_t rank, uint64_t stream) {
    std::vector<T> x(static_cast<size_t>(rows * columns));
    for (int64_t i = 0; i < rows; ++i) {
        for (int64_t j = 0; j < columns; ++j) {
            double sum = 0.0;
            for (int64_t k = 0; k < rank; ++k) {
                sum += random_normal(11, stream, static_cast<uint64_t>(i * rank + k)) *
                       random_normal(12, stream, static_cast<uint64_t>(j * rank + k));
            }
            x[static_cast<size_t>(i * columns + j)] = static_cast<T>(sum);
        }
    }
    return x;
}

constexpr int kKinds = 8;
template <class T>
std::vector<T> input(int kind, int64_t rows, int64_t columns, uint64_t stream) {
    if (kind == 1) return low_rank<T>(rows, columns, 2, stream);
    std::vector<T> x = gaussian<T>(rows * columns, stream);
    for (size_t i = 0; i < x.size(); ++i) {
        const double value = static_cast<double>(x[i]);
        double other = value;
        if (kind == 2) other = std::fabs(value) < 1.5 ? 0.0 : value;         // sparse
        if (kind == 3) other = value < 0.0 ? -1.49999 : 1.49999;             // the worst of natural
        if (kind == 4) other = std::copysign(std::exp(4.0 * value), value);  // heavy tails
        if (kind == 5) other = std::round(value);                            // ties
        if (kind == 6) other = 0.0;
        if (kind == 7) other = i == x.size() / 2 ? 1e4 : 1e-3 * value;  // one large
        x[i] = static_cast<T>(other);
    }
    return x;
}

}  // namespace lmo
