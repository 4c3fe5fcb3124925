// The Newton-Schulz iteration against its equations in double, for each type of the matrices
// inside that a backend offers.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

using Steps = std::vector<NewtonSchulzStep>;

const Steps jordan(5, {3.4445, -4.7750, 2.0315});
const Steps cubic = {{3.3656576, -3.3420992, 0}, {2.5744352, -1.4957376, 0}, {1.5, -0.5, 0}};

// a [m, k] times b, [k, n] or, transposed, [n, k]; sums in Sum.
template <typename Sum>
Values multiply(const Values& a, const Values& b, bool transposed, int64_t m, int64_t k,
                int64_t n) {
    Values c(static_cast<size_t>(m * n));
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            Sum sum = 0;
            for (int64_t l = 0; l < k; ++l) {
                sum += static_cast<Sum>(a[i * k + l]) *
                       static_cast<Sum>(b[transposed ? j * k + l : l * n + j]);
            }
            c[i * n + j] = sum;
        }
    }
    return c;
}

Values transposed(const Values& a, int64_t m, int64_t n) {
    Values t(a.size());
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) t[j * m + i] = a[i * n + j];
    }
    return t;
}

// How an iteration is to be run.
struct Iteration {
    Steps steps;
    double norm_scale = 1.01, eps = 1e-7;
    NewtonSchulzForm form = NewtonSchulzForm::automatic;
    std::vector<int> restarts = {};

    bool restarts_at(size_t step) const {
        return std::find(restarts.begin(), restarts.end(), static_cast<int>(step)) !=
               restarts.end();
    }
};

// Every matrix rounded to `type` and summed in Sum.
template <typename Sum>
struct Rounded {
    int64_t m, n;  // m <= n
    DType type;

    Values gram(const Values& x) const {
        return round_to(type, multiply<Sum>(x, x, true, m, n, m));
    }
    Values squares(const Values& a, const Values& b) const {
        return round_to(type, multiply<Sum>(a, b, false, m, m, m));
    }
    Values apply(const Values& q, const Values& x) const {
        return round_to(type, multiply<Sum>(q, x, false, m, m, n));
    }
    // b A + c A^2, and a I besides where `with_identity`
    Values polynomial(const Values& a, const NewtonSchulzStep& step, bool with_identity) const {
        Values mixed = round_to(type, multiply<Sum>(a, a, true, m, m, m));
        for (int64_t i = 0; i < m * m; ++i) mixed[i] = step.b * a[i] + step.c * mixed[i];
        for (int64_t i = 0; with_identity && i < m; ++i) mixed[i * m + i] += step.a;
        return round_to(type, mixed);
    }

    // The equations.
    Values standard(Values x, const Iteration& how) const {
        for (const NewtonSchulzStep& step : how.steps) {
            Values next = multiply<Sum>(polynomial(gram(x), step, false), x, false, m, m, n);
            for (int64_t i = 0; i < m * n; ++i) next[i] += step.a * x[i];
            x = round_to(type, next);
        }
        return x;
    }
    Values by_gram(Values x, const Iteration& how) const {
        Values a, q;
        for (size_t i = 0; i < how.steps.size(); ++i) {
            if (how.restarts_at(i)) {
                x = apply(q, x);
                q.clear();
            }
            if (q.empty()) a = gram(x);
            const Values p = polynomial(a, how.steps[i], true);
            q = q.empty() ? p : squares(q, p);
            a = squares(squares(a, p), p);
        }
        return q.empty() ? x : apply(q, x);
    }
};

template <typename Sum>
Values newton_schulz(Values x, int64_t m, int64_t n, const Iteration& how, DType type) {
    const bool tall = m > n;
    if (tall) {
        x = transposed(x, m, n);
        std::swap(m, n);
    }
    double squares = 0;
    for (const double value : x) squares += value * value;
    for (double& value : x) value /= std::sqrt(squares) * how.norm_scale + how.eps;
    const Rounded<Sum> rounded{m, n, type};
    x = round_to(type, x);
    x = how.form == NewtonSchulzForm::gram ? rounded.by_gram(x, how) : rounded.standard(x, how);
    return tall ? transposed(x, m, n) : x;
}

