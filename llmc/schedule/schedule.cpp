// Fixed warm-ups, decays, and the state machine of the adaptive warm-up: follow the gap, switch
// once, decay. The rate of an update is a function of the configuration, kappa, the state, the
// update's number and its loss, and nothing else: a resumed run repeats it bit by bit.
#include "llmc/schedule/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "llmc/core/error.h"

namespace lmo {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr double kSmallestGap = 1e-8;
constexpr double kSmallestFirstGap = 0.02;

// Part of the way from one level to another, 0 at x = 0 and 1 at x = 1.
double way(WsdShape shape, double x) {
    switch (shape) {
        case WsdShape::cosine:
            return 0.5 * (1.0 - std::cos(kPi * x));
        case WsdShape::sqrt:
            return std::sqrt(x);
        case WsdShape::linear:
            break;
    }
    return x;
}

// First update of the final part of a wsd schedule whose constant part starts at `anchor`.
int64_t wsd_decay_start(const ScheduleConfig& config, int64_t anchor) {
    const int64_t length = std::llround(config.decay.fraction * static_cast<double>(config.steps));
    return std::max(anchor + 1, config.steps - length);
}

// OneCycleLR's last index of the ramp; (W/T) T is not always W.
double onecycle_ramp_end(const ScheduleConfig& config) {
    const double steps = static_cast<double>(config.steps);
    return static_cast<double>(config.warmup.steps) / steps * steps - 1.0;
}

// snprintf into a string, for one-line messages.
[[gnu::format(printf, 1, 2)]] std::string text(const char* format, ...) {
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    return line;
}

// What comes after a switch at update `step`, for people.
std::string decay_summary(const ScheduleConfig& config, int64_t step) {
    const auto updates = [](int64_t n) {
        return std::to_string(n) + (n == 1 ? " update" : " updates");
    };
    const std::string remaining = "over the remaining " + updates(config.steps - step);
    switch (config.decay.type) {
        case LrDecayType::cosine:
            return "cosine decay " + remaining;
        case LrDecayType::linear:
            return "linear decay " + remaining;
        case LrDecayType::gap:
            return "the rate keeps following the gap " + remaining;
        case LrDecayType::wsd:
            return "constant rate, then decay in the last " +
                   updates(config.steps - wsd_decay_start(config, step)) + " of the run";
        case LrDecayType::power:
            return "the rate falls by a power " + remaining;
        case LrDecayType::constant:
            break;
    }
    return "constant rate " + remaining;
}

// Published behaviours that the rest of the schedule makes impossible.
void require_compat(const ScheduleConfig& config) {
    const bool falls =
        config.decay.type == LrDecayType::cosine || config.decay.type == LrDecayType::linear;
    if (config.compat.late_decay && !falls) {
        throw UsageError(
            "schedule.compat.late_decay is about a decay of type \"cosine\" or \"linear\": choose "
            "one of them, or leave the switch out");
    }
    if (!config.compat.onecycle) return;
    const bool cosine = config.warmup.type == WarmupType::cosine;
    if ((!cosine && config.warmup.type != WarmupType::linear) ||
        config.decay.type != (cosine ? LrDecayType::cosine : LrDecayType::linear)) {
        throw UsageError(
            "schedule.compat.onecycle has one shape for both halves: schedule.warmup.type and "
            "schedule.decay.type must both be \"cosine\" or both \"linear\"");
    }
    if (onecycle_ramp_end(config) == 0.0) {
        throw UsageError(
            "schedule.compat.onecycle: the published code divides by zero when "
            "schedule.warmup.steps is 1; take 0 or at least 2, or leave the switch out");
    }
}

}  // namespace

std::string to_string(Phase phase) {
    switch (phase) {
        case Phase::warmup:
            return "warmup";
        case Phase::decay:
            return "decay";
        case Phase::constant:
            break;
    }
    return "constant";
}

