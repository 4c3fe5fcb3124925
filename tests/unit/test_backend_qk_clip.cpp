// Largest attention scores, of rows and of heads, and QK-clip.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

class QkClipTest : public BackendTest {};

// ---- largest scores -----------------------------------------------------------------------------

struct Case {
    int64_t batch, positions;
    int heads, kv_heads;
    int64_t size;

    int64_t stride() const { return (heads + 2 * kv_heads) * size; }
};

template <typename T>
Values row_maxima(const Case& c, const Values& qkv) {
    const T scale = static_cast<T>(1 / std::sqrt(static_cast<double>(c.size)));
    Values maxima;
    for (int64_t b = 0; b < c.batch; ++b) {
        for (int h = 0; h < c.heads; ++h) {
            const int64_t key = c.heads + h / (c.heads / c.kv_heads);
            for (int64_t t = 0; t < c.positions; ++t) {
                T top = -std::numeric_limits<T>::infinity();
                for (int64_t s = 0; s <= t; ++s) {
                    T score = 0;
                    const int64_t q = (b * c.positions + t) * c.stride() + h * c.size;
                    const int64_t k = (b * c.positions + s) * c.stride() + key * c.size;
                    for (int64_t d = 0; d < c.size; ++d) {
                        score += static_cast<T>(qkv[q + d]) * static_cast<T>(qkv[k + d]);
                    }
                    top = std::max(top, score * scale);
                }
                maxima.push_back(top);
            }
        }
    }
    return maxima;
}

TEST_P(QkClipTest, RowMaximaOfAttention) {
    const Case cases[] = {{2, 1, 2, 2, 8},    {2, 70, 6, 2, 8},    {1, 33, 1, 1, 5},
                          {1, 200, 2, 1, 64}, {1, 130, 2, 2, 128}, {1, 64, 4, 1, 24},
                          {2, 66, 2, 1, 40},  {1, 20, 2, 1, 130},  {1, 20, 2, 1, 256}};
    for (const Case& c : cases) {
        for (const DType type : compute_types()) {
            for (const double scale : {1.0, 18.0}) {
                SCOPED_TRACE(to_string(type) + " T " + std::to_string(c.positions) + " D " +
                             std::to_string(c.size));
                const int64_t tokens = c.batch * c.positions;
                const Values qkv = round_to(type, random_values(tokens * c.stride(), 1, scale));
                AttentionForward op{};
                op.qkv = put(type, {c.batch, c.positions, c.stride()}, qkv);
                op.heads = c.heads;
                op.kv_heads = c.kv_heads;
                const Shape out{c.batch, c.positions, c.heads * c.size};
                const Shape rows{c.batch, c.heads, c.positions};
                op.out = blank(type, out);
                op.lse = blank(master_of(type), rows);
                give_workspace(op);
                backend_->attention_forward(op);
                const Values plain_out = get(op.out), plain_lse = get(op.lse);
                op.out = blank(type, out);
                op.lse = blank(master_of(type), rows);
                op.row_max = blank(master_of(type), rows);
                give_workspace(op);
                backend_->attention_forward(op);
                EXPECT_EQ(get(op.out), plain_out);
                EXPECT_EQ(get(op.lse), plain_lse);
                expect_accurate(master_of(type), get(op.row_max), row_maxima<double>(c, qkv),
                                row_maxima<float>(c, qkv));
            }
        }
    }
}

TEST_P(QkClipTest, HeadMaxima) {
    for (const DType type : master_types()) {
        for (const Shape& shape : {Shape{1, 1, 1}, Shape{2, 3, 5}, Shape{3, 4, 2500}}) {
            const int64_t heads = shape[1], positions = shape[2];
            Values x = round_to(type, random_values(shape.count(), 7));
            for (double& value : x) value -= 10;  // all below zero
            x = round_to(type, x);
            Values start(heads, -INFINITY);
            start[heads - 1] = 100;
            if (heads > 2) start[1] = -12;
            Values exact = start;
            for (int64_t i = 0; i < shape.count(); ++i) {
                double& top = exact[i / positions % heads];
                top = std::max(top, x[i]);
            }
            const HeadMaxima op{put(type, shape, x), put(type, {heads}, start)};
            backend_->head_maxima(op);
            EXPECT_EQ(get(op.out), exact);
            backend_->head_maxima(op);
            EXPECT_EQ(get(op.out), exact);
        }
    }
}

// ---- the clip -----------------------------------------------------------------------------------

struct Weights {
    Tensor q, k, q_copy, k_copy;
    Values old_q, old_k;
};

struct Sizes {
    int heads, kv_heads;
    int64_t size, columns;
};

