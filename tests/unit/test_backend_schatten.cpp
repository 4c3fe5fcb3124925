// Directions of Schatten norms and the ends of the spectrum, against Jacobi rotations in double.
#include <functional>

#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

// x = U S V^T by plain one-sided Jacobi rotations of the rows of the shorter side, in T.
template <typename T>
struct Svd {
    int64_t rows, columns;  // of X: x, or its transpose where it is tall
    bool transposed;
    std::vector<T> x, r;  // R X has orthogonal rows s_i v_i^T; R
    std::vector<T> singular;

    Svd(const Shape& shape, const Values& values)
        : rows(std::min(shape.rows(), shape.columns())),
          columns(std::max(shape.rows(), shape.columns())),
          transposed(shape.rows() > shape.columns()),
          x(values.size()),
          r(rows * rows),
          singular(rows) {
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < columns; ++j) {
                x[i * columns + j] = static_cast<T>(values[place(i, j)]);
            }
            r[i * rows + i] = 1;
        }
        bool changed = true;
        for (int sweep = 0; changed && sweep < 40; ++sweep) {
            changed = false;
            for (int64_t p = 0; p < rows; ++p) {
                for (int64_t q = p + 1; q < rows; ++q) changed |= rotate(p, q);
            }
        }
        for (int64_t i = 0; i < rows; ++i) singular[i] = std::sqrt(product(i, i));
    }

    int64_t place(int64_t i, int64_t j) const {
        return transposed ? j * rows + i : i * columns + j;
    }
    T product(int64_t p, int64_t q) const {
        T sum = 0;
        for (int64_t j = 0; j < columns; ++j) sum += x[p * columns + j] * x[q * columns + j];
        return sum;
    }
    bool rotate(int64_t p, int64_t q) {
        const T a = product(p, p), b = product(q, q), c = product(p, q);
        const T limit = 4 * std::numeric_limits<T>::epsilon() * std::sqrt(T(columns));
        if (!(std::abs(c) > limit * std::sqrt(a * b))) return false;
        const T tau = (b - a) / (2 * c);
        const T t = (tau >= 0 ? T(1) : T(-1)) / (std::abs(tau) + std::sqrt(1 + tau * tau));
        const T cosine = 1 / std::sqrt(1 + t * t), sine = cosine * t;
        const auto turn = [&](T* left, T* right, int64_t count) {
            for (int64_t j = 0; j < count; ++j) {
                const T old = left[j];
                left[j] = cosine * old - sine * right[j];
                right[j] = sine * old + cosine * right[j];
            }
        };
        turn(&x[p * columns], &x[q * columns], columns);
        turn(&r[p * rows], &r[q * rows], rows);
        return true;
    }

    // U diag(weights) V^T in the order of the matrix.
    Values with(const std::vector<T>& weights) const {
        Values out(x.size());
        for (int64_t i = 0; i < rows; ++i) {
            for (int64_t j = 0; j < columns; ++j) {
                T sum = 0;
                for (int64_t k = 0; k < rows; ++k) {
                    if (singular[k] <= 0) continue;
                    sum += r[k * rows + i] * weights[k] * (x[k * columns + j] / singular[k]);
                }
                out[place(i, j)] = sum;
            }
        }
        return out;
    }

    // The direction; values below `share` of the largest count as zero.
    Values direction(double p, double share) const {
        const T top = *std::max_element(singular.begin(), singular.end());
        const int64_t first = std::max_element(singular.begin(), singular.end()) - singular.begin();
        std::vector<T> weights(rows, T(0));
        if (p == 1) {
            weights[first] = 1;
            return with(weights);
        }
        const T power = static_cast<T>(std::isinf(p) ? 0.0 : 1 / (p - 1));  // q - 1
        T sum = 0;
        for (const T s : singular) sum += s > T(share) * top ? std::pow(s / top, power + 1) : 0;
        const T norm = std::pow(sum, 1 / (power + 1));
        for (int64_t i = 0; i < rows; ++i) {
            if (singular[i] > T(share) * top) {
                weights[i] = std::pow(singular[i] / top / norm, power);
            }
        }
        return with(weights);
    }

    double norm(double p) const {
        const T top = *std::max_element(singular.begin(), singular.end());
        if (std::isinf(p)) return top;
        double sum = 0;
        for (const T s : singular) sum += std::pow(double(s / top), p);
        return top * std::pow(sum, 1 / p);
    }
};

