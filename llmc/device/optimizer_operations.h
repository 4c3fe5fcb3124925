// What a backend does for the optimizers. These run over a list of tensors at once. `x` holds
// gradients on entry and is rewritten in place, stage by stage, until it is the direction of the
// update. All tensors are master type. backend.h has the rules.
#pragma once

#include <span>
#include <variant>

#include "llmc/core/tensor.h"

namespace lmo {

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
// products are accumulated in the master type. f32 means the tensors' own type; f16 and bf16
// (not with the gram form) are for backends that have them (has_newton_schulz).
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
// empty, copies[i] (compute) receives the new weights. When remainders is not empty, weights[i]
// (bf16) and remainders[i] (i16) are the halves of split weights (core/split_float.h), and copies
// is empty: the arithmetic is that of fp32 weights.
//   cautious   decays only where x * w > 0
//   starts     not empty: towards the start too: w = w + (starts[i] - old w) / (step[0] + 2), with
//              `step` (fp64) the updates done so far (SODA, arXiv 2605.11172)
struct Apply {
    std::span<const Tensor> weights, x, copies;
    Tensor rate;
    double lr_scale = 1.0;
    std::span<const double> radius, decay;
    Tensor size = {};
    bool cautious = false;
    std::span<const Tensor> starts = {};
    Tensor step = {};
    std::span<const Tensor> remainders = {};

    bool is_split() const { return !remainders.empty(); }
};

// out[i] (fp32) = the split weights whose halves are high[i] (bf16) and low[i] (i16).
struct JoinWeights {
    std::span<const Tensor> high, low, out;
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
// weights; maxima [H] master. With q_remainder, k_remainder (i16) the weights are split, as in
// Apply.
struct QkClip {
    Tensor q, k, q_copy, k_copy, maxima;
    int heads, kv_heads;
    double limit;
    Tensor q_remainder = {}, k_remainder = {};
};

}  // namespace lmo
