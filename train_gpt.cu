// train_gpt: pretrains LLaMA-type language models with norm-constrained optimizers.
//
// This file is the command line and nothing else: options in, one call into llmc/train, one exit
// status out (0 finished, 1 runtime error, 2 usage or configuration error, 3 stopped by a signal
// with a checkpoint written). It holds no CUDA syntax; kernels live behind llmc/device/backend.h.

#include <fcntl.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <optional>
#include <string>

// defines: CLI::App
#include <CLI/CLI.hpp>
// defines: Error, UsageError, ExitStatus
#include "llmc/core/error.h"
// defines: start_local_ranks
#include "llmc/dist/local_ranks.h"
// defines: Ranks
#include "llmc/dist/ranks.h"
// defines: printable
#include "llmc/core/text.h"
// defines: BenchCommand, add_bench, run_bench
#include "llmc/train/bench_options.h"
// defines: run_schedule, run_smoothness, run_eval, run_generate and their options
#include "llmc/train/commands.h"
// defines: Config, load_config
#include "llmc/train/config.h"
// defines: ConfigOptions, HelpFormatter, add_device, integer_in, is_unknown_command, number_in
#include "llmc/train/options.h"
// defines: PlanCommand, add_plan, run_plan
#include "llmc/train/plan_options.h"
// defines: explain_bus_errors
#include "llmc/train/signals.h"
// defines: train
#include "llmc/train/trainer.h"

