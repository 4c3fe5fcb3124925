// Matrix products: every transpose, type, batch and corner shape against a plain triple loop.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

struct Case {
    int64_t batch, m, n, k;
    bool transpose_a, transpose_b;
    double alpha, beta;
};

template <typename T>
Values reference(const Case& p, const Values& a, const Values& b, const Values& c) {
    Values out(c.size());
    for (int64_t s = 0; s < p.batch; ++s) {
        for (int64_t i = 0; i < p.m; ++i) {
            for (int64_t j = 0; j < p.n; ++j) {
                T sum = 0;
                for (int64_t l = 0; l < p.k; ++l) {
                    const int64_t at = p.transpose_a ? l * p.m + i : i * p.k + l;
                    const int64_t bt = p.transpose_b ? j * p.k + l : l * p.n + j;
                    sum += static_cast<T>(a[s * p.m * p.k + at]) *
                           static_cast<T>(b[s * p.k * p.n + bt]);
                }
                const int64_t at = (s * p.m + i) * p.n + j;
                const T old = p.beta == 0 ? T(0) : static_cast<T>(p.beta) * static_cast<T>(c[at]);
                out[at] = static_cast<T>(p.alpha) * sum + old;
            }
        }
    }
    return out;
}

Shape shape_of(int64_t batch, int64_t rows, int64_t columns) {
    return batch > 0 ? Shape{batch, rows, columns} : Shape{rows, columns};
}

class GemmTest : public BackendTest {
  protected:
    // Of the operands and of the result.
    std::vector<std::pair<DType, DType>> types() const {
        std::vector<std::pair<DType, DType>> pairs = {
            {DType::f32, DType::f32}, {DType::bf16, DType::f32}, {DType::bf16, DType::bf16}};
        if (has_fp64()) pairs.push_back({DType::f64, DType::f64});
        return pairs;
    }

    // batch 0: rank 2.
    void check(Case p, DType compute, DType c_type) {
        const int64_t batch = std::max<int64_t>(p.batch, 1);
        const Values a = round_to(compute, random_values(batch * p.m * p.k, 1));
        const Values b = round_to(compute, random_values(batch * p.k * p.n, 2));
        const Values c = round_to(c_type, p.beta == 0 ? Values(batch * p.m * p.n, NAN)
                                                      : random_values(batch * p.m * p.n, 3));
        Gemm op;
        op.a = put(compute,
                   p.transpose_a ? shape_of(p.batch, p.k, p.m) : shape_of(p.batch, p.m, p.k), a);
        op.b = put(compute,
                   p.transpose_b ? shape_of(p.batch, p.n, p.k) : shape_of(p.batch, p.k, p.n), b);
        op.c = put(c_type, shape_of(p.batch, p.m, p.n), c);
        op.transpose_a = p.transpose_a;
        op.transpose_b = p.transpose_b;
        op.alpha = p.alpha;
        op.beta = p.beta;
        give_workspace(op);
        backend_->gemm(op);
        p.batch = batch;
        SCOPED_TRACE(std::to_string(p.m) + " x " + std::to_string(p.n) + " over " +
                     std::to_string(p.k) + (p.transpose_a ? ", A^T" : "") +
                     (p.transpose_b ? ", B^T" : ""));
        expect_accurate(c_type, get(op.c), reference<double>(p, a, b, c),
                        reference<float>(p, a, b, c));
    }
};

TEST_P(GemmTest, AllTransposesTypesAndScales) {
    for (const auto& [compute, c_type] : types()) {
        for (const bool ta : {false, true}) {
            for (const bool tb : {false, true}) {
                for (const auto& [alpha, beta] :
                     {std::pair{1.0, 0.0}, std::pair{1.0, 1.0}, std::pair{-0.5, 0.25}}) {
                    check({0, 37, 53, 65, ta, tb, alpha, beta}, compute, c_type);
                }
            }
        }
    }
}

