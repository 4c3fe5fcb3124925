// The `bench` subcommand: its options, and its call.
#pragma once

#include <string>

#include "llmc/train/commands.h"
#include "llmc/train/options.h"

namespace lmo {

struct BenchCommand {
    ConfigOptions config;
    std::string device;
    int threads = 0;
    BenchTrainOptions train;
    BenchKernelsOptions kernels;
    BenchOptimizerOptions optimizer;
    CLI::App *kernels_command = nullptr, *optimizer_command = nullptr;
};

inline CLI::App* add_bench_train(CLI::App& group, BenchCommand& bench) {
    CLI::App* command = group.add_subcommand(
        "train", "Training steps on random tokens: speed, time by part, memory; needs no data");
    bench.config.add_to(command);
    command->add_option("--steps", bench.train.steps, "Steps to measure")
        ->check(integer_in(1, 1'000'000))
        ->capture_default_str();
    command->add_option("--warmup", bench.train.warmup, "Steps before them")
        ->check(integer_in(0, 1'000'000))
        ->capture_default_str();
    command->add_option("--device", bench.device, "auto, cpu or cuda (default: run.device)");
    command->add_option("--threads", bench.threads, "CPU threads (default: run.threads)")
        ->check(integer_in(1, 4096));
    command->add_flag("--json", bench.train.json, "JSON lines in place of the table");
    command->footer(
        "Example:\n  train_gpt bench train --config configs/run/llama-124m-adamw.json "
        "--set 'batch={\"sequences\": 2}'");
    return command;
}

inline CLI::App* add_bench_kernels(CLI::App& group, BenchKernelsOptions& options) {
    CLI::App* command = group.add_subcommand(
        "kernels", "Every operation by itself, beside the rates of a copy and of a matrix product");
    command->add_option("--config", options.config,
                        "JSON configuration with the model's shapes (default: LLaMA 124M)");
    command
        ->add_option("--tokens", options.tokens, "Rows (default: 131072 on a GPU, 2048 on a CPU)")
        ->check(integer_in(1, 1 << 24));
    command->add_option("--dtype", options.precision, "bf16 or fp32 (default: the device's choice)")
        ->check(CLI::IsMember({"bf16", "fp32"}));
    command->add_option("--only", options.only, "Only operations with this text in their name");
    command->add_option("--seconds", options.seconds, "How long all of it may take, about")
        ->check(number_in(0.1, 3600))
        ->capture_default_str();
    add_device(command, options.device, options.threads);
    command->add_flag("--json", options.json, "JSON lines in place of the table");
    command->footer(
        "Example:\n  train_gpt bench kernels --config configs/model/llama-210m.json --only "
        "rmsnorm");
    return command;
}

inline CLI::App* add_bench_optimizer(CLI::App& group, BenchOptimizerOptions& options) {
    CLI::App* command = group.add_subcommand(
        "optimizer",
        "Whole updates by every preset, and Newton-Schulz with every coefficient set: time, rates, "
        "orthogonality; with --compare beside PyTorch");
    CLI::Option* config =
        command->add_option("--config", options.config,
                            "JSON configuration with the model's shapes (default: LLaMA 124M)");
    CLI::Option* layers =
        command
            ->add_option(
                "--layers", options.layers,
                "Layers of the model that count (default: all on a GPU, at most 2 on a CPU)")
            ->check(integer_in(1, 1000));
    command
        ->add_option("--shapes", options.shapes,
                     "Matrices instead of a model: ROWSxCOLUMNS[xCOUNT],...")
        ->excludes(config)
        ->excludes(layers);
    command
        ->add_option(
            "--preset", options.presets,
            "Built-in preset or its file (default: every built-in one); may be given several "
            "times")
        ->expected(1)
        ->take_all();
    command->add_option("--only", options.only,
                        "Only measurements with this text in preset.NAME or newton_schulz.SET");
    command
        ->add_option("--master", options.master,
                     "Master weights: fp32, or split (bf16 and 16-bit remainders)")
        ->check(CLI::IsMember({"fp32", "split"}))
        ->capture_default_str();
    command
        ->add_option("--inner", options.inner,
                     "fp16, bf16 or fp32 inside of Newton-Schulz, PyTorch's too (default: the "
                     "device's choice; PyTorch fp32 on a CPU, bf16 on a GPU)")
        ->check(CLI::IsMember({"fp16", "bf16", "fp32"}));
    command->add_option("--steps", options.steps, "Updates to measure; the median counts")
        ->check(integer_in(1, 10000))
        ->capture_default_str();
    add_device(command, options.device, options.threads);
    command->add_flag("--compare", options.compare,
                      "Beside PyTorch's optimizers, in turns; runs PYTHON (default: python3)");
    command->add_option("--rounds", options.rounds, "Turns of --compare, of --steps updates each")
        ->check(integer_in(3, 1000))
        ->capture_default_str();
    command->add_flag("--json", options.json, "JSON lines in place of the table");
    command->footer(
        "Examples:\n  train_gpt bench optimizer --preset muon --preset my.json --compare\n"
        "  train_gpt bench optimizer --shapes 768x768x12,2304x768 --only newton_schulz");
    return command;
}

inline CLI::App* add_bench(CLI::App& app, BenchCommand& bench) {
    CLI::App* group = app.add_subcommand("bench", "Measure how fast this machine is");
    group->require_subcommand(1);
    add_bench_train(*group, bench);
    bench.kernels_command = add_bench_kernels(*group, bench.kernels);
    bench.optimizer_command = add_bench_optimizer(*group, bench.optimizer);
    group->footer(
        "Examples:\n  train_gpt bench train --config configs/run/quickstart.json\n"
        "  train_gpt bench kernels\n  train_gpt bench optimizer");
    return group;
}

inline void run_bench(BenchCommand& bench) {
    if (*bench.kernels_command) return run_bench_kernels(bench.kernels);
    if (*bench.optimizer_command) return run_bench_optimizer(bench.optimizer);
    if (!bench.device.empty()) {
        bench.config.overrides.push_back("run.device=\"" + bench.device + "\"");
    }
    if (bench.threads > 0) {
        bench.config.overrides.push_back("run.threads=" + std::to_string(bench.threads));
    }
    bench.train.config = bench.config.file;
    run_bench_train(load_config(bench.config.file, bench.config.overrides, ConfigUse::schedule),
                    bench.train);
}

}  // namespace lmo
