// The one border between the program and the hardware.
//
// A Backend is a set of operations on dense tensors in its own memory. Everything above this file
// is written once against it; llmc/cpu implements it on the processor (in fp64 it is the oracle of
// all tests), and a new device is a new folder that implements it again.
//
// Rules of the border:
//  * An operation never allocates. Those that need scratch memory say how much (`workspace_bytes`
//    with the same parameter struct, data pointers not read) and get it in `workspace`.
//  * The element type is chosen inside the operation, from the tensors' dtype. Letters: B
//  sequences,
//    T positions, N = B*T rows, C channels (d_model), H heads, K key/value heads, D head size,
//    F SwiGLU width, V vocabulary. "compute" is the type of activations and of the weights that a
//    matrix product reads; gradients, statistics and master weights are "master": fp32, or fp64
//    when compute is fp64.
//  * Scalars that change at every step are read from device memory (fp64), so that a captured
//    sequence of operations stays valid.
//  * Every reduction has a fixed order: equal inputs, threads and processor features give equal
//    bits.
//  * Operations run in order; only copy_out and synchronize wait for them. A mismatch of shapes or
//    types is a programmer error (assert), lack of memory is an Error.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <variant>

#include "llmc/core/tensor.h"
#include "llmc/device/communicator.h"

namespace lmo {

// ---- dense
// ---------------------------------------------------------------------------------------

// C = alpha * op(A) op(B) + beta * C, with op(X) = X or its transpose. A, B: compute; C: compute or
// master. Rank 3 tensors are a batch of independent products.
struct Gemm {
    Tensor a, b, c;
    bool transpose_a = false, transpose_b = false;
    double alpha = 1.0, beta = 0.0;
    Tensor workspace;
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
// With `library` by a library of the device (cuDNN) in place of kernels of ours, to other roundings;
// only where missing_attention_library() is empty, in bf16 and without row_max. Error, from
// workspace_bytes too, where the library refuses the shape.
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
// ---------------------------------------------------------------------------------------

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
    Tensor x, branch, gain;
    Tensor sum, out, rstd;
    double eps;
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
// ----------------------------------------------------------------------------------

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

// ---- optimizer
// ----------------------------------------------------------------------------------- These run
// over a list of tensors at once. `x` holds gradients on entry and is rewritten in place, stage by
// stage, until it is the direction of the update. All tensors are master type.

// Every two-term momentum at once: with g = factor[0] * x,
//   x = u_m * m + u_g * g,   m = m_m * m + m_g * g    (right-hand sides: old m).
// momentum may be an empty span: then x = u_g * g.
// With `step` (fp64, updates done so far): at step 0 the old m counts as g.
struct Momentum {
    std::span<const Tensor> x, momentum;
    Tensor factor;
    double u_m, u_g, m_m, m_g;
    Tensor step = {};
};

// Adam's direction, with g = factor[0] * x and t = step[0] + 1 (step: fp64, updates done so far):
//   m = beta1 m + (1-beta1) g,  v = beta2 v + (1-beta2) g^2,
//   x = (m / (1-beta1^t)) / (sqrt(v / (1-beta2^t)) + eps)                      eps_inside = false
//   x = m / (sqrt(v) + eps) * sqrt(1-beta2^t) / (1-beta1^t)                    eps_inside = true
// (Kingma & Ba 2015, algorithm 1; and the variant in its section 2 with eps before the correction.)
struct Adam {
    std::span<const Tensor> x, first, second;
    Tensor factor, step;
    double beta1, beta2, eps;
    bool eps_inside = false;
};

// x = sign(x), sign(0) = 0.
struct Sign {
    std::span<const Tensor> x;
};

// x = x / (||x||_F + eps), each tensor by its own norm.
struct FrobeniusNormalize {
    std::span<const Tensor> x;
    double eps;
    Tensor workspace;
};

// Newton-Schulz orthogonalisation, each tensor [m, n] a matrix, all of one shape: with X = x (the
// transpose if m > n) / (||x||_F * norm_scale + eps), for each (a, b, c):
//   A = X X^T,  X = a X + (b A + c A^2) X.
// Zero stays zero. The gram form is the same polynomial with fewer operations on matrices that are
// far from square: it iterates on A alone, X = Q(A) X, and starts anew from X before the steps
// `restarts` (increasing, > 0), which 16-bit types need (gram_restarts in norm/newton_schulz.h).
// automatic: gram where the backend gains by it. `inner` is the type of the matrices inside;
// products are accumulated in the master type. f32 means the tensors' own type; f16 and bf16 are
// for backends that prefer them (preferred_newton_schulz).
struct NewtonSchulzStep {
    double a, b, c;
};
enum class NewtonSchulzForm { automatic, standard, gram };
struct NewtonSchulz {
    std::span<const Tensor> x;
    std::span<const NewtonSchulzStep> steps;
    double norm_scale = 1.0, eps = 1e-7;
    Tensor workspace;
    DType inner = DType::f32;
    NewtonSchulzForm form = NewtonSchulzForm::automatic;
    std::span<const int> restarts = {};
};

// Each row of a matrix [m, n], or each column, by its own Euclidean norm: x = x / (||.||_2 + eps).
// A vector [m] is a column.
struct LineNormalize {
    std::span<const Tensor> x;
    bool columns = false;
    double eps;
};

// NorMuon's second moment of rows (arXiv 2510.05491), behind an orthogonalisation: with r_j the
// mean square of row j of x and second[i] [m] its state,
//   second = beta2 second + (1-beta2) r,  y = x / (sqrt(second) + eps) by rows,
//   x = y ||x||_F / (||y||_F + eps).
struct RowMomentNormalize {
    std::span<const Tensor> x, second;
    double beta2, eps;
    Tensor workspace;
};

// Steepest direction of the Schatten norm of exponent p >= 1 (infinity included), each tensor a
// matrix: with x = U S V^T, q = p/(p-1) and S^r of the nonzero values only,
//   x = U S^(q-1) V^T / ||S||_q^(q-1);   p = 1: u v^T of the largest value.
// Values below max(m, n) eps of the largest one count as zero. By one-sided Jacobi rotations of the
// shorter side (Golub & Van Loan, Matrix Computations, 8.6), computed in the tensors' own type.
struct SchattenDirection {
    std::span<const Tensor> x;
    double p;
    Tensor workspace;
};

// out[2i], out[2i+1] = estimates of the largest and the smallest (of min(m, n)) singular value of
// x[i], a matrix; out [n, 2] fp64. By `iterations` steps of the power method on A = X X^T of the
// shorter side, and on (l I - A) with l the largest eigenvalue found, from a fixed start: estimates
// from inside. 0 for the smallest where `smallest` is false.
struct SingularRange {
    std::span<const Tensor> x;
    int iterations;
    bool smallest;
    Tensor out;
    Tensor workspace;
};

// out[i] = sum over all elements of a[i] * b[i]; out [n] fp64. The partial sums have fixed borders.
struct DotProducts {
    std::span<const Tensor> a, b;
    Tensor out;
    Tensor workspace;
};

// How long a step is: factors of the radii from the dual norms d_i = radius[i] * dot[i] (dot: what
// DotProducts found for gradient and direction, which is the dual norm), one tensor each, or with
// `together` their sum for all.
//   unit     1
//   dual     d_i                            steepest descent (the sharp operator)
//   clipped  min(limit, d_i)                generalised clipping (arXiv 2506.01913)
//   gluon    d_i / (l0[i] + l1[i] d_i)      (L0, L1)-smoothness (arXiv 2505.13416); 0 where d_i is
// With `range` [n, 2], what SingularRange found for the orthogonalised x: times (1-e) / (1+e)^2,
// e = min(1, max(range[2i] - 1, 1 - range[2i+1])), the error of an inexact oracle (arXiv
// 2510.19933; algorithms.md 8). All fp64.
enum class StepRule { unit, dual, clipped, gluon };
struct StepSizes {
    StepRule rule;
    std::span<const double> radius, l0, l1;  // l0, l1: gluon
    Tensor dot, range, out;                  // out [n]
    double limit = 0.0;
    bool together = false;
};

// w = w - (decay_i w + step_i x), with lr = lr_scale * rate[0] (fp64), step_i = lr * radius[i]
// (times size[i] where `size` [n] fp64 is given) and decay_i = lr * decay[i]. When copies is not
// empty, copies[i] (compute) receives the new weights.
//   cautious   decays only where x * w > 0
//   starts     not empty: towards the start too: w = w + (starts[i] - old w) / (step[0] + 2),
//   `step`
//              (fp64) the updates done so far (SODA, arXiv 2605.11172)
struct Apply {
    std::span<const Tensor> weights, x, copies;
    Tensor rate;
    double lr_scale = 1.0;
    std::span<const double> radius, decay;
    Tensor size = {};
    bool cautious = false;
    std::span<const Tensor> starts = {};
    Tensor step = {};
};

// Momentum or Adam, then a direction, then Apply in one pass, to the bits of one after another: but
// the gradients, the x of `momentum`, are only read, and the directions are written nowhere.
//   identity   x                 sign   as Sign
//   frobenius  as FrobeniusNormalize with `eps`, behind a Momentum alone; the sums of squares take
//              a pass before, which reads gradients and momentum
// `apply` is without x, size and starts.
struct FusedDirection {
    enum class Type { identity, sign, frobenius };
    Type type = Type::identity;
    double eps = 0.0;
};
struct FusedUpdate {
    std::variant<Momentum, Adam> momentum;
    FusedDirection direction;
    Apply apply;
    Tensor workspace = {};

