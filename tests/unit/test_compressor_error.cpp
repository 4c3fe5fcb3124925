// The contractive compressors: what they keep, that the error is what theory allows, and what
// becomes of the factor of a low-rank one.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/unit/compressor_sender.h"

namespace lmo {
namespace {

template <class T>
class CompressorErrorOf : public ::testing::Test {};
using Types = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CompressorErrorOf, Types);

// The least part of ||x||^2 that theory lets C keep.
double least_alpha(const CompressorConfig& config, int64_t rows, int64_t columns) {
    const int64_t all = config.type == Type::topk ? rows * columns : columns;
    double kept = 1.0;
    if (config.type == Type::topk || config.type == Type::columns) {
        kept = std::max(1.0, std::ceil(config.fraction * static_cast<double>(all) - 1e-9)) /
               static_cast<double>(all);
    }
    if (config.type == Type::rank && config.rank * (rows + columns) < rows * columns) kept = 0.0;
    return config.natural || config.type == Type::natural ? kept * 8.0 / 9.0 : kept;
}

TYPED_TEST(CompressorErrorOf, ErrorsAreWhatTheoryAllows) {
    using T = TypeParam;
    const std::vector<CompressorConfig> configs{{},
                                                {Type::natural, 0.0, 0, false},
                                                topk(0.01),
                                                topk(0.3),
                                                topk(0.1, true),
                                                columns(0.2),
                                                columns(0.5, true),
                                                rank_of(1),
                                                rank_of(3),
                                                rank_of(2, true)};
    const std::vector<Shape> shapes{{1},    {37},    {1, 50}, {50, 1}, {2, 3},
                                    {5, 4}, {9, 64}, {64, 9}, {31, 33}};
    for (const CompressorConfig& config : configs) {
        for (const Shape& shape : shapes) {
            const int64_t m = shape.rows(), n = shape.columns();
            Sender<T> sender(config, shape);
            for (int kind = 0; kind < kKinds; ++kind) {
                const std::string where =
                    to_string(config) + ", " + to_string(shape) + ", input " + std::to_string(kind);
                const std::vector<T> x = input<T>(kind, m, n, 30);
                const std::vector<T> c = sender.send(x);
                const double error = square_of_change(c, x), total = squares(x);
                ASSERT_NEAR(sender.kept.error, error, 1e-12 * total) << where;
                ASSERT_NEAR(sender.kept.total, total, 1e-12 * total) << where;
                ASSERT_LE(error, (1.0 - least_alpha(config, m, n)) * total * (1 + 1e-12)) << where;
            }
        }
    }
}

// Where all elements are alike theory is exact.
TYPED_TEST(CompressorErrorOf, TheWorstInputs) {
    using T = TypeParam;
    Sender<T> elements(topk(0.25), {16, 16}), some(columns(0.25), {16, 16});
    const std::vector<T> ones(256, T{-1});
    const std::vector<T> c = elements.send(ones);
    for (size_t i = 0; i < 256; ++i) ASSERT_EQ(c[i], i < 64 ? T{-1} : T{}) << i;
    EXPECT_EQ(elements.kept.error, 192.0);
    some.send(ones);
    EXPECT_EQ(some.kept.error, 192.0);
    Sender<T> natural({Type::natural, 0.0, 0, false}, {16, 16});
    natural.send(std::vector<T>(256, T{1.5}));
    EXPECT_DOUBLE_EQ(natural.kept.error, natural.kept.total / 9.0);
}

TYPED_TEST(CompressorErrorOf, LowRankIsAProjection) {
    using T = TypeParam;
    constexpr double epsilon = std::numeric_limits<T>::epsilon();
    const int64_t m = 40, n = 90, r = 7;
    for (int kind = 0; kind < kKinds; ++kind) {
        Sender<T> sender(rank_of(r), {m, n});
        const std::vector<T> x = input<T>(kind, m, n, 50);
        const std::vector<T> c = sender.send(x);
        std::vector<T> q(static_cast<size_t>(r * n));
        std::memcpy(q.data(), sender.message.data() + sizeof(T) * static_cast<size_t>(m * r),
                    q.size() * sizeof(T));
        const double near = 1e3 * epsilon * squares(x);
        EXPECT_NEAR(sender.kept.error, squares(x) - squares(q), near) << kind;
        // Orthogonal: what is kept and what is left make the whole.
        EXPECT_NEAR(sender.kept.error, squares(x) - squares(c), near) << kind;
        // What has low rank is kept.
        const double tiny = 1e3 * epsilon * epsilon * squares(x);
        sender.send(c);
        sender.send(c);
        EXPECT_LE(sender.kept.error, tiny) << kind;
    }
    Sender<T> sender(rank_of(r), {m, n});
    for (int64_t k = 1; k <= r; ++k) {
        const std::vector<T> x = low_rank<T>(m, n, k, 51);
        sender.send(x);
        sender.send(x);
        EXPECT_LE(sender.kept.error, 1e4 * epsilon * epsilon * squares(x)) << "rank " << k;
    }
}

// The power method comes to the largest singular values.
TYPED_TEST(CompressorErrorOf, LowRankFindsTheBest) {
    using T = TypeParam;
    const int64_t n = 30;
    std::vector<T> x(static_cast<size_t>(n * (n + 5)));
    double rest = 0.0;
    for (int64_t i = 0; i < n; ++i) {
        const double value = std::ldexp(1.0, static_cast<int>(-i));
        x[static_cast<size_t>(i * (n + 5) + (i * 7) % n)] = static_cast<T>(value);
        if (i >= 4) rest += value * value;
    }
    Sender<T> sender(rank_of(4), {n, n + 5});
    sender.send(x);
    const double first = sender.kept.error;
    for (int i = 0; i < 20; ++i) sender.send(x);
    EXPECT_GT(first, 1.01 * rest);
    EXPECT_NEAR(sender.kept.error, rest, 1e-4 * rest);
}

// Inputs that leave nothing of the factor, or only a part of it, do not spoil what comes after.
TYPED_TEST(CompressorErrorOf, LowRankRecovers) {
    using T = TypeParam;
    const int64_t m = 25, n = 31;
    const std::vector<T> zeros(static_cast<size_t>(m * n)), full = gaussian<T>(m * n, 60);
    std::vector<T> broken = full;
    broken[77] = static_cast<T>(kInfinity);
    for (const bool natural : {false, true}) {
        Sender<T> fresh(rank_of(3, natural), {m, n}), sender = fresh;
        EXPECT_EQ(sender.send(zeros), zeros);
        EXPECT_TRUE(sender.factor == fresh.factor);
        for (uint64_t t = 0; t < 8; ++t) {  // of rank one
            auto x = low_rank<T>(m, n, 1, 61 + t);
            for (T& value : x) value *= static_cast<T>(std::pow(1e-3, t));
            sender.send(x);
            EXPECT_LE(sender.kept.error, (natural ? 0.1 : 1e-10) * sender.kept.total) << t;
        }
        const std::vector<T> before = sender.factor;
        for (const T value : sender.send(broken)) ASSERT_TRUE(std::isnan(value));
        EXPECT_TRUE(sender.factor == before);
        for (int i = 0; i < 5; ++i) {
            fresh.send(full);
            sender.send(full);
        }
        EXPECT_NEAR(sender.kept.error, fresh.kept.error, 0.05 * fresh.kept.error);
    }
}

// P has 28 equal elements 0.189, which are sent as 0.25: the fit takes that back.
TYPED_TEST(CompressorErrorOf, NaturalLowRankFits) {
    using T = TypeParam;
    std::vector<T> x = gaussian<T>(50, 70);
    for (int i = 1; i < 28; ++i) x.insert(x.end(), x.begin(), x.begin() + 50);
    Sender<T> sender(rank_of(1, true), {28, 50});
    sender.send(x);
    EXPECT_EQ(sender.message[0], std::byte{125});
    EXPECT_LE(sender.kept.error, sender.kept.total / 9.0);
    // Of many rows and columns the rounding adds a few per cent to what is lost.
    const std::vector<T> y = low_rank<T>(60, 80, 6, 71);
    Sender<T> six(rank_of(6, true), {60, 80});
    six.send(y);
    EXPECT_LE(six.kept.error, 0.09 * six.kept.total);
}

}  // namespace
}  // namespace lmo