namespace {

using namespace lmo;

// A closed stdin, stdout or stderr would lend its number to the next file that is opened, and
// messages would be written into that file.
void open_standard_streams() {
    int number;
    do {
        number = open("/dev/null", O_RDONLY);  // writing fails
    } while (number >= 0 && number <= STDERR_FILENO);
    if (number >= 0) close(number);
}

struct TrainOptions {
    ConfigOptions config;
    std::string resume = "auto", device;
    int gpus = 0;
};

CLI::App* add_train(CLI::App& app, TrainOptions& options) {
    CLI::App* command = app.add_subcommand("train", "Train a model, or continue training it");
    options.config.add_to(command);
    command
        ->add_option("--resume", options.resume,
                     "auto: continue if the run folder has a checkpoint; never: refuse a used "
                     "run folder; or a checkpoint or run folder")
        ->capture_default_str();
    command->add_option("--device", options.device, "auto, cpu or cuda (default: run.device)");
    command
        ->add_option("--gpus", options.gpus,
                     "Number of ranks to start on this machine, each on a GPU of its own or, with "
                     "--device cpu, on a share of the cores")
        ->check(integer_in(1, 64));
    command->footer(
        "Examples:\n  train_gpt train --config configs/run/quickstart.json "
        "--set optimizer.lr=0.01 --set run.name=second\n"
        "  train_gpt train --config configs/run/llama-124m-muon.json --gpus 8\n"
        "  train_gpt train --config configs/run/quickstart.json --device cpu --gpus 2\n"
        "Several ranks share every batch; mpirun, srun and torchrun start them too "
        "(dev/docs/ranks.md).");
    return command;
}

// This process as the rank that its launcher made it. Of several ranks one shows an error.
ExitStatus run_rank(const TrainOptions& options) {
    const Place place = find_place();
    std::optional<Ranks> ranks;
    try {
        ranks.emplace(place);
    } catch (const RanksFailed& failed) {
        if (failed.printer == place.rank) std::fprintf(stderr, "train_gpt: %s\n", failed.what());
        return failed.status();
    }
    try {
        try {
            return train(
                load_config(options.config.file, options.config.overrides, ConfigUse::train),
                options.resume, *ranks);
        } catch (const std::bad_alloc&) {
            throw Error("out of host memory; use a smaller model or batch");
        }
    } catch (const Error& error) {
        std::string text;
        if (ranks->fails(error, text)) std::fprintf(stderr, "train_gpt: %s\n", text.c_str());
        return error.status();
    }
}

ExitStatus run_train(TrainOptions& options) {
    if (options.gpus >= 1 && options.device.empty()) options.device = "cuda";
    if (!options.device.empty()) {
        options.config.overrides.push_back("run.device=\"" + options.device + "\"");
    }
    if (options.gpus > 1) {
        const Place place = find_place();
        if (place.size > 1) {
            throw UsageError("--gpus " + std::to_string(options.gpus) + ": " + place.launcher +
                             " has started this as one of " + std::to_string(place.size) +
                             " ranks already; leave --gpus out");
        }
        if (const auto status = start_local_ranks(options.gpus)) return *status;
    }
    return run_rank(options);
}

struct ScheduleCommand {
    ConfigOptions config;
    ScheduleOptions options;
};

CLI::App* add_schedule(CLI::App& app, ScheduleCommand& schedule) {
    CLI::App* command = app.add_subcommand(
        "schedule", "Show the learning rates of a configuration; needs no device and no data");
    schedule.config.add_to(command);
    command->add_option(
        "--loss0", schedule.options.loss0,
        "First loss of an adaptive warm-up (default: ln of the vocabulary size, also "
        "with --losses; a training run takes its own first loss)");
    command->add_option("--losses", schedule.options.losses,
                        "File of losses, one for each update: print the rate of each");
    command->add_flag("--json", schedule.options.json, "One JSON object");
    command->footer(
        "Example:\n  train_gpt schedule --config configs/run/quickstart.json --loss0 5.6");
    return command;
}

struct SmoothnessCommand {
    SmoothnessOptions options;
    std::string rho = "2";
};

CLI::App* add_smoothness(CLI::App& app, SmoothnessCommand& smoothness) {
    SmoothnessOptions& options = smoothness.options;
    CLI::App* command = app.add_subcommand(
        "smoothness",
        "Fit K(delta) = K0 + K1 delta + K_rho delta^rho to the measurements of a run");
    command->add_option("--run", options.run, "Run folder, trained with smoothness.every")
        ->required();
    command->add_option("--rho", smoothness.rho, "Exponent above 1, or search")
        ->check(number_in(1.001, 1000) | CLI::IsMember({"search"}))
        ->capture_default_str();
    command->add_option("--first", options.first_step, "First update of the window (default: all)")
        ->check(integer_in(0, int64_t{1} << 40));
    command->add_option("--last", options.last_step, "Last update of the window (default: all)")
        ->check(integer_in(0, int64_t{1} << 40));
    command->add_option("--out", options.out,
                        "JSON file to write: for schedule.warmup.fit, and for plots");
    command->add_flag("--layers", options.layers, "Fit L0 and L1 of every block (for step.fit)");
    command->add_flag("--json", options.json, "One JSON object");
    command->footer("Example:\n  train_gpt smoothness --run runs/measured --out fit.json");
    return command;
}

void run_smoothness(SmoothnessCommand& smoothness) {
    smoothness.options.rho = std::nullopt;
    if (smoothness.rho != "search") smoothness.options.rho = std::stod(smoothness.rho);
    lmo::run_smoothness(smoothness.options);
}

CLI::App* add_eval(CLI::App& app, EvalOptions& options) {
    CLI::App* command =
        app.add_subcommand("eval", "Loss of a model on a file of tokens, or its multiple choice");
    command
        ->add_option("--checkpoint", options.checkpoint,
                     "Checkpoint, or any LLaMA folder in Hugging Face's layout")
        ->required();
    command->add_option("--data", options.data, "Token file, or questions as HellaSwag's .jsonl")
        ->required();
    command->add_option("--tokenizer", options.tokenizer, "Of questions (default: the model's)");
    command->add_option("--seq-len", options.length, "Window (default: the model's context)")
        ->check(integer_in(1, 1 << 20));
    command->add_option("--batch", options.batch, "Windows at a time (default: about 4096 tokens)")
        ->check(integer_in(1, 1 << 20));
    command->add_option("--precision", options.precision, "auto, fp32, bf16 or fp64")
        ->capture_default_str();
    add_device(command, options.device, options.threads);
    command->add_flag("--json", options.json, "Print the result line only");
    command->footer(
        "Example:\n  train_gpt eval --checkpoint runs/quickstart/checkpoints/step_00000600 "
        "--data data/austen/val.bin");
    return command;
}

CLI::App* add_generate(CLI::App& app, GenerateOptions& options) {
    CLI::App* command = app.add_subcommand("generate", "Continue a text");
    command
        ->add_option("--checkpoint", options.checkpoint,
                     "Checkpoint, or any LLaMA folder in Hugging Face's layout")
        ->required();
    command->add_option("--prompt", options.prompt, "Text to continue (default: a new line)");
    command->add_option("--tokens", options.tokens, "How many tokens to add")
        ->check(integer_in(1, 1'000'000'000))
        ->capture_default_str();
    command->add_option("--temperature", options.sampling.temperature, "0: the most likely token")
        ->check(number_in(0.0, 1e300))
        ->capture_default_str();
    command->add_option("--top-k", options.sampling.top_k, "Only the K most likely; 0: all")
        ->check(integer_in(0, 1 << 30))
        ->capture_default_str();
    command->add_option("--top-p", options.sampling.top_p, "Only the likeliest mass P")
        ->check(number_in(1e-9, 1.0))
        ->capture_default_str();
    command->add_option("--seed", options.sampling.seed, "Equal seeds give equal texts")
        ->check(integer_in(0, INT64_MAX))
        ->capture_default_str();
    command->add_option("--tokenizer", options.tokenizer, "bytes, gpt2, a file (default: its own)");
    add_device(command, options.device, options.threads);
    command->footer(
        "Example:\n  train_gpt generate --checkpoint "
        "runs/quickstart/checkpoints/step_00000600 --prompt \"It was \" --tokens 300");
    return command;
}

// Threads of the OpenMP pool that wait spin for milliseconds by default; when anything else runs on
// the machine, they then take the cores from those they wait for, and an update gets a thousand
// times slower. A short spin loses nothing. The runtime reads its environment when it is loaded, so
// the program starts itself once more with the setting in place. (Not where threads are to be bound
// to cores: the runtime has done that to this one already, and the new start would inherit it.)
void limit_thread_spinning(char** argv) {
    for (const char* own : {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES",
                            "GOMP_CPU_AFFINITY"}) {
        if (std::getenv(own)) return;  // the user's own choice
    }
    setenv("GOMP_SPINCOUNT", "2000", 1);
    execv("/proc/self/exe", argv);  // where that fails the default has to do
}

int status(ExitStatus value) { return static_cast<int>(value); }

}  // namespace

int main(int argc, char** argv) {
    open_standard_streams();
    limit_thread_spinning(argv);
    explain_bus_errors();
    std::signal(SIGXFSZ, SIG_IGN);  // a file-size limit is a failed write, not a death
    std::signal(SIGPIPE, SIG_IGN);
    CLI::App app(
        "train_gpt: pretrains LLaMA-type language models with norm-constrained optimizers");
    app.require_subcommand(1);
    app.formatter(std::make_shared<HelpFormatter>());
    TrainOptions train_options;
    PlanCommand plan;
    ScheduleCommand schedule;
    SmoothnessCommand smoothness;
    BenchCommand bench;
    EvalOptions eval;
    GenerateOptions generate;
    CLI::App* train_command = add_train(app, train_options);
    CLI::App* plan_command = add_plan(app, plan);
    CLI::App* schedule_command = add_schedule(app, schedule);
    CLI::App* smoothness_command = add_smoothness(app, smoothness);
    CLI::App* bench_command = add_bench(app, bench);
    CLI::App* eval_command = add_eval(app, eval);
    CLI::App* generate_command = add_generate(app, generate);
    try {
        app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
        if (is_unknown_command(app, argc, argv)) return status(ExitStatus::usage_error);
        // --help is a ParseError too, with exit code 0.
        return app.exit(error) == 0 ? 0 : status(ExitStatus::usage_error);
    }
    try {
        if (*train_command) return status(run_train(train_options));
        if (*plan_command) run_plan(plan);
        if (*schedule_command) {
            run_schedule(
                load_config(schedule.config.file, schedule.config.overrides, ConfigUse::schedule),
                schedule.options);
        }
        if (*smoothness_command) ::run_smoothness(smoothness);
        if (*bench_command) run_bench(bench);
        if (*eval_command) run_eval(eval);
        if (*generate_command) run_generate(generate);
        return status(ExitStatus::finished);
    } catch (const Error& error) {
        std::fprintf(stderr, "train_gpt: %s\n", error.what());
        return status(error.status());
    } catch (const std::bad_alloc&) {
        std::fprintf(stderr, "train_gpt: out of host memory; use a smaller model or batch\n");
        return status(ExitStatus::runtime_error);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "train_gpt: %s\n", printable(error.what()).c_str());
        return status(ExitStatus::runtime_error);
    }
}
