// Embedding, RMSNorm, RoPE, SwiGLU and the classifier against plain loops and finite differences.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

const std::vector<DType> compute_types = {DType::f64, DType::f32, DType::bf16};

// d f / d x by central differences.
template <typename F>
Values differences(Values x, F f) {
    Values gradient(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
        const double h = 1e-5, old = x[i];
        x[i] = old + h;
        const double up = f(x);
        x[i] = old - h;
        const double down = f(x);
        x[i] = old;
        gradient[i] = (up - down) / (2 * h);
    }
    return gradient;
}

double dot(const Values& a, const Values& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

class ModelOpsTest : public BackendTest {};

// ---- embedding
// -----------------------------------------------------------------------------------

TEST_P(ModelOpsTest, EmbeddingForward) {
    for (const DType type : compute_types) {
        const std::vector<int32_t> ids = {3, 0, 3, 6, 5};
        const Values table = round_to(type, random_values(7 * 5, 1));
        const EmbeddingForward op{put_ids(ids), put(type, {7, 5}, table), blank(type, {5, 5})};
        backend_->embedding_forward(op);
        const Values out = get(op.out);
        for (int i = 0; i < 5; ++i) {
            for (int j = 0; j < 5; ++j) EXPECT_EQ(out[5 * i + j], table[5 * ids[i] + j]);
        }
    }
}

TEST_P(ModelOpsTest, EmbeddingBackwardAddsEqualIdsInOrder) {
    for (const DType type : compute_types) {
        const int64_t count = 700, columns = 33, vocabulary = 19;
        std::vector<int32_t> ids;
        for (int64_t i = 0; i < count; ++i) {  // id 4 never occurs, id 0 often
            const auto id =
                static_cast<int32_t>(random_bits(5, 0, i) % 2 * (random_bits(5, 1, i) % 19));
            ids.push_back(id == 4 ? 18 : id);
        }
        const Values dout = round_to(type, random_values(count * columns, 1));
        const Values old = round_to(master_of(type), random_values(vocabulary * columns, 2));
        EmbeddingBackward op;
        op.ids = put_ids(ids);
        op.dout = put(type, {count, columns}, dout);
        op.dtable = put(master_of(type), {vocabulary, columns}, old);
        give_workspace(op);
        backend_->embedding_backward(op);
        Values exact = old;
        for (int64_t i = 0; i < count * columns; ++i) {  // the order of the additions is fixed
            double& to = exact[ids[i / columns] * columns + i % columns];
            to = type == DType::f64 ? to + dout[i]
                                    : static_cast<float>(to) + static_cast<float>(dout[i]);
        }
        EXPECT_EQ(get(op.dtable), exact);
    }
}

// ---- RMSNorm
// -------------------------------------------------------------------------------------

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
};

