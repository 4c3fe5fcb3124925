// LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU; tied or untied head; no
// biases. Forward and backward are written out by hand over the backend border; the residual stream
// stays in fp32 (or as configured), the logits exist only for a chunk of rows at a time.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"

namespace lmo {

// Activations that the backward pass computes again in place of keeping them, bit for bit; memory
// of one layer then serves all.
enum class Recompute {
    none,
    norm_swiglu,  // outputs of the norms and of SwiGLU: about a third of a layer's activations
    block,        // all of a layer but what it reads: one more forward pass
};

struct LlamaConfig {
    int64_t n_layer = 0, n_head = 0, n_kv_head = 0, d_model = 0, d_ff = 0;
    int64_t vocab_size = 0, seq_len = 0;
    double rope_theta = 10000.0, norm_eps = 1e-5, init_std = 0.02;
    bool tie_embeddings = true;
    // Training keeps the largest attention score of each head, for clip_heads(). Not a property of
    // the weights.
    bool head_maxima = false;
    // A model without training keeps the keys and values of a text, for next_logits(). Not a
    // property of the weights either.
    bool keep_text = false;
    Recompute recompute = Recompute::none;  // nor is this
    bool library_attention = false;         // by the device's library (AttentionForward::library)

    int64_t head_size() const { return d_model / n_head; }
    int64_t qkv_size() const { return (n_head + 2 * n_kv_head) * head_size(); }
};

// Names, shapes and roles in Hugging Face's layout (LlamaForCausalLM), in the order of the network;
// q, k, v adjacent and fused, gate and up adjacent. init_std: 0.02 (config), output projections
// (o_proj, down_proj) 0.02 / sqrt(2 layers), gains 1.
ParameterList llama_parameters(const LlamaConfig& config);

// Initial values of tensor `index` on the host; element i is a function of (seed, index, i) alone.
std::vector<double> initial_values(const ParameterList& parameters, int index, uint64_t seed);

// Training FLOPs per token, forward and backward: 6 P + 12 L H D T, with P the weights that enter a
// matrix product (all matrices and the head, tied or not; neither the embedding lookup nor gains)
// and T = seq_len, the causal half of the attention not subtracted (PaLM, appendix B).
double flops_per_token(const LlamaConfig& config);

struct ModelPrecision {
    DType compute = DType::f32;   // activations and the weights that GEMMs read
    DType residual = DType::f32;  // residual stream
    DType master = DType::f32;    // weights, gradients, statistics: f64 when compute is f64
    // Of bf16 compute: the weights are there once, split (core/split_float.h).
    bool split = false;
};

// What a training step tells of itself while its operations are issued, section by section: 0 is
// the embedding, 1 + l layer l, n_layer + 1 the last norm with an untied head.
struct StepSections {
    std::function<void(int64_t section)> reads;      // its weights, from the next operation on
    std::function<void(int64_t section)> completes;  // its gradients, by the last operation
};
int64_t section_of(const Parameter& parameter, int64_t n_layer);

class Llama {
  public:
    // Memory for batches of up to `batch` sequences of config.seq_len tokens; without `training`
    // only what a forward pass needs. A counting arena plans. max_logits bounds how many logits
    // exist at a time (at least one row does): larger chunks read the head's weights less often.
    Llama(Backend& backend, Arena& arena, const LlamaConfig& config,
          const ParameterList& parameters, const ModelPrecision& precision, int64_t batch,
          bool training, int64_t max_logits = int64_t{1} << 23);

    // tokens, targets [B, T] int32 (B <= batch, T <= seq_len); targets of -1 are not counted.
    // gradients += gradient of loss_scale * sum of the token losses; loss_sum[0] (fp64) += the sum
    // of the token losses times loss_scale. Issues operations only. `weights` are compute type.
    // The backward pass ends with layer `lowest` (n_layer: with the last norm): the gradients of
    // parameters of lower layers stay as they are, and where it is above 0 a tied embedding gets
    // the gradient of the head alone. Every section is read and completed once, in order of the
    // sections and backwards.
    void forward_backward(const ParameterBuffer& weights, const ParameterBuffer& gradients,
                          const Tensor& tokens, const Tensor& targets, double loss_scale,
                          const Tensor& loss_sum, int64_t lowest = 0,
                          const StepSections& sections = {});

    // With config.head_maxima: the largest scores [n_layer, H] (master) of all forward_backward()
    // since they were set to zero, zero at the least; and QK-clip of the weights by them (QkClip in
    // backend.h). copies (compute) may be empty.
    const Tensor& head_maxima() const { return head_maxima_; }
    void clip_heads(const ParameterBuffer& weights, const ParameterBuffer& copies, double limit,
                    const ParameterBuffer& remainders = {});

    // Forward only: loss_sum as above.
    void evaluate(const ParameterBuffer& weights, const Tensor& tokens, const Tensor& targets,
                  double loss_scale, const Tensor& loss_sum);

    // Logits [1, V] (compute type) of the last position of tokens [1, T]; valid until the next
    // call.
    Tensor last_logits(const ParameterBuffer& weights, const Tensor& tokens);

