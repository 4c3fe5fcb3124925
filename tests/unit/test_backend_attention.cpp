// Attention forward and backward against the textbook loops over T x T scores, at every corner.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

struct Case {
    int64_t batch, positions;
    int heads, kv_heads;
    int64_t size;  // of a head

    int64_t stride() const { return (heads + 2 * kv_heads) * size; }
    int64_t tokens() const { return batch * positions; }
};

struct Result {
    Values out, lse, dqkv;
};

// The plain algorithm with arithmetic in T; dqkv is computed from the exact P, not from lse.
template <typename T>
Result reference(const Case& c, const Values& qkv, const Values& dout) {
    const int64_t D = c.size, H = c.heads, K = c.kv_heads, W = c.stride();
    Result r{Values(c.tokens() * H * D), Values(c.batch * H * c.positions), Values(qkv.size())};
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(D)));
    std::vector<T> dqkv(qkv.size(), T(0)), p(c.positions), dp(c.positions);
    for (int64_t b = 0; b < c.batch; ++b) {
        for (int64_t h = 0; h < H; ++h) {
            const int64_t kv = h / (H / K);
            const auto at = [&](int64_t t, int64_t slot) {
                return (b * c.positions + t) * W + slot * D;
            };
            for (int64_t t = 0; t < c.positions; ++t) {
                T top = -std::numeric_limits<T>::infinity(), total = 0;
                for (int64_t s = 0; s <= t; ++s) {
                    T dot = 0;
                    for (int64_t d = 0; d < D; ++d) {
                        dot += static_cast<T>(qkv[at(t, h) + d]) *
                               static_cast<T>(qkv[at(s, H + kv) + d]);
                    }
                    p[s] = dot * scale;
                    top = std::max(top, p[s]);
                }
                for (int64_t s = 0; s <= t; ++s) total += p[s] = std::exp(p[s] - top);
                r.lse[(b * H + h) * c.positions + t] = top + std::log(total);
                const int64_t row = (b * c.positions + t) * H * D + h * D;
                T delta = 0;
                for (int64_t s = 0; s <= t; ++s) p[s] /= total;
                for (int64_t d = 0; d < D; ++d) {
                    T sum = 0;
                    for (int64_t s = 0; s <= t; ++s) {
                        sum += p[s] * static_cast<T>(qkv[at(s, H + K + kv) + d]);
                    }
                    r.out[row + d] = sum;
                }
                for (int64_t s = 0; s <= t; ++s) {
                    dp[s] = 0;
                    for (int64_t d = 0; d < D; ++d) {
                        const T g = static_cast<T>(dout[row + d]);
                        dp[s] += g * static_cast<T>(qkv[at(s, H + K + kv) + d]);
                        dqkv[at(s, H + K + kv) + d] += p[s] * g;
                    }
                    delta += p[s] * dp[s];
                }
                for (int64_t s = 0; s <= t; ++s) {
                    const T ds = p[s] * (dp[s] - delta) * scale;
                    for (int64_t d = 0; d < D; ++d) {
                        dqkv[at(t, h) + d] += ds * static_cast<T>(qkv[at(s, H + kv) + d]);
                        dqkv[at(s, H + kv) + d] += ds * static_cast<T>(qkv[at(t, h) + d]);
                    }
                }
            }
        }
    }
    r.dqkv.assign(dqkv.begin(), dqkv.end());
    return r;
}

