// LLaMA: RMSNorm, rotary positions, grouped-query attention, SwiGLU; tied or untied head; no biases.
// Forward and backward are written out by hand over the backend border; the residual stream stays in
// fp32 (or as configured), the logits exist only for a chunk of rows at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"

namespace lmo {

struct LlamaConfig {
    int64_t n_layer = 0, n_head = 0, n_kv_head = 0, d_model = 0, d_ff = 0;
    int64_t vocab_size = 0, seq_len = 0;
    double rope_theta = 10000.0, norm_eps = 1e-5, init_std = 0.02;
    bool tie_embeddings = true;

    int64_t head_size() const { return d_model / n_head; }
    int64_t qkv_size() const { return (n_head + 2 * n_kv_head) * head_size(); }
};

// Names, shapes and roles in Hugging Face's layout (LlamaForCausalLM), in the order of the network;
// q, k, v adjacent and fused, gate and up adjacent. init_std: 0.02 (config), output projections
// (o_proj, down_proj) 0.02 / sqrt(2 layers), gains 1.
ParameterList llama_parameters(const LlamaConfig& config);

// Initial weights on the host, element i of tensor t a function of (seed, t, i) alone.
void initialise_parameters(const ParameterList& parameters, uint64_t seed, double* flat);

// Training FLOPs per token, forward and backward: 6 (parameters without the embedding lookup, the
// head counted) + 12 layers * d_model * T (PaLM, appendix B).
double flops_per_token(const LlamaConfig& config);

struct ModelPrecision {
    DType compute = DType::f32;   // activations and the weights that GEMMs read
    DType residual = DType::f32;  // residual stream
    DType master = DType::f32;    // weights, gradients, statistics: f64 when compute is f64
};

class Llama {
  public:
    // Memory for batches of up to `batch` sequences of config.seq_len tokens; without `training`
    // only what a forward pass needs. A counting arena plans.
    Llama(Backend& backend, Arena& arena, const LlamaConfig& config, const ParameterList& parameters,
          const ModelPrecision& precision, int64_t batch, bool training);

    // tokens, targets [B, T] int32 (B <= batch, T <= seq_len); targets of -1 are not counted.
    // gradients += gradient of loss_scale * sum of the token losses; loss_sum[0] (fp64) += the sum of
    // the token losses times loss_scale. Issues operations only. `weights` are compute type.
    void forward_backward(const ParameterBuffer& weights, const ParameterBuffer& gradients,
                          const Tensor& tokens, const Tensor& targets, double loss_scale,
                          const Tensor& loss_sum);

    // Forward only: loss_sum as above.
    void evaluate(const ParameterBuffer& weights, const Tensor& tokens, const Tensor& targets,
                  double loss_scale, const Tensor& loss_sum);

    // Logits [1, V] (compute type) of the last position of tokens [1, T]; valid until the next call.
    Tensor last_logits(const ParameterBuffer& weights, const Tensor& tokens);

  private:
    // (private members are the implementer's)
};

}  // namespace lmo