double share_of(DType type, const Shape& shape) {
    return 2 * half_ulp(type) * static_cast<double>(std::max(shape.rows(), shape.columns()));
}

const std::vector<Shape> shapes = {{1, 1},  {1, 37}, {37, 1},  {2, 2},  {7, 12},
                                   {12, 7}, {9, 9},  {33, 65}, {65, 33}};
const double exponents[] = {1, 1.01, 1.5, 2, 3, 8, infinity};

class SchattenTest : public BackendTest {
  protected:
    Values run(DType type, const Shape& shape, const Values& values, double p) {
        const Tensor x = put(type, shape, values);
        run({&x, 1}, p);
        return get(x);
    }
    void run(std::span<const Tensor> x, double p) {
        SchattenDirection op{x, p, {}};
        give_workspace(op);
        backend_->schatten_direction(op);
    }
    void check(DType type, const Shape& shape, const Values& any, double p) {
        SCOPED_TRACE(to_string(type) + " " + to_string(shape) + " p " + std::to_string(p));
        const Values values = round_to(type, any);
        const double share = share_of(type, shape);
        expect_accurate(type, run(type, shape, values, p),
                        Svd<double>(shape, values).direction(p, share),
                        Svd<float>(shape, values).direction(p, share), 1e-10);
    }
};

TEST_P(SchattenTest, ShapesAndExponents) {
    for (const DType type : master_types()) {
        for (const Shape& shape : shapes) {
            for (const double p : exponents) check(type, shape, random_values(shape.count(), 3), p);
        }
    }
}

// More rows and columns than a tile of the last product, more pairs than a block has warps.
TEST_P(SchattenTest, LargerMatrices) {
    for (const Shape& shape : {Shape{70, 130}, Shape{131, 69}}) {
        check(DType::f32, shape, random_values(shape.count(), 4), infinity);
        check(DType::f32, shape, random_values(shape.count(), 5), 3);
    }
}

// <x, d> is the dual norm of x, and the norm of d is 1.
TEST_P(SchattenTest, DirectionIsSteepest) {
    for (const DType type : master_types()) {
        const double allowed = type == DType::f64 ? 1e-11 : 1e-5;
        for (const Shape& shape : shapes) {
            const Values x = round_to(type, random_values(shape.count(), 6));
            const Svd<double> svd(shape, x);
            for (const double p : exponents) {
                SCOPED_TRACE(to_string(shape) + " p " + std::to_string(p));
                const Values d = run(type, shape, x, p);
                const double q = std::isinf(p) ? 1 : p == 1 ? infinity : p / (p - 1);
                EXPECT_NEAR(dot(x, d) / svd.norm(q), 1, allowed);
                EXPECT_NEAR(Svd<double>(shape, d).norm(p), 1, allowed);
            }
        }
    }
}

TEST_P(SchattenTest, KnownDirections) {
    const Shape shape{12, 7};
    const Values x = round_to(DType::f32, random_values(84, 7));
    Values frobenius = x;
    for (double& value : frobenius) value /= std::sqrt(dot(x, x));
    EXPECT_LE(largest_difference(run(DType::f32, shape, x, 2), frobenius), 1e-6);
    const Svd<double> svd(shape, x);
    const Values polar = svd.with(std::vector<double>(7, 1.0));
    EXPECT_LE(largest_difference(run(DType::f32, shape, x, infinity), polar), 2e-6);
    // The first of equal ones.
    EXPECT_EQ(run(DType::f32, {2, 3}, {0, 5, 0, 0, 0, 5}, 1), (Values{0, 1, 0, 0, 0, 0}));
    EXPECT_EQ(run(DType::f32, {3, 1}, {0, -5, 0}, 1), (Values{0, -1, 0}));
}

