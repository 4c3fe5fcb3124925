// Estimators and the outer stage on functions whose gradients are known: f_b(x) = x' A_b x / 2, one
// A_b (a diagonal) for each batch b.
#include <gtest/gtest.h>

#include <cmath>

#include "llmc/core/random.h"
#include "llmc/device/backend.h"
#include "llmc/optim/estimator.h"
#include "llmc/optim/outer.h"

namespace lmo {
namespace {

using Values = std::vector<double>;

ParameterList two_tensors() {
    ParameterList list;
    list.add({"a.weight", {3, 5}, Role::matrix, "", 0.02});
    list.add({"b.weight", {4}, Role::gain, "", 0.0});
    return list;
}

class EstimatorTest : public testing::Test {
  protected:
    static constexpr int64_t kCount = 19;

    EstimatorTest() : list_(two_tensors()), backend_(make_cpu_backend(1)), arena_(*backend_) {
        for (ParameterBuffer* buffer : {&weights_, &gradients_}) {
            *buffer = {&list_, arena_.take("test", DType::f64, {list_.buffer_length()})};
            backend_->zero(buffer->flat);
        }
        const std::vector<Tensor> tensors = {weights_[0], weights_[1]};
        arena_.reserve_workspace(backend_->workspace_bytes(SumOfSquares{tensors, {}, {}}));
        x_ = draw(1);
        put(weights_, x_);
    }
    Estimator& make(const EstimatorConfig& config) {
        estimator_ = std::make_unique<Estimator>(*backend_, arena_, config, list_, DType::f64);
        estimator_->initialise(weights_);
        return *estimator_;
    }
    static Values draw(uint64_t stream) {
        Values values(kCount);
        for (size_t i = 0; i < values.size(); ++i) values[i] = random_normal(3, stream, i);
        return values;
    }
    void put(const ParameterBuffer& buffer, const Values& values) {
        backend_->copy_in(buffer[0], values.data());
        backend_->copy_in(buffer[1], values.data() + 15);
    }
    Values get(const ParameterBuffer& buffer) {
        Values values(kCount);
        backend_->copy_out(values.data(), buffer[0]);
        backend_->copy_out(values.data() + 15, buffer[1]);
        return values;
    }
    static Values gradient(const Values& x, int batch) {
        const Values diagonal = draw(100 + static_cast<uint64_t>(batch));
        Values g(kCount);
        for (size_t i = 0; i < g.size(); ++i) g[i] = diagonal[i] * x[i];
        return g;
    }
    // The requests of an update, as a trainer goes through them; batches 2 k and 2 k + 1.
    void estimate(int64_t k) {
        Estimator& e = *estimator_;
        const std::vector<GradientRequest> requests = e.requests(k, k);
        e.leave(weights_);
        for (size_t i = 0; i < requests.size(); ++i) {
            e.move(weights_, requests[i].back);
            put(gradients_, gradient(get(weights_), static_cast<int>(2 * k) + requests[i].batch));
            e.add(gradients_, requests, i, k);
        }
        e.come_back(weights_);
        EXPECT_EQ(get(weights_), x_);
        corrected_ = requests.size() > 1;
    }
    // x goes on by some d, which is returned.
    Values step(uint64_t stream) {
        estimator_->remember(weights_);
        Values d = draw(stream);
        for (size_t i = 0; i < d.size(); ++i) x_[i] += d[i];
        put(weights_, x_);
        return d;
    }
    static void expect_near(const Values& actual, const Values& expected) {
        for (size_t i = 0; i < kCount; ++i) {
            EXPECT_NEAR(actual[i], expected[i], 1e-11 * (1 + std::abs(expected[i]))) << i;
        }
    }
    static double norm(const Values& v) {
        double sum = 0;
        for (const double x : v) sum += x * x;
        return std::sqrt(sum);
    }

