// What the compressors choose and compute: the largest elements, the products and the basis of a
// low-rank approximation.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "llmc/core/random.h"
#include "llmc/dist/largest.h"
#include "llmc/dist/low_rank.h"

namespace lmo {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

uint64_t below(uint64_t limit, uint64_t stream, uint64_t index) {
    return random_bits(7, stream, index) % limit;
}

using Types = ::testing::Types<float, double>;

template <class T>
class LargestOf : public ::testing::Test {};
TYPED_TEST_SUITE(LargestOf, Types);

TYPED_TEST(LargestOf, AgreesWithASort) {
    using T = TypeParam;
    for (uint64_t t = 0; t < 300; ++t) {
        const auto count = 1 + below(t < 290 ? 50 : 20000, 10, t);
        const auto kept = 1 + below(count, 11, t);
        std::vector<T> x(count);
        for (size_t i = 0; i < count; ++i) {
            double value = random_normal(7, 100 + t, i);
            if (t % 3 == 0) value = std::round(value);                   // many equal ones
            if (t % 5 == 0) value = std::ldexp(1.0 + 1e-5 * value, 40);  // one bucket
            x[i] = static_cast<T>(value);
            if (t % 7 == 0 && i % 11 == 3) x[i] = static_cast<T>(i % 2 ? kInfinity : -std::nan(""));
        }
        std::vector<int64_t> order(count);
        std::iota(order.begin(), order.end(), int64_t{0});
        std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
            const T left = std::fabs(x[static_cast<size_t>(a)]);
            const T right = std::fabs(x[static_cast<size_t>(b)]);
            return std::isnan(left) ? !std::isnan(right) : left > right;
        });
        order.resize(kept);
        std::sort(order.begin(), order.end());
        ASSERT_EQ(largest(x.data(), static_cast<int64_t>(count), static_cast<int64_t>(kept)), order)
            << "trial " << t;
    }
}

template <class T>
class LowRankOf : public ::testing::Test {
  public:
    static std::vector<T> random(int64_t count, uint64_t stream) {
        std::vector<T> x(static_cast<size_t>(count));
        for (size_t i = 0; i < x.size(); ++i) x[i] = static_cast<T>(random_normal(7, stream, i));
        return x;
    }
    static constexpr double epsilon = std::numeric_limits<T>::epsilon();
};
TYPED_TEST_SUITE(LowRankOf, Types);

TYPED_TEST(LowRankOf, Products) {
    using T = TypeParam;
    for (const LowRankShape s : {LowRankShape{1, 1, 1}, LowRankShape{5, 9, 2},
                                 LowRankShape{40, 19, 7}, LowRankShape{33, 601, 8}}) {
        const auto x = this->random(s.rows * s.columns, 20),
                   q = this->random(s.rank * s.columns, 21), p = this->random(s.rows * s.rank, 22);
        std::vector<T> xq(p.size()), px(q.size()), pq(x.size()), replaced = x;
        multiply_transposed(s, x.data(), q.data(), xq.data());
        transposed_multiply(s, p.data(), x.data(), px.data());
        multiply(s, p.data(), q.data(), pq.data());
        const double error = replace_by_product(s, p.data(), q.data(), replaced.data());
        EXPECT_TRUE(replaced == pq);
        const auto at = [](const std::vector<T>& a, int64_t width, int64_t i, int64_t j) {
            return static_cast<double>(a[static_cast<size_t>(i * width + j)]);
        };
        const double near =
            100.0 * this->epsilon * std::sqrt(static_cast<double>(s.rows + s.columns));
        double distance = 0.0;
        for (int64_t i = 0; i < s.rows; ++i) {
            for (int64_t k = 0; k < s.rank; ++k) {
                double sum = 0.0;
                for (int64_t j = 0; j < s.columns; ++j) {
                    sum += at(x, s.columns, i, j) * at(q, s.columns, k, j);
                }
                ASSERT_NEAR(at(xq, s.rank, i, k), sum, near);
            }
            for (int64_t j = 0; j < s.columns; ++j) {
                double sum = 0.0;
                for (int64_t k = 0; k < s.rank; ++k) {
                    sum += at(p, s.rank, i, k) * at(q, s.columns, k, j);
                }
                ASSERT_NEAR(at(pq, s.columns, i, j), sum, near);
                distance += std::pow(sum - at(x, s.columns, i, j), 2);
            }
        }
        for (int64_t k = 0; k < s.rank; ++k) {
            for (int64_t j = 0; j < s.columns; ++j) {
                double sum = 0.0;
                for (int64_t i = 0; i < s.rows; ++i) {
                    sum += at(p, s.rank, i, k) * at(x, s.columns, i, j);
                }
                ASSERT_NEAR(at(px, s.columns, k, j), sum, near);
            }
        }
        EXPECT_NEAR(error, distance, 100.0 * this->epsilon * distance);
    }
}

