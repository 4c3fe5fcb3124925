// The row-wise operations of the model: RMSNorm, RoPE, SwiGLU and the classifier. Arithmetic is in
// fp32 for fp32 and bf16 storage, in fp64 for fp64.
#include "llmc/cpu/elements.h"

namespace lmo::cpu::LMO_ISA {
namespace {

// Calls f with the storage types of compute and residual; fp64 goes with fp64 only.
template <typename F>
void with_types(DType compute, DType residual, F f) {
    if (compute == DType::f64) {
        f(double(), double());
    } else if (compute == DType::f32) {
        residual == DType::f32 ? f(float(), float()) : f(float(), bf16());
    } else {
        residual == DType::f32 ? f(bf16(), float()) : f(bf16(), bf16());
    }
}

template <typename C, typename R>
void rmsnorm_forward_rows(const RmsNormForwardRows& a, int64_t begin, int64_t end) {
    using W = Wide<C>;
    const C* gain = static_cast<const C*>(a.gain);
    for (int64_t n = begin; n < end; ++n) {
        const R* x = static_cast<const R*>(a.x) + n * a.columns;
        const R* normed = x;  // the values as stored: the backward pass reads those
        if (a.sum) {
            R* sum = static_cast<R*>(a.sum) + n * a.columns;
            const C* branch = static_cast<const C*>(a.branch);
            if (branch) {
                branch += n * a.columns;
#pragma omp simd
                for (int64_t i = 0; i < a.columns; ++i)
                    store(sum[i], widen(x[i]) + widen(branch[i]));
            } else if (sum != x) {
                for (int64_t i = 0; i < a.columns; ++i) sum[i] = x[i];
            }
            normed = sum;
        }
        W squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int64_t i = 0; i < a.columns; ++i) squares += widen(normed[i]) * widen(normed[i]);
        const double mean = static_cast<double>(squares) / static_cast<double>(a.columns);
        const W rstd = static_cast<W>(1.0 / __builtin_sqrt(mean + a.eps));
        static_cast<W*>(a.rstd)[n] = rstd;
        C* out = static_cast<C*>(a.out) + n * a.columns;
#pragma omp simd
        for (int64_t i = 0; i < a.columns; ++i) {
            store(out[i], widen(normed[i]) * rstd * widen(gain[i]));
        }
    }
}

// With xhat = x rstd and g = dout gain: dx += rstd (g - xhat mean(g xhat)), dgain = sum dout xhat.
template <typename C, typename R>
void rmsnorm_backward_rows(const RmsNormBackwardRows& a, int64_t begin, int64_t end,
                           Wide<C>* dgain) {
    using W = Wide<C>;
    const C* gain = static_cast<const C*>(a.gain);
    for (int64_t i = 0; i < a.columns; ++i) dgain[i] = 0;
    for (int64_t n = begin; n < end; ++n) {
        const R* x = static_cast<const R*>(a.x) + n * a.columns;
        const C* dout = static_cast<const C*>(a.dout) + n * a.columns;
        const W rstd = static_cast<const W*>(a.rstd)[n];
        W dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t i = 0; i < a.columns; ++i) {
            const W product = widen(dout[i]) * (widen(x[i]) * rstd);
            dgain[i] += product;
            dot += product * widen(gain[i]);
        }
        const W mean = dot / static_cast<W>(a.columns);
        R* dx = static_cast<R*>(a.dx) + n * a.columns;
#pragma omp simd
        for (int64_t i = 0; i < a.columns; ++i) {
            const W along = widen(x[i]) * rstd * mean;
            store(dx[i], widen(dx[i]) + rstd * (widen(dout[i]) * widen(gain[i]) - along));
        }
        if (!a.dbranch) continue;
        C* dbranch = static_cast<C*>(a.dbranch) + n * a.columns;
#pragma omp simd
        for (int64_t i = 0; i < a.columns; ++i) store(dbranch[i], widen(dx[i]));
    }
}

template <typename C>
void rope_rows(const RopeRows& a, int64_t begin, int64_t end) {
    using W = Wide<C>;
    const int64_t half = a.head_size / 2;
    const W direction = a.inverse ? W(-1) : W(1);
    for (int64_t n = begin; n < end; ++n) {
        const W* table = static_cast<const W*>(a.table) + n % a.positions * a.head_size;
        for (int64_t h = 0; h < a.heads; ++h) {
            C* first = static_cast<C*>(a.qkv) + n * a.stride + h * a.head_size;
            C* second = first + half;
#pragma omp simd
            for (int64_t i = 0; i < half; ++i) {
                const W cosine = table[2 * i], sine = direction * table[2 * i + 1];
                const W x = widen(first[i]), y = widen(second[i]);
                store(first[i], x * cosine - y * sine);
                store(second[i], x * sine + y * cosine);
            }
        }
    }
}

