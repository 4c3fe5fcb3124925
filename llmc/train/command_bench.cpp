// train_gpt bench train: how long an update takes on this machine, and where the time goes.
//
// The same objects as in a training run compute on random tokens, through a TimedBackend. After
// every step its GEMM calls are repeated back to back, on the same tensors and with nothing between
// them: what the backend's matrix products need when they have the machine to themselves
// ("gemm_library"). They write only what the next step overwrites.
//
// The step reported is the median one, so its parts add up to its time; "other" is the work of the
// host between operations.
#include <omp.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <fstream>

#include "llmc/core/random.h"
#include "llmc/device/timed_backend.h"
#include "llmc/io/console.h"
#include "llmc/io/files.h"
#include "llmc/optim/optimizer.h"
#include "llmc/train/commands.h"
#include "llmc/train/device.h"
#include "llmc/train/measure.h"
#include "llmc/train/validation.h"
#include "llmc/train/weights.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

// ---- one update ---------------------------------------------------------------------------------

// What Trainer computes in an update, on random tokens and at a constant rate.
class RandomTraining {
  public:
    RandomTraining(const Config& config, Backend& backend, const ModelPrecision& precision)
        : config_(config),
          backend_(backend),
          arena_(backend),
          parameters_(llama_parameters(config.model)),
          batch_(arena_, config.batch.micro_batch, config.model.seq_len),
          model_(backend, arena_, config.model, parameters_, precision, config.batch.micro_batch,
                 true),
          weights_(backend, arena_, parameters_, precision, true),
          gradients_{&parameters_,
                     arena_.take("gradients", precision.master, {parameters_.buffer_length()})},
          optimizer_(backend, arena_, config.optimizer, parameters_, precision.master) {
        arena_.workspace();  // fixed before anything is captured
        micro_steps_.resize(static_cast<size_t>(config.model.n_layer) + 1);
        optimizer_.bind_gradients(gradients_);
        if (optimizer_.repeats()) update_ = backend.capture([this] { step(); });
        weights_.initialise(config.run.seed);
        optimizer_.initialise(weights_.master());
    }

    int64_t tokens() const { return config_.batch.sequences * config_.model.seq_len; }
    size_t planned_bytes() const { return arena_.total(); }

    // New tokens on the host for the update that follows. The last is the target of the one before.
    void prepare() {
        ids_.resize(static_cast<size_t>(tokens()) + 1);
        for (size_t i = 0; i < ids_.size(); ++i) {
            const uint64_t bits =
                random_bits(config_.data.seed, static_cast<uint64_t>(updates_), i);
            ids_[i] = static_cast<int32_t>(bits % static_cast<uint64_t>(config_.model.vocab_size));
        }
    }

    void update() {
        optimizer_.clear(gradients_);
        backend_.zero(batch_.loss);
        if (config_.model.head_maxima) backend_.zero(model_.head_maxima());
        Graph& micro_step = recorded_micro_step(optimizer_.lowest_layer(updates_));
        for (int64_t done = 0; done < tokens(); done += batch_.tokens.count()) {
            backend_.copy_in(batch_.tokens, ids_.data() + done);
            backend_.copy_in(batch_.targets, ids_.data() + done + 1);
            micro_step.launch();
        }
        double loss = 0.0;
        backend_.copy_out(&loss, batch_.loss);
        const double norm = optimizer_.gradient_norm(gradients_);
        if (!std::isfinite(loss) || !std::isfinite(norm)) {
            throw Error("update " + std::to_string(updates_) +
                        ": the loss or its gradient is not finite, which may change the speed; "
                        "try a smaller optimizer.lr");
        }
        optimizer_.set_scalars(config_.schedule.lr, updates_);
        update_ ? update_->launch() : step();
        backend_.synchronize();
        ++updates_;
    }

  private:
    Graph& recorded_micro_step(int64_t lowest) {
        std::unique_ptr<Graph>& graph = micro_steps_[static_cast<size_t>(lowest)];
        if (!graph) {
            graph = backend_.capture([this, lowest] {
                model_.forward_backward(weights_.compute(), gradients_, batch_.tokens,
                                        batch_.targets, 1.0 / static_cast<double>(tokens()),
                                        batch_.loss, lowest);
            });
        }
        return *graph;
    }