TYPED_TEST(LowRankOf, OrthonormalColumns) {
    const LowRankShape s{50, 400, 6};
    auto p = this->random(s.rows * s.rank, 23);
    for (int64_t i = 0; i < s.rows; ++i) {
        auto* row = p.data() + i * s.rank;
        row[1] = row[0] + 1e-3f * row[1];  // nearly parallel
        row[2] = 0;
        row[4] = 3 * row[0] - row[3];  // dependent
        row[5] *= 1e-20f;
    }
    orthonormalise(s, p.data());
    const std::vector<double> gram = gram_matrix(s, p.data());
    for (int64_t i = 0; i < s.rank; ++i) {
        for (int64_t j = 0; j < s.rank; ++j) {
            const bool one = i == j && i != 2 && i != 4;
            EXPECT_NEAR(gram[static_cast<size_t>(i * s.rank + j)], one ? 1.0 : 0.0,
                        4.0 * this->epsilon);
        }
    }
    EXPECT_EQ(p[2], 0);
    EXPECT_EQ(p[4], 0);
}

// What is left of X is orthogonal to each column at the time its row was fitted.
TYPED_TEST(LowRankOf, RowsFitWhatIsLeft) {
    using T = TypeParam;
    const LowRankShape s{30, 500, 4};
    const auto x = this->random(s.rows * s.columns, 24);
    auto p = this->random(s.rows * s.rank, 25);
    for (int64_t i = 0; i < s.rows; ++i) {
        p[static_cast<size_t>(i * s.rank + 1)] += p[static_cast<size_t>(i * s.rank)];
        p[static_cast<size_t>(i * s.rank + 2)] = 0;
    }
    std::vector<T> q(static_cast<size_t>(s.rank * s.columns)), zeros(q.size()), sum(x.size());
    transposed_multiply(s, p.data(), x.data(), q.data());
    const std::vector<double> gram = gram_matrix(s, p.data());
    std::vector<T> left = x;
    for (int64_t k = 0; k < s.rank; ++k) {
        fit_row(s, gram, k, q.data());
        const T* row = q.data() + k * s.columns;
        if (k == 2) {
            EXPECT_EQ(std::count(row, row + s.columns, T{}), s.columns);
        }
        for (int64_t i = 0; i < s.rows; ++i) {
            for (int64_t j = 0; j < s.columns; ++j) {
                left[static_cast<size_t>(i * s.columns + j)] -=
                    p[static_cast<size_t>(i * s.rank + k)] * row[j];
            }
        }
        for (int64_t j = 0; j < s.columns; ++j) {
            double along = 0.0;
            for (int64_t i = 0; i < s.rows; ++i) {
                along += static_cast<double>(p[static_cast<size_t>(i * s.rank + k)]) *
                         static_cast<double>(left[static_cast<size_t>(i * s.columns + j)]);
            }
            ASSERT_NEAR(along, 0.0, 300.0 * this->epsilon) << k;
        }
    }
}

}  // namespace
}  // namespace lmo
