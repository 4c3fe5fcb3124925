// Forward and backward pass of LLaMA over the backend border.
//
//   x = embedding[tokens]
//   each layer:  x += o(attention(rope(qkv(norm(x))))),   x += down(swiglu(gate_up(norm(x))))
//   loss = cross-entropy(head(norm(x)), targets)
//
// Y [N, out] = X [N, in] W^T with W [out, in];  dX = dY W;  dW += dY^T X.  N = B*T rows.
// A branch enters the residual stream inside the product that makes it or inside of the next norm
// (add_branch), so the stream is read and written once for each norm; the gradient of a branch is
// that of the stream at that place.
#include <cassert>

#include "llmc/model/llama_parts.h"

namespace lmo {

using namespace llama_parts;

// ---- views --------------------------------------------------------------------------------------

Llama::LayerParameters Llama::layer_parameters(const ParameterBuffer& buffer, int64_t layer) const {
    const auto at = [&](Slot slot) { return buffer[parameter_index(layer, slot)]; };
    const auto from = [&](Slot slot, int64_t rows) {
        return buffer.flat.slice(buffer.list->offset(parameter_index(layer, slot)),
                                 {rows, config_.d_model});
    };
    return {at(input_norm), from(q, config_.qkv_size()),  at(o),
            at(post_norm),  from(gate, 2 * config_.d_ff), at(down)};
}

Llama::LayerActivations Llama::layer_activations(int64_t layer, const Extent& extent) const {
    LayerActivations a = layers_[static_cast<size_t>(layer)];
    for (Tensor* tensor :
         {&a.attention_in, &a.mlp_in, &a.attention_normed, &a.mlp_normed, &a.attention_rstd,
          &a.mlp_rstd, &a.attention_out, &a.gate_up, &a.swiglu}) {
        *tensor = first_rows(*tensor, extent.rows());
    }
    a.qkv = a.qkv.slice(extent.before * config_.qkv_size(), {extent.rows(), config_.qkv_size()});
    a.lse = first(a.lse, {extent.sequences, config_.n_head, extent.positions});
    return a;
}

Tensor Llama::final_norm(const ParameterBuffer& buffer) const {
    return buffer[parameter_index(config_.n_layer, input_norm)];
}

Tensor Llama::head(const ParameterBuffer& buffer) const {
    return buffer[config_.tie_embeddings ? 0 : buffer.list->size() - 1];
}

Llama::Extent Llama::extent_of(const Tensor& tokens) const {
    assert(tokens.shape.rank() == 2 && tokens.dtype == DType::i32);
    assert(tokens.shape[0] <= batch_ && tokens.shape[1] <= config_.seq_len);
    return {tokens.shape[0], tokens.shape[1]};
}

Rope Llama::rotation(const Tensor& qkv, const Extent& extent, bool inverse) const {
    const int64_t half = config_.head_size() / 2;
    const Tensor table = rope_table_.slice(extent.before * half * 2, {extent.positions, half, 2});
    const Shape shape{extent.sequences, extent.positions, config_.qkv_size()};
    return {qkv.reshaped(shape), table, static_cast<int>(config_.n_head),
            static_cast<int>(config_.n_kv_head), inverse};
}

AttentionForward Llama::attention(const LayerActivations& a, const Extent& extent) const {
    const int64_t sequences = extent.sequences, positions = extent.positions;
    return {a.qkv.reshaped({sequences, positions, config_.qkv_size()}),
            a.attention_out.reshaped({sequences, positions, config_.d_model}),
            a.lse,
            static_cast<int>(config_.n_head),
            static_cast<int>(config_.n_kv_head),
            {},
            {},
            config_.library_attention};
}

AttentionOne Llama::attention_one(int64_t layer, const LayerActivations& a,
                                  const Extent& extent) const {
    const Tensor& kept = layers_[static_cast<size_t>(layer)].qkv;
    return {first(kept, {1, extent.before + 1, config_.qkv_size()}),
            first(a.attention_out, {config_.d_model}),
            static_cast<int>(config_.n_head),
            static_cast<int>(config_.n_kv_head),
            {}};
}

// ---- forward ------------------------------------------------------------------------------------

void Llama::forward(const ParameterBuffer& weights, const Tensor& tokens, const Extent& extent,
                    bool keep_maxima, const StepSections& sections) {
    const auto reads = [&](int64_t section) {
        if (sections.reads) sections.reads(section);
    };
    const auto stream_before = [&](int64_t layer) {
        return layer < config_.n_layer ? layer_activations(layer, extent).attention_in
                                       : first_rows(final_in_, extent.rows());
    };
    reads(0);
    backend_.embedding_forward({tokens.reshaped({extent.rows()}), weights[0], stream_before(0)});
    RmsNormForward next{.x = stream_before(0)};  // no branch yet: the norm reads x where it is
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
        reads(layer + 1);
        const LayerParameters w = layer_parameters(weights, layer);
        const LayerActivations a = layer_activations(layer, extent);
        norm(next, w.input_norm, a.attention_normed, a.attention_rstd);
        attend_and_gate(w, a, layer, extent, keep_maxima);
        backend_.swiglu_forward({a.gate_up, a.swiglu});
        next = add_branch(a.swiglu, w.down, a.mlp_in, stream_before(layer + 1));
    }
    reads(config_.n_layer + 1);
    norm(next, final_norm(weights), first_rows(final_normed_, extent.rows()),
         first_rows(final_rstd_, extent.rows()));
}