    void step() {
        optimizer_.step(weights_.master(), weights_.copies(), gradients_);
        if (config_.optimizer.qk_clip == 0.0) return;
        model_.clip_heads(weights_.master(), weights_.copies(), config_.optimizer.qk_clip);
    }

    const Config& config_;
    Backend& backend_;
    Arena arena_;
    ParameterList parameters_;
    BatchTensors batch_;
    Llama model_;
    Weights weights_;
    ParameterBuffer gradients_;
    Optimizer optimizer_;
    std::vector<std::unique_ptr<Graph>> micro_steps_;  // by the lowest layer of their gradients
    std::unique_ptr<Graph> update_;
    std::vector<int32_t> ids_;
    int64_t updates_ = 0;
};

// ---- measurement --------------------------------------------------------------------------------

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

StepTime measure_step(RandomTraining& training, Backend& plain, TimedBackend& timed) {
    training.prepare();
    timed.restart();
    const Timer timer;
    training.update();
    StepTime step{timer.seconds(), {}, timed.distinct_gemms(), {}};
    for (int i = 0; i < kParts; ++i) step.parts[i] = timed.time(static_cast<Part>(i));
    TimedBackend alone(plain);
    for (const TimedGemm& call : timed.gemms()) alone.gemm(call.gemm);
    step.gemms_alone = alone.distinct_gemms();
    return step;
}

// The most memory that this process ever held; 0 where the system does not say.
int64_t peak_memory() {
    std::ifstream status("/proc/self/status");
    std::string key, rest;
    while (status >> key) {
        int64_t kibibytes = 0;
        if (key == "VmHWM:" && status >> kibibytes) return 1024 * kibibytes;
        std::getline(status, rest);
    }
    return 0;
}

double flops(const Gemm& gemm) {
    const Shape &a = gemm.a.shape, &c = gemm.c.shape;
    const int64_t k = a[a.rank() - (gemm.transpose_a ? 2 : 1)];
    return 2.0 * static_cast<double>(c.count()) * static_cast<double>(k);
}

double flops(const std::vector<TimedGemm>& gemms) {
    double sum = 0.0;
    for (const TimedGemm& g : gemms) sum += flops(g.gemm) * static_cast<double>(g.time.calls);
    return sum;
}

// "256x768x2304 nt": C is 256 x 768, summed over 2304; B is transposed.
std::string describe(const Gemm& gemm) {
    const Shape &a = gemm.a.shape, &c = gemm.c.shape;
    std::string text;
    for (int axis = 0; axis < c.rank(); ++axis) text += std::to_string(c[axis]) + "x";
    return text + std::to_string(a[a.rank() - (gemm.transpose_a ? 2 : 1)]) + " " +
           (gemm.transpose_a ? "t" : "n") + (gemm.transpose_b ? "t" : "n");
}

// ---- report -------------------------------------------------------------------------------------

struct Report {
    const Config& config;
    const BenchTrainOptions& options;
    std::string device, dtype;
    StepTime step;  // the median one
    double fastest, peak_flops;
    int64_t tokens, peak_bytes, planned_bytes;

    double tokens_per_second() const { return static_cast<double>(tokens) / step.seconds; }
    double model_flops() const { return tokens_per_second() * flops_per_token(config.model); }
    double mfu() const { return model_flops() / peak_flops; }
    double gemm_flops() const { return flops(step.gemms) / step[Part::gemm].seconds; }
    double gemm_ratio() const { return step[Part::gemm].seconds / step.alone(); }
    std::string shape() const {
        return std::to_string(config.batch.sequences) + "x" + std::to_string(config.model.seq_len);
    }
    ordered_json preset() const { return config.resolved["optimizer"]["preset"]; }
};

void print_line(const ordered_json& line) { std::printf("%s\n", line.dump().c_str()); }

void print_part(const Report& r, const std::string& name, double seconds, int64_t calls,
                const ordered_json& more = ordered_json::object()) {
    ordered_json line = {{"what", "train." + name},
                         {"shape", r.shape()},
                         {"dtype", r.dtype},
                         {"ms", seconds * 1e3},
                         {"share", seconds / r.step.seconds},
                         {"calls", calls}};
    line.update(more);
    line["device"] = r.device;
    print_line(line);
}

