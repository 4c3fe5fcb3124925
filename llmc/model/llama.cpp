// Forward and backward pass of LLaMA over the backend border.
//
//   x = embedding[tokens]
//   each layer:  x += o(attention(rope(qkv(norm(x))))),   x += down(swiglu(gate_up(norm(x))))
//   loss = cross-entropy(head(norm(x)), targets)
//
// Y [N, out] = X [N, in] W^T with W [out, in];  dX = dY W;  dW += dY^T X.  N = B*T rows.
// A branch enters the residual stream inside the next norm (RmsNormForward.branch), so the stream
// is read and written once for each norm; the gradient of a branch is that of the stream at that
// place.
#include "llmc/model/llama.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <string>

namespace lmo {

namespace {

Gemm product(const Tensor& x, const Tensor& w, const Tensor& y) {
    return {.a = x, .b = w, .c = y, .transpose_b = true, .workspace = {}};
}

Gemm input_gradient(const Tensor& dy, const Tensor& w, const Tensor& dx) {
    return {.a = dy, .b = w, .c = dx, .workspace = {}};
}

Gemm weight_gradient(const Tensor& dy, const Tensor& x, const Tensor& dw) {
    return {.a = dy, .b = x, .c = dw, .transpose_a = true, .beta = 1.0, .workspace = {}};
}

// The first rows of a buffer that is made for the largest batch.
Tensor first(const Tensor& buffer, const Shape& shape) { return buffer.slice(0, shape); }

Tensor first_rows(const Tensor& buffer, int64_t rows) {
    if (buffer.shape.rank() == 1) return first(buffer, {rows});
    return first(buffer, {rows, buffer.shape[1]});
}

// Positions of the parameters in llama_parameters().
enum Slot { input_norm, q, k, v, o, post_norm, gate, up, down, slots };
int parameter_index(int64_t layer, Slot slot) { return 1 + static_cast<int>(layer) * slots + slot; }

}  // namespace

// ---- memory -------------------------------------------------------------------------------------

Llama::Llama(Backend& backend, Arena& arena, const LlamaConfig& config,
             [[maybe_unused]] const ParameterList& parameters, const ModelPrecision& precision,
             int64_t batch, bool training, int64_t max_logits)
    : backend_(backend), arena_(arena), config_(config), precision_(precision), batch_(batch) {
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
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
        if (layer > 0 && !training) {
            layers_.push_back(layers_.back());
            if (config_.keep_text) layers_.back().qkv = compute("attention", config_.qkv_size());
            continue;
        }
        LayerActivations a;
        // Without a backward pass one residual stream, updated in place, and one normed copy do.
        a.attention_in = training ? stream() : final_in_;
        a.attention_normed = training ? normed() : final_normed_;
        a.attention_rstd = training ? rstd() : final_rstd_;
        a.mlp_in = training ? stream() : final_in_;
        a.mlp_normed = training ? normed() : final_normed_;
        a.mlp_rstd = training ? rstd() : final_rstd_;
        a.qkv = compute("attention", config_.qkv_size());
        a.attention_out = compute("attention", config_.d_model);
        a.lse = take("attention", precision_.master, scores);
        a.gate_up = compute("mlp", 2 * config_.d_ff);
        a.swiglu = compute("mlp", config_.d_ff);
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
                              {}});
    const Tensor gain{nullptr, precision_.compute, {config_.d_model}};
    const Tensor dgain{nullptr, precision_.master, {config_.d_model}};
    const Tensor dbranch = precision_.compute == precision_.residual ? Tensor{} : dx_compute_;
    reserve(RmsNormBackward{final_in_, gain, final_rstd_, branch_, dx_, dgain, dbranch, {}});
    const Tensor ids{nullptr, DType::i32, {batch_ * config_.seq_len}};
    const Tensor dtable{nullptr, precision_.master, {config_.vocab_size, config_.d_model}};
    reserve(EmbeddingBackward{ids, dx_, dtable, {}});
}

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

