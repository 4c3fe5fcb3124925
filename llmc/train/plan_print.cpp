// What `train_gpt plan` tells people: its numbers, and what the configuration will do, in words.
#include "llmc/train/plan_print.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "llmc/core/json.h"
#include "llmc/io/console.h"
#include "llmc/io/files.h"
#include "llmc/train/plan_words.h"
#include "llmc/train/resume.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

std::string warmup_in_words(const ScheduleConfig& schedule) {
    char text[256];
    const WarmupConfig& warmup = schedule.warmup;
    switch (warmup.type) {
        case WarmupType::none:
            return "no warm-up";
        case WarmupType::rates:
            return "warm-up of " + std::to_string(warmup.rates.size()) + " listed rates";
        case WarmupType::adaptive:
            std::snprintf(
                text, sizeof text,
                "adaptive warm-up from lr/%g, by the loss above %g, at most %g %% of the run",
                warmup.div, warmup.target_loss, 100 * warmup.max_fraction);
            return text;
        case WarmupType::linear:
        case WarmupType::cosine:
            break;
    }
    std::snprintf(text, sizeof text, "%s warm-up from lr/%g in %lld updates",
                  warmup.type == WarmupType::cosine ? "half-cosine" : "linear", warmup.div,
                  static_cast<long long>(warmup.steps));
    return text;
}

void print_line(const std::string& text) { std::printf("%s\n", wrapped_message(text).c_str()); }

void print_run(const ordered_json& plan, const Config& config) {
    const long long ranks = plan["ranks"].get<long long>();
    print_line("batch      " + std::to_string(config.batch.sequences) + " sequences of " +
               std::to_string(config.model.seq_len) +
               " tokens an update: " + plan["micro_batches"].dump() +
               (plan["micro_batches"] == 1 ? " micro-batch of " : " micro-batches of ") +
               plan["micro_batch"].dump() +
               (ranks > 1 ? " on each of " + std::to_string(ranks) + " ranks" : ""));
    if (!plan.contains("tokens")) return;
    char epochs[64] = "epochs unknown (data.train is not here)";
    if (!plan["epochs"].is_null()) {
        std::snprintf(epochs, sizeof epochs, "%.2f epochs", plan["epochs"].get<double>());
    }
    print_line("run        " + plan["updates"].dump() +
               " updates: " + format_count(plan["tokens"]) + " tokens, " + epochs);
}

void print_traffic(const ordered_json& plan) {
    if (plan.contains("steps_of_each_rank")) {
        double least = plan["ownership"][0]["state_bytes"], most = 0.0;
        for (const ordered_json& rank : plan["ownership"]) {
            least = std::min(least, rank["state_bytes"].get<double>());
            most = std::max(most, rank["state_bytes"].get<double>());
        }
        const std::string from = format_bytes(least), to = format_bytes(most);
        print_line("owners     each rank takes the steps of " +
                   plan["steps_of_each_rank"].get<std::string>() + " and keeps " + from +
                   (from == to ? "" : " to " + to) + " of states");
    }
    const double sent = plan["bytes_sent_per_update"],
                 whole = plan["uncompressed_bytes_per_update"];
    char times[32] = "";
    std::snprintf(times, sizeof times, "%.3g times", whole / sent);
    print_line("traffic    " + format_bytes(sent) + " sent by a rank in an update: " +
               format_bytes(plan["up_bytes_per_update"]) + " up to the owners, " +
               format_bytes(plan["down_bytes_per_update"]) + " of weights down" +
               (sent < whole ? "; " + std::string(times) + " less than without communication " +
                                   value_text(plan["communication"])
                             : ""));
}

void print_work(const ordered_json& plan) {
    char gradients[64] = "", whole[64] = "";
    if (plan["gradients_per_update"] != 1.0) {
        std::snprintf(gradients, sizeof gradients, " (%.3g gradients)",
                      plan["gradients_per_update"].get<double>());
    }
    if (plan.contains("flops")) {
        std::snprintf(whole, sizeof whole, ", %.3g in the run", plan["flops"].get<double>());
    }
    print_line("work       " + format_count(plan["flops_per_token"]) + " FLOPs a token, " +
               format_count(plan["flops_per_update"]) + " an update" + gradients + whole);
    if (plan["ranks"] > 1) print_traffic(plan);
}

