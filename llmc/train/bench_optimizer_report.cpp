#include "llmc/train/bench_optimizer_report.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "llmc/core/text.h"
#include "llmc/io/files.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

double per_second(double amount, const Timing& timing) { return amount / timing.seconds; }

// In as many of `digits` as fit into `width`: the times of tiny matrices are tiny.
std::string fitted(double value, int width, int digits) {
    char text[32];
    do {
        std::snprintf(text, sizeof text, "%*.*g", width, digits, value);
    } while (std::strlen(text) > static_cast<size_t>(width) && --digits > 0);
    return text;
}

void add_times(ordered_json& line, const Timing& timing) {
    line["ms"] = timing.seconds * 1e3;
    line["ms_min"] = timing.fastest * 1e3;
    line["ms_max"] = timing.slowest * 1e3;
}

void add_flops(ordered_json& line, double plain, double executed, const Timing& timing) {
    line["flops"] = plain;
    line["flops_executed"] = executed;
    line["tflops"] = per_second(plain, timing) * 1e-12;
    line["tflops_executed"] = per_second(executed, timing) * 1e-12;
}

}  // namespace

void OptimizerReport::print(ordered_json line) const {
    if (!json_) return;
    line["device"] = device_;
    std::printf("%s\n", line.dump().c_str());
    flush_output();
}

void OptimizerReport::add(const std::string& what, const Ceiling& ceiling, DType dtype) {
    ordered_json line{{"what", what}, {"shape", ceiling.shape}, {"dtype", to_string(dtype)}};
    add_times(line, ceiling.timing);
    const bool copy = ceiling.bytes > 0;
    line[copy ? "bytes" : "flops"] = copy ? ceiling.bytes : ceiling.flops;
    line[copy ? "gbs" : "tflops"] = ceiling.rate() * (copy ? 1e-9 : 1e-12);
    line["ceiling_share"] = 1.0;
    print(std::move(line));
    char text[80];
    std::snprintf(text, sizeof text, copy ? "copy %.4g GB/s" : ", matrix product %.3g TFLOP/s",
                  ceiling.rate() * (copy ? 1e-9 : 1e-12));
    ceilings_ += text;
}

void OptimizerReport::add(const PresetRow& row, const std::string& shape) {
    ordered_json line{{"what", "preset." + row.preset},
                      {"shape", shape},
                      {"dtype", "fp32"},
                      {"master", row.master}};
    if (row.error.empty()) {
        add_times(line, row.update);
        line["norm_ms"] = row.norm.seconds * 1e3;
        line["bytes"] = row.bytes;
        line["gbs"] = per_second(row.bytes, row.update) * 1e-9;
        line["state_bytes_per_parameter"] = row.state;
        add_flops(line, row.flops.plain, row.flops.executed, row.update);
        line["copy_share"] = row.copy_share;
        line["gemm_share"] = row.gemm_share;
        line["ceiling_share"] = std::max(row.copy_share, row.gemm_share);
    } else {
        line["error"] = row.error;
    }
    print(std::move(line));
    presets_.push_back(row);
}

void OptimizerReport::add(const SetRow& row, DType inner) {
    ordered_json line{{"what", "newton_schulz." + row.set},
                      {"shape", row.shape},
                      {"dtype", to_string(inner)},
                      {"form", row.form == NewtonSchulzForm::gram ? "gram" : "standard"},
                      {"steps", kSetSteps}};
    if (row.error.empty()) {
        add_times(line, row.time.timing);
        add_flops(line, row.time.flops, row.time.executed, row.time.timing);
        line["ceiling_share"] = row.share;
        line["input"] = "normal";  // elements of the matrices
        if (row.time.largest >= 0) {
            line["orthogonality_max"] = row.time.largest;
            line["orthogonality_rms"] = row.time.rms;
        }
    } else {
        line["error"] = row.error;
    }
    print(std::move(line));
    sets_.push_back(row);
}

void OptimizerReport::add(const PeerRow& row, const std::string& shape, const std::string& torch) {
    const Timing theirs = timing_of(row.theirs), ratio = timing_of(row.ratios);
    ordered_json line{{"what", "compare." + row.peer},
                      {"shape", shape},
                      {"preset", row.preset},
                      {"torch", torch}};
    add_times(line, theirs);
    line["ours_ms"] = timing_of(row.ours).seconds * 1e3;
    line["ratio"] = ratio.seconds;
    line["ratios"] = row.ratios;
    print(std::move(line));
    peers_.push_back(row);
}