template <typename C>
void swiglu_forward_rows(const SwigluRows& a, int64_t begin, int64_t end) {
    using W = Wide<C>;
    for (int64_t n = begin; n < end; ++n) {
        const C* gate = static_cast<const C*>(a.gate_up) + n * 2 * a.width;
        const C* up = gate + a.width;
        C* out = static_cast<C*>(a.out) + n * a.width;
#pragma omp simd
        for (int64_t i = 0; i < a.width; ++i) {
            const W g = widen(gate[i]);
            store(out[i], g / (1 + exponential(-g)) * widen(up[i]));
        }
    }
}

// With s = sigmoid(g): d silu / dg = s (1 + g (1 - s)).
template <typename C>
void swiglu_backward_rows(const SwigluRows& a, int64_t begin, int64_t end) {
    using W = Wide<C>;
    for (int64_t n = begin; n < end; ++n) {
        const C* gate = static_cast<const C*>(a.gate_up) + n * 2 * a.width;
        const C* up = gate + a.width;
        const C* dout = static_cast<const C*>(a.dout) + n * a.width;
        C* dgate = static_cast<C*>(a.out) + n * 2 * a.width;
        C* dup = dgate + a.width;
#pragma omp simd
        for (int64_t i = 0; i < a.width; ++i) {
            const W g = widen(gate[i]), u = widen(up[i]), d = widen(dout[i]);
            const W s = 1 / (1 + exponential(-g));
            store(dgate[i], d * u * s * (1 + g * (1 - s)));
            store(dup[i], d * g * s);
        }
    }
}

// sum of exp(x - top), in parts of 1024 added in double.
template <typename C>
double sum_of_exponentials(const C* x, int64_t count, Wide<C> top) {
    using W = Wide<C>;
    double total = 0;
    for (int64_t first = 0; first < count; first += 1024) {
        const int64_t last = count - first < 1024 ? count : first + 1024;
        W part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = first; i < last; ++i) part += exponential(widen(x[i]) - top);
        total += static_cast<double>(part);
    }
    return total;
}

template <typename C>
void classifier_rows(const ClassifierRows& a, int64_t begin, int64_t end) {
    using W = Wide<C>;
    W* losses = static_cast<W*>(a.losses);
    for (int64_t n = begin; n < end; ++n) {
        C* logits = static_cast<C*>(a.logits) + n * a.columns;
        const int64_t target = a.targets[n];
        if (target < 0) {
            losses[n] = 0;
            if (a.gradient_scale == 0) continue;
            for (int64_t i = 0; i < a.columns; ++i) store(logits[i], W(0));
            continue;
        }
        W top = widen(logits[0]);
#pragma omp simd reduction(max : top)
        for (int64_t i = 0; i < a.columns; ++i) {
            const W value = widen(logits[i]);
            top = value > top ? value : top;
        }
        const double total = sum_of_exponentials(logits, a.columns, top);
        const double below_top =
            static_cast<double>(top) - static_cast<double>(widen(logits[target]));
        losses[n] = static_cast<W>(__builtin_log(total) + below_top);
        if (a.gradient_scale == 0) continue;
        const W at_target = exponential(widen(logits[target]) - top);
        const W factor = static_cast<W>(a.gradient_scale / total);
#pragma omp simd
        for (int64_t i = 0; i < a.columns; ++i) {
            store(logits[i], factor * exponential(widen(logits[i]) - top));
        }
        store(logits[target],
              static_cast<W>(a.gradient_scale * (static_cast<double>(at_target) / total - 1.0)));
    }
}

void rmsnorm_forward(const RmsNormForwardRows& a, int64_t begin, int64_t end) {
    with_types(a.compute, a.residual, [&](auto compute, auto residual) {
        rmsnorm_forward_rows<decltype(compute), decltype(residual)>(a, begin, end);
    });
}

void rmsnorm_backward(const RmsNormBackwardRows& a, int64_t begin, int64_t end, void* dgain) {
    with_types(a.compute, a.residual, [&](auto compute, auto residual) {
        using C = decltype(compute);
        rmsnorm_backward_rows<C, decltype(residual)>(a, begin, end, static_cast<Wide<C>*>(dgain));
    });
}

void rope(const RopeRows& a, int64_t begin, int64_t end) {
    with_type(a.compute, [&](auto tag) { rope_rows<decltype(tag)>(a, begin, end); });
}

void swiglu_forward(const SwigluRows& a, int64_t begin, int64_t end) {
    with_type(a.compute, [&](auto tag) { swiglu_forward_rows<decltype(tag)>(a, begin, end); });
}

void swiglu_backward(const SwigluRows& a, int64_t begin, int64_t end) {
    with_type(a.compute, [&](auto tag) { swiglu_backward_rows<decltype(tag)>(a, begin, end); });
}

void classifier(const ClassifierRows& a, int64_t begin, int64_t end) {
    with_type(a.compute, [&](auto tag) { classifier_rows<decltype(tag)>(a, begin, end); });
}

}  // namespace

void add_model_kernels(Kernels& table) {
    table.rmsnorm_forward = rmsnorm_forward;
    table.rmsnorm_backward = rmsnorm_backward;
    table.rope = rope;
    table.swiglu_forward = swiglu_forward;
    table.swiglu_backward = swiglu_backward;
    table.classifier = classifier;
}

}  // namespace lmo::cpu::LMO_ISA