// FlashAttention's criterion for all matrices [m, n] of a list together. The plain algorithm may be
// lucky, most of all on the one singular value of a vector: room for some roundings.
void expect_close(DType inner, const std::vector<Values>& actual, const std::vector<Values>& x,
                  int64_t m, int64_t n, const Iteration& how) {
    SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + ", " + to_string(inner));
    Iteration equations = how;
    equations.form = NewtonSchulzForm::standard;
    double size = 0, error = 0, plain_error = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        const Values exact = newton_schulz<double>(x[i], m, n, equations, DType::f64);
        const Values plain = newton_schulz<float>(x[i], m, n, how, inner);
        size = std::max(size, largest(exact));
        error = std::max(error, largest_difference(actual[i], exact));
        plain_error = std::max(plain_error, largest_difference(plain, exact));
    }
    if (inner == DType::f64) {
        EXPECT_LE(error, 1e-12 * size);
    } else {
        const double roundings = std::min(m, n) == 1 ? 16 : 4;
        EXPECT_LE(error, 2 * plain_error + roundings * half_ulp(inner) * size);
    }
}

class NewtonSchulzTest : public BackendTest {
  protected:
    // f64: matrices of that type, `inner` stays f32.
    std::vector<DType> inner_types() const {
        std::vector<DType> types;
        if (has_fp64()) types.push_back(DType::f64);
        for (const DType type : {DType::f16, DType::bf16, DType::f32}) {  // CPUs: few have bf16
            if (backend_->has_newton_schulz(type)) types.push_back(type);
        }
        return types;
    }

    std::vector<Values> get_list(const std::vector<Tensor>& list) {
        std::vector<Values> values;
        for (const Tensor& tensor : list) values.push_back(get(tensor));
        return values;
    }

    Tensor put_matrix(DType inner, Shape shape, const Values& x) {
        return put(inner == DType::f64 ? DType::f64 : DType::f32, shape, x);
    }

    void run(DType inner, const std::vector<Tensor>& list, const Iteration& how) {
        NewtonSchulz op{list,     how.steps,   how.norm_scale,
                        how.eps,  {},          inner == DType::f64 ? DType::f32 : inner,
                        how.form, how.restarts};
        give_workspace(op);
        backend_->newton_schulz(op);
    }

    // A list of matrices of one shape.
    void check(DType inner, const std::vector<Tensor>& list, const Iteration& how) {
        const std::vector<Values> old = get_list(list);
        run(inner, list, how);
        expect_close(inner, get_list(list), old, list[0].shape[0], list[0].shape[1], how);
    }

    // Random matrices.
    void check(DType inner, int64_t m, int64_t n, const Iteration& how, double size = 1,
               uint64_t matrices = 3) {
        std::vector<Tensor> list;
        for (uint64_t i = 0; i < matrices; ++i) {
            list.push_back(put_matrix(inner, {m, n}, random_values(m * n, 7 + i, size)));
        }
        check(inner, list, how);
    }
};

TEST_P(NewtonSchulzTest, AllShapesAndTypes) {
    for (const DType inner : inner_types()) {
        for (const auto& [m, n] :
             {std::pair{1, 1}, std::pair{1, 7}, std::pair{9, 1}, std::pair{8, 8}, std::pair{40, 40},
              std::pair{33, 130}, std::pair{130, 33}, std::pair{96, 70}, std::pair{64, 160},
              std::pair{50, 131}}) {
            check(inner, m, n, {jordan});
        }
    }
}

// Not in bf16, which has too few digits for it.
TEST_P(NewtonSchulzTest, GramFormIsTheSamePolynomial) {
    for (const DType inner : inner_types()) {
        if (inner == DType::bf16) continue;
        for (const auto& [m, n] : {std::pair{1, 7}, std::pair{8, 8}, std::pair{33, 130},
                                   std::pair{130, 33}, std::pair{64, 160}}) {
            for (const std::vector<int>& restarts :
                 {std::vector<int>{3}, std::vector<int>{1, 2, 4}}) {
                check(inner, m, n, {jordan, 1.01, 1e-7, NewtonSchulzForm::gram, restarts});
            }
        }
        const NewtonSchulzForm gram = NewtonSchulzForm::gram;
        check(inner, 24, 50, {cubic, 1.01, 1e-7, gram, {1}});
        check(inner, 50, 24, {{jordan[0], cubic[0], jordan[0]}, 1.01, 1e-7, gram, {}});
        check(inner, 30, 17, {Steps{}, 1.01, 1e-7, gram, {}});
    }
}

