// The memory of Llama: activations of a batch, the table of rotary angles, workspace.
#include <algorithm>
#include <cassert>
#include <cmath>
#include <string>

#include "llmc/model/llama_parts.h"

namespace lmo {

using namespace llama_parts;

Llama::Llama(Backend& backend, Arena& arena, const LlamaConfig& config,
             [[maybe_unused]] const ParameterList& parameters, const ModelPrecision& precision,
             int64_t batch, bool training, int64_t max_logits)
    : backend_(backend),
      arena_(arena),
      config_(config),
      precision_(precision),
      batch_(batch),
      adds_in_products_(backend.is_separate() && precision.residual == precision.compute) {
    assert(parameters.buffer_length() == llama_parameters(config).buffer_length());
    assert(config.n_layer > 0 && batch > 0);
    assert((precision.compute == DType::f64) == (precision.master == DType::f64));
    chunk_rows_ = std::clamp<int64_t>(max_logits / config.vocab_size, 1, batch * config.seq_len);
    take_activations(training);
    take_rope_table();
    reserve_workspace(training);
}

void Llama::take_activations(bool training) {
    const int64_t rows = batch_ * config_.seq_len;
    const auto take = [&](const char* kind, DType type, const Shape& shape) {
        return arena_.take(std::string("activations/") + kind, type, shape);
    };
    const auto compute = [&](const char* kind, int64_t columns) {
        return take(kind, precision_.compute, {rows, columns});
    };
    const auto residual = [&](const char* kind) {
        return take(kind, precision_.residual, {rows, config_.d_model});
    };
    const auto stream = [&] { return residual("residual stream"); };
    const auto normed = [&] { return compute("norms", config_.d_model); };
    const auto rstd = [&] { return take("norms", precision_.master, {rows}); };
    const Shape scores{batch_, config_.n_head, config_.seq_len};

    final_in_ = stream();
    final_normed_ = normed();
    final_rstd_ = rstd();
    const bool keeps_normed = training && config_.recompute == Recompute::none;
    const bool keeps_block = training && config_.recompute != Recompute::block;
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
        // What a layer does not keep is in the memory of the one before.
        LayerActivations a = layer > 0 ? layers_.back() : LayerActivations{};
        const bool first = layer == 0;
        // Without a backward pass one residual stream, updated in place, and one normed copy do.
        if (training || first) a.attention_in = training ? stream() : final_in_;
        if (keeps_normed || first) {
            a.attention_normed = training ? normed() : final_normed_;
            a.mlp_normed = training ? normed() : final_normed_;
            a.swiglu = compute("mlp", config_.d_ff);
        }
        if (keeps_block || first) {
            a.attention_rstd = training ? rstd() : final_rstd_;
            a.mlp_in = training ? stream() : final_in_;
            a.mlp_rstd = training ? rstd() : final_rstd_;
            a.qkv = compute("attention", config_.qkv_size());
            a.attention_out = compute("attention", config_.d_model);
            a.lse = take("attention", precision_.master, scores);
            a.gate_up = compute("mlp", 2 * config_.d_ff);
        } else if (!training && config_.keep_text) {
            a.qkv = compute("attention", config_.qkv_size());
        }
        layers_.push_back(a);
    }
    branch_ = compute("branch and gradients", config_.d_model);
    losses_ = take("other", precision_.master, {rows});
    logits_ = arena_.take("logits", precision_.compute, {chunk_rows_, config_.vocab_size});
    if (!training) return;
    dx_ = residual("branch and gradients");
    dx_compute_ = precision_.compute == precision_.residual
                      ? dx_
                      : compute("branch and gradients", config_.d_model);
    dqkv_ = compute("branch and gradients", config_.qkv_size());
    if (!config_.head_maxima) return;
    row_max_ = take("attention", precision_.master, scores);
    head_maxima_ = take("other", precision_.master, {config_.n_layer, config_.n_head});
}

void Llama::take_rope_table() {
    const int64_t positions = config_.seq_len, half = config_.head_size() / 2;
    rope_table_ = arena_.take("activations/other", precision_.master, {positions, half, 2});
    if (rope_table_.empty()) return;  // a plan
    std::vector<double> table;
    for (int64_t t = 0; t < positions; ++t) {
        for (int64_t i = 0; i < half; ++i) {
            const double exponent = -static_cast<double>(i) / static_cast<double>(half);
            const double angle = static_cast<double>(t) * std::pow(config_.rope_theta, exponent);
            table.push_back(std::cos(angle));
            table.push_back(std::sin(angle));
        }
    }
    if (precision_.master == DType::f64) {
        backend_.copy_in(rope_table_, table.data());
    } else {
        const std::vector<float> narrow(table.begin(), table.end());
        backend_.copy_in(rope_table_, narrow.data());
    }
}

// Asks for the scratch memory of the largest call of every operation; shapes alone matter here.
void Llama::reserve_workspace(bool training) {
    const auto reserve = [&](const auto& operation) {
        arena_.reserve_workspace(backend_.workspace_bytes(operation));
    };
    const auto reserve_linear = [&](const Tensor& x, const Tensor& y) {
        const Shape shape{y.shape[1], x.shape[1]};
        const Tensor w{nullptr, precision_.compute, shape}, dw{nullptr, precision_.master, shape};
        reserve(product(x, w, y));
        if (!training) return;
        reserve(input_gradient(y, w, x));
        reserve(weight_gradient(y, x, dw));
    };
    const LayerActivations& a = layers_[0];
    reserve_linear(a.attention_normed, a.qkv);
    reserve_linear(a.attention_out, branch_);
    reserve_linear(a.mlp_normed, a.gate_up);
    reserve_linear(a.swiglu, branch_);
    reserve_linear({nullptr, precision_.compute, {chunk_rows_, config_.d_model}}, logits_);
    const AttentionForward forward = attention(a, {batch_, config_.seq_len});
    reserve(forward);
    if (config_.keep_text) reserve(attention_one(0, a, {1, 1, config_.seq_len - 1}));
    if (!training) return;
    reserve(AttentionBackward{forward.qkv,
                              forward.out,
                              forward.lse,
                              branch_.reshaped(forward.out.shape),
                              dqkv_.reshaped(forward.qkv.shape),
                              forward.heads,
                              forward.kv_heads,
                              {},
                              forward.library});
    const Tensor gain{nullptr, precision_.compute, {config_.d_model}};
    const Tensor dgain{nullptr, precision_.master, {config_.d_model}};
    const Tensor dbranch = precision_.compute == precision_.residual ? Tensor{} : dx_compute_;
    reserve(RmsNormBackward{final_in_, gain, final_rstd_, branch_, dx_, dgain, dbranch, {}});
    const Tensor ids{nullptr, DType::i32, {batch_ * config_.seq_len}};
    const Tensor dtable{nullptr, precision_.master, {config_.vocab_size, config_.d_model}};
    reserve(EmbeddingBackward{ids, dx_, dtable, {}});
}

}  // namespace lmo