Schedule::Schedule(const ScheduleConfig& config, double kappa) : config_(config), kappa_(kappa) {
    const auto require = [](bool holds, const char* rule) {
        if (!holds) throw UsageError(std::string("schedule: ") + rule);
    };
    const bool adaptive = config.warmup.type == WarmupType::adaptive;
    require(config.lr > 0.0, "optimizer.lr must be above 0");
    require(config.steps > 0, "run.steps must be above 0");
    require(config.warmup.div >= 1.0, "schedule.warmup.div must be at least 1");
    require(config.decay.final_div >= 1.0, "schedule.decay.final_div must be at least 1");
    require(!adaptive || (config.warmup.loss_ema >= 0.0 && config.warmup.loss_ema < 1.0),
            "schedule.warmup.loss_ema must be at least 0 and below 1");
    require(adaptive || config.decay.type != LrDecayType::gap,
            "schedule.decay.type \"gap\" follows the loss gap of the adaptive warm-up: set "
            "schedule.warmup.type to \"adaptive\", or choose another decay");
    if (config.warmup.type == WarmupType::rates) {
        require(!config.warmup.rates.empty() &&
                    static_cast<int64_t>(config.warmup.rates.size()) <= config.steps,
                "schedule.warmup.rates must be a list of at least one rate and at most run.steps");
    }
    require(config.decay.type != LrDecayType::power ||
                (config.decay.power > 0.0 && config.decay.power <= 1.0),
            "schedule.decay.power must be above 0 and at most 1");
    require_compat(config);
    if (!adaptive || config.warmup.delta_star_mode == DeltaStarMode::given) return;
    if (config.warmup.delta_star_mode == DeltaStarMode::unweighted) {
        require(config.warmup.div >= kSmallestUnweightedDiv &&
                    config.warmup.div <= kLargestUnweightedDiv,
                "schedule.warmup.delta_star \"unweighted\" needs schedule.warmup.div between 1.5 "
                "and 1e4: change it, or give delta_star a number");
        return;
    }
    require(config.warmup.sigma_F > 0.0, "schedule.warmup.sigma_F must be above 0");
    require(
        kappa > 0.0,
        "this schedule.warmup.delta_star needs kappa above 0, but no group of the optimizer has a "
        "norm: choose a norm-constrained optimizer, or give delta_star a number or \"unweighted\"");
}

RateStep Schedule::next(int64_t step, double loss) {
    message_.clear();
    if (config_.warmup.type == WarmupType::adaptive) return next_adaptive(step, loss);
    return next_fixed(step);
}

// Both halves as PyTorch computes them, in its order of operations.
RateStep Schedule::next_onecycle(int64_t step) const {
    const bool cosine = config_.warmup.type == WarmupType::cosine;
    const auto between = [&](double from, double to, double x) {
        if (!cosine) return (to - from) * x + from;
        return to + (from - to) / 2.0 * (std::cos(kPi * x) + 1.0);
    };
    const double start = config_.lr / config_.warmup.div, floor = start / config_.decay.final_div;
    const double ramp_end = onecycle_ramp_end(config_), at = static_cast<double>(step);
    if (at <= ramp_end) return {between(start, config_.lr, at / ramp_end), Phase::warmup, {}};
    const double length = static_cast<double>(config_.steps - 1) - ramp_end;
    return {between(config_.lr, floor, (at - ramp_end) / length), Phase::decay, {}};
}

RateStep Schedule::next_fixed(int64_t step) const {
    if (config_.compat.onecycle) return next_onecycle(step);
    const WarmupConfig& warmup = config_.warmup;
    if (warmup.type == WarmupType::rates) {
        const auto length = static_cast<int64_t>(warmup.rates.size());
        if (step >= length) return decay(step, length - 1, warmup.rates.back(), {});
        return {warmup.rates[static_cast<size_t>(step)], Phase::warmup, {}};
    }
    const int64_t length = warmup.type == WarmupType::none ? 0 : warmup.steps;
    const int64_t last = std::max<int64_t>(length - 1, 0);
    if (step >= length) return decay(step, last, config_.lr, {});
    const double x = last == 0 ? 1.0 : static_cast<double>(step) / static_cast<double>(last);
    const WsdShape shape = warmup.type == WarmupType::cosine ? WsdShape::cosine : WsdShape::linear;
    return {std::lerp(config_.lr / warmup.div, config_.lr, way(shape, x)), Phase::warmup, {}};
}

void Schedule::start(double loss0) {
    const WarmupConfig& warmup = config_.warmup;
    if (warmup.type != WarmupType::adaptive) return;  // needs no loss and keeps no state
    const double delta0 = loss0 - warmup.target_loss;
    if (!(delta0 > kSmallestFirstGap && std::isfinite(delta0))) {
        throw Error(
            text("adaptive warm-up: the first loss is %.6g and schedule.warmup.target_loss "
                 "is %.6g, but the first loss must be more than %g above the target; set "
                 "target_loss below the loss that the run should reach, or use another "
                 "schedule.warmup.type",
                 loss0, warmup.target_loss, kSmallestFirstGap));
    }
    double delta_star = warmup.delta_star;
    if (warmup.delta_star_mode == DeltaStarMode::exact) {
        delta_star = exact_delta_star(delta0, warmup.div, kappa_, warmup.sigma_F);
    } else if (warmup.delta_star_mode == DeltaStarMode::unweighted) {
        delta_star = unweighted_delta_star(delta0, warmup.div);
    } else if (warmup.delta_star_mode != DeltaStarMode::given) {
        delta_star = published_delta_star(warmup.delta_star_mode, config_.lr, warmup.div, delta0,
                                          kappa_, warmup.sigma_F);
    } else if (!(delta_star > 0.0 && delta_star < delta0)) {
        throw Error(
            text("adaptive warm-up: schedule.warmup.delta_star is %.6g, but it must lie "
                 "between 0 and the first loss gap %.6g (first loss %.6g minus target_loss "
                 "%.6g); give a number in between, or \"exact\"",
                 delta_star, delta0, loss0, warmup.target_loss));
    }
    state_ = ScheduleState();
    state_.started = true;
    state_.loss0 = state_.smoothed_loss = state_.previous_loss = loss0;
    state_.delta0 = delta0;
    state_.delta_star = delta_star;
}