void print_gemm(const Report& r, const TimedGemm& in_step, const TimedGemm& alone) {
    const double rate =
        flops(in_step.gemm) * static_cast<double>(in_step.time.calls) / in_step.time.seconds;
    print_line({{"what", "train.gemm.shape"},
                {"shape", describe(in_step.gemm)},
                {"dtype", to_string(in_step.gemm.a.dtype)},
                {"dtype_out", to_string(in_step.gemm.c.dtype)},
                {"beta", in_step.gemm.beta},
                {"calls", in_step.time.calls},
                {"ms", in_step.time.seconds * 1e3},
                {"library_ms", alone.time.seconds * 1e3},
                {"tflops", rate * 1e-12},
                {"ceiling_share", rate / r.peak_flops},
                {"device", r.device}});
}

ordered_json whole(const Report& r) {
    const auto ms = [&](Part part) { return r.step[part].seconds * 1e3; };
    const int threads = r.config.run.threads;
    return {{"what", "train"},
            {"config", r.options.config},
            {"preset", r.preset()},
            {"sequences", r.config.batch.sequences},
            {"seq_len", r.config.model.seq_len},
            {"dtype", r.dtype},
            {"threads", threads > 0 ? threads : omp_get_num_procs()},
            {"tokens_per_s", r.tokens_per_second()},
            {"ms", r.step.seconds * 1e3},
            {"ms_min", r.fastest * 1e3},
            {"gemm_ms", ms(Part::gemm)},
            {"gemm_library_ms", r.step.alone() * 1e3},
            {"attention_ms", ms(Part::attention)},
            {"classifier_ms", ms(Part::classifier)},
            {"elementwise_ms", ms(Part::elementwise)},
            {"optimizer_ms", ms(Part::optimizer)},
            {"data_ms", ms(Part::data)},
            {"other_ms", r.step.other() * 1e3},
            {"tflops", r.model_flops() * 1e-12},
            {"peak_tflops", r.peak_flops * 1e-12},
            {"mfu", r.mfu()},
            {"peak_memory_bytes", r.peak_bytes > 0 ? ordered_json(r.peak_bytes) : nullptr},
            {"planned_bytes", r.planned_bytes},
            {"device", r.device}};
}

void print_json(const Report& r) {
    for (int i = 0; i < kParts; ++i) {
        const Part part = static_cast<Part>(i);
        ordered_json more = ordered_json::object();
        if (part == Part::gemm) {
            more = {{"tflops", r.gemm_flops() * 1e-12},
                    {"ceiling_share", r.gemm_flops() / r.peak_flops}};
        }
        print_part(r, to_string(part), r.step[part].seconds, r.step[part].calls, more);
    }
    print_part(r, "other", r.step.other(), 0);
    print_part(r, "gemm_library", r.step.alone(), r.step[Part::gemm].calls,
               {{"ratio", r.gemm_ratio()}});
    for (size_t i = 0; i < r.step.gemms.size(); ++i) {
        print_gemm(r, r.step.gemms[i], r.step.gemms_alone[i]);
    }
    print_line(whole(r));
}

