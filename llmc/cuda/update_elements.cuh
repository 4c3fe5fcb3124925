// What the optimizer's operations do to one element, with the coefficients that all elements of a
// tensor share: for kernels of one operation (optimizer.cu) and of a whole update
// (fused_update.cu).
//
// Scalars are fp64 and come from device memory; one thread of a block turns them into fp32
// coefficients. The order of the operations on an element is the CPU backend's, with each fused
// multiply-add written out, so that the bits do not depend on what a compiler fuses.
#pragma once

#include <span>

#include "llmc/cuda/weight_lists.cuh"

namespace lmo::cuda {

// ---- momentum and Adam --------------------------------------------------------------------------

// The clip factor; without one it is 1.
__device__ __forceinline__ double factor_at(const double* factor) { return factor ? *factor : 1.0; }

struct MomentumUpdate {
    using Lists = TensorLists<NoScalars, InOut<float>, InOut<float>>;  // x, m
    struct Coefficients {
        float factor, u_m, u_g, m_m, m_g;
    };
    const double* factor;
    double u_m, u_g, m_m, m_g;

    __device__ Coefficients coefficients(const NoScalars&) const {
        return {static_cast<float>(factor_at(factor)), static_cast<float>(u_m),
                static_cast<float>(u_g), static_cast<float>(m_m), static_cast<float>(m_g)};
    }
    __device__ static void update(const Coefficients& c, float& x, float& m) {
        const float g = c.factor * x, old = m;
        x = fmaf(c.u_m, old, c.u_g * g);
        m = fmaf(c.m_m, old, c.m_g * g);
    }
};

// The same, but in the first update the old m counts as g.
struct StartedMomentumUpdate {
    using Lists = MomentumUpdate::Lists;
    struct Coefficients {
        MomentumUpdate::Coefficients terms;
        bool first;
    };
    MomentumUpdate terms;
    const double* step;

    __device__ Coefficients coefficients(const NoScalars& none) const {
        return {terms.coefficients(none), step && *step == 0};
    }
    __device__ static void update(const Coefficients& c, float& x, float& m) {
        if (c.first) m = c.terms.factor * x;
        MomentumUpdate::update(c.terms, x, m);
    }
};

struct StatelessUpdate {
    using Lists = TensorLists<NoScalars, InOut<float>>;  // x
    struct Coefficients {
        float factor, u_g;
    };
    const double* factor;
    double u_g;

    __device__ Coefficients coefficients(const NoScalars&) const {
        return {static_cast<float>(factor_at(factor)), static_cast<float>(u_g)};
    }
    __device__ static void update(const Coefficients& c, float& x) { x = c.u_g * (c.factor * x); }
};

struct AdamUpdate {
    using Lists = TensorLists<NoScalars, InOut<float>, InOut<float>, InOut<float>>;  // x, m, v
    struct Coefficients {
        float factor, beta1, rest1, beta2, rest2, m_scale, v_scale, eps;
    };
    const double *factor, *step;
    double beta1, beta2, eps;
    bool eps_inside;

    // Both places of eps are x = m m_scale / (sqrt(v v_scale) + eps).
    __device__ Coefficients coefficients(const NoScalars&) const {
        const double t = *step + 1;
        const double correction1 = 1 - pow(beta1, t), correction2 = 1 - pow(beta2, t);
        const double m_scale = (eps_inside ? sqrt(correction2) : 1.0) / correction1;
        const double v_scale = eps_inside ? 1.0 : 1.0 / correction2;
        return {static_cast<float>(factor_at(factor)), static_cast<float>(beta1),
                static_cast<float>(1 - beta1),         static_cast<float>(beta2),
                static_cast<float>(1 - beta2),         static_cast<float>(m_scale),
                static_cast<float>(v_scale),           static_cast<float>(eps)};
    }
    __device__ static void update(const Coefficients& c, float& x, float& m, float& v) {
        const float g = c.factor * x;
        m = fmaf(c.beta1, m, c.rest1 * g);
        v = fmaf(c.beta2, v, c.rest2 * (g * g));
        x = m * c.m_scale / (sqrtf(v * c.v_scale) + c.eps);
    }
};

inline StatelessUpdate stateless_update(const Momentum& op) {
    return {op.factor.as<double>(), op.u_g};
}

// Without op.step the first update is like the others.
inline StartedMomentumUpdate started_update(const Momentum& op) {
    assert(op.step.empty() || op.step.dtype == DType::f64);
    return {{op.factor.as<double>(), op.u_m, op.u_g, op.m_m, op.m_g}, op.step.as<double>()};
}

// ---- directions ---------------------------------------------------------------------------------

struct SignUpdate {
    using Lists = TensorLists<NoScalars, InOut<float>>;  // x
    using Coefficients = NoCoefficients;

    // 0 and NaN stay what they are.
    __device__ static void update(const Coefficients&, float& x) {
        x = x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x);
    }
};

// ---- the new weights ----------------------------------------------------------------------------

struct StepCoefficients {
    float decay, step;
};

// Not (1 - decay) * w: 1 - decay in float would round a small decay to a few digits.
__device__ __forceinline__ float new_weight(const StepCoefficients& c, float w, float x) {
    return w - fmaf(c.decay, w, c.step * x);
}

struct VariedCoefficients {
    StepCoefficients terms;
    float pull;
    bool cautious;
};

__device__ __forceinline__ float new_weight(const VariedCoefficients& c, float w, float x) {
    const float decay = c.cautious && !(x * w > 0.0f) ? 0.0f : c.terms.decay;
    return new_weight(StepCoefficients{decay, c.terms.step}, w, x);
}

// ---- lists --------------------------------------------------------------------------------------

inline bool all_float(std::span<const Tensor> tensors) { return all_of_type(tensors, DType::f32); }

}  // namespace lmo::cuda
