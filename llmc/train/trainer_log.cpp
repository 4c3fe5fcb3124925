// What Trainer tells of its updates: lines of metrics, and the console.
#include <algorithm>
#include <cstdio>

#include "llmc/io/files.h"
#include "llmc/train/trainer.h"

namespace lmo {

using nlohmann::ordered_json;

void Trainer::log_update(const Update& update) {
    const int64_t index = step_ - 1;
    if (update.first) log_schedule();
    if (!schedule_.message().empty()) console_.message(schedule_.message());

    const double length = static_cast<double>(config_.model.seq_len);
    const double tokens_per_second =
        static_cast<double>(samples_of(index)) * length / update.seconds;
    const double mfu = static_cast<double>(computed_) * length / update.seconds *
                       flops_per_token(config_.model) / peak_flops_;
    if (logged(index)) {
        ordered_json line = {{"type", "train"},
                             {"step", index},
                             {"tokens", samples_ * config_.model.seq_len},
                             {"loss", update.loss},
                             {"lr", update.rate.rate}};
        if (update.rate.delta) line["delta"] = *update.rate.delta;
        line["phase"] = to_string(update.rate.phase);
        line["grad_norm"] = update.gradient_norm;
        line["tokens_per_s"] = tokens_per_second;
        line["mfu"] = mfu;
        line["step_ms"] = update.seconds * 1e3;
        add_traffic(line);
        record(line);
        if (update_norms_) record(update_norms_->line(index));
    }
    if (update.spike) log_spike(*update.spike, update.loss);
    ProgressLine progress;
    progress.step = step_;
    progress.steps = config_.run.steps;
    progress.loss = update.loss;
    progress.rate = update.rate.rate;
    progress.gradient_norm = update.gradient_norm;
    progress.tokens_per_second = tokens_per_second;
    progress.mfu = mfu;
    progress.phase = to_string(update.rate.phase);
    progress.seconds_left = training_seconds_ / static_cast<double>(updates_here_) *
                            static_cast<double>(config_.run.steps - step_);
    console_.progress(progress, updates_here_ == 1 || step_ == config_.run.steps);
}

void Trainer::log_spike(const Spike& spike, double loss) {
    ordered_json line = {{"type", "spike"}, {"step", step_ - 1}, {"loss", loss}};
    line["expected"] = spike.expected;
    const std::string tensor = spike.tensor < 0 ? "" : parameters_[spike.tensor].name;
    line["tensor"] = tensor.empty() ? ordered_json() : ordered_json(tensor);
    line["ratio"] = spike.ratio;
    record(line);
    char text[128];
    std::snprintf(text, sizeof text, "update %lld: loss %.4f is a spike, %.4f was expected",
                  static_cast<long long>(step_ - 1), loss, spike.expected);
    std::string grew;
    if (!tensor.empty()) {
        char ratio[64];
        std::snprintf(ratio, sizeof ratio, " (%.3g times its mean)", spike.ratio);
        grew = "; the gradient that grew most is that of " + tensor + ratio;
    }
    console_.warning(text + grew);
}

// The step tells a resumed run whether the line is one of those that it will write again.
void Trainer::log_schedule() {
    ordered_json line = {{"type", "schedule"}, {"step", step_ - 1}};
    line["kappa"] = warmup_kappa(config_.optimizer, parameters_);
    if (const auto curve = schedule_.curve()) {
        line["delta0"] = curve->delta0;
        line["delta_star"] = curve->delta_star;
        line["K0"] = curve->K0;
        line["K1"] = curve->K1;
        line["K2"] = curve->K2;
    } else {
        for (const char* key : {"delta0", "delta_star", "K0", "K1", "K2"}) line[key] = nullptr;
    }
    record(line);
}

void Trainer::log_summary() {
    const double tokens =
        static_cast<double>(samples_here_) * static_cast<double>(config_.model.seq_len);
    double sent = static_cast<double>(collectives_.bytes_sent());  // of this process, like the updates
    ranks_.sum(&sent, 1, "bytes sent");
    const std::vector<size_t> memory = ranks_.gather(arena_.total(), "memory");
    record({{"type", "summary"},
            {"steps", step_},
            {"val_loss", validation_loss_},
            {"tokens_per_s", tokens / training_seconds_},
            {"seconds", training_seconds_},
            {"memory_bytes", *std::max_element(memory.begin(), memory.end())},
            {"parameters", parameters_.count()},
            {"ranks", ranks_.size()},
            {"sent_bytes", static_cast<int64_t>(sent)}});
    char text[160];
    std::snprintf(text, sizeof text, "finished: validation loss %.4f, %s at %s tokens/s",
                  validation_loss_, format_duration(training_seconds_).c_str(),
                  format_count(tokens / training_seconds_).c_str());
    summary_ = text;
}

}  // namespace lmo
