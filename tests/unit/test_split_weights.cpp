// Split weights above the border: every preset's updates are those of fp32 weights, and what
// Weights keeps, tells and stores.
#include <gtest/gtest.h>

#include <cmath>

#include "llmc/train/weights.h"
#include "tests/unit/optimizer_run.h"

namespace lmo {
namespace {

std::vector<float> read_floats(Backend& backend, const Tensor& tensor) {
    std::vector<float> values(static_cast<size_t>(tensor.count()));
    backend.copy_out(values.data(), tensor);
    return values;
}

// Ten updates; bit by bit.
void expect_updates_of_fp32(const OptimizerConfig& config) {
    OptimizerRun plain(config, DType::f32, false, layered_parameters());
    OptimizerRun split(config, DType::f32, false, layered_parameters());
    std::vector<double> start(static_cast<size_t>(plain.list.buffer_length()));
    for (size_t i = 0; i < start.size(); ++i) start[i] = 0.25 * std::cos(0.7 * i);
    for (OptimizerRun* run : {&plain, &split}) {
        run->set(run->weights.flat, start);
        run->optimizer->initialise(run->weights);
    }
    split.split_weights();
    take_steps(plain);
    take_steps(split);
    for (int i = 0; i < plain.list.size(); ++i) {
        const std::vector<float> expected = read_floats(*plain.backend, plain.weights[i]);
        std::vector<uint16_t> high(expected.size());
        std::vector<int16_t> low(expected.size());
        split.backend->copy_out(high.data(), split.weights[i]);
        split.backend->copy_out(low.data(), split.remainders[i]);
        for (size_t k = 0; k < expected.size(); ++k) {
            const SplitFloat halves = split_float(expected[k]);
            ASSERT_EQ(high[k], halves.high) << plain.list[i].name << " " << k;
            ASSERT_EQ(low[k], halves.low) << plain.list[i].name << " " << k;
        }
    }
    const auto& states = plain.optimizer->states();
    for (size_t s = 0; s < states.size(); ++s) {
        EXPECT_EQ(plain.get(states[s].tensor), split.get(split.optimizer->states()[s].tensor))
            << states[s].name;
    }
}

TEST(SplitWeights, EveryPresetUpdatesThemAsFp32Ones) {
    for (const std::string& name : kPresets) {
        SCOPED_TRACE(name);
        OptimizerConfig config = preset(name);
        config.clip_norm = config.keeps_gradients() ? 0.0 : 1.0;
        expect_updates_of_fp32(config);
    }
}

TEST(SplitWeights, MomentumThatStartsFromThem) {
    const OptimizerConfig config = preset("muon");
    OptimizerRun plain(config, DType::f32), split(config, DType::f32);
    std::vector<double> start(static_cast<size_t>(plain.list.buffer_length()));
    for (size_t i = 0; i < start.size(); ++i) start[i] = 0.25 * std::cos(0.7 * i);
    for (OptimizerRun* run : {&plain, &split}) run->set(run->weights.flat, start);
    split.split_weights();
    plain.optimizer->start_momentum_from(plain.weights, 0.1);
    split.optimizer->start_momentum_from(split.weights, 0.1, split.remainders);
    double largest = 0.0;
    const auto& states = plain.optimizer->states();
    for (size_t s = 0; s < states.size(); ++s) {
        const std::vector<double> expected = plain.get(states[s].tensor);
        EXPECT_EQ(expected, split.get(split.optimizer->states()[s].tensor)) << states[s].name;
        for (const double value : expected) largest = std::max(largest, std::abs(value));
    }
    EXPECT_GT(largest, 0.1);
}

// ---- Weights ------------------------------------------------------------------------------------

LlamaConfig small_llama(int64_t vocabulary = 40) {
    LlamaConfig config;
    config.n_layer = 2;
    config.n_head = config.n_kv_head = 2;
    config.d_model = 20;
    config.d_ff = 36;
    config.vocab_size = vocabulary;
    config.seq_len = 8;
    return config;
}

struct Kept {
    explicit Kept(bool split, int64_t vocabulary = 40)
        : backend(make_cpu_backend(1)),
          arena(*backend),
          list(llama_parameters(small_llama(vocabulary))),
          weights(*backend, arena, list, {DType::bf16, DType::f32, DType::f32, split}, true) {
        std::vector<Tensor> all;
        for (int i = 0; i < list.size(); ++i) all.push_back({nullptr, DType::f32, list[i].shape});
        arena.reserve_workspace(backend->workspace_bytes(SumOfSquares{all, {}, {}}));
    }
    std::vector<float> stored(const std::string& name) {
        for (const TensorSource& source : weights.master_sources()) {
            if (source.name != name) continue;
            EXPECT_EQ(source.dtype, DType::f32);
            std::vector<float> values(static_cast<size_t>(source.shape[0]) *
                                      (source.shape.size() > 1 ? source.shape[1] : 1));
            source.fetch(values.data());
            return values;
        }
        throw Error("no " + name);
    }

