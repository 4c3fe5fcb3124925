// RMSNorm with its residual sum, and its gradient, against plain loops and finite differences.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

struct Normed {
    Values sum, out, rstd, dx, dgain;
};

template <typename T>
Normed rmsnorm(int64_t rows, int64_t columns, const Values& x, const Values& branch,
               const Values& gain, double eps, const Values& dout, const Values& dx,
               const Values& dgain) {
    Normed r{x, x, Values(rows), dx, dgain};
    std::vector<T> gain_sum(dgain.begin(), dgain.end());
    for (int64_t n = 0; n < rows; ++n) {
        T squares = 0, along = 0;
        for (int64_t i = n * columns; i < (n + 1) * columns; ++i) {
            const T v = static_cast<T>(x[i]) + (branch.empty() ? T(0) : static_cast<T>(branch[i]));
            r.sum[i] = v;
            squares += v * v;
        }
        const T rstd = 1 / std::sqrt(squares / static_cast<T>(columns) + static_cast<T>(eps));
        r.rstd[n] = rstd;
        for (int64_t i = 0; i < columns; ++i) {
            const int64_t at = n * columns + i;
            const T xhat = static_cast<T>(r.sum[at]) * rstd, g = static_cast<T>(gain[i]);
            r.out[at] = xhat * g;
            along += static_cast<T>(dout[at]) * g * xhat;
            gain_sum[i] += static_cast<T>(dout[at]) * xhat;
        }
        for (int64_t i = 0; i < columns; ++i) {
            const int64_t at = n * columns + i;
            const T xhat = static_cast<T>(r.sum[at]) * rstd;
            const T g = static_cast<T>(dout[at]) * static_cast<T>(gain[i]);
            r.dx[at] = static_cast<T>(dx[at]) + rstd * (g - xhat * along / static_cast<T>(columns));
        }
    }
    r.dgain.assign(gain_sum.begin(), gain_sum.end());
    return r;
}

struct NormCase {
    int64_t rows, columns;
    DType compute, residual;
    bool branch, in_place;
    bool aligned = true;  // x at a multiple of 16 bytes
};

class RmsNormTest : public BackendTest {
  protected:
    Normed run(const NormCase& c, const Values& x, const Values& branch, const Values& gain,
               const Values& dout, const Values& dx, const Values& dgain, double eps = 1e-5) {
        const Shape shape{c.rows, c.columns};
        const DType master = master_of(c.compute);
        RmsNormForward forward;
        forward.x = c.aligned ? put(c.residual, shape, x) : put_unaligned(c.residual, shape, x);
        if (c.branch) forward.branch = put(c.compute, shape, branch);
        forward.gain = put(c.compute, {c.columns}, gain);
        if (c.branch) forward.sum = c.in_place ? forward.x : blank(c.residual, shape);
        forward.out = blank(c.compute, shape);
        forward.rstd = blank(master, {c.rows});
        forward.eps = eps;
        backend_->rmsnorm_forward(forward);

        RmsNormBackward backward;
        backward.x = c.branch ? forward.sum : forward.x;
        backward.gain = forward.gain;
        backward.rstd = forward.rstd;
        backward.dout = put(c.compute, shape, dout);
        backward.dx = put(c.residual, shape, dx);
        backward.dgain = put(master, {c.columns}, dgain);
        backward.dbranch = blank(c.compute, shape);
        give_workspace(backward);
        backend_->rmsnorm_backward(backward);
        EXPECT_EQ(largest_difference(get(backward.dbranch), round_to(c.compute, get(backward.dx))),
                  0);
        return {get(backward.x), get(forward.out), get(forward.rstd), get(backward.dx),
                get(backward.dgain)};
    }

