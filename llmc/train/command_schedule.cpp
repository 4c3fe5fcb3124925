// train_gpt schedule: what the learning rate will do, without a device and without data.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <sstream>

#include "llmc/io/files.h"
#include "llmc/optim/optimizer.h"
#include "llmc/schedule/objective.h"
#include "llmc/train/commands.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

std::vector<double> read_losses(const std::string& path) {
    std::string text = read_file(path);
    for (char& c : text) {
        if (c == ',' || c == '[' || c == ']') c = ' ';
    }
    std::istringstream words(text);
    std::vector<double> losses;
    for (std::string word; words >> word;) {
        char* end = nullptr;
        losses.push_back(std::strtod(word.c_str(), &end));
        if (end != word.c_str() + word.size() || !std::isfinite(losses.back())) {
            throw UsageError("--losses " + path + ": number " + std::to_string(losses.size()) +
                             " is \"" + word +
                             "\"; expected finite numbers, separated by spaces, "
                             "commas or newlines");
        }
    }
    if (losses.empty()) throw UsageError("--losses " + path + ": holds no number");
    return losses;
}

// The table as parallel arrays, one entry for each loss.
struct RateTable {
    std::vector<int64_t> updates;
    std::vector<double> losses, rates;
    std::vector<std::string> phases;

    void add(int64_t update, double loss, const RateStep& rate) {
        updates.push_back(update);
        losses.push_back(loss);
        rates.push_back(rate.rate);
        phases.push_back(to_string(rate.phase));
    }
};

// Only fixed schedules cannot do without the length of the run: an adaptive warm-up has its curve.
ScheduleConfig with_steps(ScheduleConfig schedule) {
    if (schedule.steps > 0) return schedule;
    if (schedule.warmup.type != WarmupType::adaptive) {
        throw UsageError("run.steps is missing: a fixed schedule depends on the length of the run");
    }
    schedule.steps = std::numeric_limits<int32_t>::max();
    return schedule;
}

// A run that sees these losses at its updates 0, 1, ...
RateTable follow_losses(const Config& config, Schedule schedule,
                        const std::vector<double>& losses) {
    RateTable table;
    const int64_t count =
        std::min(static_cast<int64_t>(losses.size()), with_steps(config.schedule).steps);
    for (int64_t i = 0; i < count; ++i) table.add(i, losses[i], schedule.next(i, losses[i]));
    return table;
}

constexpr int64_t kPoints = 21;

// The curve of an adaptive warm-up, from the first loss down to where it ends.
RateTable adaptive_curve(const Config& config, const WarmupCurve& curve, double loss0) {
    const WarmupConfig& warmup = config.schedule.warmup;
    const double end = warmup.target_loss + curve.delta_star;
    RateTable table;
    for (int64_t i = 0; i < kPoints; ++i) {
        const double loss = loss0 + (end - loss0) * static_cast<double>(i) / (kPoints - 1);
        const double rate = warmup_rate(loss - warmup.target_loss, config.schedule.lr, warmup.div,
                                        curve.delta0, curve.delta_star);
        table.add(i, loss, {rate, Phase::warmup, std::nullopt});
    }
    return table;
}

// A fixed schedule over the whole run; it does not look at losses.
RateTable fixed_rates(const Config& config, Schedule schedule, double loss0) {
    RateTable table;
    const int64_t last = config.schedule.steps - 1;  // given: with_steps has seen to it
    for (int64_t i = 0; i < kPoints; ++i) {
        const int64_t update = i * last / (kPoints - 1);
        if (!table.updates.empty() && table.updates.back() == update) continue;
        table.add(update, loss0, schedule.next(update, loss0));
    }
    return table;
}

// A second minimum of the objective is worth a warning when its J is at most so many times the
// chosen one; a change of kappa by kNearKappa, when it moves the choice by kLeap delta0.
constexpr double kNearlyAsGood = 1.5, kNearKappa = 1.5, kLeap = 0.1;
constexpr double kWorthListing = 10.0;  // times the chosen J; --json lists all minima

// Where a small change of the model or of the losses may move the choice of "exact", in words;
// empty where the choice is a stable one.
std::string second_choice(const WarmupConfig& warmup, double delta0, double kappa,
                          const PeakObjective& objective) {
    const size_t chosen = objective.chosen();
    const double star = objective.delta_star[chosen];
    char text[128];
    for (const size_t place : objective.minima()) {
        const double times = objective.J[place] / objective.J[chosen];
        if (place == chosen || !(times <= kNearlyAsGood)) continue;
        std::snprintf(text, sizeof text,
                      "a second choice, delta_star %.4g, is nearly as good (J %.2f times as large)",
                      objective.delta_star[place], times);
        return text;
    }
    for (const double other : {kappa * kNearKappa, kappa / kNearKappa}) {
        const double moved = exact_delta_star(delta0, warmup.div, other, warmup.sigma_F);
        if (std::abs(moved - star) < kLeap * delta0) continue;
        std::snprintf(text, sizeof text, "delta_star would be %.4g if kappa were %.6g", moved,
                      other);
        return text;
    }
    return "";
}

