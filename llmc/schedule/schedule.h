// Learning-rate schedules: fixed and adaptive warm-up, decays. Pure functions and one small state
// machine, all in fp64; no device, no data.
//
// Updates count from 0 to steps-1. A warm-up of W updates starts at lr/div and reaches lr at update
// W-1; a decay starts at lr at its anchor (the last update of the warm-up, the switching update of
// the adaptive one, or 0) and reaches lr/final_div at the last update. The rates of a warm-up may
// also be given one by one; the last of them is then the peak.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lmo {

enum class WarmupType { none, linear, cosine, adaptive, rates };
enum class DeltaStarMode { exact, given, quadpack, gk21, unweighted };
struct WarmupConfig {
    WarmupType type = WarmupType::none;
    int64_t steps = 0;  // linear, cosine
    double div = 100.0;
    std::vector<double> rates = {};  // rates: of the updates 0, 1, ...
    // adaptive:
    double target_loss = 0.0;
    DeltaStarMode delta_star_mode = DeltaStarMode::exact;
    double delta_star = 0.0;  // given
    double sigma_F = 1e-3;
    double loss_ema = 0.0;
    double max_fraction = 0.5;
};

enum class LrDecayType { constant, cosine, linear, wsd, gap, power };
enum class WsdShape { linear, cosine, sqrt };
struct LrDecayConfig {
    LrDecayType type = LrDecayType::constant;
    double final_div = 1e4;             // all but constant and power
    double fraction = 0.2;              // wsd: the last part of the run
    WsdShape shape = WsdShape::linear;  // wsd
    double power = 0.0;                 // power: the peak times (k+1)^-power, k from the anchor
};

// Behaviours of the published code of arXiv 2602.05813 that we do not default to
// (dev/docs/published.md).
struct ScheduleCompat {
    // adaptive:
    bool first_peak = false;        // update 0 runs at lr instead of lr/div
    bool lag = false;               // an update's rate comes from the loss of the update before it
    bool late_decay = false;        // a cosine or linear decay leaves out its first two points
    // For the caller of next(): which loss to give.
    bool last_micro_batch = false;
    bool rank0 = false, local = false;  // of rank 0, of each rank; else of all
    // linear and cosine warm-up:
    bool onecycle = false;  // PyTorch's OneCycleLR: its ramp and its floor lr/(div final_div)
};

struct ScheduleConfig {
    double lr = 0.0;
    int64_t steps = 0;
    WarmupConfig warmup;
    LrDecayConfig decay;
    ScheduleCompat compat;
};

// Coefficients of K(delta) = K0 + K1 delta + K2 delta^2, for the record: the rate itself is
// computed in the stable form.
struct WarmupCurve {
    double delta0, delta_star, K0, K1, K2;
};

// eta(delta) = lr delta / (delta + (div-1) delta0 ((delta-delta*)/(delta0-delta*))^2), the stable
// form of arXiv 2602.05813's delta / (K0 + K1 delta + K2 delta^2): lr at delta*, lr/div at delta0.
double warmup_rate(double delta, double lr, double div, double delta0, double delta_star);

// The gap at the peak: the first strict minimiser over 500 candidates in [0.01, delta0 - 0.01] of
// the weighted squared distance of eta to a linear-and-cosine target, by accurate quadrature
// (dev/docs/objective.md). Throws Error when delta0 <= 0.02.
double exact_delta_star(double delta0, double div, double kappa, double sigma_F);

// The minimiser of the same distance without its weight: delta0 times a number that depends on div
// alone, and so has no jump. div from kSmallestUnweightedDiv to kLargestUnweightedDiv.
double unweighted_delta_star(double delta0, double div);
constexpr double kSmallestUnweightedDiv = 1.5;  // below, the distance is smallest at delta_star 0
constexpr double kLargestUnweightedDiv = 1e4;   // above, the peak is too narrow for the quadrature

// The choice of "exact" by the published code's quadrature: mode quadpack is QAGS as
// scipy.integrate.quad runs it, gk21 a single 21-point panel. Depends on lr, and erratically on
// delta0.
double published_delta_star(DeltaStarMode mode, double lr, double div, double delta0, double kappa,
                            double sigma_F);

WarmupCurve warmup_curve(double lr, double div, double delta0, double delta_star);

enum class Phase { warmup, decay, constant };
std::string to_string(Phase phase);

struct RateStep {
    double rate;
    Phase phase;
    std::optional<double> delta;  // adaptive: (smoothed) loss minus target
};

// What a checkpoint must remember. Fixed schedules leave it as it is here.
struct ScheduleState {
    bool started = false;
    double loss0 = 0, delta0 = 0, delta_star = 0;
    double smoothed_loss = 0;
    double previous_loss = 0;  // of the update before, for compat.lag
    int64_t switched_at = -1;  // update at which the warm-up ended
    double peak = 0;           // rate there
};

class Schedule {
  public:
    // kappa: dual over primal norm of the optimizer's matrices, for delta_star "exact" (and as
    // published) only. Throws UsageError when the configuration makes no schedule.
    Schedule(const ScheduleConfig& config, double kappa);

    // The rate of update `step`, from the global mean loss at the weights before it. Called once
    // for each update, in order. Adaptive only: throws Error when the first loss is not above the
    // target or a loss is not finite (the state is then unchanged). Fixed schedules ignore the
    // loss.
    RateStep next(int64_t step, double loss);

    // After the first next(), adaptive only.
    std::optional<WarmupCurve> curve() const;
    // A line for people when something happened in the last next(): the switch, or the end of the
    // allowed warm-up; empty otherwise.
    const std::string& message() const { return message_; }

    const ScheduleState& state() const { return state_; }
    void restore(const ScheduleState& state) { state_ = state; }

    // Begin as if the first loss had been loss0 (for `train_gpt schedule --loss0`).
    void start(double loss0);

  private:
    RateStep next_fixed(int64_t step) const;
    RateStep next_onecycle(int64_t step) const;
    RateStep next_adaptive(int64_t step, double loss);
    RateStep follow(int64_t step, double loss);
    void end_warmup(int64_t step, double peak);
    double gap_rate(double delta) const;
    RateStep decay(int64_t step, int64_t anchor, double peak, std::optional<double> delta) const;

    ScheduleConfig config_;
    double kappa_;
    ScheduleState state_;
    std::string message_;
};

}  // namespace lmo