RmsNormForward Llama::add_branch(const Tensor& in, const Tensor& w, const Tensor& x,
                                 const Tensor& sum) {
    Gemm gemm = product(in, w, adds_in_products_ ? sum : first_rows(branch_, in.shape[0]));
    if (adds_in_products_) {
        gemm.beta = 1.0;
        gemm.addend = x;
    }
    multiply(gemm);
    if (adds_in_products_) return {.x = sum};
    return {.x = x, .branch = gemm.c, .sum = sum};
}

void Llama::norm(RmsNormForward operation, const Tensor& gain, const Tensor& out,
                 const Tensor& rstd) {
    operation.gain = gain;
    operation.out = out;
    operation.rstd = rstd;
    operation.eps = config_.norm_eps;
    backend_.rmsnorm_forward(operation);
}

// A layer from the output of its first norm to the input of SwiGLU. branch_ is overwritten.
void Llama::attend_and_gate(const LayerParameters& w, const LayerActivations& a, int64_t layer,
                            const Extent& extent, bool keep_maxima) {
    multiply(product(a.attention_normed, w.qkv, a.qkv));
    backend_.rope(rotation(a.qkv, extent, false));
    attend(layer, a, extent, keep_maxima);
    norm(add_branch(a.attention_out, w.o, a.attention_in, a.mlp_in), w.post_norm, a.mlp_normed,
         a.mlp_rstd);
    multiply(product(a.mlp_normed, w.gate_up, a.gate_up));
}

void Llama::attend(int64_t layer, const LayerActivations& a, const Extent& extent,
                   bool keep_maxima) {
    if (extent.before > 0) {
        return backend_.attention_one(with_workspace(attention_one(layer, a, extent)));
    }
    AttentionForward forward = with_workspace(attention(a, extent));
    if (keep_maxima) forward.row_max = first(row_max_, a.lse.shape);
    backend_.attention_forward(forward);
    if (!keep_maxima) return;
    backend_.head_maxima(
        {forward.row_max, head_maxima_.slice(layer * config_.n_head, {config_.n_head})});
}

void Llama::classify(const ParameterBuffer& weights, const ParameterBuffer* gradients,
                     const Tensor& targets, double loss_scale, const Tensor& loss_sum) {
    // Chunks of nearly equal size: a short last one would waste its GEMMs.
    const int64_t rows = targets.count(), chunks = (rows + chunk_rows_ - 1) / chunk_rows_;
    for (int64_t i = 0; i < chunks; ++i) {
        const int64_t begin = i * rows / chunks, count = (i + 1) * rows / chunks - begin;
        const auto chunk = [&](const Tensor& t) {
            return t.slice(begin * config_.d_model, {count, config_.d_model});
        };
        const Tensor normed = chunk(final_normed_), logits = first_rows(logits_, count);
        multiply(product(normed, head(weights), logits));
        backend_.classifier({logits, targets.reshaped({rows}).slice(begin, {count}),
                             losses_.slice(begin, {count}), gradients ? loss_scale : 0.0});
        if (!gradients) continue;
        multiply(weight_gradient(logits, normed, head(*gradients)));
        multiply(input_gradient(logits, head(weights), chunk(branch_)));
    }
    backend_.sum({first_rows(losses_, rows), loss_sum, loss_scale, true});
}