    std::span<const Tensor> gradients() const {
        return std::visit([](const auto& op) { return op.x; }, momentum);
    }
};

// Momentum, NewtonSchulz and Apply of matrices of one shape, to the bits of one after another, in
// fewer passes. `momentum.x` are the gradients, which may be overwritten; `iteration` and `apply`
// are without x, and `apply` without size and starts. iteration.workspace: that of the NewtonSchulz
// over the same matrices.
struct SpectralUpdate {
    Momentum momentum;
    NewtonSchulz iteration;
    Apply apply;
};

// out[h] = max(out[h], the largest of x[:, h, :]); x [B, H, T] master, out [H] master.
struct HeadMaxima {
    Tensor x, out;
};

// QK-clip (Kimi K2, arXiv 2507.20534): with g_h = min(1, limit / maxima[h]) for each of the heads
// (1 where maxima[h] <= limit) and f_k = sqrt of the smallest g_h of key head k, the D rows of k_h
// times f_k and those of q_h times g_h / f_k, so that no score of the batch would exceed the limit.
// q [H*D, C], k [K*D, C] master weights; q_copy, k_copy (compute; may be empty) receive the new
// weights; maxima [H] master.
struct QkClip {
    Tensor q, k, q_copy, k_copy, maxima;
    int heads, kv_heads;
    double limit;
};

// ---- the backend
// ---------------------------------------------------------------------------------

// A recorded sequence of operations.
class Graph {
  public:
    virtual ~Graph() = default;
    virtual void launch() = 0;
};

class Backend {
  public:
    virtual ~Backend() = default;

