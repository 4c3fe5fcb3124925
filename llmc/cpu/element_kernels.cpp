// Elementwise loops and plain sums: conversions and the optimizer's arithmetic. All are bound by
// memory traffic.
#include "llmc/cpu/elements.h"

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace lmo::cpu::LMO_ISA {
namespace {

// Past the caches, because nobody reads that much before it has left them again: half the traffic.
void zero_far(void* to, int64_t bytes) {
    char* out = static_cast<char*>(to);
    int64_t i = 0;
#if defined(__SSE2__)
    for (; i < bytes && reinterpret_cast<uintptr_t>(out + i) % 64 != 0; ++i) out[i] = 0;
    for (; i + 64 <= bytes; i += 64) {
        for (int64_t j = i; j < i + 64; j += 16) {
            _mm_stream_si128(reinterpret_cast<__m128i*>(out + j), _mm_setzero_si128());
        }
    }
    _mm_sfence();
#endif
    __builtin_memset(out + i, 0, static_cast<size_t>(bytes - i));
}

void convert(DType to_type, void* to, DType from_type, const void* from, int64_t count) {
    with_type(to_type, [&](auto to_tag) {
        with_type(from_type, [&](auto from_tag) {
            auto* out = static_cast<decltype(to_tag)*>(to);
            auto* in = static_cast<const decltype(from_tag)*>(from);
#pragma omp simd
            for (int64_t i = 0; i < count; ++i) {
                store(out[i], static_cast<Wide<decltype(to_tag)>>(widen(in[i])));
            }
        });
    });
}

void add(DType type, void* to, const void* from, DType from_type, int64_t count) {
    with_type(type, [&](auto to_tag) {
        with_type(from_type, [&](auto from_tag) {
            using W = Wide<decltype(to_tag)>;
            auto* out = static_cast<decltype(to_tag)*>(to);
            auto* in = static_cast<const decltype(from_tag)*>(from);
#pragma omp simd
            for (int64_t i = 0; i < count; ++i) {
                store(out[i], widen(out[i]) + static_cast<W>(widen(in[i])));
            }
        });
    });
}

double sum(DType type, const void* x, int64_t begin, int64_t end) {
    double total = 0;
    with_type(type, [&](auto tag) {
        auto* in = static_cast<const decltype(tag)*>(x);
        double part = 0;
#pragma omp simd reduction(+ : part)
        for (int64_t i = begin; i < end; ++i) part += static_cast<double>(widen(in[i]));
        total = part;
    });
    return total;
}

void add_squares(DType type, const void* x, int64_t begin, int64_t end, double* lane_sums) {
    with_type(type, [&](auto tag) {
        auto* in = static_cast<const decltype(tag)*>(x);
        // One stream of reads waits for memory unless it is asked for ahead.
        constexpr int64_t lanes = square_lanes, ahead = 2048;
        double parts[lanes];
        for (int64_t j = 0; j < lanes; ++j) parts[j] = lane_sums[j];
        int64_t i = begin;
        for (; i + lanes <= end; i += lanes) {
            for (int64_t j = 0; j < lanes; j += 64 / int64_t(sizeof(*in))) {
                __builtin_prefetch(in + i + j + ahead);
            }
#pragma omp simd
            for (int64_t j = 0; j < lanes; ++j) {
                const double value = widen(in[i + j]);
                parts[j] += value * value;
            }
        }
        for (; i < end; ++i) {
            const double value = widen(in[i]);
            parts[0] += value * value;
        }
        for (int64_t j = 0; j < lanes; ++j) lane_sums[j] = parts[j];
    });
}

double sum_of_squares(DType type, const void* x, int64_t begin, int64_t end) {
    double lanes[square_lanes] = {}, total = 0;
    add_squares(type, x, begin, end, lanes);
    for (const double lane : lanes) total += lane;
    return total;
}

void divide(DType type, void* to, const void* x, double divisor, int64_t begin, int64_t end) {
    with_type(type, [&](auto tag) {
        using T = decltype(tag);
        using W = Wide<T>;
        auto* out = static_cast<T*>(to);
        auto* in = static_cast<const T*>(x);
        const W by = static_cast<W>(divisor);
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) store(out[i], widen(in[i]) / by);
    });
}

void sign(DType type, void* x, int64_t begin, int64_t end) {
    with_type(type, [&](auto tag) {
        using T = decltype(tag);
        using W = Wide<T>;
        auto* data = static_cast<T*>(x);
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) {
            const W value = widen(data[i]);  // 0 and NaN stay what they are
            store(data[i], value > 0 ? W(1) : (value < 0 ? W(-1) : value));
        }
    });
}