    void check(const NormCase& c) {
        SCOPED_TRACE(to_string(c.compute) + " " + to_string(c.residual) + " N " +
                     std::to_string(c.rows) + " C " + std::to_string(c.columns));
        const int64_t count = c.rows * c.columns;
        const DType master = master_of(c.compute);
        const Values x = round_to(c.residual, random_values(count, 1));
        const Values branch = c.branch ? round_to(c.compute, random_values(count, 2)) : Values();
        const Values gain = round_to(c.compute, random_values(c.columns, 3));
        const Values dout = round_to(c.compute, random_values(count, 4));
        const Values dx = round_to(c.residual, random_values(count, 5));
        const Values dgain = round_to(master, random_values(c.columns, 6));
        const Normed actual = run(c, x, branch, gain, dout, dx, dgain);
        // A residual stream in bf16 is rounded before it is normed.
        Values sum = x;
        if (c.branch) {
            for (int64_t i = 0; i < count; ++i) sum[i] += branch[i];
            EXPECT_LE(largest_difference(actual.sum, sum), 2 * half_ulp(c.residual) * largest(sum));
        }
        const Values none;
        const auto exact =
            rmsnorm<double>(c.rows, c.columns, actual.sum, none, gain, 1e-5, dout, dx, dgain);
        const auto plain =
            rmsnorm<float>(c.rows, c.columns, actual.sum, none, gain, 1e-5, dout, dx, dgain);
        expect_accurate(c.compute, actual.out, exact.out, plain.out);
        expect_accurate(master, actual.rstd, exact.rstd, plain.rstd);
        expect_accurate(c.residual, actual.dx, exact.dx, plain.dx);
        expect_accurate(master, actual.dgain, exact.dgain, plain.dgain);
    }

    // The types of compute and residual.
    std::vector<std::pair<DType, DType>> types() const {
        std::vector<std::pair<DType, DType>> types = {{DType::f32, DType::f32},
                                                      {DType::f32, DType::bf16},
                                                      {DType::bf16, DType::f32},
                                                      {DType::bf16, DType::bf16}};
        if (has_fp64()) types.push_back({DType::f64, DType::f64});
        return types;
    }
};

class RmsNormOracleTest : public RmsNormTest {};

TEST_P(RmsNormTest, AllTypesAndShapes) {
    for (const auto& [compute, residual] : types()) {
        for (const auto& [rows, columns] : {std::pair{1, 1}, std::pair{1, 100}, std::pair{3, 64},
                                            std::pair{150, 37}, std::pair{1100, 8}}) {
            check({rows, columns, compute, residual, false, false});
            check({rows, columns, compute, residual, true, false});
            check({rows, columns, compute, residual, true, true});
        }
        check({5, 64, compute, residual, true, false, false});
    }
}

// Rows of a warp and of blocks of each size, with every thread in use and with some; ragged ones;
// and some that are too long for registers.
TEST_P(RmsNormTest, LongRows) {
    for (const auto& [compute, residual] : types()) {
        for (const int64_t columns :
             {768, 1000, 1001, 1024, 1028, 2048, 3000, 4096, 5120, 8192, 8200}) {
            check({2, columns, compute, residual, true, columns % 3 == 0});
        }
    }
}

// More rows than a grid has blocks in y, and more than one row for each partial sum of dgain.
TEST_P(RmsNormTest, ManyRows) { check({66000, 4, DType::f32, DType::f32, true, true}); }

TEST_P(RmsNormTest, SumWithoutBranchIsACopy) {
    for (const int64_t columns : {64, 37}) {
        const Values x = round_to(DType::bf16, random_values(3 * columns, 1));
        RmsNormForward op;
        op.x = put(DType::bf16, {3, columns}, x);
        op.gain = put(DType::bf16, {columns}, Values(static_cast<size_t>(columns), 1.0));
        op.sum = blank(DType::bf16, {3, columns});
        op.out = blank(DType::bf16, {3, columns});
        op.rstd = blank(DType::f32, {3});
        op.eps = 1e-5;
        backend_->rmsnorm_forward(op);
        EXPECT_EQ(get(op.sum), x);
        const Values out = get(op.out);
        op.sum = op.x;
        backend_->rmsnorm_forward(op);
        EXPECT_EQ(get(op.x), x);
        EXPECT_EQ(get(op.out), out);
    }
}

TEST_P(RmsNormTest, BackwardWithoutCopy) {
    for (const int64_t columns : {96, 37}) {
        const Shape shape{20, columns};
        RmsNormBackward op;
        op.x = put(DType::f32, shape, random_values(shape.count(), 1));
        op.gain = put(DType::bf16, {columns}, random_values(columns, 2));
        op.rstd = put(DType::f32, {20}, Values(20, 0.7));
        op.dout = put(DType::bf16, shape, random_values(shape.count(), 3));
        give_workspace(op);
        Values dx[2], dgain[2];
        for (const bool copy : {false, true}) {
            op.dx = put(DType::f32, shape, random_values(shape.count(), 4));
            op.dgain = put(DType::f32, {columns}, random_values(columns, 5));
            op.dbranch = copy ? blank(DType::bf16, shape) : Tensor{};
            backend_->rmsnorm_backward(op);
            dx[copy] = get(op.dx);
            dgain[copy] = get(op.dgain);
        }
        EXPECT_EQ(dx[0], dx[1]);
        EXPECT_EQ(dgain[0], dgain[1]);
    }
}