Llama::LayerActivations Llama::layer_activations(int64_t layer, Extent extent) const {
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

Rope Llama::rotation(const Tensor& qkv, Extent extent, bool inverse) const {
    const int64_t half = config_.head_size() / 2;
    const Tensor table = rope_table_.slice(extent.before * half * 2, {extent.positions, half, 2});
    const Shape shape{extent.sequences, extent.positions, config_.qkv_size()};
    return {qkv.reshaped(shape), table, static_cast<int>(config_.n_head),
            static_cast<int>(config_.n_kv_head), inverse};
}

AttentionForward Llama::attention(const LayerActivations& a, Extent extent) const {
    const int64_t sequences = extent.sequences, positions = extent.positions;
    return {a.qkv.reshaped({sequences, positions, config_.qkv_size()}),
            a.attention_out.reshaped({sequences, positions, config_.d_model}),
            a.lse,
            static_cast<int>(config_.n_head),
            static_cast<int>(config_.n_kv_head),
            {}};
}

AttentionOne Llama::attention_one(int64_t layer, const LayerActivations& a, Extent extent) const {
    const Tensor& kept = layers_[static_cast<size_t>(layer)].qkv;
    return {first(kept, {1, extent.before + 1, config_.qkv_size()}),
            first(a.attention_out, {config_.d_model}),
            static_cast<int>(config_.n_head),
            static_cast<int>(config_.n_kv_head),
            {}};
}

// ---- forward ------------------------------------------------------------------------------------

void Llama::forward(const ParameterBuffer& weights, const Tensor& tokens, Extent extent,
                    bool keep_maxima) {
    const Tensor branch = first_rows(branch_, extent.rows());
    Tensor x = layer_activations(0, extent).attention_in;
    backend_.embedding_forward({tokens.reshaped({extent.rows()}), weights[0], x});
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
        const LayerParameters w = layer_parameters(weights, layer);
        const LayerActivations a = layer_activations(layer, extent);
        const bool start = layer == 0;  // no branch yet: the norm reads x where it is
        backend_.rmsnorm_forward({x, start ? Tensor{} : branch, w.input_norm,
                                  start ? Tensor{} : a.attention_in, a.attention_normed,
                                  a.attention_rstd, config_.norm_eps});
        multiply(product(a.attention_normed, w.qkv, a.qkv));
        backend_.rope(rotation(a.qkv, extent, false));
        attend(layer, a, extent, keep_maxima);
        multiply(product(a.attention_out, w.o, branch));
        backend_.rmsnorm_forward({a.attention_in, branch, w.post_norm, a.mlp_in, a.mlp_normed,
                                  a.mlp_rstd, config_.norm_eps});
        multiply(product(a.mlp_normed, w.gate_up, a.gate_up));
        backend_.swiglu_forward({a.gate_up, a.swiglu});
        multiply(product(a.swiglu, w.down, branch));
        x = a.mlp_in;
    }
    backend_.rmsnorm_forward({x, branch, final_norm(weights), first_rows(final_in_, extent.rows()),
                              first_rows(final_normed_, extent.rows()),
                              first_rows(final_rstd_, extent.rows()), config_.norm_eps});
}

void Llama::attend(int64_t layer, const LayerActivations& a, Extent extent, bool keep_maxima) {
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
                     const Tensor& tokens, int64_t lowest) {
    const Extent extent = extent_of(tokens);
    const Tensor dx = first_rows(dx_, extent.rows());
    backend_.zero(dx);
    backward_norm(first_rows(final_in_, extent.rows()), first_rows(final_rstd_, extent.rows()),
                  final_norm(weights), final_norm(gradients));
    for (int64_t layer = config_.n_layer - 1; layer >= lowest; --layer) {
        const LayerParameters w = layer_parameters(weights, layer);
        const LayerParameters g = layer_parameters(gradients, layer);
        const LayerActivations a = layer_activations(layer, extent);
        backward_mlp(w, g, a);
        backward_attention(w, g, a, extent);
    }
    if (lowest > 0) return;
    backend_.embedding_backward(
        with_workspace(EmbeddingBackward{tokens.reshaped({extent.rows()}), dx, gradients[0], {}}));
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
                               const LayerActivations& a, Extent extent) {
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
                                                                 {}}));
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
                             const Tensor& loss_sum, int64_t lowest) {
    assert(dqkv_.shape.rank() > 0 && "made without training");
    assert(loss_scale != 0.0 && targets.shape == tokens.shape);
    forward(weights, tokens, extent_of(tokens), config_.head_maxima);
    classify(weights, &gradients, targets, loss_scale, loss_sum);
    backward(weights, gradients, tokens, lowest);
}

void Llama::clip_heads(const ParameterBuffer& weights, const ParameterBuffer& copies,
                       double limit) {
    for (int64_t layer = 0; layer < config_.n_layer; ++layer) {
        const auto view = [&](const ParameterBuffer& buffer, Slot slot) {
            return buffer.flat.empty() ? Tensor{} : buffer[parameter_index(layer, slot)];
        };
        backend_.qk_clip({view(weights, q), view(weights, k), view(copies, q), view(copies, k),
                          head_maxima_.slice(layer * config_.n_head, {config_.n_head}),
                          static_cast<int>(config_.n_head), static_cast<int>(config_.n_kv_head),
                          limit});
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
