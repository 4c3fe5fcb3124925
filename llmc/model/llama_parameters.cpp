// The parameter list of LLaMA, its initial values and its cost.
#include <algorithm>
#include <cassert>
#include <cmath>

#include "llmc/core/random.h"
#include "llmc/model/llama.h"

namespace lmo {

int64_t section_of(const Parameter& parameter, int64_t n_layer) {
    if (parameter.role == Role::embedding) return 0;
    return parameter.layer < 0 ? n_layer + 1 : parameter.layer + 1;
}

ParameterList llama_parameters(const LlamaConfig& config) {
    assert(config.n_head > 0 && config.d_model % config.n_head == 0);
    assert(config.n_kv_head > 0 && config.n_head % config.n_kv_head == 0);
    assert(config.head_size() % 2 == 0 && "RoPE rotates pairs");
    const int64_t channels = config.d_model, kv_rows = config.n_kv_head * config.head_size();
    const double std = config.init_std;
    // Each layer adds two branches to the residual stream; their sum keeps its variance (GPT-2).
    const double output_std = std / std::sqrt(2.0 * static_cast<double>(config.n_layer));

    ParameterList list;
    Parameter embedding{
        "model.embed_tokens.weight", {config.vocab_size, channels}, Role::embedding, "", std};
    // A tied one is the head too, which has its gradient first; what the tokens add is left out
    // where the backward pass stops short of them.
    embedding.layer = config.tie_embeddings ? -1 : 0;
    list.add(embedding);
    for (int64_t layer = 0; layer < config.n_layer; ++layer) {
        const std::string prefix = "model.layers." + std::to_string(layer) + ".";
        const std::string attention = prefix + "self_attn.", mlp = prefix + "mlp.";
        const std::string fused = attention + "qkv_proj";
        const int number = static_cast<int>(layer);
        const auto matrix = [&](const std::string& name, int64_t rows, int64_t columns, double s) {
            return Parameter{name + ".weight", {rows, columns}, Role::matrix, "", s, false, number};
        };
        const auto gain = [&](const std::string& name) {
            return Parameter{
                prefix + name + ".weight", {channels}, Role::gain, "", 0.0, false, number};
        };
        list.add(gain("input_layernorm"));
        for (const char* part : {"q_proj", "k_proj", "v_proj"}) {
            Parameter p =
                matrix(attention + part, part[0] == 'q' ? channels : kv_rows, channels, std);
            p.fused = fused;
            list.add(p);
        }
        list.add(matrix(attention + "o_proj", channels, channels, output_std));
        list.add(gain("post_attention_layernorm"));
        list.add(matrix(mlp + "gate_proj", config.d_ff, channels, std));
        Parameter up = matrix(mlp + "up_proj", config.d_ff, channels, std);
        up.adjacent = true;
        list.add(up);
        list.add(matrix(mlp + "down_proj", channels, config.d_ff, output_std));
    }
    list.add({"model.norm.weight", {channels}, Role::gain, "", 0.0});
    if (!config.tie_embeddings) {
        list.add({"lm_head.weight", {config.vocab_size, channels}, Role::head, "", std});
    }
    return list;
}

std::vector<double> initial_values(const ParameterList& parameters, int index, uint64_t seed) {
    const Parameter& parameter = parameters[index];
    const int64_t count = parameter.shape.count();
    std::vector<double> values(static_cast<size_t>(count), 1.0);
    if (parameter.init_std == 0.0) return values;
    const uint64_t stream = static_cast<uint64_t>(index);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i) {
        values[static_cast<size_t>(i)] =
            parameter.init_std * random_normal(seed, stream, static_cast<uint64_t>(i));
    }
    return values;
}

double flops_per_token(const LlamaConfig& config) {
    const double layers = static_cast<double>(config.n_layer);
    const double channels = static_cast<double>(config.d_model);
    const double layer_weights = channels * static_cast<double>(config.qkv_size()) +
                                 channels * channels +
                                 3.0 * channels * static_cast<double>(config.d_ff);
    const double weights =
        layers * layer_weights + static_cast<double>(config.vocab_size) * channels;
    return 6.0 * weights + 12.0 * layers * channels * static_cast<double>(config.seq_len);
}

}  // namespace lmo
