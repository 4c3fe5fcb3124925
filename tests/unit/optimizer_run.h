// Test support: the parameters of dev/reference/optimizers.py, and an optimizer with its buffers.
#pragma once

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/core/split_float.h"
#include "llmc/norm/newton_schulz.h"
#include "llmc/optim/optimizer.h"
#include "llmc/train/config.h"

namespace lmo {

// Square, tall, wide, vector, table; q, k, v fused. The list that the golden data is made for.
inline ParameterList reference_parameters() {
    const std::string layer = "model.layers.0.", qkv = layer + "self_attn.qkv";
    ParameterList list;
    list.add({"model.embed_tokens.weight", {10, 4}, Role::embedding, "", 0.02});
    list.add({layer + "input_layernorm.weight", {8}, Role::gain, "", 0.0});
    list.add({layer + "self_attn.q_proj.weight", {6, 6}, Role::matrix, qkv, 0.02});
    list.add({layer + "self_attn.k_proj.weight", {2, 6}, Role::matrix, qkv, 0.02});
    list.add({layer + "self_attn.v_proj.weight", {2, 6}, Role::matrix, qkv, 0.02});
    list.add({layer + "self_attn.o_proj.weight", {8, 8}, Role::matrix, "", 0.02});
    list.add({layer + "mlp.gate_proj.weight", {6, 4}, Role::matrix, "", 0.02});
    list.add({layer + "mlp.up_proj.weight", {6, 4}, Role::matrix, "", 0.02});
    list.add({layer + "mlp.down_proj.weight", {4, 10}, Role::matrix, "", 0.02});
    list.add({"lm_head.weight", {10, 4}, Role::head, "", 0.02});
    return list;
}

// Two layers, for what samples layers: LAYERED of dev/reference/lmo_family.py.
inline ParameterList layered_parameters() {
    ParameterList list;
    const auto add = [&](const std::string& name, const Shape& shape, Role role, int layer,
                         const std::string& fused) {
        list.add({name, shape, role, fused, 0.02, false, layer});
    };
    add("model.embed_tokens.weight", {10, 4}, Role::embedding, 0, "");
    for (const int layer : {0, 1}) {
        const std::string prefix = "model.layers." + std::to_string(layer) + ".";
        const std::string attention = prefix + "self_attn.";
        add(prefix + "input_layernorm.weight", {8}, Role::gain, layer, "");
        add(attention + "q_proj.weight", {6, 6}, Role::matrix, layer, attention);
        add(attention + "k_proj.weight", {2, 6}, Role::matrix, layer, attention);
        add(attention + "v_proj.weight", {2, 6}, Role::matrix, layer, attention);
        add(prefix + "mlp.up_proj.weight", {6, 4}, Role::matrix, layer, "");
    }
    add("model.layers.1.mlp.down_proj.weight", {4, 10}, Role::matrix, 1, "");
    add("lm_head.weight", {10, 4}, Role::head, -1, "");
    return list;
}

// What `optimizer` says, as users get it: through the configuration. The rate is the caller's.
inline OptimizerConfig config_of(nlohmann::ordered_json optimizer) {
    optimizer["lr"] = 0.02;
    const nlohmann::ordered_json json = {{"run", {{"seed", 7}}},
                                         {"model",
                                          {{"n_layer", 1},
                                           {"n_head", 1},
                                           {"d_model", 8},
                                           {"d_ff", 8},
                                           {"vocab_size", 8},
                                           {"seq_len", 8}}},
                                         {"batch", {{"sequences", 1}}},
                                         {"optimizer", std::move(optimizer)}};
    return config_from_json(json, "test", ConfigUse::schedule).optimizer;
}

// Every file of configs/optimizer; test_optimizer.cpp checks that it is.
inline const std::vector<std::string> kPresets = {
    "adamw",      "muon",          "muon-kj",   "lion",        "signum",
    "nsgd",       "scion",         "soda",      "scion-light", "scion-unconstrained",
    "gluon",      "clipped-scion", "normuon",   "schatten",    "inexact-muon",
    "drop-muon",  "lionmuon",      "muon-clip", "ef21-muon",   "muon-igt",
    "nsgd-storm", "nsgd-hessian"};

inline OptimizerConfig preset(const std::string& name, double weight_decay = 0.1) {
    return config_of(
        {{"preset", "configs/optimizer/" + name + ".json"}, {"weight_decay", weight_decay}});
}

inline GroupMatch role_is(Role role) { return {role, ""}; }

// Muon in short: spectral matrices, Adam for the rest.
inline OptimizerConfig muon_like() {
    GroupConfig matrices, rest;
    matrices.match = role_is(Role::matrix);
    matrices.momentum = {MomentumType::nesterov, 0.95};
    matrices.norm = {NormType::spectral, newton_schulz_set("jordan", 5)};
    rest.momentum = {MomentumType::adam, 0.0, 0.9, 0.95};
    OptimizerConfig config;
    config.groups = {matrices, rest};
    return config;
}

// Weights, gradients and (if asked for) bf16 copies of one optimizer, on the CPU backend if no
// other is given.
class OptimizerRun {
  public:
    OptimizerRun(const OptimizerConfig& config, DType master, bool with_copies = false,
                 const ParameterList& parameters = reference_parameters(),
                 std::unique_ptr<Backend> device = make_cpu_backend(1),
                 const OwnedBlocks& owned = {})
        : list(parameters), backend(std::move(device)), arena(*backend) {
        weights = {&list, arena.take("weights", master, {list.buffer_length()})};
        gradients = {&list, arena.take("gradients", master, {list.buffer_length()})};
        copies.list = &list;
        if (with_copies) copies.flat = arena.take("weights", DType::bf16, {list.buffer_length()});
        optimizer = std::make_unique<Optimizer>(*backend, arena, config, list, master, owned);
        optimizer->bind_gradients(gradients);
        backend->zero(weights.flat);
        optimizer->initialise(weights);
        backend->zero(weights.flat);
        backend->zero(gradients.flat);
    }