TEST_P(SchattenTest, RanksBelowTheShorterSide) {
    for (const DType type : master_types()) {
        for (const int64_t rank : {1, 4}) {
            const Shape shape{33, 65};
            const Values u = random_values(33 * rank, 1), v = random_values(65 * rank, 2);
            Values x(33 * 65, 0.0);
            for (int64_t i = 0; i < 33; ++i) {
                for (int64_t j = 0; j < 65; ++j) {
                    for (int64_t k = 0; k < rank; ++k) {
                        x[i * 65 + j] += u[i * rank + k] * v[j * rank + k];
                    }
                }
            }
            for (const double p : {1.0, 2.0, 3.0, infinity}) check(type, shape, x, p);
            const Values d = run(type, shape, round_to(type, x), infinity);
            const Svd<double> svd(shape, d);
            int64_t ones = 0;
            for (const double s : svd.singular) ones += std::abs(s - 1) < 1e-4;
            EXPECT_EQ(ones, rank);
            EXPECT_NEAR(dot(d, d), static_cast<double>(rank), 1e-4);
        }
    }
}

TEST_P(SchattenTest, ZerosAndZeroRows) {
    for (const double p : {1.0, 1.5, 2.0, infinity}) {
        EXPECT_EQ(run(DType::f32, {3, 4}, Values(12, 0.0), p), Values(12, 0.0));
        Values x = random_values(35, 8);
        for (int j = 0; j < 7; ++j) x[14 + j] = 0.0;  // row 2
        for (int i = 0; i < 5; ++i) x[7 * i + 3] = 0.0;
        check(DType::f32, {5, 7}, x, p);
    }
}

TEST_P(SchattenTest, GradedValues) {
    Values x = random_values(12 * 20, 9);
    for (size_t k = 0; k < x.size(); ++k) x[k] *= std::pow(4.0, -static_cast<int>(k / 20));
    for (const DType type : master_types()) {
        for (const double p : {1.0, 1.5, 2.0, 4.0}) check(type, {12, 20}, x, p);
    }
}

// The size of the matrix does not matter, not even to the last bit.
TEST_P(SchattenTest, HugeAndTinyMatrices) {
    const Values x = round_to(DType::f32, random_values(84, 10));
    for (const double p : {1.0, 1.5, 2.0, infinity}) {
        const Values plain = run(DType::f32, {7, 12}, x, p);
        for (const int exponent : {120, 60, -60, -90}) {
            Values scaled = x;
            for (double& value : scaled) value = std::ldexp(value, exponent);
            EXPECT_EQ(run(DType::f32, {7, 12}, scaled, p), plain) << exponent;
        }
    }
}

// Whole numbers of the smallest float, whose halves are not there to be rounded to.
TEST_P(SchattenTest, SubnormalMatrices) {
    Values whole = random_values(84, 12), tiny;
    for (double& value : whole) value = std::round(10 * value);
    for (const double value : whole) tiny.push_back(std::ldexp(value, -149));
    for (const double p : {1.5, 3.0, infinity}) {
        EXPECT_EQ(run(DType::f32, {7, 12}, tiny, p), run(DType::f32, {7, 12}, whole, p)) << p;
    }
}

TEST_P(SchattenTest, NanIsNotHidden) {
    for (const double p : {1.5, 2.0, infinity}) {
        Values x = random_values(35, 11);
        x[17] = NAN;
        const Values d = run(DType::f32, {5, 7}, x, p);
        EXPECT_TRUE(std::any_of(d.begin(), d.end(), [](double v) { return std::isnan(v); }));
    }
}