// ---- backward -----------------------------------------------------------------------------------

// On entry branch_ holds the gradient of the last norm's output.
void Llama::backward(const ParameterBuffer& weights, const ParameterBuffer& gradients,
                     const Tensor& tokens, int64_t lowest, const StepSections& sections) {
    const auto completes = [&](int64_t section) {
        if (sections.completes) sections.completes(section);
    };
    const Extent extent = extent_of(tokens);
    const Tensor dx = first_rows(dx_, extent.rows());
    backend_.zero(dx);
    backward_norm(first_rows(final_in_, extent.rows()), first_rows(final_rstd_, extent.rows()),
                  final_norm(weights), final_norm(gradients));
    completes(config_.n_layer + 1);
    for (int64_t layer = config_.n_layer - 1; layer >= lowest; --layer) {
        const LayerParameters w = layer_parameters(weights, layer);
        const LayerParameters g = layer_parameters(gradients, layer);
        const LayerActivations a = layer_activations(layer, extent);
        recompute(w, a, layer, extent);
        backward_mlp(w, g, a);
        backward_attention(w, g, a, extent);
        completes(layer + 1);
    }
    if (lowest == 0) {
        backend_.embedding_backward(with_workspace(
            EmbeddingBackward{tokens.reshaped({extent.rows()}), dx, gradients[0], {}}));
    }
    for (int64_t section = lowest; section >= 0; --section) completes(section);
}

// What forward() left in memory that other layers have used since: the same operations on the same
// numbers. branch_ is free between two layers.
void Llama::recompute(const LayerParameters& w, const LayerActivations& a, int64_t layer,
                      const Extent& extent) {
    if (layer == config_.n_layer - 1) return;  // its own are still there
    switch (config_.recompute) {
        case Recompute::none:
            return;
        case Recompute::norm_swiglu:
            norm({.x = a.attention_in}, w.input_norm, a.attention_normed, a.attention_rstd);
            norm({.x = a.mlp_in}, w.post_norm, a.mlp_normed, a.mlp_rstd);
            break;
        case Recompute::block:
            norm({.x = a.attention_in}, w.input_norm, a.attention_normed, a.attention_rstd);
            attend_and_gate(w, a, layer, extent, false);
    }
    backend_.swiglu_forward({a.gate_up, a.swiglu});
}

// The activations are overwritten by their gradients where nobody reads them again.
void Llama::backward_mlp(const LayerParameters& w, const LayerParameters& g,
                         const LayerActivations& a) {
    const int64_t rows = a.swiglu.shape[0];
    const Tensor dout = first_rows(dx_compute_, rows);
    multiply(weight_gradient(dout, a.swiglu, g.down));
    multiply(input_gradient(dout, w.down, a.swiglu));
    backend_.swiglu_backward({a.gate_up, a.swiglu, a.gate_up});
    multiply(weight_gradient(a.gate_up, a.mlp_normed, g.gate_up));
    multiply(input_gradient(a.gate_up, w.gate_up, first_rows(branch_, rows)));
    backward_norm(a.mlp_in, a.mlp_rstd, w.post_norm, g.post_norm);
}

void Llama::backward_attention(const LayerParameters& w, const LayerParameters& g,
                               const LayerActivations& a, const Extent& extent) {
    const int64_t rows = extent.rows();
    const Tensor dout = first_rows(dx_compute_, rows), dqkv = first_rows(dqkv_, rows);
    const Tensor branch = first_rows(branch_, rows);
    multiply(weight_gradient(dout, a.attention_out, g.o));
    multiply(input_gradient(dout, w.o, branch));
    const AttentionForward forward = attention(a, extent);
    backend_.attention_backward(with_workspace(AttentionBackward{forward.qkv,
                                                                 forward.out,
                                                                 forward.lse,
                                                                 branch.reshaped(forward.out.shape),
                                                                 dqkv.reshaped(forward.qkv.shape),
                                                                 forward.heads,
                                                                 forward.kv_heads,
                                                                 {},
                                                                 forward.library}));
    backend_.rope(rotation(dqkv, extent, true));
    multiply(weight_gradient(dqkv, a.attention_normed, g.qkv));
    multiply(input_gradient(dqkv, w.qkv, branch));
    backward_norm(a.attention_in, a.attention_rstd, w.input_norm, g.input_norm);
}