class AttentionTest : public BackendTest {
  protected:
    // `shift` elements before each tensor of activations take its rows off their alignment.
    Result run(const Case& c, DType type, const Values& qkv, const Values& dout,
               int64_t shift = 0) {
        const Shape qkv_shape{c.batch, c.positions, c.stride()};
        const Shape out_shape{c.batch, c.positions, c.heads * c.size};
        const auto shifted = [&](Shape shape, const Values& values) {
            Values all(static_cast<size_t>(shift), NAN);
            all.insert(all.end(), values.begin(), values.end());
            return put(type, {shift + shape.count()}, all).slice(shift, shape);
        };
        const auto unwritten = [&](Shape shape) {
            return shifted(shape, Values(static_cast<size_t>(shape.count()), NAN));
        };
        AttentionForward forward;
        forward.qkv = shifted(qkv_shape, qkv);
        forward.out = unwritten(out_shape);
        forward.lse = blank(master_of(type), {c.batch, c.heads, c.positions});
        forward.heads = c.heads;
        forward.kv_heads = c.kv_heads;
        give_workspace(forward);
        backend_->attention_forward(forward);

        AttentionBackward backward;
        backward.qkv = forward.qkv;
        backward.out = forward.out;
        backward.lse = forward.lse;
        backward.dout = shifted(out_shape, dout);
        backward.dqkv = unwritten(qkv_shape);
        backward.heads = c.heads;
        backward.kv_heads = c.kv_heads;
        give_workspace(backward);
        backend_->attention_backward(backward);
        return {get(forward.out), get(forward.lse), get(backward.dqkv)};
    }

    void check(const Case& c, DType type, const Values& any_qkv, int64_t shift = 0) {
        SCOPED_TRACE(to_string(type) + " B " + std::to_string(c.batch) + " T " +
                     std::to_string(c.positions) + " heads " + std::to_string(c.heads) + "/" +
                     std::to_string(c.kv_heads) + " D " + std::to_string(c.size));
        const Values qkv = round_to(type, any_qkv);
        const Values dout = round_to(type, random_values(c.tokens() * c.heads * c.size, 2));
        const Result actual = run(c, type, qkv, dout, shift);
        const Result exact = reference<double>(c, qkv, dout);
        const Result plain = reference<float>(c, qkv, dout);
        expect_accurate(type, actual.out, exact.out, plain.out);
        expect_accurate(master_of(type), actual.lse, exact.lse, plain.lse);
        expect_accurate(type, actual.dqkv, exact.dqkv, type == DType::f64 ? Values{} : plain.dqkv);
    }

    void check(const Case& c, double scale = 1.0) {
        for (const DType type : compute_types()) {
            check(c, type, random_values(c.tokens() * c.stride(), 1, scale));
        }
    }
};

TEST_P(AttentionTest, OnePosition) { check({2, 1, 2, 2, 8}); }
TEST_P(AttentionTest, OneHead) { check({1, 33, 1, 1, 16}); }
TEST_P(AttentionTest, ExactlyOneTile) { check({1, 64, 2, 2, 16}); }
TEST_P(AttentionTest, TilesAndARemainder) { check({2, 150, 2, 2, 32}); }
TEST_P(AttentionTest, GroupedHeads) { check({2, 70, 6, 2, 8}); }
TEST_P(AttentionTest, OneKeyValueHead) { check({1, 65, 4, 1, 8}); }
TEST_P(AttentionTest, OddHeadSize) { check({1, 20, 3, 3, 5}); }
TEST_P(AttentionTest, HeadSizeOne) { check({1, 5, 2, 1, 1}); }
TEST_P(AttentionTest, PeakedScores) { check({1, 70, 2, 2, 16}, 4.0); }

// The head sizes that a GPU has kernels of their own for, at lengths of less than a tile, of whole
// tiles and with a remainder.
TEST_P(AttentionTest, UsualHeadSizes) {
    struct Heads {
        int heads, kv_heads;
    };
    constexpr Heads heads[] = {{2, 2}, {2, 1}, {3, 1}, {4, 2}};
    int i = 0;
    for (const int64_t size : {64, 128}) {
        for (const int64_t positions : {1, 17, 64, 100, 160, 200}) {
            const Heads h = heads[i % 4];
            check({1 + i % 3, positions, h.heads, h.kv_heads, size}, DType::bf16,
                  random_values((1 + i % 3) * positions * (h.heads + 2 * h.kv_heads) * size, i));
            ++i;
        }
    }
    check({1, 130, 2, 1, 64});
    check({1, 70, 1, 1, 128});
}

TEST_P(AttentionTest, OtherHeadSizes) {
    check({1, 70, 2, 1, 40});
    for (const int64_t size : {24, 96, 120, 130, 256, 300}) check({1, 20, 2, 1, size});
}

TEST_P(AttentionTest, RowsOffTheirAlignment) {
    const Case c{1, 70, 2, 1, 64};
    const Values qkv = random_values(c.tokens() * c.stride(), 1);
    for (const DType type : {DType::f32, DType::bf16}) check(c, type, qkv, 1);
}

