// What `train_gpt bench train` measures and how it tells it.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "llmc/device/timed_backend.h"
#include "llmc/train/commands.h"

namespace lmo {

struct StepTime {
    double seconds;
    std::array<PartTime, kParts> parts;
    std::vector<TimedGemm> gemms, gemms_alone;  // distinct ones, in the same order

    const PartTime& operator[](Part part) const { return parts[static_cast<size_t>(part)]; }
    double other() const {
        double rest = seconds;
        for (const PartTime& part : parts) rest -= part.seconds;
        return rest;
    }
    double alone() const {
        double sum = 0.0;
        for (const TimedGemm& gemm : gemms_alone) sum += gemm.time.seconds;
        return sum;
    }
};

struct TrainReport {
    const Config& config;
    const BenchTrainOptions& options;
    std::string device, dtype;
    bool graphs;                       // in whole steps
    StepTime step;                     // the median one by parts
    double seconds, fastest, slowest;  // of whole steps; their median first
    // Medians of whole steps, in turns; empty where kernels are not launched so.
    std::optional<double> plain_launches, dependent_launches;
    double peak_flops;
    int64_t tokens, peak_bytes, planned_bytes;

    double tokens_per_second() const { return static_cast<double>(tokens) / seconds; }
    double model_flops() const { return tokens_per_second() * flops_per_token(config.model); }
    double mfu() const { return model_flops() / peak_flops; }
    double gemm_flops() const;
    double gemm_ratio() const { return step[Part::gemm].seconds / step.alone(); }
    std::string shape() const {
        return std::to_string(config.batch.sequences) + "x" + std::to_string(config.model.seq_len);
    }
    // What the step by parts took, of what a whole one takes.
    double phases_share() const { return step.seconds / seconds; }
    nlohmann::ordered_json preset() const { return config.resolved["optimizer"]["preset"]; }
};

void print_json(const TrainReport& report);   // a line a part, the whole last
void print_table(const TrainReport& report);  // for people

}  // namespace lmo