// dx_ += the gradient through a norm whose output has gradient branch_; dx_compute_ follows.
void Llama::backward_norm(const Tensor& x, const Tensor& rstd, const Tensor& gain,
                          const Tensor& dgain) {
    const int64_t rows = x.shape[0];
    const bool copied = dx_compute_.dtype != dx_.dtype;
    backend_.rmsnorm_backward(
        with_workspace(RmsNormBackward{x,
                                       gain,
                                       rstd,
                                       first_rows(branch_, rows),
                                       first_rows(dx_, rows),
                                       dgain,
                                       copied ? first_rows(dx_compute_, rows) : Tensor{},
                                       {}}));
}

// ---- public -------------------------------------------------------------------------------------

void Llama::forward_backward(const ParameterBuffer& weights, const ParameterBuffer& gradients,
                             const Tensor& tokens, const Tensor& targets, double loss_scale,
                             const Tensor& loss_sum, int64_t lowest,
                             const StepSections& sections) {
    assert(dqkv_.shape.rank() > 0 && "made without training");
    assert(loss_scale != 0.0 && targets.shape == tokens.shape);
    forward(weights, tokens, extent_of(tokens), config_.head_maxima, sections);
    classify(weights, &gradients, targets, loss_scale, loss_sum);
    backward(weights, gradients, tokens, lowest, sections);
}

void Llama::clip_heads(const ParameterBuffer& weights, const ParameterBuffer& copies, double limit,
                       const ParameterBuffer& remainders) {
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
        const auto view = [&](const ParameterBuffer& buffer, Slot slot) {
            return buffer.flat.empty() ? Tensor{} : buffer[parameter_index(layer, slot)];
        };
        backend_.qk_clip({view(weights, q), view(weights, k), view(copies, q), view(copies, k),
                          head_maxima_.slice(layer * config_.n_head, {config_.n_head}),
                          static_cast<int>(config_.n_head), static_cast<int>(config_.n_kv_head),
                          limit, view(remainders, q), view(remainders, k)});
    }
}

void Llama::evaluate(const ParameterBuffer& weights, const Tensor& tokens, const Tensor& targets,
                     double loss_scale, const Tensor& loss_sum) {
    assert(targets.shape == tokens.shape);
    forward(weights, tokens, extent_of(tokens));
    classify(weights, nullptr, targets, loss_scale, loss_sum);
}

Tensor Llama::last_logits(const ParameterBuffer& weights, const Tensor& tokens) {
    assert(tokens.shape[0] == 1);
    forward(weights, tokens, extent_of(tokens));
    return logits_of(weights, tokens.count() - 1);
}

Tensor Llama::next_logits(const ParameterBuffer& weights, const Tensor& token, int64_t position) {
    assert(config_.keep_text && dqkv_.shape.rank() == 0 && token.count() == 1);
    assert(position > 0 && position < config_.seq_len);
    forward(weights, token, {1, 1, position});
    return logits_of(weights, 0);
}

Tensor Llama::logits_of(const ParameterBuffer& weights, int64_t row) {
    const Tensor normed = final_normed_.slice(row * config_.d_model, {1, config_.d_model});
    const Tensor logits = first_rows(logits_, 1);
    multiply(product(normed, head(weights), logits));
    return logits;
}

// ---- operations ---------------------------------------------------------------------------------

template <class Operation>
Operation Llama::with_workspace(Operation operation) {
    operation.workspace = arena_.workspace();
    assert(backend_.workspace_bytes(operation) <= operation.workspace.bytes());
    return operation;
}

void Llama::multiply(const Gemm& gemm) { backend_.gemm(with_workspace(gemm)); }

}  // namespace lmo