// Scores of +-1000: weights are 0 and 1 but for few.
TEST_P(AttentionTest, LargeScores) {
    for (const Case& c : {Case{1, 100, 2, 1, 64}, Case{1, 70, 1, 1, 128}, Case{1, 70, 2, 2, 40}}) {
        check(c, 18.0);
    }
}

TEST_P(AttentionTest, OneHugeKey) {
    for (const Case& c : {Case{1, 140, 2, 1, 64}, Case{2, 70, 2, 2, 128}, Case{1, 70, 1, 1, 5}}) {
        for (const DType type : compute_types()) {
            Values qkv = random_values(c.tokens() * c.stride(), 1);
            const int64_t key = 3 * c.stride() + c.heads * c.size;
            for (int64_t d = 0; d < c.kv_heads * c.size; ++d) qkv[key + d] *= 300;
            check(c, type, qkv);
        }
    }
}

// Weights of one half each at scores so large that the rounding of lse is a part of a weight: in
// fp32, 1 % at scores of 100000. (Only gradients of values: those of queries are sums of huge equal
// keys that cancel.)
TEST_P(AttentionTest, TwoEqualHugeKeys) {
    for (const Case& c : {Case{1, 140, 2, 1, 64}, Case{1, 70, 1, 1, 5}}) {
        for (const DType type : compute_types()) {
            Values qkv = random_values(c.tokens() * c.stride(), 1);
            const int64_t key = 3 * c.stride() + c.heads * c.size;
            for (int64_t d = 0; d < c.kv_heads * c.size; ++d) {
                qkv[key + d] *= type == DType::bf16 ? 300 : 30000;
                qkv[key + 2 * c.stride() + d] = qkv[key + d];
            }
            qkv = round_to(type, qkv);
            const Values dout = round_to(type, random_values(c.tokens() * c.heads * c.size, 2));
            const auto of_values = [&](const Values& dqkv) {
                const int64_t first = (c.heads + c.kv_heads) * c.size;
                Values part;
                for (int64_t i = 0; i < c.tokens() * c.stride(); ++i) {
                    if (i % c.stride() >= first) part.push_back(dqkv[i]);
                }
                return part;
            };
            expect_accurate(type, of_values(run(c, type, qkv, dout).dqkv),
                            of_values(reference<double>(c, qkv, dout).dqkv),
                            of_values(reference<float>(c, qkv, dout).dqkv), 1e-9);
        }
    }
}

// A position that sees one key has softmax 1: no gradient for its query, exactly. Noise in its
// place would be a full step of an optimizer that does not look at the size.
TEST_P(AttentionTest, OneKeyGivesItsQueryNoGradient) {
    for (const Case& c : {Case{3, 1, 2, 1, 16}, Case{2, 70, 4, 2, 64}, Case{1, 1, 1, 1, 128}}) {
        for (const DType type : compute_types()) {
            const Values qkv = random_values(c.tokens() * c.stride(), 1, 3.0);
            const Values dout = random_values(c.tokens() * c.heads * c.size, 2);
            const Result r = run(c, type, qkv, dout);
            for (int64_t b = 0; b < c.batch; ++b) {
                const double* first = &r.dqkv[b * c.positions * c.stride()];
                const int64_t keys = c.positions == 1 ? c.kv_heads : 0;  // q, and with T = 1 k too
                for (int64_t i = 0; i < (c.heads + keys) * c.size; ++i) ASSERT_EQ(first[i], 0.0);
            }
        }
    }
}

TEST_P(AttentionTest, HugeScoresStayFinite) {
    for (const Case& c : {Case{1, 70, 1, 1, 4}, Case{1, 70, 2, 1, 64}, Case{1, 70, 1, 1, 128}}) {
        for (const DType type : {DType::f32, DType::bf16}) {
            const Values qkv = random_values(c.tokens() * c.stride(), 1, 1e15);  // scores of 1e30
            const Result r = run(c, type, qkv, random_values(c.tokens() * c.heads * c.size, 2));
            for (const double x : r.out) ASSERT_TRUE(std::isfinite(x));
            for (const double x : r.lse) ASSERT_TRUE(std::isfinite(x));
            for (const double x : r.dqkv) ASSERT_TRUE(std::isfinite(x));
        }
    }
}