// Sides that a GPU's own symmetric products take, and the gram form by its own choice.
TEST_P(NewtonSchulzTest, LargeMatrices) {
    const DType inner = inner_types().front();
    const Steps steps(2, jordan[0]);
    check(inner, 264, 272, {steps}, 1, 1);
    check(inner, 400, 260, {steps, 1.01, 1e-7, NewtonSchulzForm::automatic, {1}}, 1, 1);
}

// What it says it does, in operations.
TEST_P(NewtonSchulzTest, TheGramFormTakesFewerOperations) {
    const DType inner = backend_->preferred_newton_schulz();
    const std::vector<int> restarts = {2};
    const auto flops = [&](NewtonSchulzForm form, int64_t m, int64_t n) {
        const Tensor x{nullptr, DType::f32, {m, n}};
        return backend_->executed_flops(
            NewtonSchulz{{&x, 1}, jordan, 1.0, 1e-7, {}, inner, form, restarts});
    };
    const auto ratio = [&](int64_t m, int64_t n) {
        return flops(NewtonSchulzForm::gram, m, n) / flops(NewtonSchulzForm::standard, m, n);
    };
    EXPECT_LT(ratio(768, 2304), 0.85);
    EXPECT_EQ(ratio(768, 2304), ratio(2304, 768));
    EXPECT_GT(ratio(768, 768), 0.99);
}

TEST_P(NewtonSchulzTest, CubicStepsAndNone) {
    for (const DType inner : inner_types()) {
        check(inner, 24, 50, {cubic});
        check(inner, 50, 24, {{jordan[0], cubic[0], jordan[0]}});
        check(inner, 30, 17, {Steps{}});
    }
}

TEST_P(NewtonSchulzTest, HugeAndTinyEntries) {
    for (const DType inner : inner_types()) {
        for (const double size : {1e30, 1e-30}) check(inner, 20, 33, {jordan, 1.01, 0}, size);
        check(inner, 33, 20, {jordan}, 1e30);
        check(inner, 20, 33, {jordan}, 1e-30);  // next to nothing remains, or nothing
    }
}

// On a matrix with orthogonal rows scaled by s, the iteration acts on s alone.
class NewtonSchulzOracleTest : public NewtonSchulzTest {};
TEST_P(NewtonSchulzOracleTest, IsTheScalarMapOnSingularValues) {
    const Values s = {3.0, 1.0, 0.25, 0.01};
    double norm = 0;
    for (const double value : s) norm += value * value;
    norm = std::sqrt(norm);
    const double angle = 0.7;  // rotates columns 0, 4 and 1, 5: the right factor is not trivial
    Values x(4 * 6, 0.0);
    for (int i = 0; i < 4; ++i) {
        const double c = i < 2 ? std::cos(angle) : 1.0;
        x[i * 6 + i] = s[i] * c;
        if (i < 2) x[i * 6 + i + 4] = s[i] * std::sin(angle);
    }
    const Tensor matrix = put(DType::f64, {4, 6}, x);
    run(DType::f64, {matrix}, {jordan, 1.0, 0.0});
    const Values out = get(matrix);
    for (int i = 0; i < 4; ++i) {
        double y = s[i] / norm;
        for (const auto& [a, b, c] : jordan) y = a * y + b * y * y * y + c * y * y * y * y * y;
        const double length = std::hypot(out[i * 6 + i], i < 2 ? out[i * 6 + i + 4] : 0.0);
        EXPECT_NEAR(length, y, 1e-13);
    }
}

TEST_P(NewtonSchulzTest, ZeroStaysZero) {
    for (const DType inner : inner_types()) {
        for (const Shape& shape : {Shape{3, 5}, Shape{5, 3}, Shape{8, 8}}) {
            const Tensor x = put_matrix(inner, shape, Values(shape.count(), 0.0));
            run(inner, {x}, {jordan});
            EXPECT_EQ(get(x), Values(shape.count(), 0.0));
        }
    }
}

