// The model: its parameter list, its gradients against finite differences at every corner, and what
// must not change a result (chunks of the head, buffers larger than needed, accumulation).
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/unit/tiny_llama.h"

namespace lmo {
namespace {

LlamaConfig make_config(int64_t layers, int64_t heads, int64_t kv_heads, int64_t channels,
                        int64_t width, int64_t vocabulary, int64_t positions, bool tied) {
    return {layers,    heads, kv_heads, channels, width, vocabulary,
            positions, 100.0, 1e-5,     0.02,     tied};
}

double norm(const double* x, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) sum += x[i] * x[i];
    return std::sqrt(sum);
}

void expect_close(const std::vector<double>& a, const std::vector<double>& b, double tolerance) {
    ASSERT_EQ(a.size(), b.size());
    std::vector<double> difference;
    for (size_t i = 0; i < a.size(); ++i) difference.push_back(a[i] - b[i]);
    const int64_t count = static_cast<int64_t>(a.size());
    EXPECT_GT(norm(b.data(), count), 0.0);
    EXPECT_LE(norm(difference.data(), count), tolerance * norm(b.data(), count));
}

// ---- parameters ---------------------------------------------------------------------------------

TEST(LlamaParameters, CountsOfThePublishedModels) {
    LlamaConfig config = make_config(12, 12, 12, 768, 2048, 50304, 512, true);
    EXPECT_EQ(llama_parameters(config).count(), 123587328);
    config.n_layer = 24;
    EXPECT_EQ(llama_parameters(config).count(), 208540416);
    config.tie_embeddings = false;
    EXPECT_EQ(llama_parameters(config).count(), 208540416 + 50304 * 768);
}

TEST(LlamaParameters, NamesShapesAndRolesAreHuggingFaces) {
    const ParameterList list = llama_parameters(make_config(2, 4, 2, 24, 10, 7, 5, false));
    EXPECT_EQ(list.size(), 1 + 2 * 9 + 2);
    const auto expect = [&](const std::string& name, Shape shape, Role role) {
        const int index = list.find(name);
        ASSERT_GE(index, 0) << name;
        EXPECT_EQ(list[index].shape, shape) << name;
        EXPECT_EQ(list[index].role, role) << name;
    };
    expect("model.embed_tokens.weight", {7, 24}, Role::embedding);
    expect("model.layers.1.input_layernorm.weight", {24}, Role::gain);
    expect("model.layers.0.self_attn.q_proj.weight", {24, 24}, Role::matrix);
    expect("model.layers.0.self_attn.k_proj.weight", {12, 24}, Role::matrix);
    expect("model.layers.1.self_attn.v_proj.weight", {12, 24}, Role::matrix);
    expect("model.layers.1.self_attn.o_proj.weight", {24, 24}, Role::matrix);
    expect("model.layers.0.post_attention_layernorm.weight", {24}, Role::gain);
    expect("model.layers.0.mlp.gate_proj.weight", {10, 24}, Role::matrix);
    expect("model.layers.1.mlp.up_proj.weight", {10, 24}, Role::matrix);
    expect("model.layers.1.mlp.down_proj.weight", {24, 10}, Role::matrix);
    expect("model.norm.weight", {24}, Role::gain);
    expect("lm_head.weight", {7, 24}, Role::head);
}

TEST(LlamaParameters, GateAndUpAreAdjacentButTwoMatricesToTheNorms) {
    const ParameterList list = llama_parameters(make_config(1, 2, 1, 8, 5, 7, 5, true));
    const int gate = list.find("model.layers.0.mlp.gate_proj.weight");
    EXPECT_EQ(list.offset(gate) % 64, 0);
    EXPECT_EQ(list.offset(gate + 1), list.offset(gate) + 5 * 8);
    EXPECT_EQ(list.offset(gate + 2) % 64, 0);
    const int q = list.find("model.layers.0.self_attn.q_proj.weight");
    EXPECT_EQ(list.offset(q + 1), list.offset(q) + 64);
    EXPECT_EQ(list.offset(q + 2), list.offset(q) + 64 + 32);

    std::vector<std::string> names;
    for (const ParameterBlock& block : list.blocks(true)) names.push_back(block.name);
    const std::vector<std::string> expected = {"model.embed_tokens.weight",
                                               "model.layers.0.input_layernorm.weight",
                                               "model.layers.0.self_attn.qkv_proj",
                                               "model.layers.0.self_attn.o_proj.weight",
                                               "model.layers.0.post_attention_layernorm.weight",
                                               "model.layers.0.mlp.gate_proj.weight",
                                               "model.layers.0.mlp.up_proj.weight",
                                               "model.layers.0.mlp.down_proj.weight",
                                               "model.norm.weight"};
    EXPECT_EQ(names, expected);
    EXPECT_EQ(list.blocks(true)[2].shape, (Shape{16, 8}));
}

TEST(LlamaParameters, InitialValues) {
    const ParameterList list = llama_parameters(make_config(2, 2, 2, 128, 192, 300, 8, true));
    for (int p = 0; p < list.size(); ++p) {
        const std::vector<double> a = initial_values(list, p, 5);
        EXPECT_EQ(a, initial_values(list, p, 5));
        const int64_t count = list[p].shape.count();
        ASSERT_EQ(static_cast<int64_t>(a.size()), count);
        const double* values = a.data();
        const std::string& name = list[p].name;
        const double rms = norm(values, count) / std::sqrt(static_cast<double>(count));
        if (list[p].role == Role::gain) {
            EXPECT_TRUE(std::all_of(values, values + count, [](double x) { return x == 1.0; }));
            continue;
        }
        EXPECT_NE(a, initial_values(list, p, 6));
        const bool output = name.find("o_proj") != name.npos || name.find("down") != name.npos;
        const double std = output ? 0.02 / 2.0 : 0.02;  // sqrt(2 layers) = 2
        EXPECT_NEAR(rms, std, 4.0 * std / std::sqrt(2.0 * count)) << name;
        EXPECT_EQ(values[3], std * random_normal(5, static_cast<uint64_t>(p), 3)) << name;
    }
}

TEST(LlamaParameters, FlopsPerToken) {
    // One layer: qkv 8*16, o 8*8, gate, up, down 3*8*10; head 7*8. The embedding lookup is free.
    const LlamaConfig config = make_config(1, 2, 1, 8, 10, 7, 5, false);
    EXPECT_EQ(config.qkv_size(), 16);
    EXPECT_EQ(flops_per_token(config), 6.0 * (128 + 64 + 240 + 56) + 12.0 * 8 * 5);
}

// ---- gradients ----------------------------------------------------------------------------------

struct Corner {
    const char* name;
    LlamaConfig config;
    int64_t batch;                 // memory is made for
    int64_t sequences, positions;  // the call has
};

const Corner kCorners[] = {
    {"one token", make_config(1, 2, 2, 8, 12, 16, 1, true), 1, 1, 1},
    {"T not a multiple of a tile", make_config(1, 2, 2, 8, 12, 16, 65, true), 1, 1, 65},
    {"one head", make_config(2, 1, 1, 6, 8, 16, 9, true), 2, 2, 9},
    {"grouped heads, untied, odd V", make_config(2, 6, 2, 12, 7, 77, 6, false), 2, 2, 6},
    {"one key head", make_config(1, 4, 1, 16, 9, 77, 6, true), 1, 1, 6},
    {"smaller than the memory", make_config(2, 2, 1, 8, 12, 33, 16, false), 3, 2, 7},
};

// d/dh loss(w + h d) by a fourth-order difference, for random directions d of every tensor.
TEST(LlamaGradient, MatchesFiniteDifferences) {
    for (const Corner& corner : kCorners) {
        SCOPED_TRACE(corner.name);
        TinyLlama model(corner.config, kFp64, corner.batch);
        const std::vector<double> weights = lively_weights(model.list, 3);
        const Ids ids = random_ids(corner.sequences, corner.positions, corner.config.vocab_size, 1);
        const Ids goals =
            random_ids(corner.sequences, corner.positions, corner.config.vocab_size, 2);
        const double scale = 0.5;
        model.set_weights(weights);
        model.forward_backward(ids, goals, scale);
        const std::vector<double> gradients = model.gradients();
        for (int p = 0; p < model.list.size(); ++p) {
            const int64_t begin = model.list.offset(p), count = model.list[p].shape.count();
            const double length = norm(gradients.data() + begin, count);
            for (uint64_t trial = 0; trial < 2; ++trial) {
                std::vector<double> direction(weights.size(), 0.0);
                double expected = 0.0;
                for (int64_t i = begin; i < begin + count; ++i) {
                    direction[i] = random_normal(17 + trial, p, static_cast<uint64_t>(i));
                    expected += direction[i] * gradients[i];
                }
                const auto loss_at = [&](double h) {
                    std::vector<double> moved = weights;
                    for (int64_t i = begin; i < begin + count; ++i) moved[i] += h * direction[i];
                    model.set_weights(moved);
                    return model.evaluate(ids, goals, scale);
                };
                const double h = 3e-5;
                const double slope =
                    (8.0 * (loss_at(h) - loss_at(-h)) - (loss_at(2.0 * h) - loss_at(-2.0 * h))) /
                    (12.0 * h);
                EXPECT_NEAR(slope, expected, 1e-7 * length + 1e-9) << model.list[p].name;
            }
        }
    }
}

TEST(LlamaGradient, BuffersLargerThanTheCallChangeNothing) {
    const Corner& corner = kCorners[5];
    LlamaConfig exact = corner.config;
    exact.seq_len = corner.positions;
    TinyLlama large(corner.config, kFp64, corner.batch), small(exact, kFp64, corner.sequences);
    const std::vector<double> weights = lively_weights(large.list, 3);
    const Ids full = random_ids(corner.batch, corner.config.seq_len, corner.config.vocab_size, 8);
    const Ids ids = random_ids(corner.sequences, corner.positions, corner.config.vocab_size, 1);
    large.set_weights(weights);
    small.set_weights(weights);
    large.forward_backward(full, full);  // leaves other values everywhere
    large.zero_gradients();
    EXPECT_NEAR(large.forward_backward(ids, ids), small.forward_backward(ids, ids), 1e-11);
    expect_close(large.gradients(), small.gradients(), 1e-12);
}

TEST(LlamaGradient, ChunksOfTheHeadChangeNothing) {
    const LlamaConfig config = make_config(1, 2, 2, 8, 12, 77, 13, true);
    TinyLlama whole(config, kFp64, 3), chunked(config, kFp64, 3, true, 5 * 77 + 3);
    TinyLlama single(config, kFp64, 3, true, 1);
    const std::vector<double> weights = lively_weights(whole.list, 3);
    const Ids ids = random_ids(3, 13, 77, 1), goals = random_ids(3, 13, 77, 2);
    whole.set_weights(weights);
    const double loss = whole.forward_backward(ids, goals);
    const std::vector<double> gradients = whole.gradients();
    for (TinyLlama* model : {&chunked, &single}) {
        model->set_weights(weights);
        EXPECT_NEAR(model->forward_backward(ids, goals), loss, 1e-12 * loss);
        expect_close(model->gradients(), gradients, 1e-12);
    }
    EXPECT_EQ(whole.arena.parts().at("logits"), 39u * 77u * 8u);
    EXPECT_EQ(chunked.arena.parts().at("logits"), 5u * 77u * 8u);
    EXPECT_EQ(single.arena.parts().at("logits"), 77u * 8u);
}

TEST(LlamaGradient, TwoHalvesAccumulateToTheWhole) {
    const LlamaConfig config = make_config(2, 2, 1, 8, 12, 77, 9, true);
    TinyLlama model(config, kFp64, 4);
    model.set_weights(lively_weights(model.list, 3));
    const Ids ids = random_ids(4, 9, 77, 1), goals = random_ids(4, 9, 77, 2);
    const auto half = [](const Ids& all, int which) {
        const auto begin = all.values.begin() + which * 18;
        return Ids{2, 9, {begin, begin + 18}};
    };
    const double scale = 1.0 / 36.0;
    const double loss = model.forward_backward(ids, goals, scale);
    const std::vector<double> whole = model.gradients();
    model.zero_gradients();
    const double first = model.forward_backward(half(ids, 0), half(goals, 0), scale);
    const double second = model.forward_backward(half(ids, 1), half(goals, 1), scale);
    EXPECT_NEAR(first + second, loss, 1e-13 * loss);
    expect_close(model.gradients(), whole, 1e-12);
}

TEST(LlamaGradient, IgnoredTargetsOnlyGiveNothing) {
    const LlamaConfig config = make_config(1, 2, 2, 8, 12, 16, 4, true);
    TinyLlama model(config, kFp32, 1);
    model.set_weights(lively_weights(model.list, 3));
    EXPECT_EQ(model.forward_backward(random_ids(1, 4, 16, 1), {1, 4, {-1, -1, -1, -1}}), 0.0);
    for (double gradient : model.gradients()) EXPECT_EQ(gradient, 0.0);
}

// ---- what repeats, and what it costs ------------------------------------------------------------

TEST(Llama, CallsRepeatBitByBitAndEvaluateAgrees) {
    const LlamaConfig config = make_config(2, 4, 2, 32, 24, 77, 33, true);
    const Ids ids = random_ids(2, 33, 77, 1), goals = random_ids(2, 33, 77, 2);
    for (const ModelPrecision& precision : {kFp64, kFp32, kBf16, kBf16Residual}) {
        TinyLlama model(config, precision, 2, true, 20 * 77, 2);
        TinyLlama forward_only(config, precision, 2, false, 20 * 77, 2);
        const std::vector<double> weights = lively_weights(model.list, 3);
        model.set_weights(weights);
        forward_only.set_weights(weights);
        const double loss = model.forward_backward(ids, goals, 0.25);
        const std::vector<double> gradients = model.gradients();
        const std::vector<double> logits =
            model.last_logits({1, 33, {ids.values.begin(), ids.values.begin() + 33}});
        EXPECT_TRUE(std::isfinite(loss) && loss > 0.0);
        model.zero_gradients();
        EXPECT_EQ(model.evaluate(ids, goals, 0.25), loss);
        EXPECT_EQ(forward_only.evaluate(ids, goals, 0.25), loss);
        EXPECT_EQ(forward_only.last_logits({1, 33, {ids.values.begin(), ids.values.begin() + 33}}),
                  logits);
        EXPECT_EQ(model.forward_backward(ids, goals, 0.25), loss);
        EXPECT_EQ(model.gradients(), gradients);
    }
}

// Other activations are in memory, but the same numbers come out: of all precisions, twice in a row,
// to the last layer or an earlier one.
TEST(LlamaGradient, RecomputedActivationsChangeNoBit) {
    const LlamaConfig config = make_config(3, 4, 2, 16, 24, 77, 13, true);
    const Ids ids = random_ids(2, 13, 77, 1), goals = random_ids(2, 13, 77, 2);
    for (const ModelPrecision& precision : {kFp64, kFp32, kBf16, kBf16Residual}) {
        std::vector<double> gradients, losses;
        size_t bytes = SIZE_MAX;
        for (const Recompute recompute :
             {Recompute::none, Recompute::norm_swiglu, Recompute::block}) {
            LlamaConfig other = config;
            other.recompute = recompute;
            TinyLlama model(other, precision, 2);
            model.set_weights(lively_weights(model.list, 3));
            const std::vector<double> now = {model.forward_backward(ids, goals),
                                             model.forward_backward(goals, ids)};
            if (recompute == Recompute::none) {
                gradients = model.gradients();
                losses = now;
            }
            EXPECT_EQ(model.gradients(), gradients);
            EXPECT_EQ(now, losses);
            EXPECT_LT(model.arena.total(), bytes);
            bytes = model.arena.total();
        }
    }
}

// Whole layers again: activations grow by what a layer reads, one row of the residual stream.
TEST(Llama, RecomputedBlocksKeepTheirInputAlone) {
    LlamaConfig config = make_config(2, 4, 2, 32, 24, 77, 33, true);
    config.recompute = Recompute::block;
    size_t bytes[2];
    for (const int layers : {0, 1}) {
        config.n_layer = 2 + layers;
        TinyLlama model(config, kBf16, 2);
        bytes[layers] = 0;
        for (const auto& [part, size] : model.arena.parts()) {
            if (part.starts_with("activations/")) bytes[layers] += size;
        }
    }
    EXPECT_EQ(bytes[1] - bytes[0], size_t{2 * 33 * 32 * 4});
}

TEST(Llama, APlanCountsWhatARunTakes) {
    const LlamaConfig config = make_config(3, 4, 2, 32, 24, 77, 33, true);
    const auto backend = make_cpu_backend(1);
    const ParameterList list = llama_parameters(config);
    size_t bytes[2];
    for (const bool training : {false, true}) {
        Arena plan, real(*backend);
        Llama planned(*backend, plan, config, list, kBf16, 2, training);
        Llama made(*backend, real, config, list, kBf16, 2, training);
        plan.workspace();
        real.workspace();
        EXPECT_EQ(plan.parts(), real.parts());
        bytes[training] = plan.total();
    }
    EXPECT_LT(bytes[0], bytes[1]);
    // Forward only: the layers share their buffers, so depth is free.
    LlamaConfig deep = config;
    deep.n_layer = 30;
    Arena plan;
    Llama planned(*backend, plan, deep, llama_parameters(deep), kBf16, 2, false);
    plan.workspace();
    EXPECT_EQ(plan.total(), bytes[0]);
}

}  // namespace
}  // namespace lmo
