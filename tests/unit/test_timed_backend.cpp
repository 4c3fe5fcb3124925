// The timed backend changes no bit, counts every operation for one part, and lists the GEMM calls.
#include "llmc/core/timer.h"
#include "llmc/device/timed_backend.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/unit/optimizer_run.h"
#include "tests/unit/tiny_llama.h"

namespace lmo {
namespace {

constexpr int64_t kBatch = 2, kLayers = 2;

LlamaConfig tiny_model() { return {kLayers, 4, 2, 32, 48, 40, 12, 100.0, 1e-5, 0.02, true}; }

// What an update leaves behind, bit by bit.
struct Outcome {
    std::vector<char> weights, copies, directions;
    double loss = 0.0, norm = 0.0;

    bool operator==(const Outcome& other) const {
        return weights == other.weights && copies == other.copies &&
               directions == other.directions && loss == other.loss && norm == other.norm;
    }
};

// Two updates of a small model as the trainer makes them: captured, with Muon, Adam and clipping.
Outcome train(Backend& backend, const ModelPrecision& precision, int updates = 2) {
    const LlamaConfig config = tiny_model();
    const ParameterList list = llama_parameters(config);
    Arena arena(backend);
    Llama model(backend, arena, config, list, precision, kBatch, true);
    const Shape all{list.buffer_length()};
    const ParameterBuffer master{&list, arena.take("weights", precision.master, all)};
    const bool separate = precision.compute != precision.master;
    const ParameterBuffer copies{
        &list, separate ? arena.take("weights", precision.compute, all) : Tensor{}};
    const ParameterBuffer gradients{&list, arena.take("gradients", precision.master, all)};
    const Tensor tokens = arena.take("batch", DType::i32, {kBatch, config.seq_len});
    const Tensor targets = arena.take("batch", DType::i32, {kBatch, config.seq_len});
    const Tensor loss = arena.take("batch", DType::f64, {1});
    OptimizerConfig muon = muon_like();
    muon.clip_norm = 0.1;
    Optimizer optimizer(backend, arena, muon, list, precision.master);
    optimizer.initialise(master);

    const std::vector<double> start = lively_weights(list, 1);
    const std::vector<float> narrow(start.begin(), start.end());
    backend.copy_in(master.flat, narrow.data());
    if (separate) backend.copy(copies.flat, master.flat);
    const ParameterBuffer& compute = separate ? copies : master;
    arena.workspace();
    const auto micro_step = backend.capture(
        [&] { model.forward_backward(compute, gradients, tokens, targets, 0.1, loss); });
    const auto update = backend.capture([&] { optimizer.step(master, copies, gradients); });

    Outcome outcome;
    for (int i = 0; i < updates; ++i) {
        const Ids ids = random_ids(kBatch, config.seq_len, config.vocab_size, 2 * i);
        const Ids goals = random_ids(kBatch, config.seq_len, config.vocab_size, 2 * i + 1);
        backend.zero(gradients.flat);
        backend.zero(loss);
        backend.copy_in(tokens, ids.values.data());
        backend.copy_in(targets, goals.values.data());
        micro_step->launch();
        backend.copy_out(&outcome.loss, loss);
        outcome.norm = optimizer.gradient_norm(gradients);
        optimizer.set_scalars(0.01, i);
        update->launch();
        backend.synchronize();
    }
    const auto bytes = [&](const Tensor& tensor) {
        std::vector<char> host(tensor.bytes());
        if (!tensor.empty()) backend.copy_out(host.data(), tensor);
        return host;
    };
    for (int i = 0; i < list.size(); ++i) {  // the gaps between tensors hold anything
        for (auto [from, to] : {std::pair(&master, &outcome.weights),
                                {&copies, &outcome.copies},
                                {&gradients, &outcome.directions}}) {
            if (from->flat.empty()) continue;
            const std::vector<char> tensor = bytes((*from)[i]);
            to->insert(to->end(), tensor.begin(), tensor.end());
        }
    }
    return outcome;
}

class TimedBackendTest : public ::testing::Test {
  protected:
    std::unique_ptr<Backend> plain_ = make_cpu_backend(2);
    TimedBackend timed_{*plain_};
};

TEST_F(TimedBackendTest, ResultsAreThoseOfThePlainBackendBitByBit) {
    for (const ModelPrecision& precision : {kFp32, kBf16}) {
        const Outcome expected = train(*plain_, precision);
        EXPECT_GT(expected.loss, 0.0);
        EXPECT_GT(expected.norm, 0.0);
        EXPECT_TRUE(train(timed_, precision) == expected) << to_string(precision.compute);
        EXPECT_FALSE(train(timed_, precision, 1) == expected);  // the comparison can fail
    }
    EXPECT_EQ(timed_.describe(), plain_->describe());
    EXPECT_EQ(timed_.preferred_compute(), plain_->preferred_compute());
}

TEST_F(TimedBackendTest, EveryOperationOfAnUpdateBelongsToItsPart) {
    train(timed_, kFp32, 1);
    const auto calls = [&](Part part) { return timed_.time(part).calls; };
    // Each layer has four products (qkv, o, gate and up, down), the head is one more; each is one
    // GEMM forward and two backward.
    EXPECT_EQ(calls(Part::gemm), 3 * (4 * kLayers + 1));
    EXPECT_EQ(calls(Part::attention), 2 * kLayers);
    EXPECT_EQ(calls(Part::classifier), 2);  // and the sum of the losses
    // Forward and backward: the embedding, two norms a layer and the last, RoPE, SwiGLU. Zeros: the
    // gradients, the loss, the gradient of the residual stream, and the states at the start: one of
    // each of a layer's seven matrices, two of the embedding and of each gain.
    const int64_t gains = 2 * kLayers + 1, states = 7 * kLayers + 2 * (1 + gains);
    EXPECT_EQ(calls(Part::elementwise), 2 * (1 + gains + 2 * kLayers) + 3 + states);
    // Sum of squares and clip factor; spectral updates of qkv, o, gate with up, and down; AdamW.
    EXPECT_EQ(calls(Part::optimizer), 2 + 4 + 1);
    // The table of RoPE, weights, tokens, targets, rate in; loss and norm out, and at the end every
    // weight and every gradient.
    EXPECT_EQ(calls(Part::data), 5 + 2 + 2 * llama_parameters(tiny_model()).size());

    double sum = 0.0;
    for (int i = 0; i < kParts; ++i) {
        const PartTime& part = timed_.time(static_cast<Part>(i));
        EXPECT_GT(part.seconds, 0.0) << to_string(static_cast<Part>(i));
        sum += part.seconds;
    }
    EXPECT_DOUBLE_EQ(timed_.seconds(), sum);

    timed_.restart();
    EXPECT_EQ(timed_.seconds(), 0.0);
    EXPECT_EQ(calls(Part::gemm), 0);
    EXPECT_TRUE(timed_.gemms().empty());
}

TEST_F(TimedBackendTest, PartsAddUpToAboutTheTimeOfTheUpdate) {
    // Products large enough that the host's own work is small beside them.
    Arena arena(*plain_);
    const Tensor a = arena.take("a", DType::f32, {512, 512});
    const Tensor b = arena.take("b", DType::f32, {512, 512});
    Gemm gemm{.a = a, .b = a, .c = b, .workspace = {}};
    double share = 0.0;
    for (int attempt = 0; attempt < 20 && share < 0.9; ++attempt) {  // others use the machine too
        timed_.restart();
        const Timer timer;
        timed_.zero(a);
        for (int i = 0; i < 8; ++i) timed_.gemm(gemm);
        share = timed_.seconds() / timer.seconds();
        EXPECT_LE(share, 1.0);
        EXPECT_GT(timed_.time(Part::gemm).seconds, timed_.time(Part::elementwise).seconds);
    }
    EXPECT_GE(share, 0.9);
}

TEST_F(TimedBackendTest, GemmsAreListedInOrderAndCountedByShape) {
    train(timed_, kFp32, 1);
    const int64_t rows = kBatch * tiny_model().seq_len;
    ASSERT_EQ(timed_.gemms().size(), static_cast<size_t>(3 * (4 * kLayers + 1)));
    const Gemm& first = timed_.gemms().front().gemm;  // x Wqkv^T
    EXPECT_EQ(first.a.shape, (Shape{rows, 32}));
    EXPECT_EQ(first.b.shape, (Shape{64, 32}));
    EXPECT_TRUE(first.transpose_b);
    const Gemm& last = timed_.gemms().back().gemm;  // dqkv Wqkv
    EXPECT_EQ(last.c.shape, (Shape{rows, 32}));
    EXPECT_FALSE(last.transpose_a || last.transpose_b);

    const std::vector<TimedGemm> distinct = timed_.distinct_gemms();
    EXPECT_EQ(distinct.size(), 3u * 5u);  // qkv, o, gate and up, down, head: all differ
    int64_t calls = 0;
    double seconds = 0.0;
    for (const TimedGemm& gemm : distinct) {
        const bool head =
            gemm.gemm.a.shape.count() == rows * 40 || gemm.gemm.b.shape.count() == 40 * 32;
        EXPECT_EQ(gemm.time.calls, head ? 1 : kLayers) << to_string(gemm.gemm.c.shape);
        EXPECT_EQ(gemm.gemm.beta, gemm.gemm.transpose_a ? 1.0 : 0.0);
        calls += gemm.time.calls;
        seconds += gemm.time.seconds;
    }
    EXPECT_EQ(calls, timed_.time(Part::gemm).calls);
    EXPECT_NEAR(seconds, timed_.time(Part::gemm).seconds, 1e-12);
}

TEST_F(TimedBackendTest, EqualShapesWithAnotherBetaTypeOrTransposeAreNotTheSameCall) {
    Arena arena(*plain_);
    const auto square = [&](DType type) {
        const Tensor tensor = arena.take("square", type, {16, 16});
        plain_->zero(tensor);
        return tensor;
    };
    const Tensor a = square(DType::f32), b = square(DType::f32), c = square(DType::f32);
    const Tensor half = square(DType::bf16);
    Gemm gemm{.a = a, .b = b, .c = c, .workspace = arena.take("scratch", DType::f32, {4096})};
    timed_.gemm(gemm);
    gemm.c = square(DType::f32);  // other memory is the same call
    timed_.gemm(gemm);
    gemm.beta = 1.0;
    timed_.gemm(gemm);
    gemm.transpose_a = true;
    timed_.gemm(gemm);
    gemm.a = gemm.b = half;
    timed_.gemm(gemm);
    std::vector<int64_t> calls;
    for (const TimedGemm& g : timed_.distinct_gemms()) calls.push_back(g.time.calls);
    EXPECT_EQ(calls, (std::vector<int64_t>{2, 1, 1, 1}));
}

TEST_F(TimedBackendTest, OperationsThatATrainingStepLacksAreHandedOnToo) {
    Arena arena(*plain_);
    const Tensor a = arena.take("a", DType::f32, {3, 2});
    const Tensor product = arena.take("product", DType::f32, {3, 3});
    const Tensor sum = arena.take("sum", DType::f64, {1});
    const std::vector<float> values = {1, -2, 0, 3, -4, 5};
    timed_.copy_in(a, values.data());
    timed_.symmetric_product({.a = a, .s = {}, .c = product, .workspace = {}});
    std::vector<float> host(9);
    timed_.copy_out(host.data(), product);
    EXPECT_EQ(host, (std::vector<float>{5, -6, -14, -6, 9, 15, -14, 15, 41}));

    const std::vector<Tensor> list = {a};
    timed_.sign({list});
    timed_.sum({a, sum, 1.0, false});
    double signs = 0.0;
    timed_.copy_out(&signs, sum);
    EXPECT_EQ(signs, 3.0 - 2.0);

    FrobeniusNormalize normalize{list, 0.0, {}};
    arena.reserve_workspace(timed_.workspace_bytes(normalize));
    normalize.workspace = arena.workspace();
    timed_.frobenius_normalize(normalize);
    timed_.sum({a, sum, 1.0, false});
    timed_.copy_out(&signs, sum);
    EXPECT_NEAR(signs, 1.0 / std::sqrt(5.0), 1e-6);

    const Tensor rate = arena.take("rate", DType::f64, {1});
    const double one = 1.0;
    timed_.copy_in(rate, &one);
    const std::vector<Tensor> weights = {arena.take("weights", DType::f32, {3, 2})};
    timed_.zero(weights[0]);
    const std::vector<double> radius = {2.0}, decay = {0.0};
    FusedUpdate update{Momentum{list, {}, {}, 0.0, 1.0, 0.0, 0.0},
                       {FusedDirection::Type::frobenius},
                       Apply{weights, {}, {}, rate, 1.0, radius, decay}};
    EXPECT_EQ(timed_.workspace_bytes(update), plain_->workspace_bytes(update));
    EXPECT_GT(timed_.workspace_bytes(update), 0u);
    const int64_t bytes = static_cast<int64_t>(timed_.workspace_bytes(update));
    update.workspace = arena.take("scratch", DType::f64, {(bytes + 7) / 8});
    timed_.fused_update(update);
    timed_.sum({weights[0], sum, 1.0, false});
    timed_.copy_out(&signs, sum);
    EXPECT_NEAR(signs, -2.0 / std::sqrt(5.0), 1e-6);

    // Without steps a spectral update normalises: the weights take a second step like the first.
    SpectralUpdate spectral{std::get<Momentum>(update.momentum), {}, update.apply};
    spectral.iteration.x = list;
    const int64_t more = static_cast<int64_t>(timed_.workspace_bytes(spectral.iteration));
    spectral.iteration.workspace = arena.take("scratch", DType::f64, {(more + 7) / 8});
    spectral.iteration.x = {};
    timed_.spectral_update(spectral);
    timed_.sum({weights[0], sum, 1.0, false});
    timed_.copy_out(&signs, sum);
    EXPECT_NEAR(signs, -4.0 / std::sqrt(5.0), 1e-6);
    EXPECT_EQ(timed_.time(Part::optimizer).calls, 5);
    EXPECT_EQ(timed_.time(Part::classifier).calls, 4);
    EXPECT_EQ(timed_.time(Part::data).calls, 7);
}

}  // namespace
}  // namespace lmo