template <typename T>
void momentum_range(const MomentumRange& r, int64_t begin, int64_t end) {
    const T* gradient = static_cast<const T*>(r.g);
    const T* m = static_cast<const T*>(r.m);
    T* x = static_cast<T*>(r.x);
    T* new_m = static_cast<T*>(r.new_m);
    const T factor = static_cast<T>(r.factor);
    const T u_m = static_cast<T>(r.u_m), u_g = static_cast<T>(r.u_g);
    const T m_m = static_cast<T>(r.m_m), m_g = static_cast<T>(r.m_g);
    if (!m) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) x[i] = u_g * (factor * gradient[i]);
        return;
    }
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
        const T g = factor * gradient[i];
        const T old = m[i];
        x[i] = u_m * old + u_g * g;
        new_m[i] = m_m * old + m_g * g;
    }
}

template <typename T>
void adam_range(const AdamRange& r, int64_t begin, int64_t end) {
    const T* gradient = static_cast<const T*>(r.g);
    T* x = static_cast<T*>(r.x);
    T* m = static_cast<T*>(r.m);
    T* v = static_cast<T*>(r.v);
    const T factor = static_cast<T>(r.factor), eps = static_cast<T>(r.eps);
    const T beta1 = static_cast<T>(r.beta1), rest1 = static_cast<T>(1 - r.beta1);
    const T beta2 = static_cast<T>(r.beta2), rest2 = static_cast<T>(1 - r.beta2);
    const T m_scale = static_cast<T>(r.m_scale), v_scale = static_cast<T>(r.v_scale);
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
        const T g = factor * gradient[i];
        const T first = beta1 * m[i] + rest1 * g;
        const T second = beta2 * v[i] + rest2 * (g * g);
        m[i] = first;
        v[i] = second;
        const T square = second * v_scale;
        T root;
        if constexpr (sizeof(T) == 4) {
            root = __builtin_sqrtf(square);
        } else {
            root = __builtin_sqrt(square);
        }
        x[i] = first * m_scale / (root + eps);
    }
}

// Not (1 - decay) * w, here and below: 1 - decay in float would round a small decay to a few
// digits.
template <typename T, typename Copy>
void apply_with_start(const ApplyRange& r, int64_t begin, int64_t end) {
    T* w = static_cast<T*>(r.w);
    const T* x = static_cast<const T*>(r.x);
    const T* start = static_cast<const T*>(r.start);
    Copy* copy = static_cast<Copy*>(r.copy);
    const T decay = static_cast<T>(r.decay), step = static_cast<T>(r.step);
    const T pull = static_cast<T>(r.pull);
    for (int64_t i = begin; i < end; ++i) {
        const T old = w[i];
        const T kept = r.cautious && !(x[i] * old > 0) ? T(0) : decay;
        T updated = old - (kept * old + step * x[i]);
        if (start) updated += pull * (start[i] - old);
        w[i] = updated;
        if (copy) store(copy[i], static_cast<Wide<Copy>>(updated));
    }
}

