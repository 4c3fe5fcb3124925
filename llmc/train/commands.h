// The subcommands of train_gpt besides `train`: plain option structs in, text on stdout out.
#pragma once

#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/model/generate.h"
#include "llmc/train/config.h"

namespace lmo {

struct ScheduleOptions {
    std::optional<double> loss0;  // ln V if not given
    std::string losses;           // file of numbers, one loss for each update
    bool json = false;
};
void run_schedule(const Config& config, const ScheduleOptions& options);

// What a configuration will take and do: memory by part as training would take it, the largest
// micro-batch, work, traffic between ranks, time. Needs no data and no GPU.
struct PlanOptions {
    std::string device;  // empty: run.device
    int64_t ranks = 1;
    std::optional<double> memory;  // GiB; none: what is free on the device
    std::optional<double> peak;    // TFLOP/s of a rank; none: measured
    double mfu = 0.5;              // share of it that training is assumed to reach
    std::optional<double> link;    // GB/s into and out of a rank
    bool json = false;
};
void run_plan(Config config, const PlanOptions& options);

// Fits the smoothness model to the measurements in a run's metrics.jsonl.
struct SmoothnessOptions {
    std::string run, out;             // run folder; JSON file to write, may be empty
    std::optional<double> rho = 2.0;  // none: searched
    int64_t first_step = 0, last_step = std::numeric_limits<int64_t>::max();
    bool layers = false;  // L0 and L1 of every block instead
    bool json = false;
};
void run_smoothness(const SmoothnessOptions& options);
// The schedule, with delta_star "measured" read from the file that run_smoothness wrote. Throws
// UsageError when the file is not one, was fitted for another target loss, or has no peak.
ScheduleConfig with_measured_gap(const Config& config);

// Training steps of a configuration on random tokens; data, schedule and outputs are not used.
struct BenchTrainOptions {
    std::string config;  // its file, for the report
    int64_t steps = 5, warmup = 2;
    bool json = false;
};
void run_bench_train(const Config& config, const BenchTrainOptions& options);

// Every operation of the backend border by itself, on the shapes of a model.
struct BenchKernelsOptions {
    std::string config;                            // empty: LLaMA 124M
    std::string device = "auto", precision, only;  // empty: the device's own type; all
    int64_t tokens = 0;                            // 0: by the speed of the device
    int threads = 0;
    double seconds = 75;
    bool json = false;
};
void run_bench_kernels(const BenchKernelsOptions& options);

// Updates by every preset and every Newton-Schulz coefficient set, on the shapes of a model or a
// list.
struct BenchOptimizerOptions {
    std::string config, shapes;         // empty: LLaMA 124M; the model's
    std::string device = "auto", only;  // empty: all
    std::vector<std::string> presets;   // names or files; empty: all that are built in
    std::string master = "fp32";        // or "split"
    std::string inner;                  // of Newton-Schulz where no preset says; empty: auto
    int64_t layers = 0;                 // 0: all on a GPU, few on a CPU
    int steps = 3, rounds = 3, threads = 0;
    bool json = false, compare = false;
};
void run_bench_optimizer(const BenchOptimizerOptions& options);

struct EvalOptions {
    std::string checkpoint, data, tokenizer, device = "auto", precision = "auto";
    int threads = 0;
    int64_t batch = 0, length = 0;  // 0: chosen; the model's context
    bool json = false;
};
void run_eval(const EvalOptions& options);

struct GenerateOptions {
    std::string checkpoint, prompt = "\n", tokenizer, device = "auto";
    int threads = 0;
    int64_t tokens = 200;
    SamplingConfig sampling;
};
void run_generate(const GenerateOptions& options);

}  // namespace lmo