TEST_P(AttentionTest, ZerosGiveMeans) {
    const Case c{1, 3, 1, 1, 2};
    Values qkv(18, 0.0);
    for (int t = 0; t < 3; ++t) qkv[6 * t + 4] = qkv[6 * t + 5] = t + 1;  // v only
    const Result r = run(c, DType::f32, qkv, Values(6, 0.0));
    EXPECT_NEAR(r.out[0], 1, 1e-6);
    EXPECT_NEAR(r.out[2], 1.5, 1e-6);
    EXPECT_NEAR(r.out[4], 2, 1e-6);
    EXPECT_NEAR(r.lse[2], std::log(3.0), 1e-6);
    for (const double x : r.dqkv) EXPECT_EQ(x, 0);
}

TEST_P(AttentionTest, TheFutureHasNoInfluence) {
    for (const Case& c : {Case{1, 90, 2, 1, 8}, Case{1, 140, 1, 1, 64}}) {
        for (const DType type : compute_types()) {
            const int64_t width = c.heads * c.size, changed = 50;
            Values qkv = random_values(c.tokens() * c.stride(), 1);
            const Values dout = random_values(c.tokens() * width, 2);
            const Result before = run(c, type, qkv, dout);
            for (size_t i = changed * c.stride(); i < qkv.size(); ++i) qkv[i] += 1;
            const Result after = run(c, type, qkv, dout);
            // On the CPU, BLAS may order the sums of a tile by its size.
            const double tolerance = has_fp64() ? 4 * half_ulp(type) : 0.0;
            for (int64_t i = 0; i < changed * width; ++i) {
                ASSERT_NEAR(before.out[i], after.out[i], tolerance);
            }
            EXPECT_NE(before.out[changed * width], after.out[changed * width]);
        }
    }
}

TEST_P(AttentionTest, NanPropagates) {
    for (const Case& c : {Case{1, 4, 1, 1, 2}, Case{1, 4, 1, 1, 64}, Case{1, 4, 1, 1, 128}}) {
        for (const DType type : {DType::f32, DType::bf16}) {
            Values qkv = random_values(c.tokens() * c.stride(), 1);
            qkv[c.stride()] = NAN;  // query of position 1
            const Result r = run(c, type, qkv, random_values(c.tokens() * c.size, 2));
            EXPECT_TRUE(std::isfinite(r.out[0]));
            EXPECT_TRUE(std::isnan(r.out[c.size]));
            EXPECT_TRUE(std::isnan(r.lse[1]));
            EXPECT_TRUE(std::isfinite(r.out[2 * c.size]));
            EXPECT_TRUE(std::isnan(r.dqkv[c.stride()]));         // its own gradient
            EXPECT_TRUE(std::isnan(r.dqkv[2 * c.size]));         // value 0, which it saw
            EXPECT_TRUE(std::isfinite(r.dqkv[2 * c.stride()]));  // query 2
        }
    }
}

TEST_P(AttentionTest, EqualBitsEachTimeAndCloseForOneThread) {
    const auto check_bits = [&](const Case& c, DType type) {
        const Values qkv = random_values(c.tokens() * c.stride(), 1);
        const Values dout = random_values(c.tokens() * c.heads * c.size, 2);
        use_threads(2);
        const Result first = run(c, type, qkv, dout), again = run(c, type, qkv, dout);
        EXPECT_EQ(first.out, again.out);
        EXPECT_EQ(first.lse, again.lse);
        EXPECT_EQ(first.dqkv, again.dqkv);
        use_threads(1);
        const Result single = run(c, type, qkv, dout);
        const double tolerance = (type == DType::f32 ? 16 : 2) * half_ulp(type);
        EXPECT_LE(largest_difference(first.out, single.out), tolerance * largest(first.out));
        EXPECT_LE(largest_difference(first.dqkv, single.dqkv),
                  10 * tolerance * largest(first.dqkv));
    };
    check_bits({2, 130, 2, 1, 16}, DType::f32);
    check_bits({1, 70, 2, 1, 20}, DType::bf16);
    check_bits({1, 130, 2, 1, 64}, DType::bf16);
    check_bits({1, 70, 1, 1, 128}, DType::bf16);
}

