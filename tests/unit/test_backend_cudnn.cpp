// Attention by cuDNN beside our own kernels, where a GPU has it: both are in bf16, so that they
// differ by roundings.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

struct Case {
    int64_t batch, positions;
    int heads, kv_heads;
    int64_t size;  // of a head
};

// || a - b || / || b ||
double distance(const Values& a, const Values& b) {
    double difference = 0;
    for (size_t i = 0; i < a.size(); ++i) difference += (a[i] - b[i]) * (a[i] - b[i]);
    return std::sqrt(difference / dot(b, b));
}

class CudnnAttentionTest : public BackendTest {
  protected:
    struct Calls {
        AttentionForward forward;
        AttentionBackward backward;
    };
    struct Result {
        Values out, lse, dqkv;
        bool operator==(const Result&) const = default;
    };

    void SetUp() override {
        BackendTest::SetUp();
        const std::string missing = backend_->missing_attention_library();
        if (!missing.empty()) GTEST_SKIP() << "no attention by cuDNN: " << missing;
    }

    Calls make(const Case& c, bool library) {
        const Shape qkv{c.batch, c.positions, (c.heads + 2 * c.kv_heads) * c.size};
        const Shape out{c.batch, c.positions, c.heads * c.size};
        Calls calls;
        AttentionForward& f = calls.forward;
        f.qkv = put(DType::bf16, qkv, random_values(qkv.count(), 1));
        f.out = blank(DType::bf16, out);
        f.lse = blank(DType::f32, {c.batch, c.heads, c.positions});
        f.heads = c.heads;
        f.kv_heads = c.kv_heads;
        f.library = library;
        give_workspace(f);
        AttentionBackward& b = calls.backward;
        b.qkv = f.qkv;
        b.out = f.out;
        b.lse = f.lse;
        b.dout = put(DType::bf16, out, random_values(out.count(), 2));
        b.dqkv = blank(DType::bf16, qkv);
        b.heads = c.heads;
        b.kv_heads = c.kv_heads;
        b.library = library;
        give_workspace(b);
        return calls;
    }
    void run(const Calls& calls) {
        backend_->attention_forward(calls.forward);
        backend_->attention_backward(calls.backward);
    }
    Result result(const Calls& calls) {
        return {get(calls.forward.out), get(calls.forward.lse), get(calls.backward.dqkv)};
    }
    Result compute(const Case& c, bool library) {
        const Calls calls = make(c, library);
        run(calls);
        return result(calls);
    }
};

TEST_P(CudnnAttentionTest, AgreesWithOurKernels) {
    for (const int64_t size : {64, 128}) {
        for (const int64_t positions : {64, 100, 128, 512, 1000}) {
            for (const auto& [heads, kv_heads] :
                 {std::pair{4, 4}, std::pair{4, 2}, std::pair{6, 1}}) {
                SCOPED_TRACE("T " + std::to_string(positions) + ", heads " + std::to_string(heads) +
                             "/" + std::to_string(kv_heads) + ", D " + std::to_string(size));
                const Case c{2, positions, heads, kv_heads, size};
                const Result theirs = compute(c, true), ours = compute(c, false);
                EXPECT_LE(distance(theirs.out, ours.out), 4e-3);
                EXPECT_LE(distance(theirs.lse, ours.lse), 1e-5);
                EXPECT_LE(distance(theirs.dqkv, ours.dqkv), 1e-2);
            }
        }
    }
}

TEST_P(CudnnAttentionTest, EqualBitsAgainAndInAGraph) {
    const Case c{8, 512, 12, 4, 64};
    const Result first = compute(c, true);
    for (int i = 0; i < 5; ++i) EXPECT_EQ(compute(c, true), first);
    const Calls calls = make(c, true);
    const std::unique_ptr<Graph> graph = backend_->capture([&] { run(calls); });
    graph->launch();
    EXPECT_EQ(result(calls), first);
}

LMO_ON_ALL_BACKENDS(CudnnAttentionTest);

}  // namespace
}  // namespace lmo
