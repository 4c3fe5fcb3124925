// Embedding, RoPE and SwiGLU against plain loops and finite differences.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

class ModelOpsTest : public BackendTest {};
class ModelOpsOracleTest : public ModelOpsTest {};

std::vector<int32_t> random_ids(int64_t count, int64_t vocabulary, uint64_t seed) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) {
        ids.push_back(static_cast<int32_t>(random_bits(seed, 0, i) % vocabulary));
    }
    return ids;
}

// ---- embedding ----------------------------------------------------------------------------------

TEST_P(ModelOpsTest, EmbeddingForward) {
    std::vector<std::pair<DType, DType>> types = {{DType::f32, DType::f32},
                                                  {DType::f32, DType::bf16},
                                                  {DType::bf16, DType::f32},
                                                  {DType::bf16, DType::bf16}};
    if (has_fp64()) types.push_back({DType::f64, DType::f64});
    for (const auto& [type, out_type] : types) {
        for (const auto& [rows, columns] : {std::pair{1, 1}, std::pair{5, 5}, std::pair{9, 264}}) {
            const std::vector<int32_t> ids = random_ids(rows, 7, 3);
            const Values table = round_to(type, random_values(7 * columns, 1));
            for (const bool aligned : {true, false}) {
                const Tensor from = aligned ? put(type, {7, columns}, table)
                                            : put_unaligned(type, {7, columns}, table);
                const EmbeddingForward op{put_ids(ids), from, blank(out_type, {rows, columns})};
                backend_->embedding_forward(op);
                Values exact;
                for (const int32_t id : ids) {
                    exact.insert(exact.end(), &table[id * columns], &table[id * columns + columns]);
                }
                EXPECT_EQ(get(op.out), round_to(out_type, exact));
            }
        }
    }
}

class EmbeddingBackwardTest : public BackendTest {
  protected:
    EmbeddingBackward make(DType type, const std::vector<int32_t>& ids, int64_t vocabulary,
                           int64_t columns, const Values& dout, const Values& old) {
        EmbeddingBackward op;
        op.ids = put_ids(ids);
        op.dout = put(type, {static_cast<int64_t>(ids.size()), columns}, dout);
        op.dtable = put(master_of(type), {vocabulary, columns}, old);
        give_workspace(op);
        return op;
    }

    // The additions in order, in the master type: nothing else is right.
    static void add_in_order(DType type, const std::vector<int32_t>& ids, int64_t columns,
                             const Values& dout, Values& table) {
        for (int64_t i = 0; i < static_cast<int64_t>(dout.size()); ++i) {
            double& to = table[ids[i / columns] * columns + i % columns];
            to = type == DType::f64 ? to + dout[i]
                                    : static_cast<float>(to) + static_cast<float>(dout[i]);
        }
    }

    void check(const std::vector<int32_t>& ids, int64_t vocabulary, int64_t columns) {
        for (const DType type : compute_types()) {
            const int64_t count = static_cast<int64_t>(ids.size());
            const Values dout = round_to(type, random_values(count * columns, 1));
            Values exact = round_to(master_of(type), random_values(vocabulary * columns, 2));
            const EmbeddingBackward op = make(type, ids, vocabulary, columns, dout, exact);
            backend_->embedding_backward(op);
            add_in_order(type, ids, columns, dout, exact);
            EXPECT_EQ(get(op.dtable), exact) << "N " << count << " V " << vocabulary;
        }
    }
};

TEST_P(EmbeddingBackwardTest, AddsEqualIdsInOrder) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < 700; ++i) {  // id 4 never occurs, id 0 often
        const auto id =
            static_cast<int32_t>(random_bits(5, 0, i) % 2 * (random_bits(5, 1, i) % 19));
        ids.push_back(id == 4 ? 18 : id);
    }
    check(ids, 19, 33);
}

TEST_P(EmbeddingBackwardTest, OneIdAndAllIdsEqual) {
    check({0}, 1, 1);
    check({6}, 7, 70);
    check(std::vector<int32_t>(5000, 2), 3, 5);
    check(std::vector<int32_t>(2049, 299), 300, 33);
}