TEST_P(SchattenTest, CompanyAndRepetitionDoNotMatter) {
    std::vector<Tensor> together, again, recorded;
    std::vector<Values> alone;
    for (int64_t i = 0; i < 250; ++i) {
        const Shape shape{1 + i % 4, 1 + i % 7};
        const Values x = random_values(shape.count(), static_cast<uint64_t>(i));
        together.push_back(put(DType::f32, shape, x));
        again.push_back(put_unaligned(DType::f32, shape, x));
        recorded.push_back(put(DType::f32, shape, x));
        if (i % 10 == 0) alone.push_back(run(DType::f32, shape, x, 3));
    }
    run(together, 3);
    run(again, 3);
    SchattenDirection op{recorded, 3, {}};
    give_workspace(op);
    const auto graph = backend_->capture([&] { backend_->schatten_direction(op); });
    graph->launch();
    for (size_t i = 0; i < together.size(); ++i) {
        EXPECT_EQ(get(together[i]), get(again[i]));
        EXPECT_EQ(get(together[i]), get(recorded[i]));
        if (i % 10 == 0) {
            EXPECT_EQ(get(together[i]), alone[i / 10]);
        }
    }
    graph->launch();  // of the directions
    run(together, 3);
    for (size_t i = 0; i < together.size(); ++i) EXPECT_EQ(get(together[i]), get(recorded[i]));
    run(std::span<const Tensor>{}, 3);
}

// ---- the ends of the spectrum -------------------------------------------------------------------

class SingularRangeTest : public BackendTest {
  protected:
    Values run(std::span<const Tensor> x, int iterations, bool smallest = true) {
        const int64_t count = static_cast<int64_t>(x.size());
        SingularRange op{x, iterations, smallest, blank(DType::f64, {count, 2}), {}};
        give_workspace(op);
        backend_->singular_range(op);
        return get(op.out);
    }
    Values run(DType type, const Shape& shape, const Values& values, int iterations,
               bool smallest = true) {
        const Tensor x = put(type, shape, values);
        return run({&x, 1}, iterations, smallest);
    }
};

// The power method as the border describes it, from the start that all backends share.
Values power_method(const Shape& shape, const Values& x, int iterations) {
    const int64_t m = shape.rows(), n = shape.columns();
    const bool tall = m > n;
    const int64_t size = std::min(m, n), other = std::max(m, n);
    const auto at = [&](int64_t i, int64_t j) { return tall ? x[j * n + i] : x[i * n + j]; };
    const auto search = [&](double shift, double sign) {
        Values v(size);
        for (int64_t i = 0; i < size; ++i) {
            const double t = 0.6180339887498949 * static_cast<double>(i);
            v[i] = 0.5 + t - std::floor(t);
        }
        for (int k = 0;; ++k) {
            const double length = std::sqrt(dot(v, v));
            for (double& value : v) value /= length;
            Values image(other, 0.0), next(size, 0.0);
            for (int64_t i = 0; i < size; ++i) {
                for (int64_t j = 0; j < other; ++j) image[j] += at(i, j) * v[i];
            }
            if (k == iterations) return std::sqrt(dot(image, image));
            for (int64_t i = 0; i < size; ++i) {
                for (int64_t j = 0; j < other; ++j) next[i] += at(i, j) * image[j];
                next[i] = shift * v[i] + sign * next[i];
            }
            v = next;
        }
    };
    const double high = search(0, 1);
    return {high, std::min(high, search(high * high, -1))};
}

