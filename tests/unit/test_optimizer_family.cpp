// What must hold of the stages beyond golden numbers: balls that iterates do not leave, stages
// that are other stages at some value of theirs; and random groups against
// dev/reference/check_random_groups.py.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>

#include "llmc/core/random.h"
#include "llmc/io/safetensors.h"
#include "tests/unit/optimizer_run.h"
#include "tests/unit/tiny_llama.h"

namespace lmo {
namespace {

using Json = nlohmann::ordered_json;
using Values = std::vector<std::vector<double>>;  // of each parameter

// Part shared by all updates, part noise.
Values random_values(const ParameterList& list, uint64_t seed, uint64_t update,
                     double noise = 1.0) {
    Values result;
    for (int p = 0; p < list.size(); ++p) {
        std::vector<double> values;
        for (int64_t i = 0; i < list[p].shape.count(); ++i) {
            const uint64_t at = static_cast<uint64_t>(1000 * p + i);
            values.push_back(random_normal(seed, 0, at) +
                             noise * random_normal(seed, 1 + update, at));
        }
        result.push_back(values);
    }
    return result;
}

OptimizerConfig groups_config(const Json& groups) {
    return config_of({{"groups", groups}, {"weight_decay", 0.1}});
}

// Matrices by `matrix`, all else resting on their gradients.
OptimizerConfig matrix_config(Json matrix) {
    matrix["match"] = {{"role", "matrix"}};
    return groups_config({matrix, {{"match", {{"role", "any"}}}, {"lr_scale", 0.1}}});
}

// The weights after each of `steps` updates.
std::vector<std::vector<double>> weights_of(const OptimizerConfig& config, int steps = 10,
                                            double rate = 0.05,
                                            const ParameterList& list = layered_parameters()) {
    OptimizerRun run(config, DType::f64, false, list);
    run.start(random_values(list, 1, 0));
    std::vector<std::vector<double>> result = {run.all_weights()};
    for (int t = 0; t < steps; ++t) {
        run.add_gradients(random_values(list, 2, static_cast<uint64_t>(t)));
        run.step(rate / (1 + t % 3), t);
        result.push_back(run.all_weights());
    }
    return result;
}

void expect_near(const OptimizerConfig& one, const OptimizerConfig& other, double bound) {
    const auto a = weights_of(one), b = weights_of(other);
    EXPECT_NE(a.front(), a.back());
    for (size_t t = 0; t < a.size(); ++t) {
        for (size_t i = 0; i < a[t].size(); ++i) {
            ASSERT_NEAR(a[t][i], b[t][i], bound) << "update " << t << " element " << i;
        }
    }
}

// ---- balls

// The largest ||w|| / radius of 200 updates, in each group's own norm.
double largest_share(const OptimizerConfig& config, double rate, Role role) {
    OptimizerRun run(config, DType::f64);
    Values start = random_values(run.list, 1, 0);
    for (std::vector<double>& values : start) {
        for (double& value : values) value *= 1e-3;
    }
    run.start(start);
    double largest = 0.0;
    for (int t = 0; t < 200; ++t) {
        run.add_gradients(random_values(run.list, 2, static_cast<uint64_t>(t), 0.3));
        run.step(rate, t);
        for (const ParameterBlock& block : run.list.blocks(true)) {
            if (block.role != role) continue;
            for (const GroupConfig& group : config.groups) {
                if (!group.match.matches(run.list[block.first])) continue;
                const double norm =
                    make_norm(group.norm)
                        ->primal(*run.backend, run.get(run.weights[block]), block.shape);
                largest = std::max(largest, norm / group.radius.value(block.shape));
                break;
            }
        }
    }
    return largest;
}

TEST(Constrained, IteratesStayInTheBall) {
    constexpr double kJordan = 1.1345;  // largest singular value of its oracle, algorithms.md 4.2
    for (const double rate : {0.02, 0.5}) {
        const OptimizerConfig scion = preset("scion");
        for (const Role role : {Role::embedding, Role::head, Role::gain}) {
            const double share = largest_share(scion, rate, role);
            EXPECT_LE(share, 1.0 + 1e-12) << rate;
            EXPECT_GE(share, 0.8) << rate;
        }
        EXPECT_LE(largest_share(scion, rate, Role::matrix), kJordan);
        OptimizerConfig exact = scion;
        exact.groups[0].norm = {NormType::schatten, {}, std::numeric_limits<double>::infinity()};
        const double share = largest_share(exact, rate, Role::matrix);
        EXPECT_LE(share, 1.0 + 1e-12) << rate;
        EXPECT_GE(share, 0.8) << rate;
        EXPECT_GE(largest_share(preset("scion-unconstrained"), rate, Role::matrix), 2.0);
    }
}

// ---- stages that are other stages

TEST(Schatten, TwoIsFrobenius) {
    const auto config = [](const Json& norm) {
        return matrix_config({{"momentum", {{"type", "nesterov"}, {"beta", 0.9}}},
                              {"norm", norm},
                              {"radius", "0.2*sqrt(m*n)"},
                              {"post", {{"type", "frobenius"}}}});
    };
    expect_near(config({{"type", "schatten"}, {"p", 2}}), config({{"type", "frobenius"}}), 1e-7);
    // Without post but for the 1e-8 that the Frobenius norm adds.
    expect_near(matrix_config({{"norm", {{"type", "schatten"}, {"p", 2}}}}),
                matrix_config({{"norm", {{"type", "frobenius"}}}}), 1e-8);
}

// U V^T is what has singular values 1 and meets x in its nuclear norm.
TEST(Schatten, InfinityIsTheExactOracle) {
    const std::unique_ptr<Backend> backend = make_cpu_backend(1);
    const NormConfig config{NormType::schatten, {}, std::numeric_limits<double>::infinity()};
    const std::unique_ptr<Norm> norm = make_norm(config);
    for (const Shape& shape : {Shape{7, 12}, Shape{12, 7}, Shape{9, 9}, Shape{1, 5}}) {
        std::vector<double> x, o(static_cast<size_t>(shape.count()));
        for (int64_t i = 0; i < shape.count(); ++i) x.push_back(random_normal(3, 0, i));
        Arena arena(*backend);
        const std::vector<Tensor> tensor = {arena.take("x", DType::f64, shape)};
        backend->copy_in(tensor[0], x.data());
        arena.reserve_workspace(norm->workspace_bytes(*backend, tensor));
        norm->direction(*backend, tensor, arena.workspace());
        backend->copy_out(o.data(), tensor[0]);
        double product = 0.0;
        for (size_t i = 0; i < x.size(); ++i) product += x[i] * o[i];
        EXPECT_NEAR(product, norm->dual(*backend, x, shape), 1e-12 * product);
        NormConfig spectral{NormType::spectral, newton_schulz_set("jordan", 1)};
        const double sum = make_norm(spectral)->dual(*backend, o, shape);
        EXPECT_NEAR(sum, static_cast<double>(std::min(shape[0], shape[1])), 1e-12);
        EXPECT_NEAR(make_norm(spectral)->primal(*backend, o, shape), 1.0, 1e-12);
    }
}

TEST(Gluon, EndsAreSteepestDescentAndConstantSteps) {
    const auto config = [](const Json& step, double scale) {
        return matrix_config({{"momentum", {{"type", "ema"}, {"beta", 0.8}}},
                              {"norm", {{"type", "schatten"}, {"p", "inf"}}},
                              {"radius", "sqrt(m/n)"},
                              {"step", step},
                              {"lr_scale", scale}});
    };
    expect_near(config({{"type", "gluon"}, {"L0", 4}, {"L1", 0}}, 1.0),
                config({{"type", "dual"}}, 0.25), 1e-13);
    expect_near(config({{"type", "gluon"}, {"L0", 0}, {"L1", 4}}, 1.0),
                config({{"type", "schedule"}}, 0.25), 1e-13);
    // Clipping joins both: far below the limit steepest descent, far above constant.
    expect_near(config({{"type", "clipped"}, {"limit", 1e9}}, 1.0), config({{"type", "dual"}}, 1.0),
                1e-13);
    expect_near(config({{"type", "clipped"}, {"limit", 1e-9}}, 1e9),
                config({{"type", "schedule"}}, 1.0), 1e-12);
}

TEST(Sampling, OfAllLayersIsNone) {
    for (const char* name : {"drop-muon", "soda", "scion-light"}) {
        OptimizerConfig all = preset(name), likely = preset(name), always = preset(name);
        all.sampling = {};
        likely.sampling = {LayerSamplingType::subset, 1.0};
        always.sampling = {LayerSamplingType::periodic};
        EXPECT_EQ(weights_of(all), weights_of(likely)) << name;
        EXPECT_EQ(weights_of(all), weights_of(always)) << name;
    }
}

TEST(Alternate, PeriodOneIsTheFirstDirection) {
    OptimizerConfig every = preset("lionmuon"), never = preset("lionmuon");
    every.groups[0].alternate->period = 1;
    never.groups[0].alternate.reset();
    EXPECT_EQ(weights_of(every), weights_of(never));
    EXPECT_NE(weights_of(every), weights_of(preset("lionmuon")));
    // Any matrix has a stable rank of at most its shorter side.
    every.groups[0].alternate->stable_rank = 1e9;
    EXPECT_EQ(weights_of(every), weights_of(never));
}

// optimizer.decay = "start" around muon: its own step, which is not of the weights, and the pull.
TEST(Soda, WrapsAnotherOptimizer) {
    const std::string muon = "configs/optimizer/muon.json";
    const auto plain = weights_of(config_of({{"preset", muon}}));
    const auto wrapped = weights_of(config_of({{"preset", muon}, {"decay", "start"}}));
    for (size_t k = 0; k + 1 < plain.size(); ++k) {
        for (size_t i = 0; i < plain[k].size(); ++i) {
            const double step = plain[k + 1][i] - plain[k][i];
            const double pull = (wrapped[0][i] - wrapped[k][i]) / (static_cast<double>(k) + 2.0);
            ASSERT_NEAR(wrapped[k + 1][i], wrapped[k][i] + step + pull, 1e-13);
        }
    }
}

TEST(NorMuon, EqualRowsStay) {
    const auto config = [](const Json& post) {
        Json groups = {{{"match", {{"name", "*down*"}}}, {"post", post}},    // 4 x 10
                       {{"match", {{"name", "*q_proj*"}}}, {"post", post}},  // 10 x 6 with k and v
                       {{"match", {{"name", "*up*"}}}, {"post", post}},      // 6 x 4
                       {{"match", {{"role", "any"}}}, {"lr_scale", 1e-300}}};
        groups[1]["match"]["name"] = "*self_attn*";
        for (int i = 0; i < 3; ++i) groups[i]["norm"] = {{"type", "schatten"}, {"p", "inf"}};
        return groups_config(groups);
    };
    const Json moments = {{"type", "row_moment"}, {"beta2", 0}};
    const ParameterList list = layered_parameters();
    const auto before = weights_of(config({{"type", "none"}}), 1, 1.0);
    const auto after = weights_of(config(moments), 1, 1.0);
    size_t at = 0;
    for (const Parameter& p : list) {
        const size_t n = static_cast<size_t>(p.shape.columns()),
                     size = static_cast<size_t>(p.shape.count());
        const bool up = p.name.find("up_proj") != std::string::npos;
        double moved = 0.0, least = 1e9, most = 0.0;
        for (size_t row = at; row < at + size && p.role == Role::matrix; row += n) {
            double squares = 0.0;
            for (size_t i = row; i < row + n; ++i) {
                if (p.name.find("down") != std::string::npos) {  // orthonormal rows
                    EXPECT_NEAR(before[1][i], after[1][i], 1e-7);
                }
                squares += std::pow(after[1][i] - after[0][i], 2);
            }
            moved += squares;
            least = std::min(least, squares);
            most = std::max(most, squares);
        }
        if (up) {  // four orthonormal columns: length 2, now six equal rows
            EXPECT_NEAR(moved, 4.0, 1e-6) << p.name;
            EXPECT_NEAR(least, most, 1e-6) << p.name;
        }
        at += size;
    }
}

TEST(ScionLight, IsHeavyBallAndTheDirectionsOfScion) {
    OptimizerConfig heavy_ball = preset("scion-light");
    for (GroupConfig& group : heavy_ball.groups) group.momentum.type = MomentumType::heavy_ball;
    const auto light = weights_of(preset("scion-light")), heavy = weights_of(heavy_ball);
    const auto scion = weights_of(preset("scion"));
    for (size_t i = 0; i < light[0].size(); ++i) {
        EXPECT_NEAR(light.back()[i], heavy.back()[i], 1e-12 * std::fabs(heavy.back()[i]) + 1e-12);
        // Momenta of another scale: but for what norms add to a length.
        EXPECT_NEAR(light.back()[i], scion.back()[i], 1e-4);
    }
}

// Ranks that own part of a sum would take other steps than one rank.
TEST(Together, BlocksOfOneSumHaveOneOwner) {
    const ParameterList list = layered_parameters();
    OptimizerConfig config =
        matrix_config({{"step", {{"type", "clipped"}, {"limit", 1}, {"together", true}}}});
    // Embedding; gain, q, k, v, up of two layers, the shapes of which meet; down; head.
    config.fuse_qkv = false;
    EXPECT_EQ(update_sets(config, list), (std::vector<int>{0, 1, 2, 3, 3, 4, 5, 2, 3, 3, 4, 6, 7}));
    config.sampling = {LayerSamplingType::progressive};
    EXPECT_EQ(update_sets(config, list),
              (std::vector<int>{0, 1, 2, 3, 3, 4, 5, 6, 7, 7, 8, 9, 10}));
    config.groups[0].step.together = false;
    EXPECT_EQ(update_sets(config, list).back(), 12);
}

// ---- QK-clip

// The largest score of each head of the only layer, by hand: embedding, norm, projections,
// rotation.
std::vector<double> largest_scores(TinyLlama& tiny, const Ids& ids) {
    const LlamaConfig& c = tiny.config;
    const int64_t size = c.head_size(), width = c.d_model;
    const auto weights = [&](const std::string& name) {
        return tiny.read(tiny.weights[tiny.list.find("model." + name + ".weight")]);
    };
    const auto table = weights("embed_tokens"), gain = weights("layers.0.input_layernorm");
    const auto q = weights("layers.0.self_attn.q_proj"), k = weights("layers.0.self_attn.k_proj");
    const auto project = [&](const std::vector<double>& by, int64_t head, int64_t at) {
        const double* x = table.data() + ids.values[static_cast<size_t>(at)] * width;
        double mean = 0.0;
        for (int64_t i = 0; i < width; ++i) mean += x[i] * x[i] / static_cast<double>(width);
        std::vector<double> out(static_cast<size_t>(size), 0.0), turned = out;
        for (int64_t j = 0; j < size; ++j) {
            for (int64_t i = 0; i < width; ++i) {
                out[j] += by[(head * size + j) * width + i] * x[i] * gain[i] /
                          std::sqrt(mean + c.norm_eps);
            }
        }
        const double position = static_cast<double>(at % ids.positions);
        for (int64_t i = 0; i < size / 2; ++i) {
            const double angle =
                position * std::pow(c.rope_theta, -2.0 * i / static_cast<double>(size));
            turned[i] = out[i] * std::cos(angle) - out[i + size / 2] * std::sin(angle);
            turned[i + size / 2] = out[i] * std::sin(angle) + out[i + size / 2] * std::cos(angle);
        }
        return turned;
    };
    std::vector<double> largest;
    for (int64_t head = 0; head < c.n_head; ++head) {
        double top = -1e300;
        for (int64_t t = 0; t < ids.sequences * ids.positions; ++t) {
            for (int64_t s = t - t % ids.positions; s <= t; ++s) {
                const auto a = project(q, head, t),
                           b = project(k, head * c.n_kv_head / c.n_head, s);
                double score = 0.0;
                for (int64_t i = 0; i < size; ++i) score += a[i] * b[i];
                top = std::max(top, score / std::sqrt(static_cast<double>(size)));
            }
        }
        largest.push_back(top);
    }
    return largest;
}

TEST(QkClip, NoScoreOfTheBatchExceedsTheLimit) {
    LlamaConfig config;
    config.n_layer = 1;
    config.n_head = 4;
    config.n_kv_head = 2;
    config.d_model = 16;
    config.d_ff = 16;
    config.vocab_size = 20;
    config.seq_len = 7;
    config.head_maxima = true;
    TinyLlama tiny(config, kFp64, 3);
    tiny.set_weights(lively_weights(tiny.list, 5));
    const Ids ids = random_ids(3, 7, 20, 6), goals = random_ids(3, 7, 20, 7);
    const auto maxima = [&] {
        tiny.backend->zero(tiny.llama.head_maxima());
        tiny.forward_backward(ids, goals);
        return tiny.read(tiny.llama.head_maxima());
    };
    const std::vector<double> before = maxima();
    const std::vector<double> by_hand = largest_scores(tiny, ids);
    for (size_t h = 0; h < 4; ++h) EXPECT_NEAR(before[h], by_hand[h], 1e-12 * by_hand[h]) << h;
    std::vector<double> sorted = before;
    std::sort(sorted.begin(), sorted.end());
    const double limit = 0.5 * (sorted[0] + sorted[1]);  // between the heads
    tiny.llama.clip_heads(tiny.weights, {}, limit);
    const std::vector<double> after = largest_scores(tiny, ids);
    int lowered = 0;
    for (size_t h = 0; h < 4; ++h) {
        EXPECT_NEAR(after[h], std::min(before[h], limit), 1e-12 * limit) << h;
        lowered += before[h] > limit;
    }
    EXPECT_EQ(lowered, 3);
    const std::vector<double> clipped = tiny.read(tiny.weights.flat);
    maxima();
    tiny.llama.clip_heads(tiny.weights, {}, 1e30);
    EXPECT_EQ(tiny.read(tiny.weights.flat), clipped);
}

// ---- random groups

TEST(RandomGroups, AgainstTheInterpreter) {
    const char* other = std::getenv("LMO_RANDOM_GROUPS");  // check_random_groups.py --check
    const std::string base = std::string(other ? other : "tests/data") + "/random_groups";
    const SafetensorsFile golden(base + ".safetensors");
    const SafetensorsFile inputs("tests/data/optimizer_layered_inputs.safetensors");
    std::ifstream file(base + ".json");
    const Json configs = Json::parse(file);
    const ParameterList list = layered_parameters();
    Values start, gradients;
    for (const Parameter& p : list) {
        std::vector<int64_t> shape = {p.shape[0]};
        if (p.shape.rank() == 2) shape.push_back(p.shape[1]);
        start.push_back(inputs.read(p.name, shape));
        shape.insert(shape.begin(), 10);
        gradients.push_back(inputs.read(p.name + ".gradients", shape));
    }
    const std::vector<double> rates = inputs.read("rates", {10});
    double worst = 0.0;
    for (size_t i = 0; i < configs.size(); ++i) {
        OptimizerRun run(config_of(configs[i]["optimizer"]), DType::f64, false, list);
        run.start(start);
        for (int t = 0; t < 8; ++t) {
            Values of_step;
            for (int p = 0; p < list.size(); ++p) {
                const auto from =
                    gradients[static_cast<size_t>(p)].begin() + t * list[p].shape.count();
                of_step.emplace_back(from, from + list[p].shape.count());
            }
            run.add_gradients(of_step);
            run.step(rates[static_cast<size_t>(t)], t);
        }
        const std::vector<double> expected = golden.read(std::to_string(i), {list.count()});
        const std::vector<double> actual = run.all_weights();
        double error = 0.0, size = 1.0;
        size_t at = 0;
        for (size_t k = 0; k < expected.size(); ++k) {
            size = std::max(size, std::fabs(expected[k]));
            const double here = std::fabs(actual[k] - expected[k]);
            if (here > error) at = k;
            error = std::isnan(here) ? 1e300 : std::max(error, here);
        }
        EXPECT_LT(error / size, 1e-9) << i << " element " << at << ": " << configs[i].dump();
        worst = std::max(worst, error / size);
    }
    EXPECT_GE(configs.size(), 40u);
    RecordProperty("worst", std::to_string(worst));
    if (other) std::printf("%zu configurations, largest error %.2g\n", configs.size(), worst);
}

}  // namespace
}  // namespace lmo