void print_time(const ordered_json& plan) {
    const ordered_json& time = plan["time"];
    if (time.is_null()) {
        return print_line("time       unknown: no such device here; give its peak, --peak TFLOPS");
    }
    const double seconds = time["seconds_per_update"];
    char update[32], share[32];
    std::snprintf(update, sizeof update, "%.3g ms", 1e3 * seconds);
    std::snprintf(share, sizeof share, "%g %%", 100 * time["mfu"].get<double>());
    print_line(
        "time       " + (seconds < 10 ? update : format_duration(seconds)) + " an update" +
        (plan.contains("tokens") ? ", " + format_duration(time["seconds"]) + " in all" : "") +
        " (estimate: " + share + " of " + format_count(time["peak_flops"]) + " FLOP/s " +
        (time["measured"].get<bool>() ? "measured here" : "given") + ")");
}

void print_scaling(const ordered_json& scaling) {
    const auto ms = [&](const char* key) {
        char text[32];
        std::snprintf(text, sizeof text, "%.3g ms", 1e3 * scaling[key].get<double>());
        return std::string(text);
    };
    const auto percent = [&](const char* key) {
        char text[32];
        std::snprintf(text, sizeof text, "%.0f %%", 1e2 * scaling[key].get<double>());
        return std::string(text);
    };
    print_line("scaling    " + ms("gradients_s") + " gradients, " + ms("up_s") + " up, " +
               ms("directions_s") + " directions, " + ms("down_s") + " down: " + ms("seconds") +
               ", efficiency " + percent("efficiency") + "; overlapped, as on GPUs: " +
               ms("overlapped_seconds") + ", " + percent("overlapped_efficiency") + " (estimate)");
}

void print_memory(const ordered_json& plan, const PlanDevice& device) {
    std::printf("memory     %s%s%s\n", format_bytes(plan["memory"]["total"]).c_str(),
                plan["ranks"] > 1 ? " on the rank that takes most" : "",
                device.stand_in ? " (no GPU here: the workspace is that of the CPU)" : "");
    const auto print_sizes = [](int indent, const std::string& name, size_t bytes) {
        std::printf("%*s%-*s%s\n", indent, "", 26 - indent, name.c_str(),
                    format_bytes(static_cast<double>(bytes)).c_str());
    };
    std::map<std::string, size_t> whole;  // "activations" of all "activations/..."
    const auto& parts = plan["memory"]["parts"].items();
    for (const auto& [part, bytes] : parts) {
        whole[part.substr(0, part.find('/'))] += bytes.get<size_t>();
    }
    for (const auto& [name, bytes] : whole) {
        print_sizes(2, name, bytes);
        for (const auto& [part, size] : parts) {
            if (part.starts_with(name + "/")) print_sizes(4, part.substr(name.size() + 1), size);
        }
        if (name != "optimizer state") continue;
        for (const auto& [state, size] : plan["optimizer_state"].items()) {
            print_sizes(4, state, size);
        }
        for (const ordered_json& group : plan["optimizer_state_by_group"]) {
            if (group["bytes"] > 0)
                print_sizes(4, "by group: " + group["match"].get<std::string>(), group["bytes"]);
        }
    }
    const ordered_json& fits = plan["fits"];
    std::printf("fits       %s: a micro-batch of up to %lld; for this batch %lld\n",
                format_bytes(fits["memory"]).c_str(), fits["largest_micro_batch"].get<long long>(),
                fits["of_this_batch"].get<long long>());
}

}  // namespace

void print_plan(const ordered_json& plan, const Config& config, const PlanDevice& device) {
    const ParameterList parameters = llama_parameters(config.model);
    print_line("device     " + device.name);
    print_line("model      " + model_line(config, parameters, device.precision));
    print_run(plan, config);
    print_line("optimizer  " + schedule_line(config));
    for (const std::string& line : optimizer_in_words(config)) print_line(line);
    print_line("schedule   " + warmup_in_words(config.schedule));
    print_memory(plan, device);
    print_work(plan);
    print_time(plan);
    if (!plan["scaling"].is_null()) print_scaling(plan["scaling"]);
    flush_output();
}

}  // namespace lmo