TEST_P(SingularRangeTest, StepsOfThePowerMethod) {
    for (const DType type : master_types()) {
        for (const Shape& shape : shapes) {
            const Values x = round_to(type, random_values(shape.count(), 1));
            const Svd<double> svd(shape, x);
            const auto [low, high] = std::minmax_element(svd.singular.begin(), svd.singular.end());
            double before = 0;
            for (const int iterations : {0, 1, 2, 7}) {
                SCOPED_TRACE(to_string(shape) + " " + std::to_string(iterations));
                const Values out = run(type, shape, x, iterations);
                const Values exact = power_method(shape, x, iterations);
                // A vector of one has nothing orthogonal to go to.
                const bool single = std::min(shape.rows(), shape.columns()) == 1;
                EXPECT_NEAR(out[0], exact[0], 1e-9 * *high);
                if (!single) {
                    EXPECT_NEAR(out[1], exact[1], 1e-9 * *high);
                }
                EXPECT_LE(out[0], *high * (1 + 1e-12));
                EXPECT_GE(out[0], before * (1 - 1e-12));
                if (!single) {
                    EXPECT_GE(out[1], *low * (1 - 1e-9));
                }
                EXPECT_LE(out[1], out[0]);
                before = out[0];
                EXPECT_EQ(run(type, shape, x, iterations, false), (Values{out[0], 0.0}));
            }
        }
    }
}

TEST_P(SingularRangeTest, FindsTheEnds) {
    // H diag(s) H' with reflections H of random vectors.
    const Values s = {3, 1.5, 1, 0.8, 0.25};
    for (const bool tall : {false, true}) {
        const Values u = random_values(5, 1), v = random_values(8, 2);
        Values x(40);
        const auto reflection = [](const Values& w, int64_t i, int64_t j) {
            return (i == j ? 1.0 : 0.0) - 2 * w[i] * w[j] / dot(w, w);
        };
        for (int64_t i = 0; i < 5; ++i) {
            for (int64_t j = 0; j < 8; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < 5; ++k) {
                    sum += reflection(u, i, k) * s[k] * reflection(v, k, j);
                }
                x[tall ? j * 5 + i : i * 8 + j] = sum;
            }
        }
        const Values out = run(DType::f32, tall ? Shape{8, 5} : Shape{5, 8}, x, 120);
        EXPECT_NEAR(out[0], 3, 1e-6);
        EXPECT_NEAR(out[1], 0.25, 1e-5);
    }
}

TEST_P(SingularRangeTest, ZerosVectorsAndExtremes) {
    EXPECT_EQ(run(DType::f32, {3, 4}, Values(12, 0.0), 3), (Values{0, 0}));
    EXPECT_NEAR(run(DType::f32, {2}, {3, 4}, 2)[0], 5, 1e-12);
    const Values x = round_to(DType::f32, random_values(84, 3));
    const Values plain = run(DType::f32, {7, 12}, x, 5);
    for (const int exponent : {100, -100}) {
        Values scaled = x;
        for (double& value : scaled) value = std::ldexp(value, exponent);
        const Values out = run(DType::f32, {7, 12}, scaled, 5);
        EXPECT_NEAR(std::ldexp(out[0], -exponent), plain[0], 1e-12);
        EXPECT_NEAR(std::ldexp(out[1], -exponent), plain[1], 1e-12);
    }
}

TEST_P(SingularRangeTest, CompanyAndRepetitionDoNotMatter) {
    std::vector<Tensor> together;
    for (int64_t i = 0; i < 270; ++i) {  // more than one launch takes
        const Shape shape{1 + i % 5, 1 + i % 7};
        together.push_back(put(DType::f32, shape, random_values(shape.count(), i)));
    }
    const Values out = run(together, 0);
    for (size_t i = 0; i < together.size(); i += 19) {
        const Values alone = run({&together[i], 1}, 0);
        EXPECT_EQ(alone, (Values{out[2 * i], out[2 * i + 1]}));
    }
    SingularRange op{together, 0, true, blank(DType::f64, {270, 2}), {}};
    give_workspace(op);
    const auto graph = backend_->capture([&] { backend_->singular_range(op); });
    graph->launch();
    EXPECT_EQ(get(op.out), out);
    EXPECT_TRUE(run(std::span<const Tensor>{}, 2).empty());
}

LMO_ON_ALL_BACKENDS(SchattenTest);
LMO_ON_ALL_BACKENDS(SingularRangeTest);

}  // namespace
}  // namespace lmo