class ClipTest : public QkClipTest {
  protected:
    Weights weights(const Sizes& s, DType type, DType copy, bool copied) {
        const Shape q{s.heads * s.size, s.columns}, k{s.kv_heads * s.size, s.columns};
        Weights w;
        w.old_q = round_to(type, random_values(q.count(), 1));
        w.old_k = round_to(type, random_values(k.count(), 2));
        w.q = put(type, q, w.old_q);
        w.k = put(type, k, w.old_k);
        if (!copied) return w;
        w.q_copy = put(copy, q, w.old_q);
        w.k_copy = put(copy, k, w.old_k);
        return w;
    }

    void clip(const Sizes& s, const Weights& w, const Tensor& maxima, double limit) {
        backend_->qk_clip({w.q, w.k, w.q_copy, w.k_copy, maxima, s.heads, s.kv_heads, limit});
    }
};

void expect_close(DType type, const Values& actual, const Values& exact) {
    ASSERT_EQ(actual.size(), exact.size());
    for (size_t i = 0; i < exact.size(); ++i) {
        ASSERT_LE(std::abs(actual[i] - exact[i]), 4 * half_ulp(type) * std::abs(exact[i])) << i;
    }
}

const std::vector<Sizes> all_sizes = {{1, 1, 1, 1}, {4, 4, 8, 16}, {6, 2, 5, 7}, {4, 1, 64, 70}};

TEST_P(ClipTest, FactorsOfHeads) {
    const double limit = 50;
    for (const Sizes& s : all_sizes) {
        for (const DType type : master_types()) {
            for (const auto& [copy, copied] :
                 {std::pair(type, false), {type, true}, {DType::bf16, true}}) {
                const Values possible = {200, 50, 12, 75, -3, 1e6};
                Values maxima(possible.begin(), possible.begin() + s.heads);
                maxima = round_to(type, maxima);
                const Weights w = weights(s, type, copy, copied);
                clip(s, w, put(type, {s.heads}, maxima), limit);
                Values q = w.old_q, k = w.old_k;
                const int64_t count = s.size * s.columns;
                const int group = s.heads / s.kv_heads;
                const auto gain = [&](int h) { return std::min(1.0, limit / maxima[h]); };
                const auto positive = [&](int h) { return maxima[h] <= limit ? 1.0 : gain(h); };
                for (int key = 0; key < s.kv_heads; ++key) {
                    double least = 1;
                    for (int h = key * group; h < (key + 1) * group; ++h) {
                        least = std::min(least, positive(h));
                    }
                    for (int64_t i = 0; i < count; ++i) k[key * count + i] *= std::sqrt(least);
                    for (int h = key * group; h < (key + 1) * group; ++h) {
                        for (int64_t i = 0; i < count; ++i) {
                            q[h * count + i] *= positive(h) / std::sqrt(least);
                        }
                    }
                }
                expect_close(type, get(w.q), q);
                expect_close(type, get(w.k), k);
                if (copied) {
                    EXPECT_EQ(get(w.q_copy), round_to(copy, get(w.q)));
                }
                if (copied) {
                    EXPECT_EQ(get(w.k_copy), round_to(copy, get(w.k)));
                }
            }
        }
    }
}

TEST_P(ClipTest, NothingBelowTheLimit) {
    const Sizes s{6, 2, 5, 7};
    const Weights w = weights(s, DType::f32, DType::bf16, true);
    clip(s, w, put(DType::f32, {6}, {0, -1, 100, 99, 5, 1e-30}), 100);
    EXPECT_EQ(get(w.q), w.old_q);
    EXPECT_EQ(get(w.k), w.old_k);
}

// A recorded clip reads the maxima at each run; equal bits each time.
TEST_P(ClipTest, ReplaysReadTheMaximaAgain) {
    const Sizes s{6, 2, 5, 7};
    const Weights plain = weights(s, DType::f32, DType::bf16, true);
    const Weights recorded = weights(s, DType::f32, DType::bf16, true);
    const Tensor x = put(DType::f32, {2, 6, 9}, Values(108, NAN));
    const Tensor top = put(DType::f32, {6}, Values(6, NAN));
    const auto graph = backend_->capture([&] {
        backend_->head_maxima({x, top});
        clip(s, recorded, top, 1.0);
    });
    for (uint64_t run = 1; run < 4; ++run) {
        const Values values = round_to(DType::f32, random_values(108, run));
        const std::vector<float> floats(values.begin(), values.end()), zeros(6, 0.0f);
        const Tensor other = put(DType::f32, {6}, Values(6, 0.0));
        backend_->head_maxima({put(DType::f32, {2, 6, 9}, values), other});
        clip(s, plain, other, 1.0);
        backend_->copy_in(x, floats.data());
        backend_->copy_in(top, zeros.data());
        graph->launch();
        EXPECT_EQ(get(top), get(other));
        EXPECT_EQ(get(recorded.q), get(plain.q));
        EXPECT_EQ(get(recorded.k), get(plain.k));
        EXPECT_EQ(get(recorded.k_copy), get(plain.k_copy));
    }
}

LMO_ON_ALL_BACKENDS(QkClipTest);
LMO_ON_ALL_BACKENDS(ClipTest);

}  // namespace
}  // namespace lmo