void print_table(const Report& r) {
    const std::string preset =
        r.preset().is_string() ? r.preset().get<std::string>() : "own groups";
    std::printf("%s\n%s, %s\n%s, %s tokens a step; the median of %" PRId64 " steps after %" PRId64
                "\n\n",
                r.device.c_str(), r.options.config.c_str(), preset.c_str(), r.dtype.c_str(),
                r.shape().c_str(), r.options.steps, r.options.warmup);
    std::printf("%-26s %7s %10s %8s %9s\n", "part", "calls", "ms", "share", "GFLOP/s");
    const auto row = [&](const std::string& name, double seconds) {
        std::printf("%-26s %7s %10.2f %6.1f %%\n", name.c_str(), "", seconds * 1e3,
                    100.0 * seconds / r.step.seconds);
    };
    for (int i = 0; i < kParts; ++i) {
        const PartTime& part = r.step.parts[i];
        std::printf("%-26s %7" PRId64 " %10.2f %6.1f %%", to_string(static_cast<Part>(i)).c_str(),
                    part.calls, part.seconds * 1e3, 100.0 * part.seconds / r.step.seconds);
        if (static_cast<Part>(i) == Part::gemm) std::printf(" %9.1f", r.gemm_flops() * 1e-9);
        std::printf("\n");
    }
    row("other", r.step.other());
    row("step", r.step.seconds);
    row("fastest step", r.fastest);

    std::printf("\n%-26s %7s %10s %8s %9s %7s\n", "gemm (m x n x k)", "calls", "ms", "alone",
                "GFLOP/s", "ratio");
    const auto gemm_row = [](const std::string& name, int64_t calls, double seconds, double alone,
                             double work) {
        std::printf("%-26s %7" PRId64 " %10.2f %8.2f %9.1f %7.2f\n", name.c_str(), calls,
                    seconds * 1e3, alone * 1e3, work / seconds * 1e-9, seconds / alone);
    };
    for (size_t i = 0; i < r.step.gemms.size(); ++i) {
        const TimedGemm& g = r.step.gemms[i];
        gemm_row(describe(g.gemm), g.time.calls, g.time.seconds, r.step.gemms_alone[i].time.seconds,
                 flops(g.gemm) * static_cast<double>(g.time.calls));
    }
    gemm_row("all", r.step[Part::gemm].calls, r.step[Part::gemm].seconds, r.step.alone(),
             flops(r.step.gemms));

    std::printf("\n%.0f tokens/s; %.1f GFLOP/s, %.1f %% of %.1f measured for a large GEMM\n",
                r.tokens_per_second(), r.model_flops() * 1e-9, 100.0 * r.mfu(),
                r.peak_flops * 1e-9);
    std::printf("memory: planned %s", format_bytes(static_cast<double>(r.planned_bytes)).c_str());
    if (r.peak_bytes > 0) {
        std::printf(", at most held %s (%+.1f %%)",
                    format_bytes(static_cast<double>(r.peak_bytes)).c_str(),
                    100.0 * static_cast<double>(r.peak_bytes - r.planned_bytes) /
                        static_cast<double>(r.planned_bytes));
    }
    std::printf("\n");
}

}  // namespace

void run_bench_train(const Config& config, const BenchTrainOptions& options) {
    if (config.batch.sequences == 0) {
        throw UsageError(options.config + ": missing: batch.sequences (an integer >= 1)");
    }
    const std::unique_ptr<Backend> backend = make_backend(config.run.device, config.run.threads);
    const ModelPrecision precision = choose_precision(config, *backend);
    require_attention(config.model, precision, *backend);
    if (!config.optimizer.estimator.is_plain() ||
        config.communication.type != CommunicationType::mean ||
        config.optimizer.outer.type != OuterType::none) {
        throw UsageError(options.config +
                         ": bench train measures updates by plain gradients: expected no other "
                         "optimizer.estimator, optimizer.communication or optimizer.outer");
    }
    require_memory(*backend, config.model, precision, config.batch.micro_batch, [&](Arena& plan) {
        const Optimizer counted(*backend, plan, config.optimizer, llama_parameters(config.model),
                                precision.master);
    });
    TimedBackend timed(*backend);
    RandomTraining training(config, timed, precision);

    for (int64_t i = 0; i < options.warmup; ++i) measure_step(training, *backend, timed);
    std::vector<StepTime> steps;
    for (int64_t i = 0; i < options.steps; ++i) {
        steps.push_back(measure_step(training, *backend, timed));
    }
    std::sort(steps.begin(), steps.end(),
              [](const StepTime& a, const StepTime& b) { return a.seconds < b.seconds; });

    const int64_t peak_bytes = peak_memory();
    const Report report{config,
                        options,
                        backend->describe(),
                        to_string(precision.compute),
                        steps[(steps.size() - 1) / 2],
                        steps.front().seconds,
                        measure_peak_flops(*backend, precision.compute),
                        training.tokens(),
                        peak_bytes,
                        static_cast<int64_t>(training.planned_bytes())};
    options.json ? print_json(report) : print_table(report);
    flush_output();
}

}  // namespace lmo