// What the choice of "exact" was made from, and how firm it is.
struct Choice {
    PeakObjective objective;
    std::string warning;  // empty: none
};

std::optional<Choice> exact_choice(const WarmupConfig& warmup, double kappa,
                                   const std::optional<WarmupCurve>& curve) {
    if (!curve || warmup.delta_star_mode != DeltaStarMode::exact) return {};
    Choice choice{peak_objective(curve->delta0, warmup.div, warmup.sigma_F * kappa), ""};
    choice.warning = second_choice(warmup, curve->delta0, kappa, choice.objective);
    if (!choice.warning.empty()) {
        choice.warning +=
            ": a small change of the model, of div or of target_loss may move the peak there; see "
            "dev/docs/objective.md";
    }
    return choice;
}

void print_choice(const Choice& choice) {
    const PeakObjective& objective = choice.objective;
    std::vector<size_t> places = objective.minima();
    const double highest = kWorthListing * objective.J[objective.chosen()];
    std::erase_if(places, [&](size_t place) { return objective.J[place] > highest; });
    if (places.size() > 1) {
        std::printf("minima of the objective:\n");
        for (const size_t place : places) {
            std::printf("  delta_star %-10.6g J %.4g%s\n", objective.delta_star[place],
                        objective.J[place], place == objective.chosen() ? ", chosen" : "");
        }
    }
    if (!choice.warning.empty()) std::printf("warning: %s\n", choice.warning.c_str());
}

ordered_json choice_json(const Choice& choice) {
    const PeakObjective& objective = choice.objective;
    ordered_json minima = ordered_json::array();
    for (const size_t place : objective.minima()) {
        minima.push_back({{"delta_star", objective.delta_star[place]}, {"J", objective.J[place]}});
    }
    return {{"minima", minima},
            {"warning", choice.warning},
            {"objective", {{"delta_star", objective.delta_star}, {"J", objective.J}}}};
}

void print_table(const RateTable& table, const char* first_column) {
    std::printf("\n%8s %12s %14s  %s\n", first_column, "loss", "lr", "phase");
    for (size_t i = 0; i < table.rates.size(); ++i) {
        std::printf("%8lld %12.6g %14.8g  %s\n", static_cast<long long>(table.updates[i]),
                    table.losses[i], table.rates[i], table.phases[i].c_str());
    }
}

}  // namespace

void run_schedule(const Config& config, const ScheduleOptions& options) {
    const double loss0 =
        options.loss0.value_or(std::log(static_cast<double>(config.model.vocab_size)));
    const double kappa = warmup_kappa(config.optimizer, llama_parameters(config.model));
    const bool adaptive = config.schedule.warmup.type == WarmupType::adaptive;
    Schedule schedule(with_steps(with_measured_gap(config)), kappa);
    if (adaptive) schedule.start(loss0);
    const RateTable table = !options.losses.empty()
                                ? follow_losses(config, schedule, read_losses(options.losses))
                            : adaptive ? adaptive_curve(config, *schedule.curve(), loss0)
                                       : fixed_rates(config, schedule, loss0);

    ordered_json report = {{"kappa", kappa}};
    if (const auto curve = schedule.curve()) {
        report.update({{"loss0", loss0},
                       {"delta0", curve->delta0},
                       {"delta_star", curve->delta_star},
                       {"K0", curve->K0},
                       {"K1", curve->K1},
                       {"K2", curve->K2}});
    }
    const auto choice = exact_choice(config.schedule.warmup, kappa, schedule.curve());
    if (options.json) {
        if (choice) report.update(choice_json(*choice));
        report.update({{"update", table.updates},
                       {"loss", table.losses},
                       {"lr", table.rates},
                       {"phase", table.phases}});
        std::printf("%s\n", report.dump().c_str());
        flush_output();
        return;
    }
    for (const auto& [key, value] : report.items()) {
        std::printf("%-11s%.10g\n", key.c_str(), value.get<double>());
    }
    if (choice) print_choice(*choice);
    print_table(table, adaptive && options.losses.empty() ? "point" : "update");
    flush_output();
}

}  // namespace lmo