    ParameterList list_;
    std::unique_ptr<Backend> backend_;
    Arena arena_;
    ParameterBuffer weights_, gradients_;
    Values x_;
    std::unique_ptr<Estimator> estimator_;
    bool corrected_ = false;
};

EstimatorConfig config_of(EstimatorType type) {
    EstimatorConfig config;
    config.type = type;
    config.beta = 0.8;  // c = 4
    config.seed = 5;
    return config;
}

TEST_F(EstimatorTest, FirstUpdateIsPlain) {
    for (const EstimatorType type :
         {EstimatorType::igt, EstimatorType::storm, EstimatorType::hessian}) {
        make(config_of(type));
        estimate(0);
        EXPECT_EQ(get(gradients_), gradient(x_, 0));
    }
}

TEST_F(EstimatorTest, GradientAhead) {
    make(config_of(EstimatorType::igt));
    const Values d = step(2);
    estimate(1);
    Values ahead = x_;
    for (size_t i = 0; i < ahead.size(); ++i) ahead[i] += 4 * d[i];
    expect_near(get(gradients_), gradient(ahead, 2));
}

// On a quadratic every difference is the curvature times d, whatever its points are.
TEST_F(EstimatorTest, CurvatureOfEachBatch) {
    EstimatorConfig config = config_of(EstimatorType::storm);
    config.scale = 0.5;
    for (const bool storm : {true, false}) {
        for (const bool same : {true, false}) {
            for (const bool central : {true, false}) {
                config.type = storm ? EstimatorType::storm : EstimatorType::hessian;
                config.same_batch = same;
                config.central = central;
                make(config);
                const Values d = step(4);
                estimate(1);
                Values expected = gradient(x_, 2);
                const Values curvature = gradient(d, storm || same ? 2 : 3);
                for (size_t i = 0; i < d.size(); ++i) expected[i] += 0.5 * 4 * curvature[i];
                expect_near(get(gradients_), expected);
            }
        }
    }
}

// The points lie on the segment, others in every update.
TEST_F(EstimatorTest, CentralPointsAreRandom) {
    EstimatorConfig config = config_of(EstimatorType::hessian);
    const Estimator& estimator = make(config);
    double sum = 0.0;
    for (int64_t k = 1; k <= 200; ++k) {
        const std::vector<GradientRequest> requests = estimator.requests(k, k);
        ASSERT_EQ(requests.size(), 3u);
        const double middle = 0.5 * (requests[0].back + requests[1].back);
        EXPECT_GE(middle, 0.0);
        EXPECT_LE(middle, 1.0);
        EXPECT_NEAR(requests[0].back - requests[1].back, 2 * config.step, 1e-15);
        EXPECT_NEAR(requests[1].weight, 0.5 / config.step, 1e-15);
        sum += middle;
    }
    EXPECT_NEAR(sum / 200, 0.5, 0.07);
}

TEST_F(EstimatorTest, FactorFollowsTheMomentum) {
    EstimatorConfig config = config_of(EstimatorType::igt);
    config.eta_power = 4.0 / 7;
    const Estimator& estimator = make(config);
    for (const int64_t k : {1, 2, 9}) {
        const double eta = std::pow(static_cast<double>(k + 1), -4.0 / 7);
        EXPECT_NEAR(estimator.requests(k, k)[0].back, -(1 - eta) / eta, 1e-12);
    }
}

TEST_F(EstimatorTest, GradientAndCorrectionAreClippedApart) {
    EstimatorConfig config = config_of(EstimatorType::storm);
    for (const double clip : {0.0, 0.3, 1e9}) {
        for (const double clip_correction : {0.01, 1e9}) {
            config.clip = clip;
            config.clip_correction = clip_correction;
            Estimator& e = make(config);
            const Values d = step(4);
            estimate(1);
            EXPECT_TRUE(corrected_);
            const Values g = gradient(x_, 2), h = gradient(d, 2);
            EXPECT_EQ(get(gradients_), g);
            expect_near(get(e.correction()), h);
            EXPECT_NEAR(e.moved(weights_), norm(d), 1e-12);
            e.clip(gradients_, norm(g), norm(h), norm(d), true, 1);
            const double own = clip > 0 ? std::min(1.0, clip / norm(g)) : 1.0;
            const double other = std::min(1.0, clip_correction * norm(d) / norm(h));
            Values expected(kCount);
            for (size_t i = 0; i < d.size(); ++i) expected[i] = own * g[i] + 4 * other * h[i];
            expect_near(get(gradients_), expected);
            double squares = 0;
            for (const double s : e.squares(gradients_, false)) squares += s;
            EXPECT_NEAR(std::sqrt(squares), norm(get(gradients_)), 1e-12);
        }
    }
}

TEST_F(EstimatorTest, PageAddsDifferences) {
    EstimatorConfig config = config_of(EstimatorType::page);
    config.small = 1;
    config.probability = 0.3;
    Estimator& e = make(config);
    Values v;
    int large = 0;
    for (int64_t k = 0; k < 40; ++k) {
        const Values before = x_;
        if (k > 0) step(static_cast<uint64_t>(10 + k));
        const bool small = config.takes_small(k);
        estimate(k);
        e.accumulate(gradients_, !small);
        const Values g = gradient(x_, static_cast<int>(2 * k));
        if (!small) {
            ++large;
            v = g;
        } else {
            const Values old = gradient(before, static_cast<int>(2 * k));
            for (size_t i = 0; i < v.size(); ++i) v[i] += g[i] - old[i];
        }
        expect_near(get(gradients_), v);
    }
    EXPECT_FALSE(config.takes_small(0));
    EXPECT_GT(large, 4);
    EXPECT_LT(large, 24);
}

TEST_F(EstimatorTest, OuterStepsFollowTheirFormulas) {
    for (const double mu : {0.0, 0.7}) {
        for (const bool nesterov : {false, true}) {
            for (const OuterType type : {OuterType::lookahead, OuterType::rapp}) {
                const OuterConfig config{type, 3, 0.6, mu, nesterov};
                OuterStage stage(*backend_, arena_, config, list_, DType::f64);
                put(weights_, x_);
                stage.initialise(weights_);
                Values anchor = x_, x = x_, v(kCount, 0.0);
                for (int64_t k = 1; k <= 9; ++k) {
                    stage.before(weights_);
                    if (type == OuterType::rapp) x = anchor;
                    expect_near(get(weights_), x);
                    const Values d = draw(static_cast<uint64_t>(50 + k));
                    for (size_t i = 0; i < d.size(); ++i) x[i] += d[i];
                    put(weights_, x);
                    EXPECT_EQ(stage.due(k), k % 3 == 0);
                    if (!stage.due(k)) continue;
                    stage.step(weights_);
                    for (size_t i = 0; i < d.size(); ++i) {
                        const double way = anchor[i] - x[i];
                        v[i] = mu * v[i] + way;
                        anchor[i] -= 0.6 * (nesterov ? way + mu * v[i] : v[i]);
                    }
                    x = anchor;
                    expect_near(get(weights_), x);
                }
            }
        }
    }
}

// All the way is where the updates have led, bit for bit.
TEST_F(EstimatorTest, AnchorThatGoesAllTheWay) {
    OuterStage stage(*backend_, arena_, {OuterType::lookahead, 2, 1.0, 0.0, false}, list_,
                     DType::f64);
    stage.initialise(weights_);
    const Values x = draw(8);
    put(weights_, x);
    stage.step(weights_);
    EXPECT_EQ(get(weights_), x);
}

}  // namespace
}  // namespace lmo