// Two and three digits of a radix sort, with the first and the last id.
TEST_P(EmbeddingBackwardTest, LargeVocabularies) {
    for (const int64_t vocabulary : {256, 257, 50304, 70000}) {
        std::vector<int32_t> ids = random_ids(2500, vocabulary, 9);
        ids[7] = ids[2000] = 0;
        ids[8] = ids[2499] = static_cast<int32_t>(vocabulary - 1);
        check(ids, vocabulary, 2);
    }
}

// Runs of equal ids of every length around the sizes of warps and tiles.
TEST_P(EmbeddingBackwardTest, RunsOfAllLengths) {
    std::vector<int32_t> ids;
    const std::vector<int> lengths = {1,  2,  7,  8,  9,  31, 32,  33, 34,
                                      63, 64, 65, 95, 96, 97, 128, 130};
    for (int round = 0; round < 130; ++round) {
        for (size_t i = 0; i < lengths.size(); ++i) {
            if (round < lengths[i]) ids.push_back(static_cast<int32_t>(i));
        }
    }
    check(ids, static_cast<int64_t>(lengths.size()), 64);
}

TEST_P(EmbeddingBackwardTest, AsARecordedGraph) {
    const std::vector<int32_t> ids = random_ids(300, 40, 1);
    const Values dout = round_to(DType::f32, random_values(300 * 8, 1));
    Values exact(40 * 8, 0.0);
    const EmbeddingBackward op = make(DType::f32, ids, 40, 8, dout, exact);
    const auto graph = backend_->capture([&] { backend_->embedding_backward(op); });
    for (int launch = 0; launch < 2; ++launch) {
        graph->launch();
        add_in_order(DType::f32, ids, 8, dout, exact);
        EXPECT_EQ(get(op.dtable), exact);
    }
}

// ---- RoPE ---------------------------------------------------------------------------------------

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

struct RopeCase {
    int64_t batch, positions, size;
    int heads, kv_heads;
    bool aligned;
};

class RopeTest : public BackendTest {
  protected:
    void check(DType type, const RopeCase& c) {
        SCOPED_TRACE(to_string(type) + " D " + std::to_string(c.size));
        const int64_t slots = c.heads + 2 * c.kv_heads, half = c.size / 2;
        const Shape shape{c.batch, c.positions, slots * c.size};
        const Values qkv = round_to(type, random_values(shape.count(), 1));
        const Values table = round_to(master_of(type), rope_table(c.positions + 4, c.size));
        Rope op{c.aligned ? put(type, shape, qkv) : put_unaligned(type, shape, qkv),
                put(master_of(type), {c.positions + 4, half, 2}, table), c.heads, c.kv_heads,
                false};
        backend_->rope(op);
        Values exact = qkv;
        for (int64_t n = 0; n < c.batch * c.positions; ++n) {
            for (int64_t h = 0; h < c.heads + c.kv_heads; ++h) {
                for (int64_t i = 0; i < half; ++i) {
                    const int64_t a = (n * slots + h) * c.size + i, b = a + half;
                    const int64_t t = n % c.positions;
                    const double cosine = table[(t * half + i) * 2];
                    const double sine = table[(t * half + i) * 2 + 1];
                    exact[a] = qkv[a] * cosine - qkv[b] * sine;
                    exact[b] = qkv[a] * sine + qkv[b] * cosine;
                }
            }
        }
        const Values turned = get(op.qkv);
        EXPECT_LE(largest_difference(turned, exact), 3 * half_ulp(type) * largest(exact));
        for (int64_t i = 0; i < shape.count(); ++i) {  // values are not turned
            if (i / c.size % slots < c.heads + c.kv_heads) continue;
            ASSERT_EQ(turned[i], qkv[i]);
        }
        op.inverse = true;  // the transposed rotation undoes it
        backend_->rope(op);
        EXPECT_LE(largest_difference(get(op.qkv), qkv), 8 * half_ulp(type) * largest(qkv));
    }
};

