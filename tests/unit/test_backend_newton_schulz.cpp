// The Newton-Schulz iteration against its equations in double.
#include "tests/unit/newton_schulz_test.h"

namespace lmo {
namespace {

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

}  // namespace
}  // namespace lmo
