// The command line of `train_gpt plan`.
#pragma once

#include <CLI/CLI.hpp>

#include "llmc/train/commands.h"
#include "llmc/train/options.h"

namespace lmo {

struct PlanCommand {
    ConfigOptions config;
    PlanOptions options;
};

inline CLI::App* add_plan(CLI::App& app, PlanCommand& plan) {
    CLI::App* command = app.add_subcommand(
        "plan", "Show what a configuration will take and do; needs no data and no GPU");
    PlanOptions& options = plan.options;
    plan.config.add_to(command);
    command->add_option("--device", options.device, "auto, cpu or cuda (default: run.device)");
    command->add_option("--ranks", options.ranks, "Ranks that share the batch")
        ->check(integer_in(1, 1 << 20))
        ->capture_default_str();
    command
        ->add_option("--memory", options.memory,
                     "GiB to fit a micro-batch into (default: what is free on the device)")
        ->check(number_in(1e-6, 1e9));
    command
        ->add_option("--peak", options.peak,
                     "TFLOP/s of a rank, for the time (default: log.peak_tflops, or measured)")
        ->check(number_in(1e-6, 1e9));
    command->add_option("--mfu", options.mfu, "Share of the peak that training is assumed to reach")
        ->check(number_in(1e-6, 1.0))
        ->capture_default_str();
    command
        ->add_option("--link", options.link,
                     "GB/s into and out of a rank, for what several ranks take (scaling.md)")
        ->check(number_in(1e-6, 1e9));
    command->add_flag("--json", options.json, "One JSON object");
    command->footer(
        "Example:\n  train_gpt plan --config configs/run/llama-124m-muon.json --device cuda "
        "--memory 139 --peak 790");
    return command;
}

inline void run_plan(const PlanCommand& plan) {
    run_plan(load_config(plan.config.file, plan.config.overrides, ConfigUse::schedule),
             plan.options);
}

}  // namespace lmo