// The last position alone is the last row of the whole, at the same accuracy, whatever the queries
// of the earlier positions are.
class AttentionOneTest : public AttentionTest {
  protected:
    Values run_one(const Case& c, DType type, const Values& qkv) {
        AttentionOne one;
        one.qkv = put(type, {1, c.positions, c.stride()}, qkv);
        one.out = blank(type, {c.heads * c.size});
        one.heads = c.heads;
        one.kv_heads = c.kv_heads;
        give_workspace(one);
        backend_->attention_one(one);
        return get(one.out);
    }
    void check_one(const Case& c, double scale = 1.0) {
        for (const DType type : compute_types()) {
            SCOPED_TRACE(to_string(type) + " T " + std::to_string(c.positions) + " heads " +
                         std::to_string(c.heads) + "/" + std::to_string(c.kv_heads) + " D " +
                         std::to_string(c.size));
            const int64_t width = c.heads * c.size;
            Values qkv = round_to(type, random_values(c.tokens() * c.stride(), 1, scale));
            const Values dout(static_cast<size_t>(c.tokens() * width), 0.0);
            const auto last = [&](const Values& all) {
                return Values(all.end() - width, all.end());
            };
            const Values exact = last(reference<double>(c, qkv, dout).out);
            const Values plain = last(reference<float>(c, qkv, dout).out);
            for (int64_t t = 0; t + 1 < c.positions; ++t) {
                for (int64_t i = 0; i < width; ++i) qkv[t * c.stride() + i] = NAN;
            }
            const Values actual = run_one(c, type, qkv);
            expect_accurate(type, actual, exact, plain);
            EXPECT_EQ(actual, run_one(c, type, qkv));
        }
    }
};

TEST_P(AttentionOneTest, IsTheLastRow) {
    for (const Case& c : {Case{1, 1, 2, 2, 8}, Case{1, 2, 2, 1, 16}, Case{1, 7, 6, 2, 8},
                          Case{1, 33, 4, 1, 64}, Case{1, 90, 2, 2, 16}, Case{1, 200, 1, 1, 5},
                          Case{1, 20, 2, 1, 130}, Case{1, 5, 2, 1, 1}}) {
        check_one(c);
    }
    check_one({1, 40, 2, 1, 64}, 18.0);  // weights of 0 and 1 but for few
}

TEST_P(AttentionOneTest, ThreadsChangeNothing) {
    const Case c{1, 130, 4, 2, 16};
    const Values qkv = random_values(c.tokens() * c.stride(), 1);
    use_threads(1);
    const Values one = run_one(c, DType::f32, qkv);
    use_threads(2);
    EXPECT_EQ(one, run_one(c, DType::f32, qkv));
}

class AttentionOracleTest : public AttentionTest {};

TEST_P(AttentionOracleTest, FiniteDifferences) {
    const Case c{1, 5, 4, 2, 3};
    Values qkv = random_values(c.tokens() * c.stride(), 1);
    const Values dout = random_values(c.tokens() * 12, 2);
    const Values gradient = run(c, DType::f64, qkv, dout).dqkv;
    const auto loss = [&] {
        const Values out = run(c, DType::f64, qkv, dout).out;
        double sum = 0;
        for (size_t i = 0; i < out.size(); ++i) sum += out[i] * dout[i];
        return sum;
    };
    for (size_t i = 0; i < qkv.size(); i += 3) {
        const double h = 1e-5, old = qkv[i];
        qkv[i] = old + h;
        const double up = loss();
        qkv[i] = old - h;
        const double down = loss();
        qkv[i] = old;
        EXPECT_NEAR(gradient[i], (up - down) / (2 * h), 1e-8);
    }
}

LMO_ON_ALL_BACKENDS(AttentionTest);
LMO_ON_ALL_BACKENDS(AttentionOneTest);
LMO_ON_THE_ORACLE(AttentionOracleTest);

}  // namespace
}  // namespace lmo