TEST_P(GemmTest, CornerShapes) {
    for (const auto& [compute, c_type] : types()) {
        check({0, 1, 1, 1, false, false, 1, 0}, compute, c_type);
        check({0, 1, 131, 7, false, true, 1, 0}, compute, c_type);
        check({0, 131, 1, 7, true, false, 1, 1}, compute, c_type);
        check({0, 5, 300, 1, false, false, 1, 0}, compute, c_type);
        check({0, 150, 130, 260, true, true, 1, 0}, compute, c_type);
        check({0, 3, 5, 20000, false, true, 1, 1}, compute, c_type);  // a long sum, few results
        check({0, 24, 257, 40, false, true, 1, 0}, compute, c_type);  // a vocabulary of odd size
        check({0, 24, 40, 257, false, false, 1, 0}, compute, c_type);
        check({0, 257, 40, 24, true, false, 1, 1}, compute, c_type);
    }
}

TEST_P(GemmTest, BatchesOfRankThree) {
    for (const auto& [compute, c_type] : types()) {
        check({1, 9, 8, 7, false, true, 1, 0}, compute, c_type);
        check({3, 20, 17, 33, false, true, 1, 0}, compute, c_type);
        check({4, 20, 17, 33, true, false, 1, 1}, compute, c_type);
    }
}

TEST_P(GemmTest, SumsOfNothing) {
    for (const auto& [compute, c_type] : types()) {
        for (const double beta : {0.0, 1.0, -0.5}) {
            check({0, 3, 5, 0, false, true, 1, beta}, compute, c_type);
            check({2, 3, 5, 0, false, false, 1, beta}, compute, c_type);
        }
        check({0, 0, 5, 4, false, true, 1, 1}, compute, c_type);
        check({0, 3, 0, 4, true, false, 1, 0}, compute, c_type);
    }
}

// C may be made from another matrix than itself, which stays as it is.
TEST_P(GemmTest, AddsAnotherMatrix) {
    for (const auto& [compute, c_type] : types()) {
        for (const int64_t k : {40, 0}) {
            for (const double beta : {1.0, -0.5, 0.0}) {
                const Case p{1, 37, 24, k, false, true, 0.75, beta};
                const Values a = round_to(compute, random_values(p.m * k, 1));
                const Values b = round_to(compute, random_values(p.n * k, 2));
                const Values added = round_to(c_type, random_values(p.m * p.n, 3));
                Gemm op{.a = put(compute, {p.m, k}, a),
                        .b = put(compute, {p.n, k}, b),
                        .c = put(c_type, {p.m, p.n}, Values(added.size(), NAN)),
                        .transpose_b = true,
                        .alpha = p.alpha,
                        .beta = beta,
                        .workspace = {},
                        .addend = put(c_type, {p.m, p.n}, added)};
                give_workspace(op);
                backend_->gemm(op);
                expect_accurate(c_type, get(op.c), reference<double>(p, a, b, added),
                                reference<float>(p, a, b, added));
                EXPECT_EQ(get(op.addend), added);
                op.addend = op.c = put(c_type, {p.m, p.n}, added);
                backend_->gemm(op);
                expect_accurate(c_type, get(op.c), reference<double>(p, a, b, added),
                                reference<float>(p, a, b, added));
            }
        }
    }
}

// Views of one buffer, as of parameters side by side, start at any element.
TEST_P(GemmTest, OperandsAtAnyAddress) {
    for (const auto& [compute, c_type] : types()) {
        for (const int64_t offset : {1, 2, 4, 8}) {
            const int64_t m = 24, n = 32, k = 40;
            const Values a = round_to(compute, random_values(m * k + offset, 1));
            const Values b = round_to(compute, random_values(k * n + offset, 2));
            Gemm op;
            op.a = put(compute, {m * k + offset}, a).slice(offset, {m, k});
            op.b = put(compute, {k * n + offset}, b).slice(offset, {k, n});
            const Tensor c = blank(c_type, {m * n + offset});
            op.c = c.slice(offset, {m, n});
            give_workspace(op);
            backend_->gemm(op);
            const Case p{1, m, n, k, false, false, 1, 0};
            const Values from_a(a.begin() + offset, a.end()), from_b(b.begin() + offset, b.end());
            const Values none(static_cast<size_t>(m * n), NAN);
            expect_accurate(c_type, get(op.c), reference<double>(p, from_a, from_b, none),
                            reference<float>(p, from_a, from_b, none));
            EXPECT_TRUE(std::isnan(get(c)[static_cast<size_t>(offset - 1)]));
        }
    }
}