void OptimizerReport::print_tables(const std::string& what, const std::string& torch) const {
    if (json_) return;
    std::printf("%s\n%s; %s\n", device_.c_str(), what.c_str(), ceilings_.c_str());
    print_presets();
    print_sets();
    print_peers(torch);
}

void OptimizerReport::print_presets() const {
    if (presets_.empty()) return;
    std::printf("\n%-19s %8s %7s %5s %7s %7s %7s %6s %6s\n%-19s %8s %7s %5s %7s %7s %7s %6s %6s\n",
                "preset", "ms", "norm ms", "state", "GFLOP", "TFLOP/s", "done", "copy", "matmul",
                "", "", "", "B/par", "", "", "TFLOP/s", "share", "share");
    for (const PresetRow& row : presets_) {
        const std::string name = printable(row.preset);
        if (!row.error.empty()) {
            std::printf("%-19s failed: %s\n", name.c_str(), printable(row.error).c_str());
            continue;
        }
        std::printf("%-19s %s %s %5.3g %s %7.2g %7.2g %4.0f %% %4.0f %%\n", name.c_str(),
                    fitted(row.update.seconds * 1e3, 8, 4).c_str(),
                    fitted(row.norm.seconds * 1e3, 7, 3).c_str(), row.state,
                    fitted(row.flops.plain * 1e-9, 7, 3).c_str(),
                    per_second(row.flops.plain, row.update) * 1e-12,
                    per_second(row.flops.executed, row.update) * 1e-12, 100 * row.copy_share,
                    100 * row.gemm_share);
    }
}

void OptimizerReport::print_sets() const {
    if (sets_.empty()) return;
    std::printf("\nNewton-Schulz, %d steps, on normally distributed elements\n", kSetSteps);
    std::printf("%-14s %-15s %8s %8s %8s %6s %7s %7s\n%-14s %-15s %8s %8s %8s %6s %7s %7s\n",
                "coefficients", "shape", "ms", "TFLOP/s", "done", "matmul", "max", "rms", "", "",
                "", "", "TFLOP/s", "share", "|s-1|", "s-1");
    for (const SetRow& row : sets_) {
        const bool gram = row.form == NewtonSchulzForm::gram;
        std::printf("%-14s %-15s ", gram ? "  gram form" : row.set.c_str(), row.shape.c_str());
        if (!row.error.empty()) {
            std::printf("failed: %s\n", printable(row.error).c_str());
            continue;
        }
        const NewtonSchulzTime& time = row.time;
        std::printf("%s %8.3g %8.3g %4.0f %%", fitted(time.timing.seconds * 1e3, 8, 4).c_str(),
                    per_second(time.flops, time.timing) * 1e-12,
                    per_second(time.executed, time.timing) * 1e-12, 100 * row.share);
        if (time.largest >= 0) std::printf(" %7.2g %7.2g", time.largest, time.rms);
        std::printf("\n");
    }
}

void OptimizerReport::print_peers(const std::string& torch) const {
    if (peers_.empty()) return;
    std::printf("\n%-28s %-10s %9s %9s  %s\n", ("PyTorch " + torch).c_str(), "preset", "theirs ms",
                "ours ms", "theirs / ours");
    for (const PeerRow& row : peers_) {
        const Timing ratio = timing_of(row.ratios);
        std::printf("%-28s %-10s %9.4g %9.4g  %.2f (%.2f to %.2f)\n", row.peer.c_str(),
                    row.preset.c_str(), timing_of(row.theirs).seconds * 1e3,
                    timing_of(row.ours).seconds * 1e3, ratio.seconds, ratio.fastest, ratio.slowest);
    }
}

int OptimizerReport::failed() const {
    const auto has_error = [](const auto& row) { return !row.error.empty(); };
    return static_cast<int>(std::count_if(presets_.begin(), presets_.end(), has_error) +
                            std::count_if(sets_.begin(), sets_.end(), has_error));
}

}  // namespace lmo