    // One line for people: device, libraries, threads, features in use.
    virtual std::string describe() const = 0;
    // The type in which this device computes fastest without a loss that matters: bf16 or fp32.
    virtual DType preferred_compute() const = 0;
    // The type inside of a Newton-Schulz iteration on fp32 matrices that costs no accuracy that
    // training notices: f16 on tensor cores, else f32.
    virtual DType preferred_newton_schulz() const = 0;
    // Whether it may be this one: f16, bf16 or f32.
    virtual bool has_newton_schulz(DType inner) const = 0;
    // Whether compute and master may be f64: the oracle of tests.
    virtual bool has_fp64() const = 0;
    // Why there is no attention by a library here; empty where there is.
    virtual std::string missing_attention_library() const = 0;
    // Whether this is a device beside the processor: with memory of its own, and with operations that
    // run behind the calls that issue them.
    virtual bool is_separate() const = 0;
    // Memory that allocate may still hand out, about; infinite where nobody says.
    virtual double free_bytes() const = 0;

    // Memory. allocate: 256-byte aligned, contents undefined; Error when there is none left.
    // copy_in has read the host's bytes when it returns.
    virtual void* allocate(size_t bytes) = 0;
    virtual void release(void* memory) = 0;
    virtual void copy_in(const Tensor& to, const void* host) = 0;  // to.bytes() bytes
    virtual void copy_out(void* host, const Tensor& from) = 0;     // waits
    virtual void copy(const Tensor& to, const Tensor& from) = 0;   // converts between dtypes
    virtual void zero(const Tensor& tensor) = 0;

    // Order. capture records the operations that body() issues, without running them.
    virtual std::unique_ptr<Graph> capture(std::function<void()> body) = 0;
    virtual void synchronize() = 0;
    // Moments: mark(i) is when all operations issued before it are done, seconds_between waits for
    // both. For the few numbers from 0 on that are in use; not while recording.
    virtual void mark(size_t moment) = 0;
    virtual double seconds_between(size_t from, size_t to) = 0;

