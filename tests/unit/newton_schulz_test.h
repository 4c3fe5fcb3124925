// The equations of Newton-Schulz, and what its tests share: an iteration is compared with its
// equations in double, for each type of the matrices inside that a backend offers.
#pragma once

#include "tests/unit/backend_test.h"

namespace lmo {

using Steps = std::vector<NewtonSchulzStep>;

inline const Steps jordan(5, {3.4445, -4.7750, 2.0315});
inline const Steps cubic = {{3.3656576, -3.3420992, 0}, {2.5744352, -1.4957376, 0}, {1.5, -0.5, 0}};

// a [m, k] times b, [k, n] or, transposed, [n, k]; sums in Sum.
template <typename Sum>
Values multiply(const Values& a, const Values& b, bool transposed, int64_t m, int64_t k,
                int64_t n) {
    Values c(static_cast<size_t>(m * n));
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
            Sum sum = 0;
            for (int64_t l = 0; l < k; ++l) {
                sum += static_cast<Sum>(a[i * k + l]) *
                       static_cast<Sum>(b[transposed ? j * k + l : l * n + j]);
            }
            c[i * n + j] = sum;
        }
    }
    return c;
}

inline Values transposed(const Values& a, int64_t m, int64_t n) {
    Values t(a.size());
    for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) t[j * m + i] = a[i * n + j];
    }
    return t;
}

// How an iteration is to be run.
struct Iteration {
    Steps steps;
    double norm_scale = 1.01, eps = 1e-7;
    NewtonSchulzForm form = NewtonSchulzForm::automatic;
    std::vector<int> restarts = {};

    bool restarts_at(size_t step) const {
        return std::find(restarts.begin(), restarts.end(), static_cast<int>(step)) !=
               restarts.end();
    }
};

// Every matrix rounded to `type` and summed in Sum.
template <typename Sum>
struct Rounded {
    int64_t m, n;  // m <= n
    DType type;

    Values gram(const Values& x) const {
        return round_to(type, multiply<Sum>(x, x, true, m, n, m));
    }
    Values squares(const Values& a, const Values& b) const {
        return round_to(type, multiply<Sum>(a, b, false, m, m, m));
    }
    Values apply(const Values& q, const Values& x) const {
        return round_to(type, multiply<Sum>(q, x, false, m, m, n));
    }
    // b A + c A^2, and a I besides where `with_identity`
    Values polynomial(const Values& a, const NewtonSchulzStep& step, bool with_identity) const {
        Values mixed = round_to(type, multiply<Sum>(a, a, true, m, m, m));
        for (int64_t i = 0; i < m * m; ++i) mixed[i] = step.b * a[i] + step.c * mixed[i];
        for (int64_t i = 0; with_identity && i < m; ++i) mixed[i * m + i] += step.a;
        return round_to(type, mixed);
    }

    // The equations.
    Values standard(Values x, const Iteration& how) const {
        for (const NewtonSchulzStep& step : how.steps) {
            Values next = multiply<Sum>(polynomial(gram(x), step, false), x, false, m, m, n);
            for (int64_t i = 0; i < m * n; ++i) next[i] += step.a * x[i];
            x = round_to(type, next);
        }
        return x;
    }
    Values by_gram(Values x, const Iteration& how) const {
        Values a, q;
        for (size_t i = 0; i < how.steps.size(); ++i) {
            if (how.restarts_at(i)) {
                x = apply(q, x);
                q.clear();
            }
            if (q.empty()) a = gram(x);
            const Values p = polynomial(a, how.steps[i], true);
            q = q.empty() ? p : squares(q, p);
            a = squares(squares(a, p), p);
        }
        return q.empty() ? x : apply(q, x);
    }
};

template <typename Sum>
Values newton_schulz(Values x, int64_t m, int64_t n, const Iteration& how, DType type) {
    const bool tall = m > n;
    if (tall) {
        x = transposed(x, m, n);
        std::swap(m, n);
    }
    double squares = 0;
    for (const double value : x) squares += value * value;
    for (double& value : x) value /= std::sqrt(squares) * how.norm_scale + how.eps;
    const Rounded<Sum> rounded{m, n, type};
    x = round_to(type, x);
    x = how.form == NewtonSchulzForm::gram ? rounded.by_gram(x, how) : rounded.standard(x, how);
    return tall ? transposed(x, m, n) : x;
}

// FlashAttention's criterion for all matrices [m, n] of a list together. The plain algorithm may be
// lucky, most of all on the one singular value of a vector: room for some roundings.
inline void expect_close(DType inner, const std::vector<Values>& actual,
                         const std::vector<Values>& x, int64_t m, int64_t n, const Iteration& how) {
    SCOPED_TRACE(std::to_string(m) + " x " + std::to_string(n) + ", " + to_string(inner));
    Iteration equations = how;
    equations.form = NewtonSchulzForm::standard;
    double size = 0, error = 0, plain_error = 0;
    for (size_t i = 0; i < x.size(); ++i) {
        const Values exact = newton_schulz<double>(x[i], m, n, equations, DType::f64);
        const Values plain = newton_schulz<float>(x[i], m, n, how, inner);
        size = std::max(size, largest(exact));
        error = std::max(error, largest_difference(actual[i], exact));
        plain_error = std::max(plain_error, largest_difference(plain, exact));
    }
    if (inner == DType::f64) {
        EXPECT_LE(error, 1e-12 * size);
    } else {
        const double roundings = std::min(m, n) == 1 ? 16 : 4;
        EXPECT_LE(error, 2 * plain_error + roundings * half_ulp(inner) * size);
    }
}

class NewtonSchulzTest : public BackendTest {
  protected:
    // f64: matrices of that type, `inner` stays f32.
    std::vector<DType> inner_types() const {
        std::vector<DType> types;
        if (has_fp64()) types.push_back(DType::f64);
        for (const DType type : {DType::f16, DType::bf16, DType::f32}) {  // CPUs: few have bf16
            if (backend_->has_newton_schulz(type)) types.push_back(type);
        }
        return types;
    }

    std::vector<Values> get_list(const std::vector<Tensor>& list) {
        std::vector<Values> values;
        for (const Tensor& tensor : list) values.push_back(get(tensor));
        return values;
    }

    Tensor put_matrix(DType inner, Shape shape, const Values& x) {
        return put(inner == DType::f64 ? DType::f64 : DType::f32, shape, x);
    }

    void run(DType inner, const std::vector<Tensor>& list, const Iteration& how) {
        NewtonSchulz op{list,     how.steps,   how.norm_scale,
                        how.eps,  {},          inner == DType::f64 ? DType::f32 : inner,
                        how.form, how.restarts};
        give_workspace(op);
        backend_->newton_schulz(op);
    }

    // A list of matrices of one shape.
    void check(DType inner, const std::vector<Tensor>& list, const Iteration& how) {
        const std::vector<Values> old = get_list(list);
        run(inner, list, how);
        expect_close(inner, get_list(list), old, list[0].shape[0], list[0].shape[1], how);
    }

    // Random matrices.
    void check(DType inner, int64_t m, int64_t n, const Iteration& how, double size = 1,
               uint64_t matrices = 3) {
        std::vector<Tensor> list;
        for (uint64_t i = 0; i < matrices; ++i) {
            list.push_back(put_matrix(inner, {m, n}, random_values(m * n, 7 + i, size)));
        }
        check(inner, list, how);
    }
};

}  // namespace lmo
