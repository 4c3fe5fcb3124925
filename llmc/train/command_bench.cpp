// train_gpt bench train: how long an update takes on this machine, and where the time goes.
//
// The same objects as in a training run compute on random tokens, through a TimedBackend. After
// every step its GEMM calls are repeated back to back, on the same tensors and with nothing between
// them: what the backend's matrix products need when they have the machine to themselves
// ("gemm_library"). They write only what the next step overwrites.
//
// The step reported is the median one, so its parts add up to its time; "other" is the work of the
// host between operations. A GPU runs whole steps as recorded graphs, which nobody can look into:
// those are measured first, and give the speed; then come a few steps by parts.
#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <optional>

#include "llmc/core/random.h"
#include "llmc/core/timer.h"
#include "llmc/device/reissued_graph.h"
#include "llmc/device/timed_backend.h"
#include "llmc/io/files.h"
#include "llmc/optim/optimizer.h"
#include "llmc/train/bench_train.h"
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
          optimizer_(backend, arena_, config.optimizer, parameters_, precision.master),
          dependent_(config.run.dependent_launch) {
        arena_.workspace();  // fixed before anything is captured
        optimizer_.bind_gradients(gradients_);
        record();
        weights_.initialise(config.run.seed);
        optimizer_.initialise(weights_.master(), weights_.remainders());
    }

    int64_t tokens() const { return config_.batch.sequences * config_.model.seq_len; }
    size_t planned_bytes() const { return arena_.total(); }

    // New graphs from now on, after another choice of the backend's.
    void record() {
        for (Graphs& graphs : graphs_) {
            graphs.micro_steps.clear();
            graphs.micro_steps.resize(static_cast<size_t>(config_.model.n_layer) + 1);
            graphs.update.reset();
        }
        launch_as(dependent_);
    }

    // How kernels are launched from now on: each way has graphs of its own. False where the device
    // cannot.
    bool launch_as(bool dependent) {
        if (!backend_.set_dependent_launch(dependent)) return false;
        dependent_ = dependent;
        std::unique_ptr<Graph>& update = graphs_[dependent ? 1 : 0].update;
        if (optimizer_.repeats() && !update) update = recorded([this] { step(); });
        return true;
    }

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
        const std::unique_ptr<Graph>& step_graph = graphs_[dependent_ ? 1 : 0].update;
        step_graph ? step_graph->launch() : step();
        backend_.synchronize();
        ++updates_;
    }

  private:
    struct Graphs {
        std::vector<std::unique_ptr<Graph>> micro_steps;  // by the lowest layer of their gradients
        std::unique_ptr<Graph> update;
    };

    std::unique_ptr<Graph> recorded(std::function<void()> body) {
        if (config_.run.graphs) return backend_.capture(std::move(body));
        return std::make_unique<ReissuedGraph>(std::move(body));
    }

    Graph& recorded_micro_step(int64_t lowest) {
        std::unique_ptr<Graph>& graph =
            graphs_[dependent_ ? 1 : 0].micro_steps[static_cast<size_t>(lowest)];
        if (!graph) {
            graph = recorded([this, lowest] {
                model_.forward_backward(weights_.compute(), gradients_, batch_.tokens,
                                        batch_.targets, 1.0 / static_cast<double>(tokens()),
                                        batch_.loss, lowest);
            });
        }
        return *graph;
    }

    void step() {
        optimizer_.step(weights_.master(), weights_.copies(), gradients_, weights_.remainders());
        if (config_.optimizer.qk_clip == 0.0) return;
        model_.clip_heads(weights_.master(), weights_.copies(), config_.optimizer.qk_clip,
                          weights_.remainders());
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
    Graphs graphs_[2];  // of plain and of dependent launches
    bool dependent_;
    std::vector<int32_t> ids_;
    int64_t updates_ = 0;
};

// ---- measurement --------------------------------------------------------------------------------

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

double measure_whole_step(RandomTraining& training) {
    training.prepare();
    const Timer timer;
    training.update();
    return timer.seconds();
}

// Seconds of whole steps by plain and by dependent launches, in turns; of the run's own kind alone
// where the device has no other.
using Launches = std::array<std::vector<double>, 2>;

Launches measure_whole_steps(RandomTraining& training, const Config& config,
                             const BenchTrainOptions& options) {
    const bool own = config.run.dependent_launch;
    Launches launches;
    for (int64_t i = 0; i < options.warmup + options.steps; ++i) {
        for (const bool dependent : {own, !own}) {
            if (!training.launch_as(dependent)) continue;
            const double seconds = measure_whole_step(training);
            if (i >= options.warmup) launches[dependent ? 1 : 0].push_back(seconds);
        }
    }
    training.launch_as(own);
    for (std::vector<double>& seconds : launches) std::sort(seconds.begin(), seconds.end());
    return launches;
}

std::optional<double> median(const std::vector<double>& sorted) {
    if (sorted.empty()) return std::nullopt;
    return sorted[(sorted.size() - 1) / 2];
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

}  // namespace

void run_bench_train(const Config& config, const BenchTrainOptions& options) {
    if (config.batch.sequences == 0) {
        throw UsageError(options.config + ": missing: batch.sequences (an integer >= 1)");
    }
    const std::unique_ptr<Backend> backend = make_backend(config.run.device, config.run.threads);
    set_launches(config, *backend);
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
    const bool separate = backend->is_separate();
    const double free = separate ? backend->free_bytes() : 0.0;
    TimedBackend timed(*backend);
    RandomTraining training(config, timed, precision);

    Launches launches;
    if (separate) {
        timed.set_timing(false);
        training.record();
        launches = measure_whole_steps(training, config, options);
        timed.set_timing(true);
        training.record();
    }
    const auto looks = [&](int64_t steps, int64_t most) {
        return separate ? std::min(steps, most) : steps;
    };
    for (int64_t i = looks(options.warmup, 1); i > 0; --i) measure_step(training, *backend, timed);
    std::vector<StepTime> steps;
    for (int64_t i = looks(options.steps, 3); i > 0; --i) {
        steps.push_back(measure_step(training, *backend, timed));
    }
    std::sort(steps.begin(), steps.end(),
              [](const StepTime& a, const StepTime& b) { return a.seconds < b.seconds; });
    std::vector<double> whole = launches[config.run.dependent_launch ? 1 : 0];
    if (!separate) {
        for (const StepTime& step : steps) whole.push_back(step.seconds);
    }

    const int64_t peak_bytes =
        separate ? static_cast<int64_t>(free - backend->free_bytes()) : peak_memory();
    const TrainReport report{config,
                             options,
                             backend->describe(),
                             to_string(precision.compute),
                             separate && config.run.graphs,
                             steps[(steps.size() - 1) / 2],
                             whole[(whole.size() - 1) / 2],
                             whole.front(),
                             whole.back(),
                             median(launches[0]),
                             median(launches[1]),
                             measure_peak_flops(*backend, precision.compute),
                             training.tokens(),
                             peak_bytes,
                             static_cast<int64_t>(training.planned_bytes())};
    options.json ? print_json(report) : print_table(report);
    flush_output();
}

}  // namespace lmo