    // Dense.
    virtual size_t workspace_bytes(const Gemm&) const = 0;
    virtual size_t workspace_bytes(const SymmetricProduct&) const = 0;
    virtual size_t workspace_bytes(const AttentionForward&) const = 0;
    virtual size_t workspace_bytes(const AttentionBackward&) const = 0;
    virtual void gemm(const Gemm&) = 0;
    virtual void symmetric_product(const SymmetricProduct&) = 0;
    virtual void attention_forward(const AttentionForward&) = 0;
    virtual void attention_backward(const AttentionBackward&) = 0;

    // Model.
    virtual size_t workspace_bytes(const EmbeddingBackward&) const = 0;
    virtual size_t workspace_bytes(const RmsNormBackward&) const = 0;
    virtual void embedding_forward(const EmbeddingForward&) = 0;
    virtual void embedding_backward(const EmbeddingBackward&) = 0;
    virtual void rmsnorm_forward(const RmsNormForward&) = 0;
    virtual void rmsnorm_backward(const RmsNormBackward&) = 0;
    virtual void rope(const Rope&) = 0;
    virtual void swiglu_forward(const SwigluForward&) = 0;
    virtual void swiglu_backward(const SwigluBackward&) = 0;
    virtual void classifier(const Classifier&) = 0;

    // Reductions.
    virtual size_t workspace_bytes(const SumOfSquares&) const = 0;
    virtual void sum(const Sum&) = 0;
    virtual void sum_of_squares(const SumOfSquares&) = 0;
    virtual void clip_factor(const ClipFactor&) = 0;

    // Optimizer.
    virtual size_t workspace_bytes(const FrobeniusNormalize&) const = 0;
    virtual size_t workspace_bytes(const NewtonSchulz&) const = 0;
    virtual size_t workspace_bytes(const RowMomentNormalize&) const = 0;
    virtual size_t workspace_bytes(const SchattenDirection&) const = 0;
    virtual size_t workspace_bytes(const SingularRange&) const = 0;
    virtual size_t workspace_bytes(const DotProducts&) const = 0;
    virtual void momentum(const Momentum&) = 0;
    virtual void adam(const Adam&) = 0;
    virtual void sign(const Sign&) = 0;
    virtual void frobenius_normalize(const FrobeniusNormalize&) = 0;
    virtual void newton_schulz(const NewtonSchulz&) = 0;
    virtual void line_normalize(const LineNormalize&) = 0;
    virtual void row_moment_normalize(const RowMomentNormalize&) = 0;
    virtual void schatten_direction(const SchattenDirection&) = 0;
    virtual void singular_range(const SingularRange&) = 0;
    virtual void dot_products(const DotProducts&) = 0;
    virtual void step_sizes(const StepSizes&) = 0;
    virtual void head_maxima(const HeadMaxima&) = 0;
    virtual void qk_clip(const QkClip&) = 0;
    // Floating-point operations of the products that it does here: fewer than those of plain ones
    // where it uses symmetry, more where it pads.
    virtual double executed_flops(const NewtonSchulz&) const = 0;
    virtual void apply(const Apply&) = 0;
    virtual size_t workspace_bytes(const FusedUpdate&) const = 0;
    virtual void fused_update(const FusedUpdate&) = 0;
    virtual void spectral_update(const SpectralUpdate&) = 0;

    // Several ranks. device_id: which device of all machines this is; "" on the processor, whose
    // ranks exchange tensors in host memory. Else one rank makes an id for all, and each connects
    // with it: to be awaited by ended(). Both throw Error where the library is missing.
    virtual std::string device_id() const { return {}; }
    virtual std::string make_communicator_id() { return {}; }
    virtual std::unique_ptr<Communicator> connect(const std::string& /*id*/, int /*rank*/,
                                                  int /*ranks*/) {
        return nullptr;
    }

    // Text that grows.
    virtual size_t workspace_bytes(const AttentionOne&) const = 0;
    virtual void attention_one(const AttentionOne&) = 0;
};

// Of the ranks of a run on this machine, the one that a backend is made for.
struct LocalRank {
    int number = 0, count = 1;
};

// The makers; each backend's folder defines its own.
std::unique_ptr<Backend> make_cpu_backend(int threads);  // 0: all cores of this process
// The visible device with the number of the rank; the only one where the launcher shows each rank
// one. Throws Error where there is none, UsageError where there are fewer than ranks.
std::unique_ptr<Backend> make_cuda_backend(const LocalRank& rank = {});

}  // namespace lmo
