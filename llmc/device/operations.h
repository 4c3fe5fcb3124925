// What a backend does for the model: operations on dense tensors, each named by its parameters.
// backend.h has the rules and the letters.
#pragma once

#include "llmc/core/tensor.h"

namespace lmo {

// ---- dense

// C = alpha * op(A) op(B) + beta * S, with op(X) = X or its transpose. A, B: compute; C: compute or
// master. S is `addend`, of C's shape and type, or C itself where that is empty; it may be C but
// not overlap it otherwise. Rank 3 tensors are a batch of independent products.
struct Gemm {
    Tensor a, b, c;
    bool transpose_a = false, transpose_b = false;
    double alpha = 1.0, beta = 0.0;
    Tensor workspace;
    Tensor addend = {};
};

// C = alpha * A A^T + beta * S, all of it stored, exactly symmetric; A [.., m, k], S and C [.., m,
// m] (S symmetric; may be empty when beta is 0, and must not overlap C).
struct SymmetricProduct {
    Tensor a, s, c;
    double alpha = 1.0, beta = 0.0;
    Tensor workspace;
};

// Causal attention with grouped heads: for head h and position t,
//   out = sum_{s<=t} softmax_s(q_t . k_s / sqrt(D)) v_s,  k and v of head h / (H/K).
// qkv [B, T, (H+2K)*D] holds q, k, v side by side; out [B, T, H*D]; lse [B, H, T] (master) is the
// log-sum-exp of each row of scores, kept for the backward pass. No T x T matrix per batch exists.
// row_max [B, H, T] (master), if given, receives the largest score q_t . k_s / sqrt(D) of each row.
// With `library` by a library of the device (cuDNN) in place of kernels of ours, to other
// roundings; only where missing_attention_library() is empty, in bf16 and without row_max. Error,
// from workspace_bytes too, where the library refuses the shape.
struct AttentionForward {
    Tensor qkv, out, lse;
    int heads, kv_heads;
    Tensor workspace;
    Tensor row_max = {};
    bool library = false;
};

// Gradient of the above: dqkv [B, T, (H+2K)*D] is overwritten.
struct AttentionBackward {
    Tensor qkv, out, lse, dout, dqkv;
    int heads, kv_heads;
    Tensor workspace;
    bool library = false;
};

// Attention of the last of T positions alone, where text grows: out [H*D] is the last row of what
// AttentionForward makes of qkv [1, T, (H+2K)*D]. The queries of earlier positions are not read.
struct AttentionOne {
    Tensor qkv, out;
    int heads, kv_heads;
    Tensor workspace;
};

// ---- model

// out[i] = table[ids[i]]; ids [N] int32, table [V, C] compute, out [N, C] residual type.
struct EmbeddingForward {
    Tensor ids, table, out;
};

// dtable[v] += sum over i with ids[i] = v, in order of i, of dout[i]. dout [N, C] residual type,
// dtable [V, C] master.
struct EmbeddingBackward {
    Tensor ids, dout, dtable;
    Tensor workspace;
};

// Residual stream and norm in one pass: sum = x + branch (branch may be empty: sum = x and is not
// written when `sum` is empty), out = sum * rstd * gain, rstd = 1/sqrt(mean(sum^2) + eps).
// x, sum [N, C] residual type; branch, out [N, C] compute; gain [C] compute; rstd [N] master.
// `sum` may be `x`.
struct RmsNormForward {
    Tensor x, branch = {}, gain = {};
    Tensor sum = {}, out = {}, rstd = {};
    double eps = 0.0;
};

// Gradient of out with respect to its input, added to the residual gradient: dx += ..., with x the
// normed input (`sum` above); dgain [C] (master) += ...; dx [N, C] residual type. When dbranch
// [N, C] (compute) is given it receives a copy of the new dx: the gradient of `branch`.
struct RmsNormBackward {
    Tensor x, gain, rstd, dout;
    Tensor dx, dgain, dbranch;
    Tensor workspace;
};

// Rotary position embedding, half-split pairs (i, i + D/2), in place on the q and k heads of
// qkv [B, T, (H+2K)*D]: (a, b) -> (a cos - b sin, a sin + b cos). inverse: the transposed rotation,
// which is the gradient. table [T, D/2, 2] (master): cos and sin of t * theta^(-2i/D).
struct Rope {
    Tensor qkv, table;
    int heads, kv_heads;
    bool inverse = false;
};

// out = silu(gate) * up with gate_up [N, 2F] = gate and up side by side; out [N, F].
struct SwigluForward {
    Tensor gate_up, out;
};

// dgate_up [N, 2F] from dout [N, F]; dgate_up may be gate_up.
struct SwigluBackward {
    Tensor gate_up, dout, dgate_up;
};

// Softmax cross-entropy over rows: losses[i] = log sum_v exp(logits[i, v]) - logits[i, target].
// With gradient_scale != 0 the logits are replaced by their gradient,
// gradient_scale * (softmax - onehot). logits [N, V] compute, targets [N] int32 (-1: the row is
// ignored, its loss and gradient are 0), losses [N] master.
struct Classifier {
    Tensor logits, targets, losses;
    double gradient_scale = 0.0;
};

// ---- reductions

// out[0] = scale * sum(x) (+ out[0] when accumulate). out: fp64.
struct Sum {
    Tensor x, out;
    double scale = 1.0;
    bool accumulate = false;
};

// out[i] = sum of squares of tensors[i]; out [n] fp64. The partial sums have fixed borders.
struct SumOfSquares {
    std::span<const Tensor> tensors;
    Tensor out;
    Tensor workspace;
};

// norm[0] = sqrt(sum(sum_of_squares)); factor[0] = min(1, max_norm / (norm + 1e-6)) as in
// torch.nn.utils.clip_grad_norm_, or 1 when max_norm is 0. All fp64.
struct ClipFactor {
    Tensor sum_of_squares, norm, factor;
    double max_norm = 0.0;
};

}  // namespace lmo