TEST_P(GemmTest, ARecordedProductRunsEachTime) {
    Gemm op;
    op.a = put(DType::bf16, {1, 2}, {2, 3});
    op.b = put(DType::bf16, {2, 1}, {5, 7});
    op.c = put(DType::f32, {1, 1}, {1});
    op.beta = 1;
    give_workspace(op);
    const auto graph = backend_->capture([&] { backend_->gemm(op); });
    EXPECT_EQ(get(op.c), Values({1}));
    graph->launch();
    graph->launch();
    EXPECT_EQ(get(op.c), Values({63}));
}

TEST_P(GemmTest, NanAndInfinityPropagate) {
    Gemm op;
    op.a = put(DType::f32, {2, 2}, {1, NAN, 1, INFINITY});
    op.b = put(DType::f32, {2, 1}, {1, 1});
    op.c = blank(DType::f32, {2, 1});
    give_workspace(op);
    backend_->gemm(op);
    const Values c = get(op.c);
    EXPECT_TRUE(std::isnan(c[0]));
    EXPECT_EQ(c[1], INFINITY);
}

TEST_P(GemmTest, EqualBitsEachTime) {
    for (const auto& [compute, c_type] : types()) {
        Values first;
        for (int run = 0; run < 3; ++run) {
            Gemm op;
            op.a = put(compute, {70, 600}, random_values(70 * 600, 1));
            op.b = put(compute, {600, 50}, random_values(600 * 50, 2));
            op.c = blank(c_type, {70, 50});
            give_workspace(op);
            backend_->gemm(op);
            if (run == 0) first = get(op.c);
            EXPECT_EQ(get(op.c), first);
        }
    }
}

TEST_P(GemmTest, SymmetricProduct) {
    for (const auto& [compute, c_type] : types()) {
        for (const auto& [batch, m, k] :
             {std::tuple{0, 1, 1}, std::tuple{0, 70, 33}, std::tuple{0, 129, 300},
              std::tuple{3, 17, 65}, std::tuple{2, 40, 0}}) {
            for (const double beta : {0.0, -0.75}) {
                const int64_t count = std::max(batch, 1);
                const Values a = round_to(compute, random_values(count * m * k, 1));
                Values s = round_to(c_type, random_values(count * m * m, 2));
                // Symmetric up to a rounding, as sums may leave it; the lower triangle counts.
                Values rounded = s;
                for (int64_t i = 0; i < count * m * m; ++i) {
                    const int64_t row = i / m % m, column = i % m;
                    if (column <= row) continue;
                    s[i] = s[i / (m * m) * m * m + column * m + row];
                    rounded[i] = s[i] * (1 + 2 * half_ulp(c_type));
                }
                SymmetricProduct op;
                op.a = put(compute, shape_of(batch, m, k), a);
                if (beta != 0) op.s = put(c_type, shape_of(batch, m, m), rounded);
                op.c = blank(c_type, shape_of(batch, m, m));
                op.alpha = 1.5;
                op.beta = beta;
                give_workspace(op);
                backend_->symmetric_product(op);
                const Case p{count, m, m, k, false, true, 1.5, beta};
                const Values c = get(op.c);
                expect_accurate(c_type, c, reference<double>(p, a, a, s),
                                reference<float>(p, a, a, s));
                for (int64_t i = 0; i < count * m * m; ++i) {
                    const int64_t row = i / m % m, column = i % m;
                    ASSERT_EQ(c[i], c[i / (m * m) * m * m + column * m + row]);
                }
            }
        }
    }
}

LMO_ON_ALL_BACKENDS(GemmTest);

}  // namespace
}  // namespace lmo