TEST_P(RopeTest, TurnsQueriesAndKeys) {
    for (const DType type : compute_types()) {
        check(type, {2, 19, 6, 3, 1, true});
        check(type, {1, 1, 2, 1, 1, true});
        check(type, {3, 5, 8, 2, 2, true});
        check(type, {2, 9, 64, 6, 2, true});
        check(type, {1, 3, 128, 2, 1, true});
        check(type, {2, 3, 64, 2, 1, false});
    }
}

// ---- SwiGLU -------------------------------------------------------------------------------------

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

class SwigluTest : public BackendTest {
  protected:
    void check(DType type, int64_t rows, int64_t width, bool aligned, bool in_place) {
        SCOPED_TRACE(to_string(type) + " N " + std::to_string(rows) + " F " +
                     std::to_string(width));
        const Values gate_up = round_to(type, random_values(rows * 2 * width, 1, 3.0));
        const Values dout = round_to(type, random_values(rows * width, 2));
        const Shape shape{rows, 2 * width};
        const Tensor x = aligned ? put(type, shape, gate_up) : put_unaligned(type, shape, gate_up);
        const SwigluForward forward{x, blank(type, {rows, width})};
        backend_->swiglu_forward(forward);
        const Tensor dx = in_place ? x : blank(type, shape);
        backend_->swiglu_backward({x, put(type, {rows, width}, dout), dx});
        Values out, din, plain_out, plain_din;
        swiglu<double>(gate_up, dout, width, out, din);
        swiglu<float>(gate_up, dout, width, plain_out, plain_din);
        expect_accurate(type, get(forward.out), out, plain_out);
        expect_accurate(type, get(dx), din, plain_din);
        if (!in_place) {
            EXPECT_EQ(get(x), gate_up);
        }
    }
};

TEST_P(SwigluTest, ForwardAndBackward) {
    for (const DType type : compute_types()) {
        for (const bool in_place : {true, false}) {
            check(type, 1, 1, true, in_place);
            check(type, 3, 40, true, in_place);
            check(type, 70, 33, true, in_place);
            check(type, 9, 264, true, in_place);
            check(type, 5, 264, false, in_place);
            check(type, 1, 5632, true, in_place);
        }
        check(type, 66000, 1, true, true);
    }
}

// Gates far out: silu is 0 or the gate itself; NaN stays.
TEST_P(SwigluTest, Extremes) {
    for (const DType type : {DType::f32, DType::bf16}) {
        const Tensor x = put(type, {1, 12}, {-1e30, 1e30, -100, NAN, 0, 2, 1, 1, 1, 1, 1, NAN});
        const double big = round_to(type, {1e30})[0];
        const SwigluForward forward{x, blank(type, {1, 6})};
        backend_->swiglu_forward(forward);
        const Values out = get(forward.out);
        EXPECT_EQ(out[0], 0);
        EXPECT_EQ(out[1], big);
        EXPECT_NEAR(out[2], 0, 1e-35);
        EXPECT_TRUE(std::isnan(out[3]));
        EXPECT_EQ(out[4], 0);
        EXPECT_TRUE(std::isnan(out[5]));

        backend_->swiglu_backward({x, put(type, {1, 6}, Values(6, 2.0)), x});
        const Values din = get(x);
        EXPECT_EQ(din[0], 0);
        EXPECT_EQ(din[1], 2);
        EXPECT_NEAR(din[2], 0, 1e-35);
        EXPECT_TRUE(std::isnan(din[3]));
        EXPECT_EQ(din[4], 1);
        EXPECT_TRUE(std::isnan(din[5]));
        EXPECT_EQ(din[6], 0);
        EXPECT_EQ(din[7], 2 * big);
        EXPECT_EQ(din[10], 0);
    }
}

TEST_P(ModelOpsOracleTest, SwigluFiniteDifferences) {
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
}

LMO_ON_ALL_BACKENDS(ModelOpsTest);
LMO_ON_ALL_BACKENDS(EmbeddingBackwardTest);
LMO_ON_ALL_BACKENDS(RopeTest);
LMO_ON_ALL_BACKENDS(SwigluTest);
LMO_ON_THE_ORACLE(ModelOpsOracleTest);

}  // namespace
}  // namespace lmo