// A matrix with NaN or infinity in it is lost; those beside it keep their bits.
TEST_P(NewtonSchulzTest, NanStaysInItsMatrix) {
    for (const DType inner : inner_types()) {
        for (const auto& [m, n] : {std::pair{9, 20}, std::pair{20, 9}}) {
            std::vector<std::vector<Values>> results;
            for (const float bad : {0.0f, NAN, INFINITY}) {
                std::vector<Tensor> list;
                for (uint64_t i = 0; i < 3; ++i) {
                    Values x = random_values(m * n, i);
                    if (i == 1) x[m * n - 1] = bad;
                    list.push_back(put_matrix(inner, {m, n}, x));
                }
                run(inner, list, {jordan});
                results.push_back({get(list[0]), get(list[1]), get(list[2])});
            }
            for (const size_t with : {1, 2}) {
                EXPECT_EQ(results[with][0], results[0][0]);
                EXPECT_EQ(results[with][2], results[0][2]);
                for (const double value : results[with][1]) EXPECT_TRUE(std::isnan(value));
            }
            EXPECT_FALSE(std::isnan(results[0][1][0]));
        }
    }
}

TEST_P(NewtonSchulzTest, EqualBitsEachTime) {
    for (const DType inner : inner_types()) {
        const auto once = [&] {
            const Tensor x = put_matrix(inner, {2, 70, 90}, random_values(12600, 1));
            run(inner, {x.slice(0, {70, 90}), x.slice(6300, {70, 90})}, {jordan});
            return get(x);
        };
        EXPECT_EQ(once(), once());
    }
    const auto single = [&] {
        const Tensor x = put(DType::f32, {70, 90}, random_values(6300, 1));
        run(DType::f32, {x}, {jordan});
        return get(x);
    };
    const Values first = single();
    use_threads(1);
    EXPECT_LE(largest_difference(first, single()), 1e-4 * largest(first));
}

// Tiles of a CPU in bf16.
class NewtonSchulzCpuTest : public NewtonSchulzTest {};
// More rows, columns and depth than are worked on at once, and rests of them.
TEST_P(NewtonSchulzCpuTest, Bf16SidesThatNothingDivides) {
    if (!backend_->has_newton_schulz(DType::bf16)) GTEST_SKIP() << "no bf16 here";
    const Steps steps(2, jordan[0]);
    for (const auto& [m, n] : {std::pair{61, 803}, std::pair{803, 61}, std::pair{113, 119}}) {
        check(DType::bf16, m, n, {steps}, 1, 1);
    }
}

// Rows of 4 KiB have a stride of their own.
TEST_P(NewtonSchulzCpuTest, Bf16RowsAsLongAsPages) {
    if (!backend_->has_newton_schulz(DType::bf16)) GTEST_SKIP() << "no bf16 here";
    check(DType::bf16, 35, 2048, {{jordan[0]}}, 1, 1);
}

// On a CPU in bf16 each element is summed in one order, whoever does it, in a list or alone; but
// not by a library.
TEST_P(NewtonSchulzCpuTest, Bf16HasTheBitsOfAnyThreads) {
    if (!backend_->has_newton_schulz(DType::bf16)) GTEST_SKIP() << "no bf16 here";
    if (backend_->describe().find("AMX") != std::string::npos) GTEST_SKIP() << "AMX by oneDNN";
    for (const auto& [m, n] : {std::pair{150, 270}, std::pair{270, 150}}) {
        const auto list = [&, m = m, n = n](int64_t count) {
            const Tensor x = put(DType::f32, {3, m, n}, random_values(3 * m * n, 1));
            std::vector<Tensor> matrices;
            for (int64_t i = 0; i < count; ++i) matrices.push_back(x.slice(i * m * n, {m, n}));
            run(DType::bf16, matrices, {jordan});
            return get(matrices[0]);
        };
        use_threads(1);
        const Values one = list(1);
        EXPECT_EQ(list(3), one);
        for (const int threads : {2, 3}) {
            use_threads(threads);
            EXPECT_EQ(list(1), one);
            EXPECT_EQ(list(3), one);
        }
    }
}

