// Dual norms and the steps that follow from them: dot products, step sizes, the first step of a
// momentum, and what Apply can do besides.
#include "tests/unit/backend_test.h"

namespace lmo {
namespace {

class StepsTest : public BackendTest {
  protected:
    std::vector<Tensor> put_list(DType type, const std::vector<int64_t>& counts, uint64_t seed,
                                 bool unaligned = false) {
        std::vector<Tensor> list;
        for (size_t i = 0; i < counts.size(); ++i) {
            const Values values = round_to(type, random_values(counts[i], seed + 100 * i));
            list.push_back(unaligned ? put_unaligned(type, {counts[i]}, values)
                                     : put(type, {counts[i]}, values));
        }
        return list;
    }

    std::vector<Values> get_list(const std::vector<Tensor>& list) {
        std::vector<Values> values;
        for (const Tensor& tensor : list) values.push_back(get(tensor));
        return values;
    }

    Values dots(const std::vector<Tensor>& a, const std::vector<Tensor>& b) {
        DotProducts op{a, b, blank(DType::f64, {static_cast<int64_t>(a.size())}), {}};
        give_workspace(op);
        backend_->dot_products(op);
        return get(op.out);
    }

    void expect_elements(DType type, const Values& actual, const Values& exact,
                         const Values& size) {
        ASSERT_EQ(actual.size(), exact.size());
        const double allowed = (type == DType::f64 ? 8 : 12) * half_ulp(type);
        for (size_t i = 0; i < exact.size(); ++i) {
            ASSERT_LE(std::abs(actual[i] - exact[i]), allowed * size[i]) << "element " << i;
        }
    }
};

// ---- dot products -------------------------------------------------------------------------------

TEST_P(StepsTest, DotProductsOfAList) {
    const std::vector<int64_t> counts = {1, 100003, 64, 16384, 16385, 32768};
    for (const DType type : master_types()) {
        const auto a = put_list(type, counts, 1), b = put_list(type, counts, 2);
        const Values out = dots(a, b);
        for (size_t i = 0; i < counts.size(); ++i) {
            const Values left = get(a[i]), right = get(b[i]);
            double exact = 0, size = 0;
            for (size_t k = 0; k < left.size(); ++k) {
                exact += left[k] * right[k];
                size += std::abs(left[k] * right[k]);
            }
            EXPECT_NEAR(out[i], exact, 1e-13 * size);
        }
        EXPECT_EQ(dots(a, b), out);
    }
}

TEST_P(StepsTest, DotProductsOfManyAtAnyPlace) {
    std::vector<int64_t> counts;
    for (int64_t i = 0; i < 600; ++i) counts.push_back(1 + i % 9);
    counts.push_back(20001);
    const auto a = put_list(DType::f32, counts, 1), b = put_list(DType::f32, counts, 2);
    const Values together = dots(a, b);
    const auto shifted = put_list(DType::f32, counts, 2, true);
    EXPECT_EQ(dots(a, shifted), together);
    EXPECT_EQ(dots(shifted, a), together);
    for (size_t i = 0; i < counts.size(); i += 50) {
        EXPECT_EQ(dots({a[i]}, {b[i]})[0], together[i]);
    }
    EXPECT_TRUE(dots({}, {}).empty());
}

TEST_P(StepsTest, DotProductsAreDouble) {
    const std::vector<Tensor> a = {put(DType::f32, {2}, {3e30, 4e30}), put(DType::f32, {2}, {1, 2}),
                                   put(DType::f32, {2}, {1, NAN})};
    const Values out = dots(a, a);
    EXPECT_NEAR(out[0] / 25e60, 1, 1e-6);
    EXPECT_EQ(out[1], 5);
    EXPECT_TRUE(std::isnan(out[2]));
    EXPECT_NEAR(dots({put(DType::f32, {1}, {1e-30})}, {put(DType::f32, {1}, {1e-30})})[0] / 1e-60,
                1, 1e-6);
}

// ---- step sizes ---------------------------------------------------------------------------------

struct Rules {
    StepRule rule;
    bool together, ranged;
};

Values reference(const Rules& rules, const Values& radius, const Values& dot, const Values& l0,
                 const Values& l1, const Values& range, double limit) {
    double sum = 0;
    for (size_t i = 0; i < dot.size(); ++i) sum += radius[i] * dot[i];
    Values sizes;
    for (size_t i = 0; i < dot.size(); ++i) {
        const double d = rules.together ? sum : radius[i] * dot[i];
        double size = 1;
        if (rules.rule == StepRule::dual) size = d;
        if (rules.rule == StepRule::clipped) size = std::min(d, limit);
        if (rules.rule == StepRule::gluon) size = d == 0 ? 0 : d / (l0[i] + l1[i] * d);
        if (rules.ranged) {
            const double e = std::min(1.0, std::max(range[2 * i] - 1, 1 - range[2 * i + 1]));
            size *= (1 - e) / ((1 + e) * (1 + e));
        }
        sizes.push_back(size);
    }
    return sizes;
}

TEST_P(StepsTest, StepSizesByAllRules) {
    for (const int64_t n : {1, 3, 1300}) {  // more than one launch takes
        Values radius, dot, l0, l1, range;
        for (int64_t i = 0; i < n; ++i) {
            const uint64_t at = static_cast<uint64_t>(i);
            radius.push_back(0.1 + random_uniform(1, 0, at));
            dot.push_back(i % 7 == 2 ? 0.0 : std::pow(10.0, 8 * random_uniform(2, 0, at) - 6));
            l0.push_back(i % 5 == 0 ? 0.0 : random_uniform(3, 0, at));
            l1.push_back(0.5 + random_uniform(4, 0, at));
            range.push_back(0.9 + 0.4 * random_uniform(5, 0, at));
            range.push_back((i % 11 == 0 ? -0.5 : 0.6) + 0.3 * random_uniform(6, 0, at));
        }
        const auto device = [&](const Values& values) {
            return put(DType::f64, {static_cast<int64_t>(values.size())}, values);
        };
        for (const StepRule rule :
             {StepRule::unit, StepRule::dual, StepRule::clipped, StepRule::gluon}) {
            for (const bool together : {false, true}) {
                for (const bool ranged : {false, true}) {
                    StepSizes op{rule, radius, l0, l1, {}, {}, blank(DType::f64, {n})};
                    if (rule != StepRule::unit) op.dot = device(dot);
                    if (rule != StepRule::gluon) op.l0 = op.l1 = {};
                    if (ranged) op.range = device(range).reshaped({n, 2});
                    op.limit = 0.25;
                    op.together = together;
                    backend_->step_sizes(op);
                    const Values out = get(op.out);
                    const Values exact =
                        reference({rule, together, ranged}, radius, dot, l0, l1, range, op.limit);
                    for (int64_t i = 0; i < n; ++i) {
                        ASSERT_NEAR(out[i], exact[i], 1e-12 * std::abs(exact[i])) << i;
                    }
                    op.out = blank(DType::f64, {n});
                    backend_->step_sizes(op);
                    EXPECT_EQ(get(op.out), out);
                }
            }
        }
    }
}

TEST_P(StepsTest, StepSizesOfNanAreNan) {
    const std::vector<double> ones = {1, 1};
    for (const StepRule rule : {StepRule::dual, StepRule::gluon}) {
        StepSizes op{
            rule, ones, ones, ones, put(DType::f64, {2}, {NAN, 3}), {}, blank(DType::f64, {2})};
        backend_->step_sizes(op);
        EXPECT_TRUE(std::isnan(get(op.out)[0]));
        EXPECT_TRUE(std::isfinite(get(op.out)[1]));
    }
}

// A recorded sequence keeps the host's numbers and reads the device's.
TEST_P(StepsTest, StepSizesReplayed) {
    const Tensor dot = put(DType::f64, {2}, {NAN, NAN}), range = put(DType::f64, {2, 2}, Values(4));
    const Tensor out = blank(DType::f64, {2}), other = blank(DType::f64, {2});
    const auto graph = backend_->capture([&] {
        const std::vector<double> radius = {2, 3}, l0 = {1, 2}, l1 = {3, 4};  // gone afterwards
        backend_->step_sizes({StepRule::gluon, radius, l0, l1, dot, range, out});
    });
    const std::vector<double> radius = {2, 3}, l0 = {1, 2}, l1 = {3, 4};
    for (const Values& values : {Values{1, 2}, Values{5, 0.1}}) {
        const Values ends = {1.1, 0.9, 1.0, 0.5 + values[1] / 10};
        backend_->copy_in(dot, values.data());
        backend_->copy_in(range, ends.data());
        graph->launch();
        backend_->step_sizes({StepRule::gluon, radius, l0, l1, put(DType::f64, {2}, values),
                              put(DType::f64, {2, 2}, ends), other});
        EXPECT_EQ(get(out), get(other));
        EXPECT_TRUE(std::isfinite(get(out)[0]));
    }
}

// ---- momentum -----------------------------------------------------------------------------------

TEST_P(StepsTest, MomentumStartsWithTheGradient) {
    const double u_m = 0.9025, u_g = 1.95, m_m = 0.95, m_g = 1.0, factor = 0.37;
    const std::vector<int64_t> counts = {1, 9001, 63};
    for (const DType type : master_types()) {
        const auto x = put_list(type, counts, 1), m = put_list(type, counts, 2);
        const auto y = put_list(type, counts, 1), n = put_list(type, counts, 2);
        const auto old = get_list(x);
        const Tensor scale = put(DType::f64, {1}, {factor});
        backend_->momentum({x, m, scale, u_m, u_g, m_m, m_g, put(DType::f64, {1}, {0.0})});
        for (size_t i = 0; i < counts.size(); ++i) {
            Values new_x, new_m, size;
            for (const double value : old[i]) {
                new_x.push_back((u_m + u_g) * factor * value);
                new_m.push_back((m_m + m_g) * factor * value);
                size.push_back(2 * std::abs(value));
            }
            expect_elements(type, get(x[i]), new_x, size);
            expect_elements(type, get(m[i]), new_m, size);
        }
        // Later steps are those without it.
        const auto later = put_list(type, counts, 1), again = put_list(type, counts, 2);
        backend_->momentum({y, n, scale, u_m, u_g, m_m, m_g, {}});
        backend_->momentum({later, again, scale, u_m, u_g, m_m, m_g, put(DType::f64, {1}, {1.0})});
        EXPECT_EQ(get_list(later), get_list(y));
        EXPECT_EQ(get_list(again), get_list(n));
    }
}

// ---- apply --------------------------------------------------------------------------------------

struct Variant {
    bool sized, cautious, pulled;
};
const Variant variants[] = {
    {true, false, false}, {false, true, false}, {false, false, true}, {true, true, true}};

TEST_P(StepsTest, ApplyWithSizesCautionAndStarts) {
    const std::vector<int64_t> counts = {1, 20000, 63, 9001};
    const std::vector<double> radius = {1, 0.2, 3, 0.5}, decay = {0, 30, 10, 40};
    const Values sizes = {0.5, 2, 0, 1.5};
    const double rate = 1e-2, scale = 0.5, step = 3, lr = rate * scale;
    for (const DType type : master_types()) {
        for (const DType copy : {DType::u16, type, DType::bf16}) {  // u16: none
            for (const Variant& v : variants) {
                const auto w = put_list(type, counts, 1), x = put_list(type, counts, 2);
                const auto starts = put_list(type, counts, 3);
                const auto old_w = get_list(w), old_x = get_list(x), old_starts = get_list(starts);
                std::vector<Tensor> copies;
                for (size_t i = 0; copy != DType::u16 && i < counts.size(); ++i) {
                    copies.push_back(blank(copy, {counts[i]}));
                }
                Apply op{w, x, copies, put(DType::f64, {1}, {rate}), scale, radius, decay};
                if (v.sized) op.size = put(DType::f64, {4}, sizes);
                op.cautious = v.cautious;
                if (v.pulled) op.starts = starts;
                if (v.pulled) op.step = put(DType::f64, {1}, {step});
                backend_->apply(op);
                for (size_t i = 0; i < counts.size(); ++i) {
                    Values exact, size;
                    for (size_t k = 0; k < old_w[i].size(); ++k) {
                        const double old = old_w[i][k], direction = old_x[i][k];
                        const double kept = v.cautious && direction * old <= 0 ? 0 : lr * decay[i];
                        const double by = lr * radius[i] * (v.sized ? sizes[i] : 1);
                        double value = old - (kept * old + by * direction);
                        if (v.pulled) value += (old_starts[i][k] - old) / (step + 2);
                        exact.push_back(value);
                        size.push_back(std::abs(old) + std::abs(by * direction) +
                                       (v.pulled ? std::abs(old_starts[i][k]) : 0));
                    }
                    expect_elements(type, get(w[i]), exact, size);
                    if (copy != DType::u16) {
                        EXPECT_EQ(get(copies[i]), round_to(copy, get(w[i])));
                    }
                }
                EXPECT_EQ(get_list(x), old_x);
                EXPECT_EQ(get_list(starts), old_starts);
            }
        }
    }
}

TEST_P(StepsTest, ApplyPlaceAndCompanyDoNotMatter) {
    std::vector<int64_t> counts = {8193, 16385};
    for (int64_t i = 0; i < 500; ++i) counts.push_back(i % 10);
    const size_t n = counts.size();
    std::vector<double> radius, decay;
    Values sizes;
    for (size_t i = 0; i < n; ++i) {
        radius.push_back(1.0 + static_cast<double>(i % 3));
        decay.push_back(i % 2 ? 0.1 : 0.0);
        sizes.push_back(0.1 * static_cast<double>(1 + i % 5));
    }
    const Tensor size = put(DType::f64, {static_cast<int64_t>(n)}, sizes);
    const Tensor rate = put(DType::f64, {1}, {0.1}), step = put(DType::f64, {1}, {0.0});
    const auto run = [&](bool unaligned, bool together, bool pulled) {
        const auto w = put_list(DType::f32, counts, 1, unaligned);
        const auto x = put_list(DType::f32, counts, 2);
        const auto starts = put_list(DType::f32, counts, 3, unaligned);
        Apply op{w, x, {}, rate, 1.0, radius, decay, size, true, {}, step};
        if (pulled) op.starts = starts;
        if (together) backend_->apply(op);
        for (size_t i = 0; !together && i < n; ++i) {
            Apply one = op;
            one.weights = {&w[i], 1};
            one.x = {&x[i], 1};
            one.radius = {&radius[i], 1};
            one.decay = {&decay[i], 1};
            one.size = size.slice(static_cast<int64_t>(i), {1});
            if (pulled) one.starts = {&starts[i], 1};
            backend_->apply(one);
        }
        return get_list(w);
    };
    for (const bool pulled : {false, true}) {
        const auto all = run(false, true, pulled);
        EXPECT_EQ(run(true, true, pulled), all);
        EXPECT_EQ(run(false, false, pulled), all);
    }
}

TEST_P(StepsTest, ReplaysReadTheScalarsAgain) {
    const std::vector<int64_t> counts = {5, 9001};
    const std::vector<double> radius = {1, 2}, decay = {0.1, 0.2};
    struct Lists {
        std::vector<Tensor> x, m, w, starts, copies;
    };
    const auto lists = [&] {
        return Lists{put_list(DType::f32, counts, 1), put_list(DType::f32, counts, 2),
                     put_list(DType::f32, counts, 3), put_list(DType::f32, counts, 4),
                     put_list(DType::bf16, counts, 5)};
    };
    const auto issue = [&](const Lists& l, const Tensor& scalars) {  // step, rate, sizes
        const Tensor step = scalars.slice(0, {1});
        backend_->momentum({l.x, l.m, {}, 0.9, 0.1, 0.95, 0.05, step});
        backend_->apply({l.w, l.x, l.copies, scalars.slice(1, {1}), 1, radius, decay,
                         scalars.slice(2, {2}), true, l.starts, step});
    };
    const Lists plain = lists(), recorded = lists();
    const Tensor scalars = put(DType::f64, {4}, Values(4, NAN));
    const auto graph = backend_->capture([&] { issue(recorded, scalars); });
    for (const Values& values : {Values{0, 0.1, 1, 2}, Values{1, 0.2, 0.5, 0.25}}) {
        issue(plain, put(DType::f64, {4}, values));
        backend_->copy_in(scalars, values.data());
        graph->launch();
        EXPECT_EQ(get_list(recorded.w), get_list(plain.w));
        EXPECT_EQ(get_list(recorded.m), get_list(plain.m));
        EXPECT_EQ(get_list(recorded.copies), get_list(plain.copies));
    }
    for (const double value : get(recorded.w[1])) ASSERT_TRUE(std::isfinite(value));
}

LMO_ON_ALL_BACKENDS(StepsTest);

}  // namespace
}  // namespace lmo