class RmsNormTest : public BackendTest {
  protected:
    Normed run(const NormCase& c, const Values& x, const Values& branch, const Values& gain,
               const Values& dout, const Values& dx, const Values& dgain, double eps = 1e-5) {
        const Shape shape{c.rows, c.columns};
        const DType master = master_of(c.compute);
        RmsNormForward forward;
        forward.x = put(c.residual, shape, x);
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
        EXPECT_EQ(get(backward.dbranch), round_to(c.compute, get(backward.dx)));
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
};

TEST_P(RmsNormTest, AllTypesAndShapes) {
    const std::vector<std::pair<DType, DType>> types = {{DType::f64, DType::f64},
                                                        {DType::f32, DType::f32},
                                                        {DType::f32, DType::bf16},
                                                        {DType::bf16, DType::f32},
                                                        {DType::bf16, DType::bf16}};
    for (const auto& [compute, residual] : types) {
        for (const auto& [rows, columns] : {std::pair{1, 1}, std::pair{1, 100}, std::pair{3, 64},
                                            std::pair{150, 37}, std::pair{1100, 8}}) {
            check({rows, columns, compute, residual, false, false});
            check({rows, columns, compute, residual, true, false});
            check({rows, columns, compute, residual, true, true});
        }
    }
}

TEST_P(RmsNormTest, ZerosStayZero) {
    const Values zero(6, 0.0), one(3, 1.0);
    const Normed r = run({2, 3, DType::f32, DType::f32, false, false}, zero, {}, one, zero, zero,
                         Values(3, 0.0));
    EXPECT_EQ(r.out, zero);
    EXPECT_EQ(r.dx, zero);
    EXPECT_NEAR(r.rstd[0], 1 / std::sqrt(1e-5), 1e-3);
}

TEST_P(RmsNormTest, FiniteDifferences) {
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

// ---- RoPE
// ----------------------------------------------------------------------------------------

Values rope_table(int64_t positions, int64_t size) {
    Values table;
    for (int64_t t = 0; t < positions; ++t) {
        for (int64_t i = 0; i < size / 2; ++i) {
            const double angle = static_cast<double>(t) * std::pow(10000.0, -2.0 * i / size);
            table.push_back(std::cos(angle));
            table.push_back(std::sin(angle));
        }
    }
    return table;
}

TEST_P(ModelOpsTest, RopeRotatesQueriesAndKeys) {
    const int64_t batch = 2, positions = 19, size = 6, heads = 3, kv_heads = 1, slots = 5;
    for (const DType type : compute_types) {
        const Values qkv = round_to(type, random_values(batch * positions * slots * size, 1));
        const Values table = round_to(master_of(type), rope_table(positions + 4, size));
        Rope op{put(type, {batch, positions, slots * size}, qkv),
                put(master_of(type), {positions + 4, size / 2, 2}, table), heads, kv_heads, false};
        backend_->rope(op);
        Values exact = qkv;
        for (int64_t n = 0; n < batch * positions; ++n) {
            for (int64_t h = 0; h < heads + kv_heads; ++h) {
                for (int64_t i = 0; i < size / 2; ++i) {
                    const int64_t a = (n * slots + h) * size + i, b = a + size / 2;
                    const int64_t t = n % positions;
                    const double c = table[(t * (size / 2) + i) * 2];
                    const double s = table[(t * (size / 2) + i) * 2 + 1];
                    exact[a] = qkv[a] * c - qkv[b] * s;
                    exact[b] = qkv[a] * s + qkv[b] * c;
                }
            }
        }
        EXPECT_LE(largest_difference(get(op.qkv), exact), 3 * half_ulp(type) * largest(exact));
        op.inverse = true;  // the transposed rotation undoes it
        backend_->rope(op);
        EXPECT_LE(largest_difference(get(op.qkv), qkv), 8 * half_ulp(type) * largest(qkv));
    }
}

// ---- SwiGLU
// --------------------------------------------------------------------------------------

template <typename T>
void swiglu(const Values& gate_up, const Values& dout, int64_t width, Values& out, Values& din) {
    out.resize(dout.size());
    din.resize(gate_up.size());
    for (int64_t i = 0; i < static_cast<int64_t>(dout.size()); ++i) {
        const int64_t at = i / width * 2 * width + i % width;
        const T g = static_cast<T>(gate_up[at]), u = static_cast<T>(gate_up[at + width]);
        const T s = 1 / (1 + std::exp(-g)), d = static_cast<T>(dout[i]);
        out[i] = g * s * u;
        din[at] = d * u * (s + g * s * (1 - s));
        din[at + width] = d * g * s;
    }
}

TEST_P(ModelOpsTest, SwigluForwardAndBackwardInPlace) {
    for (const DType type : compute_types) {
        for (const auto& [rows, width] : {std::pair{1, 1}, std::pair{3, 40}, std::pair{70, 33}}) {
            const Values gate_up = round_to(type, random_values(rows * 2 * width, 1, 3.0));
            const Values dout = round_to(type, random_values(rows * width, 2));
            const Tensor x = put(type, {rows, 2 * width}, gate_up);
            const SwigluForward forward{x, blank(type, {rows, width})};
            backend_->swiglu_forward(forward);
            const SwigluBackward backward{x, put(type, {rows, width}, dout), x};
            backend_->swiglu_backward(backward);
            Values out, din, plain_out, plain_din;
            swiglu<double>(gate_up, dout, width, out, din);
            swiglu<float>(gate_up, dout, width, plain_out, plain_din);
            expect_accurate(type, get(forward.out), out, plain_out);
            expect_accurate(type, get(x), din, plain_din);
        }
    }
}

TEST_P(ModelOpsTest, SwigluFiniteDifferencesAndExtremes) {
    const Values gate_up = random_values(24, 1), dout = random_values(12, 2);
    const auto loss = [&](const Values& x) {
        const SwigluForward op{put(DType::f64, {3, 8}, x), blank(DType::f64, {3, 4})};
        backend_->swiglu_forward(op);
        return dot(get(op.out), dout);
    };
    const SwigluBackward op{put(DType::f64, {3, 8}, gate_up), put(DType::f64, {3, 4}, dout),
                            blank(DType::f64, {3, 8})};
    backend_->swiglu_backward(op);
    EXPECT_LE(largest_difference(get(op.dgate_up), differences(gate_up, loss)), 1e-8);

    // Gates far out: silu is 0 or the gate itself; NaN stays.
    const SwigluForward far{put(DType::f32, {1, 8}, {-1e30, 1e30, -100, NAN, 1, 1, 1, 1}),
                            blank(DType::f32, {1, 4})};
    backend_->swiglu_forward(far);
    const Values out = get(far.out);
    EXPECT_EQ(out[0], 0);
    EXPECT_EQ(out[1], static_cast<float>(1e30));
    EXPECT_NEAR(out[2], 0, 1e-35);
    EXPECT_TRUE(std::isnan(out[3]));
}

// ---- classifier
// ----------------------------------------------------------------------------------

template <typename T>
void cross_entropy(const Values& logits, const std::vector<int32_t>& targets, T scale,
                   Values& losses, Values& gradient) {
    const int64_t rows = static_cast<int64_t>(targets.size());
    const int64_t columns = static_cast<int64_t>(logits.size()) / rows;
    losses.assign(rows, 0.0);
    gradient.assign(logits.size(), 0.0);
    for (int64_t n = 0; n < rows; ++n) {
        if (targets[n] < 0) continue;
        const double* row = &logits[n * columns];
        T top = -std::numeric_limits<T>::infinity(), total = 0;
        for (int64_t i = 0; i < columns; ++i) top = std::max(top, static_cast<T>(row[i]));
        for (int64_t i = 0; i < columns; ++i) total += std::exp(static_cast<T>(row[i]) - top);
        losses[n] = std::log(total) + top - static_cast<T>(row[targets[n]]);
        for (int64_t i = 0; i < columns; ++i) {
            const T p = std::exp(static_cast<T>(row[i]) - top) / total;
            gradient[n * columns + i] = scale * (p - (i == targets[n] ? T(1) : T(0)));
        }
    }
}

class ClassifierTest : public BackendTest {
  protected:
    std::pair<Values, Values> run(DType type, const Values& logits,
                                  const std::vector<int32_t>& targets, double scale) {
        const int64_t rows = static_cast<int64_t>(targets.size());
        const int64_t columns = static_cast<int64_t>(logits.size()) / rows;
        const Classifier op{put(type, {rows, columns}, logits), put_ids(targets),
                            blank(master_of(type), {rows}), scale};
        backend_->classifier(op);
        return {get(op.losses), get(op.logits)};
    }
};

TEST_P(ClassifierTest, LossesAndGradients) {
    for (const DType type : compute_types) {
        for (const int64_t columns : {1, 2, 65, 1000, 2500}) {
            const std::vector<int32_t> targets = {0, static_cast<int32_t>(columns - 1), -1,
                                                  static_cast<int32_t>(columns / 2)};
            const Values logits = round_to(type, random_values(4 * columns, columns, 3.0));
            const auto [losses, gradient] = run(type, logits, targets, 0.125);
            Values exact, exact_gradient, plain, plain_gradient;
            cross_entropy<double>(logits, targets, 0.125, exact, exact_gradient);
            cross_entropy<float>(logits, targets, 0.125f, plain, plain_gradient);
            expect_accurate(master_of(type), losses, exact, plain);
            expect_accurate(type, gradient, exact_gradient, plain_gradient);
            EXPECT_EQ(losses[2], 0);
            EXPECT_EQ(run(type, logits, targets, 0.0).second, logits);  // untouched
        }
    }
}

TEST_P(ClassifierTest, HugeLogitsZerosAndNan) {
    for (const DType type : {DType::f32, DType::bf16}) {
        const double big = round_to(type, {1e30})[0];
        const auto [losses, gradient] =
            run(type, {big, -big, big, 0, 0, 0, 1, NAN, 1, NAN, 1, 1}, {0, 1, 2, -1}, 1.0);
        EXPECT_NEAR(losses[0], std::log(2.0), 1e-6);
        EXPECT_NEAR(losses[1], std::log(3.0), 1e-6);
        EXPECT_TRUE(std::isnan(losses[2]));
        EXPECT_EQ(losses[3], 0);
        EXPECT_EQ(gradient[0], -0.5);
        EXPECT_EQ(gradient[1], 0);
        EXPECT_TRUE(std::isnan(gradient[6]));
        EXPECT_EQ(gradient[9], 0);  // an ignored row is 0 whatever it held
    }
}

TEST_P(ClassifierTest, FiniteDifferences) {
    const std::vector<int32_t> targets = {2, 0, -1};
    const Values logits = random_values(21, 1);
    const auto loss = [&](const Values& x) {
        const Values losses = run(DType::f64, x, targets, 0.0).first;
        return 0.7 * (losses[0] + losses[1] + losses[2]);
    };
    const Values gradient = run(DType::f64, logits, targets, 0.7).second;
    EXPECT_LE(largest_difference(gradient, differences(logits, loss)), 1e-8);
}

// The float exponential inside, over its range: p / (1 - p) of two logits x and 0 is exp(x).
TEST_P(ClassifierTest, ExponentialIsAccurateOverItsRange) {
    for (double x = -80; x <= 0; x += 0.37) {
        const double logit = static_cast<float>(x);
        const Values gradient = run(DType::f32, {logit, 0}, {1}, 1.0).second;
        const double exact = std::exp(logit) / (1 + std::exp(logit));
        EXPECT_NEAR(gradient[0] / exact, 1, 4e-7) << "at " << logit;
    }
    EXPECT_EQ(run(DType::f32, {-200, 0}, {1}, 1.0).second[0], 0);
    EXPECT_EQ(run(DType::f32, {-INFINITY, 0}, {1}, 1.0).first[0], 0);
}

LMO_ON_ALL_BACKENDS(ModelOpsTest);
LMO_ON_ALL_BACKENDS(RmsNormTest);
LMO_ON_ALL_BACKENDS(ClassifierTest);

}  // namespace
}  // namespace lmo