TEST_P(RmsNormTest, ZerosStayZero) {
    for (const int64_t columns : {3, 64}) {
        const Values zero(static_cast<size_t>(2 * columns), 0.0);
        const Values one(static_cast<size_t>(columns), 1.0),
            none(static_cast<size_t>(columns), 0.0);
        const Normed r = run({2, columns, DType::f32, DType::f32, false, false}, zero, {}, one,
                             zero, zero, none);
        EXPECT_EQ(r.out, zero);
        EXPECT_EQ(r.dx, zero);
        EXPECT_EQ(r.dgain, none);
        EXPECT_NEAR(r.rstd[0], 1 / std::sqrt(1e-5), 1e-3);
    }
}

// A NaN spoils its own row only; a row whose squares overflow becomes zero.
TEST_P(RmsNormTest, HugeValuesAndNan) {
    for (const int64_t columns : {8, 5}) {
        const size_t n = static_cast<size_t>(columns);
        Values x(3 * n, 1.0);
        std::fill_n(x.begin(), n, 1e30);
        x[n + 2] = NAN;
        const Values zero(3 * n, 0.0), one(n, 1.0);
        const Normed r = run({3, columns, DType::f32, DType::f32, false, false}, x, {}, one,
                             Values(3 * n, 1.0), zero, Values(n, 0.0));
        EXPECT_EQ(r.rstd[0], 0);
        EXPECT_TRUE(std::isnan(r.rstd[1]));
        EXPECT_NEAR(r.rstd[2], 1, 1e-4);
        for (size_t i = 0; i < n; ++i) {
            EXPECT_EQ(r.out[i], 0);
            EXPECT_TRUE(std::isnan(r.out[n + i]) && std::isnan(r.dx[n + i]));
            EXPECT_NEAR(r.out[2 * n + i], 1, 1e-4);
            EXPECT_NEAR(r.dx[2 * n + i], 0, 1e-4);
            EXPECT_TRUE(std::isnan(r.dgain[i]));
        }
    }
}

TEST_P(RmsNormOracleTest, FiniteDifferences) {
    const NormCase c{3, 5, DType::f64, DType::f64, true, false};
    const Values x = random_values(15, 1), branch = random_values(15, 2),
                 gain = random_values(5, 3);
    const Values dout = random_values(15, 4), zero(15, 0.0), zero_gain(5, 0.0);
    const Normed r = run(c, x, branch, gain, dout, zero, zero_gain);
    const auto loss = [&](const Values& x_, const Values& gain_) {
        return dot(run(c, x_, branch, gain_, dout, zero, zero_gain).out, dout);
    };
    const Values dx = differences(x, [&](const Values& v) { return loss(v, gain); });
    const Values dgain = differences(gain, [&](const Values& v) { return loss(x, v); });
    EXPECT_LE(largest_difference(r.dx, dx), 1e-8);
    EXPECT_LE(largest_difference(r.dgain, dgain), 1e-8);
}

TEST_P(RmsNormTest, EqualBitsForAnyNumberOfThreads) {
    const NormCase c{500, 96, DType::f32, DType::f32, true, false};
    const auto once = [&] {
        return run(c, random_values(48000, 1), random_values(48000, 2), random_values(96, 3),
                   random_values(48000, 4), random_values(48000, 5), random_values(96, 6));
    };
    const Normed first = once();
    EXPECT_EQ(once().dgain, first.dgain);
    use_threads(1);
    const Normed single = once();
    EXPECT_EQ(single.dgain, first.dgain);
    EXPECT_EQ(single.dx, first.dx);
}

LMO_ON_ALL_BACKENDS(RmsNormTest);
LMO_ON_THE_ORACLE(RmsNormOracleTest);

}  // namespace
}  // namespace lmo