template <typename T, typename Copy>
void apply_range(const ApplyRange& r, int64_t begin, int64_t end) {
    T* w = static_cast<T*>(r.w);
    const T* x = static_cast<const T*>(r.x);
    Copy* copy = static_cast<Copy*>(r.copy);
    const T decay = static_cast<T>(r.decay), step = static_cast<T>(r.step);
    if (!copy) {
#pragma omp simd
        for (int64_t i = begin; i < end; ++i) w[i] = w[i] - (decay * w[i] + step * x[i]);
        return;
    }
#pragma omp simd
    for (int64_t i = begin; i < end; ++i) {
        const T updated = w[i] - (decay * w[i] + step * x[i]);
        w[i] = updated;
        store(copy[i], static_cast<Wide<Copy>>(updated));
    }
}

void momentum(const MomentumRange& r, int64_t begin, int64_t end) {
    r.type == DType::f64 ? momentum_range<double>(r, begin, end)
                         : momentum_range<float>(r, begin, end);
}

void adam(const AdamRange& r, int64_t begin, int64_t end) {
    r.type == DType::f64 ? adam_range<double>(r, begin, end) : adam_range<float>(r, begin, end);
}

void apply(const ApplyRange& r, int64_t begin, int64_t end) {
    with_type(r.copy_type, [&](auto tag) {
        using Copy = decltype(tag);
        if (r.cautious || r.start) {
            r.type == DType::f64 ? apply_with_start<double, Copy>(r, begin, end)
                                 : apply_with_start<float, Copy>(r, begin, end);
        } else {
            r.type == DType::f64 ? apply_range<double, Copy>(r, begin, end)
                                 : apply_range<float, Copy>(r, begin, end);
        }
    });
}

void join(const uint16_t* high, const int16_t* low, float* to, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t lower = static_cast<uint32_t>(static_cast<int32_t>(low[i]));
        to[i] = __builtin_bit_cast(float, (static_cast<uint32_t>(high[i]) << 16) + lower);
    }
}

void split(const float* from, uint16_t* high, int16_t* low, int64_t count) {
    constexpr uint32_t most = 0x7fff7fffu;  // NaN, beyond which high would overflow
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t given = __builtin_bit_cast(uint32_t, from[i]), size = given & 0x7fffffffu;
        const uint32_t bits = (given & 0x80000000u) | (size > most ? most : size);
        high[i] = static_cast<uint16_t>((bits + 0x8000u) >> 16);
        low[i] = static_cast<int16_t>(bits & 0xffffu);
    }
}

template <typename T>
double dot_of(const T* x, const T* y, int64_t count) {
    double total = 0;
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; ++i) {
        total += static_cast<double>(x[i]) * static_cast<double>(y[i]);
    }
    return total;
}

double dot(DType type, const void* x, const void* y, int64_t count) {
    return type == DType::f64
               ? dot_of(static_cast<const double*>(x), static_cast<const double*>(y), count)
               : dot_of(static_cast<const float*>(x), static_cast<const float*>(y), count);
}

template <typename T>
void rotate_pair(T* x, T* y, T cosine, T sine, int64_t count) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
        const T a = x[i], b = y[i];
        x[i] = cosine * a - sine * b;
        y[i] = sine * a + cosine * b;
    }
}

void rotate(DType type, void* x, void* y, double cosine, double sine, int64_t count) {
    if (type == DType::f64) {
        rotate_pair(static_cast<double*>(x), static_cast<double*>(y), cosine, sine, count);
    } else {
        rotate_pair(static_cast<float*>(x), static_cast<float*>(y), static_cast<float>(cosine),
                    static_cast<float>(sine), count);
    }
}

}  // namespace

void add_element_kernels(Kernels& table) {
    table.convert = convert;
    table.add = add;
    table.zero_far = zero_far;
    table.sum = sum;
    table.sum_of_squares = sum_of_squares;
    table.add_squares = add_squares;
    table.divide = divide;
    table.sign = sign;
    table.momentum = momentum;
    table.adam = adam;
    table.apply = apply;
    table.join = join;
    table.split = split;
    table.dot = dot;
    table.rotate = rotate;
}

}  // namespace lmo::cpu::LMO_ISA