// The transpose of a matrix has the transpose of its result, to the bit.
TEST_P(NewtonSchulzCpuTest, Bf16TakesTallMatricesAsWideOnes) {
    if (!backend_->has_newton_schulz(DType::bf16)) GTEST_SKIP() << "no bf16 here";
    const int64_t m = 45, n = 101;
    const Values values = random_values(m * n, 1);
    const Tensor wide = put(DType::f32, {m, n}, values);
    const Tensor tall = put(DType::f32, {n, m}, transposed(values, m, n));
    for (const Tensor& x : {wide, tall}) run(DType::bf16, {x}, {jordan});
    EXPECT_EQ(transposed(get(wide), m, n), get(tall));
}

// Parameters lie side by side, so a matrix may start at any element; what is between stays.
TEST_P(NewtonSchulzTest, MatricesAtAnyAddress) {
    for (const DType inner : inner_types()) {
        for (const auto& [m, n] : {std::pair{12, 20}, std::pair{20, 12}, std::pair{7, 13}}) {
            const int64_t each = m * n + 3;
            const Tensor all = put_matrix(inner, {5 * each}, random_values(5 * each, 1));
            const Values old = get(all);
            std::vector<Tensor> list;
            for (int64_t i = 0; i < 5; ++i) list.push_back(all.slice(i * each + 1, {m, n}));
            check(inner, list, {jordan});
            const Values now = get(all);
            for (int64_t i = 0; i < 5; ++i) {
                EXPECT_EQ(now[i * each], old[i * each]);
                EXPECT_EQ(now[i * each + m * n + 1], old[i * each + m * n + 1]);
            }
        }
    }
}

// More matrices than are worked on together.
TEST_P(NewtonSchulzTest, LongLists) {
    for (const DType inner : inner_types()) {
        const int64_t count = 260, m = 3, n = 5;
        const Tensor all = put_matrix(inner, {count, m, n}, random_values(count * m * n, 1));
        std::vector<Tensor> list;
        for (int64_t i = 0; i < count; ++i) list.push_back(all.slice(i * m * n, {m, n}));
        check(inner, list, {jordan});
    }
}

TEST_P(NewtonSchulzTest, LongListsTakeNoMoreMemory) {
    for (const auto& [m, n] : {std::pair{768, 2048}, std::pair{2048, 768}}) {
        const auto bytes = [&, m = m, n = n](size_t matrices) {
            const std::vector<Tensor> list(matrices, Tensor{nullptr, DType::f32, {m, n}});
            return backend_->workspace_bytes(
                NewtonSchulz{list, jordan, 1.0, 1e-7, {}, backend_->preferred_newton_schulz()});
        };
        EXPECT_GT(bytes(1), 4 << 20);
        EXPECT_LT(bytes(36), 300 << 20);
        EXPECT_LT(bytes(1000), 320 << 20);
    }
}

TEST_P(NewtonSchulzTest, ARecordedIterationRunsEachTime) {
    const Values values = random_values(10 * 18, 1);
    const DType inner = backend_->preferred_newton_schulz();
    const Tensor x = put(DType::f32, {10, 18}, values);
    const std::vector<Tensor> list = {x};
    NewtonSchulz op{list, jordan, 1.0, 1e-7, {}, inner};
    give_workspace(op);
    const auto graph = backend_->capture([&] { backend_->newton_schulz(op); });
    EXPECT_EQ(get(x), round_to(DType::f32, values));
    graph->launch();
    const Values once = get(x);
    backend_->copy(x, put(DType::f32, {10, 18}, values));
    graph->launch();
    EXPECT_EQ(get(x), once);
    expect_close(inner, {once}, {round_to(DType::f32, values)}, 10, 18, {jordan, 1.0});
}

LMO_ON_ALL_BACKENDS(NewtonSchulzTest);
LMO_ON_THE_ORACLE(NewtonSchulzOracleTest);
LMO_ON_THE_ORACLE(NewtonSchulzCpuTest);

}  // namespace
}  // namespace lmo