    // The weights become split ones. Before the first step.
    void split_weights() {
        const Shape all = {list.buffer_length()};
        std::vector<float> values(static_cast<size_t>(list.buffer_length()));
        backend->copy_out(values.data(), weights.flat);
        weights = {&list, arena.take("weights", DType::bf16, all)};
        remainders = {&list, arena.take("weights", DType::i16, all)};
        std::vector<uint16_t> high;
        std::vector<int16_t> low;
        for (const float value : values) {
            high.push_back(split_float(value).high);
            low.push_back(split_float(value).low);
        }
        backend->copy_in(weights.flat, high.data());
        backend->copy_in(remainders.flat, low.data());
        optimizer->initialise(weights, remainders);
    }

    // Host values into and out of a tensor of the master type.
    void set(const Tensor& tensor, const std::vector<double>& values) {
        const std::vector<float> narrow(values.begin(), values.end());
        if (tensor.dtype == DType::f64) {
            backend->copy_in(tensor, values.data());
        } else {
            backend->copy_in(tensor, narrow.data());
        }
    }
    std::vector<double> get(const Tensor& tensor) {
        std::vector<double> wide(tensor.count());
        if (tensor.dtype == DType::f64) {
            backend->copy_out(wide.data(), tensor);
            return wide;
        }
        std::vector<float> narrow(tensor.count());
        backend->copy_out(narrow.data(), tensor);
        return {narrow.begin(), narrow.end()};
    }

    // The weights that a run starts from, parameter by parameter.
    void start(const std::vector<std::vector<double>>& values) {
        for (int i = 0; i < list.size(); ++i) set(weights[i], values[static_cast<size_t>(i)]);
        optimizer->initialise(weights);
    }
    // Adds gradients to what is left of the last ones, as a backward pass does.
    void add_gradients(const std::vector<std::vector<double>>& values) {
        optimizer->clear(gradients);
        for (int i = 0; i < list.size(); ++i) {
            std::vector<double> sum = get(gradients[i]);
            for (size_t k = 0; k < sum.size(); ++k) sum[k] += values[static_cast<size_t>(i)][k];
            set(gradients[i], sum);
        }
    }
    std::vector<double> all_weights() {
        std::vector<double> all;
        for (int i = 0; i < list.size(); ++i) {
            const std::vector<double> values = get(weights[i]);
            all.insert(all.end(), values.begin(), values.end());
        }
        return all;
    }

    double step(double rate, int64_t updates_done) {
        const double norm = optimizer->gradient_norm(gradients);
        optimizer->set_scalars(rate, updates_done);
        optimizer->step(weights, copies, gradients, remainders);
        return norm;
    }

    const Tensor& state(const std::string& name) const {
        for (const StateTensor& s : optimizer->states()) {
            if (s.name == name) return s.tensor;
        }
        throw Error("no optimizer state " + name);
    }

    ParameterList list;
    std::unique_ptr<Backend> backend;
    Arena arena;
    ParameterBuffer weights, gradients, copies, remainders;
    std::unique_ptr<Optimizer> optimizer;
};

// Ten updates by gradients that are a function of the update, at a rate that falls.
inline void take_steps(OptimizerRun& run) {
    for (int t = 0; t < 10; ++t) {
        std::vector<std::vector<double>> gradients;
        for (const Parameter& p : run.list) {
            std::vector<double> values(static_cast<size_t>(p.shape.count()));
            for (size_t i = 0; i < values.size(); ++i) {
                values[i] = std::sin(1.7 * static_cast<double>(i + gradients.size()) + t);
            }
            gradients.push_back(values);
        }
        run.add_gradients(gradients);
        run.step(0.1 / (t + 1), t);
    }
}

}  // namespace lmo