RateStep Schedule::next_adaptive(int64_t step, double loss) {
    if (!std::isfinite(loss)) {  // it would stay in the smoothed loss for good
        throw Error(
            text("adaptive warm-up: the loss of update %lld is %g, but the rate needs a "
                 "finite loss; lower optimizer.lr or check the data",
                 static_cast<long long>(step), loss));
    }
    if (!state_.started) start(loss);
    RateStep result;
    if (!config_.compat.lag) {
        result = follow(step, loss);
    } else if (step == 0) {  // no update before it: the curve's start
        const double delta = loss - config_.warmup.target_loss;
        result = {gap_rate(delta), Phase::warmup, delta};
    } else {
        result = follow(step, state_.previous_loss);
    }
    if (config_.compat.lag) state_.previous_loss = loss;
    if (config_.compat.first_peak && step == 0) result.rate = config_.lr;
    return result;
}

// One step of the state machine: the rate of update `step` from a loss.
RateStep Schedule::follow(int64_t step, double loss) {
    const WarmupConfig& warmup = config_.warmup;
    state_.smoothed_loss = std::lerp(loss, state_.smoothed_loss, warmup.loss_ema);
    const double delta = std::max(state_.smoothed_loss - warmup.target_loss, kSmallestGap);
    if (state_.switched_at < 0) {
        const double rate = gap_rate(delta);
        // The quotient, not max_fraction * steps: 7 / 100 is the double 0.07, 0.07 * 100 is not 7.
        const double part = static_cast<double>(step) / static_cast<double>(config_.steps);
        if (delta <= state_.delta_star) {
            end_warmup(step, config_.lr);
            message_ = text(
                           "update %lld: loss gap %.4f reached delta_star %.4f, warm-up ends "
                           "(%.1f%% of the run), ",
                           static_cast<long long>(step), delta, state_.delta_star, 100.0 * part) +
                       decay_summary(config_, step);
        } else if (part >= warmup.max_fraction) {
            end_warmup(step, rate);
            message_ = text(
                           "update %lld: loss gap %.4f has not come down to delta_star %.4f after "
                           "%.1f%% of the run (schedule.warmup.max_fraction): warm-up ends at the "
                           "current rate %.4g, below the peak %.4g, ",
                           static_cast<long long>(step), delta, state_.delta_star, 100.0 * part,
                           rate, config_.lr) +
                       decay_summary(config_, step) +
                       "; for a longer way up, raise schedule.warmup.target_loss or max_fraction";
        } else {
            return {rate, Phase::warmup, delta};
        }
    }
    return decay(step, state_.switched_at, state_.peak, delta);
}

void Schedule::end_warmup(int64_t step, double peak) {
    state_.switched_at = step;
    state_.peak = peak;
}

double Schedule::gap_rate(double delta) const {
    return warmup_rate(delta, config_.lr, config_.warmup.div, state_.delta0, state_.delta_star);
}

RateStep Schedule::decay(int64_t step, int64_t anchor, double peak,
                         std::optional<double> delta) const {
    const LrDecayConfig& config = config_.decay;
    const double floor = std::min(peak, config_.lr / config.final_div);
    // lerp is monotone and exact at both ends: the peak at the anchor, the floor at the last
    // update.
    const auto fall = [&](WsdShape shape, int64_t done, int64_t all) -> RateStep {
        const double x = all > 0 ? static_cast<double>(done) / static_cast<double>(all) : 0.0;
        return {std::lerp(peak, floor, way(shape, x)), Phase::decay, delta};
    };
    // Points of the decay that are left out: it starts at `skipped` of a longer one.
    const int64_t skipped = config_.compat.late_decay ? 2 : 0;
    const int64_t done = step - anchor + skipped, all = config_.steps - 1 - anchor + skipped;
    switch (config.type) {
        case LrDecayType::cosine:
            return fall(WsdShape::cosine, done, all);
        case LrDecayType::linear:
            return fall(WsdShape::linear, done, all);
        case LrDecayType::wsd: {
            const int64_t start = wsd_decay_start(config_, anchor);
            if (step >= start) return fall(config.shape, step - start + 1, config_.steps - start);
            break;
        }
        case LrDecayType::gap:
            return {std::max(gap_rate(*delta), config_.lr / config.final_div), Phase::decay, delta};
        case LrDecayType::power:
            return {peak * std::pow(static_cast<double>(step - anchor + 1), -config.power),
                    Phase::decay, delta};
        case LrDecayType::constant:
            break;
    }
    return {peak, Phase::constant, delta};
}

std::optional<WarmupCurve> Schedule::curve() const {
    if (!state_.started) return {};
    return warmup_curve(config_.lr, config_.warmup.div, state_.delta0, state_.delta_star);
}

}  // namespace lmo