    // With config.keep_text: the same for the text of the calls before and one more token [1, 1],
    // at position 1 <= `position` < seq_len: the last call was last_logits() of `position` tokens,
    // or next_logits() at position - 1.
    Tensor next_logits(const ParameterBuffer& weights, const Tensor& token, int64_t position);

  private:
    // The weights of one layer, or their gradients; qkv and gate_up span their adjacent parameters.
    struct LayerParameters {
        Tensor input_norm, qkv, o, post_norm, gate_up, down;
    };
    // What one layer leaves for its backward pass. N = B*T rows:
    struct LayerActivations {
        Tensor attention_in, mlp_in;          // [N, C] residual stream where each norm reads it
        Tensor attention_normed, mlp_normed;  // [N, C] compute: the norms' outputs
        Tensor attention_rstd, mlp_rstd;      // [N] master
        Tensor qkv;                           // [N, (H+2K)*D], rotated
        Tensor attention_out;                 // [N, C]
        Tensor lse;                           // [B, H, T] master
        Tensor gate_up, swiglu;               // [N, 2F], [N, F]
    };
    struct Extent {
        int64_t sequences, positions;
        int64_t before = 0;  // positions of the text whose qkv is kept; then positions is 1
        int64_t rows() const { return sequences * positions; }
    };

    void take_activations(bool training);
    void take_rope_table();
    void reserve_workspace(bool training);

    LayerParameters layer_parameters(const ParameterBuffer& buffer, int64_t layer) const;
    LayerActivations layer_activations(int64_t layer, const Extent& extent) const;
    Tensor final_norm(const ParameterBuffer& buffer) const;
    Tensor head(const ParameterBuffer& buffer) const;
    Extent extent_of(const Tensor& tokens) const;
    AttentionForward attention(const LayerActivations& a, const Extent& extent) const;
    AttentionOne attention_one(int64_t layer, const LayerActivations& a,
                               const Extent& extent) const;
    Rope rotation(const Tensor& qkv, const Extent& extent, bool inverse) const;

    // From the tokens to final_normed_.
    void forward(const ParameterBuffer& weights, const Tensor& tokens, const Extent& extent,
                 bool keep_maxima = false, const StepSections& sections = {});
    void attend_and_gate(const LayerParameters& w, const LayerActivations& a, int64_t layer,
                         const Extent& extent, bool keep_maxima);
    void attend(int64_t layer, const LayerActivations& a, const Extent& extent, bool keep_maxima);
    // The branch in W^T enters the stream x, which goes on at `sum`: what the next norm reads, yet
    // without gain and results. By the product where the types are equal on a separate device, else
    // by that norm, from branch_.
    RmsNormForward add_branch(const Tensor& in, const Tensor& w, const Tensor& x,
                              const Tensor& sum);
    void norm(RmsNormForward operation, const Tensor& gain, const Tensor& out, const Tensor& rstd);
    Tensor logits_of(const ParameterBuffer& weights, int64_t row);
    // The head and the loss, chunk by chunk; with gradients also those of the head and, into
    // branch_, of its input.
    void classify(const ParameterBuffer& weights, const ParameterBuffer* gradients,
                  const Tensor& targets, double loss_scale, const Tensor& loss_sum);
    void backward(const ParameterBuffer& weights, const ParameterBuffer& gradients,
                  const Tensor& tokens, int64_t lowest, const StepSections& sections);
    void recompute(const LayerParameters& w, const LayerActivations& a, int64_t layer,
                   const Extent& extent);
    void backward_mlp(const LayerParameters& w, const LayerParameters& g,
                      const LayerActivations& a);
    void backward_attention(const LayerParameters& w, const LayerParameters& g,
                            const LayerActivations& a, const Extent& extent);
    void backward_norm(const Tensor& x, const Tensor& rstd, const Tensor& gain,
                       const Tensor& dgain);

    // Workspace is fetched when an operation first needs it: others may still reserve until then.
    template <class Operation>
    Operation with_workspace(Operation operation);
    void multiply(const Gemm& gemm);

    Backend& backend_;
    Arena& arena_;
    LlamaConfig config_;
    ModelPrecision precision_;
    int64_t batch_, chunk_rows_;
    bool adds_in_products_;  // branches to the residual stream

    // The same memory for all layers where no backward pass reads it, or after it was recomputed.
    std::vector<LayerActivations> layers_;
    Tensor final_in_, final_normed_, final_rstd_;
    Tensor logits_, losses_, rope_table_;
    Tensor branch_;      // [N, C] compute: output of a branch, later a gradient of that shape
    Tensor dx_;          // [N, C] gradient of the residual stream
    Tensor dx_compute_;  // [N, C] the same in compute type (dx_ itself where that is its type)
    Tensor dqkv_;        // [N, (H+2K)*D]
    Tensor row_max_, head_maxima_;  // [B, H, T], [n_layer, H] master; where config_.head_maxima
};

}  // namespace lmo