    std::unique_ptr<Backend> backend;
    Arena arena;
    ParameterList list;
    Weights weights;
};

TEST(SplitWeights, AreStoredAndReadAsFp32) {
    Kept split(true), plain(false), again(true);
    for (Kept* kept : {&split, &plain}) kept->weights.initialise(7);
    again.weights.set([&](const Parameter& p) {
        const std::vector<float> values = plain.stored(p.name + ".master");
        return std::vector<double>(values.begin(), values.end());
    });
    for (const Parameter& p : plain.list) {
        EXPECT_EQ(split.stored(p.name + ".master"), plain.stored(p.name + ".master"));
        EXPECT_EQ(again.stored(p.name + ".master"), plain.stored(p.name + ".master"));
    }
    EXPECT_EQ(split.weights.model_sources().size(), static_cast<size_t>(plain.list.size()));
    EXPECT_EQ(split.weights.model_sources()[0].dtype, DType::bf16);
    EXPECT_EQ(split.weights.compute().flat.data, split.weights.master().flat.data);
}

TEST(SplitWeights, TakeFourBytes) {
    Kept split(true), plain(false);
    const auto bytes = [](const Kept& kept) {
        size_t sum = 0;
        for (const auto& [part, size] : kept.arena.parts()) {
            if (part.starts_with("weights")) sum += size;
        }
        return sum;
    };
    const auto length = static_cast<size_t>(plain.list.buffer_length());
    const size_t joined = 4 * length;  // of small models all of it
    EXPECT_EQ(bytes(plain) - bytes(split) + joined, 2 * length);
}

// The embedding is three pieces.
TEST(SplitWeights, SquaresOfLongTensors) {
    constexpr int64_t vocabulary = 120000;
    Kept split(true, vocabulary), plain(false, vocabulary);
    for (Kept* kept : {&split, &plain}) {
        kept->weights.set([](const Parameter& p) {
            std::vector<double> values(static_cast<size_t>(p.shape.count()));
            for (size_t i = 0; i < values.size(); ++i) {
                values[i] = 1.0 + 0x1p-20 * static_cast<double>(i % 1000);
            }
            return values;
        });
    }
    const std::vector<double> expected = plain.weights.squares(plain.arena.workspace());
    const std::vector<double> actual = split.weights.squares(split.arena.workspace());
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
        EXPECT_NEAR(actual[i] / expected[i], 1.0, 1e-13);
    }
}

TEST(SplitWeights, SquaresAreOfTheWholeWeights) {
    Kept split(true), plain(false);
    for (Kept* kept : {&split, &plain}) kept->weights.initialise(7);
    const std::vector<double> expected = plain.weights.squares(plain.arena.workspace());
    EXPECT_EQ(split.weights.squares(split.arena.workspace()), expected);
    split.weights.set([](const Parameter& p) {
        std::vector<double> values(static_cast<size_t>(p.shape.count()), 0.5);
        if (p.role == Role::gain) values.back() = NAN;
        return values;
    });
    const std::vector<double> squares = split.weights.squares(split.arena.workspace());
    for (int i = 0; i < split.list.size(); ++i) {
        EXPECT_EQ(std::isfinite(squares[static_cast<size_t>(i)]), split.list[i].role != Role::gain);
    }
}

}  // namespace
}  // namespace lmo
