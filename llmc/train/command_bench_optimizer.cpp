// train_gpt bench optimizer: what an update costs with every preset, what Newton-Schulz costs and
// how orthogonal its result is with every coefficient set, beside the rates of a large copy and of
// a large matrix product measured first in the same run; and, with --compare, beside PyTorch.
//
// Updates and PyTorch's take turns: a round is some updates of ours with each preset that has a
// peer, then as many of each peer. Speeds of a machine drift, the ratios of a round hardly do.
#include <algorithm>
#include <cstdio>
#include <map>

#include "llmc/core/text.h"
#include "llmc/io/files.h"
#include "llmc/norm/newton_schulz.h"
#include "llmc/train/bench_cases.h"
#include "llmc/train/bench_optimizer_report.h"
#include "llmc/train/bench_peers.h"
#include "llmc/train/bench_progress.h"
#include "llmc/train/commands.h"
#include "llmc/train/device.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

constexpr int64_t kCpuLayers = 2;    // unless told otherwise
constexpr int64_t kCpuMatrices = 2;  // of a shape that Newton-Schulz takes on a CPU

// ---- what to measure ----------------------------------------------------------------------------

struct NamedPreset {
    std::string name;
    OptimizerConfig config;
};

std::optional<DType> chosen_inner(const BenchOptimizerOptions& options) {
    if (options.inner.empty()) return {};
    return options.inner == "fp16"   ? DType::f16
           : options.inner == "bf16" ? DType::bf16
                                     : DType::f32;
}

// Where the preset leaves it open.
void choose_inner(NewtonSchulzSet& set, std::optional<DType> inner) {
    if (inner == DType::bf16 && set.form == NewtonSchulzForm::gram) return;  // too coarse for it
    if (!set.inner) set.inner = inner;
}

std::vector<NamedPreset> choose_presets(const BenchOptimizerOptions& options) {
    std::vector<std::string> names = options.presets;
    if (names.empty()) {
        for (const EmbeddedPreset& preset : embedded_presets()) names.push_back(preset.name);
    }
    std::vector<NamedPreset> presets;
    for (const std::string& name : names) {
        OptimizerConfig config = preset_optimizer(name);  // a mistake is one, chosen or not
        for (GroupConfig& group : config.groups) {
            choose_inner(group.norm.newton_schulz, chosen_inner(options));
            if (!group.alternate) continue;
            choose_inner(group.alternate->norm.newton_schulz, chosen_inner(options));
        }
        if (("preset." + name).find(options.only) == std::string::npos) continue;
        presets.push_back({name, config});
    }
    return presets;
}

std::vector<std::string> choose_sets(const BenchOptimizerOptions& options) {
    std::vector<std::string> sets;
    for (const std::string& name : newton_schulz_set_names()) {
        if (("newton_schulz." + name).find(options.only) != std::string::npos) sets.push_back(name);
    }
    return sets;
}

// What is measured on a GPU, or on a slower device; `what` says so.
ParameterList choose_parameters(const BenchOptimizerOptions& options, LlamaConfig model, bool gpu,
                                std::string& what) {
    if (!options.shapes.empty()) {
        what = options.shapes;
        return matrix_parameters(parse_shapes(options.shapes));
    }
    const int64_t all = model.n_layer;
    if (options.layers > 0) {
        model.n_layer = options.layers;
    } else if (!gpu) {
        model.n_layer = std::min(all, kCpuLayers);
    }
    what = options.config.empty() ? "LLaMA 124M" : options.config;
    what += ", " + std::to_string(model.n_layer) + " of " + std::to_string(all) + " layers";
    return llama_parameters(model);
}

// The parameters as dev/bench/optimizer_torch.py takes them: the blocks of our norms.
ordered_json peer_blocks(const ParameterList& parameters) {
    ordered_json list = ordered_json::array();
    for (const ParameterBlock& block : parameters.blocks(true)) {
        ordered_json shape = ordered_json::array();
        for (int i = 0; i < block.shape.rank(); ++i) shape.push_back(block.shape[i]);
        list.push_back({{"shape", shape}, {"matrix", block.role == Role::matrix}});
    }
    return list;
}

// ---- the run ------------------------------------------------------------------------------------

std::string describe(const ParameterList& parameters) {
    return std::to_string(parameters.count()) + " in " +
           std::to_string(parameters.blocks(true).size());
}

class OptimizerBench {
  public:
    OptimizerBench(const BenchOptimizerOptions& options, Backend& backend)
        : options_(options),
          backend_(backend),
          noise_(backend),
          report_(backend.describe(), options.json),
          model_(bench_model(options.config)),
          presets_(choose_presets(options)),
          sets_(choose_sets(options)) {
        if (!options.shapes.empty()) parse_shapes(options.shapes);
        inner_ = chosen_inner(options).value_or(backend.preferred_newton_schulz());
        require_newton_schulz(backend, inner_, "--inner " + options.inner);
        if (!presets_.empty() || !sets_.empty()) return;
        throw UsageError("--only " + options.only +
                         ": no such measurement; there are preset.NAME and newton_schulz.SET");
    }

    void run() {
        std::unique_ptr<TorchPeers> peers;
        if (options_.compare) peers = start_peers();  // what is missing is said at once
        const bool gpu = measure_ceilings();
        std::string what;
        ModelPrecision types{backend_.preferred_compute(), DType::f32, DType::f32};
        if (options_.master == "split") types = {DType::bf16, DType::f32, DType::f32, true};
        BenchParameters parameters(backend_, noise_, choose_parameters(options_, model_, gpu, what),
                                   types);
        measure_presets(parameters);
        measure_sets(matrix_batches(parameters.list, false), gpu);
        if (peers) compare(*peers, parameters);
        report_.print_tables(what, peers ? peers->setup().at("torch") : "");
        flush_output();
        if (report_.failed() == 0) return;
        throw Error(std::to_string(report_.failed()) + " of " + std::to_string(report_.size()) +
                    " measurements failed");
    }

  private:
    // Returns whether the device is as fast as a GPU.
    bool measure_ceilings() {
        const Ceiling copy = copy_ceiling(backend_, noise_);
        report_.add("ceiling.copy", copy, DType::f32);
        // Of fp16 tensor cores it is the same as of bf16; a CPU may have fast products in bf16
        // inside of Newton-Schulz alone.
        const DType type = inner_ == DType::f32 ? inner_ : backend_.preferred_compute();
        const Ceiling gemm = gemm_ceiling(backend_, noise_, type);
        report_.add("ceiling.gemm", gemm, type);
        copy_rate_ = copy.rate();
        gemm_rate_ = gemm.rate();
        return gemm_rate_ > kGpuFlops;
    }

    // `measure` makes a row of each, which the report prints with `label`.
    template <class List, class Label, class Measure>
    void measure_all(const List& list, const Label& label, Measure measure) {
        BenchProgress progress(list.size());
        const Timer clock;
        for (size_t i = 0; i < list.size(); ++i) {
            const double done = static_cast<double>(i), all = static_cast<double>(list.size());
            progress.next(list[i].name, i == 0 ? 0.0 : clock.seconds() / done * (all - done));
            const auto row = measure(list[i]);
            progress.clear();
            report_.add(row, label);
        }
    }

    void measure_presets(BenchParameters& parameters) {
        measure_all(presets_, describe(parameters.list), [&](const NamedPreset& preset) {
            PresetRow row;
            row.preset = preset.name;
            row.master = options_.master;
            try {
                measure_preset(row, preset.config, parameters);
            } catch (const Error& error) {
                row.error = error.what();
            }
            return row;
        });
    }

    void measure_preset(PresetRow& row, const OptimizerConfig& config,
                        BenchParameters& parameters) {
        PresetUpdates updates(backend_, noise_, parameters, config);
        updates.update();  // the first one is not like the others
        std::vector<double> update, norm;
        for (int i = 0; i < options_.steps; ++i) {
            const UpdateTime time = updates.update();
            update.push_back(time.update);
            norm.push_back(time.norm);
        }
        updates.check();
        row.update = timing_of(update);
        row.norm = timing_of(norm);
        row.bytes = updates.traffic();
        row.state = static_cast<double>(updates.state_bytes()) /
                    static_cast<double>(parameters.list.count());
        row.flops = updates.flops();
        row.copy_share = row.bytes / row.update.seconds / copy_rate_;
        row.gemm_share = row.flops.executed / row.update.seconds / gemm_rate_;
    }

    struct SetCase {
        std::string name;
        NewtonSchulzSet set;
        MatrixBatch batch;
    };

    // Both forms, the gram form where it can pay; bf16 is too coarse for it.
    void add_set_cases(std::vector<SetCase>& cases, const std::string& name,
                       const MatrixBatch& batch) const {
        constexpr double kFarFromSquare = 1.5;
        const auto [s, l] = std::minmax({batch.shape[0], batch.shape[1]});
        NewtonSchulzSet set = newton_schulz_set(name, kSetSteps);
        set.inner = inner_;
        set.form = NewtonSchulzForm::standard;
        cases.push_back({name, set, batch});
        if (inner_ == DType::bf16) return;
        if (static_cast<double>(l) < kFarFromSquare * static_cast<double>(s)) return;
        set.form = NewtonSchulzForm::gram;
        cases.push_back({name, set, batch});
    }

    void measure_sets(const std::vector<MatrixBatch>& batches, bool gpu) {
        std::vector<SetCase> cases;
        for (const std::string& set : sets_) {
            for (MatrixBatch batch : batches) {
                if (!gpu) batch.count = std::min(batch.count, kCpuMatrices);
                add_set_cases(cases, set, batch);
            }
        }
        if (cases.empty()) return;
        const std::unique_ptr<Backend> other =
            backend_.has_fp64() ? nullptr : make_cpu_backend(options_.threads);
        Backend& host = other ? *other : backend_;
        measure_all(cases, inner_, [&](const SetCase& one) {
            const Shape& s = one.batch.shape;
            SetRow row;
            row.set = one.name;
            row.form = one.set.form;
            row.shape = joined(one.batch.count, s[0], s[1]);
            try {
                row.time =
                    measure_newton_schulz(backend_, host, one.set, one.batch, options_.steps);
                row.share = row.time.executed / row.time.timing.seconds / gemm_rate_;
            } catch (const Error& error) {
                row.error = error.what();
            }
            return row;
        });
    }

    // ---- PyTorch ----

    std::unique_ptr<TorchPeers> start_peers() {
        const bool cpu = backend_.describe().rfind("CPU", 0) == 0;
        std::vector<std::string> arguments{"--device",  cpu ? "cpu" : "cuda",
                                           "--threads", std::to_string(options_.threads),
                                           "--updates", std::to_string(options_.steps)};
        if (!options_.inner.empty()) {
            arguments.insert(arguments.end(), {"--inner", options_.inner});
        }
        auto peers = std::make_unique<TorchPeers>(arguments);
        std::string known;
        for (const std::string name : peers->setup().at("presets")) {
            known += (known.empty() ? "" : ", ") + name;
            for (const NamedPreset& preset : presets_) {
                if (preset.name == name) compared_.push_back(&preset);
            }
        }
        if (compared_.empty()) {
            throw UsageError("--compare: PyTorch's side does the presets " + known +
                             ", none of which is to be measured");
        }
        return peers;
    }

    void compare(TorchPeers& peers, BenchParameters& parameters) {
        std::vector<std::string> names;
        std::vector<std::unique_ptr<PresetUpdates>> ours;
        for (const NamedPreset* preset : compared_) {
            names.push_back(preset->name);
            ours.push_back(
                std::make_unique<PresetUpdates>(backend_, noise_, parameters, preset->config));
            ours.back()->update();
        }
        std::fprintf(stderr, "PyTorch compiles and warms up\n");
        for (const std::string& reason : peers.prepare(peer_blocks(parameters.list), names)) {
            std::fprintf(stderr, "left out: %s\n", printable(reason).c_str());
        }
        std::vector<PeerRow> rows;
        for (int round = 0; round < options_.rounds; ++round) {
            std::map<std::string, double> seconds;
            for (size_t i = 0; i < ours.size(); ++i) {
                std::vector<double> times;
                for (int k = 0; k < options_.steps; ++k) times.push_back(ours[i]->update().update);
                seconds[names[i]] = timing_of(times).seconds;
            }
            const std::vector<PeerTime> times = peers.round();
            rows.resize(times.size());
            for (size_t i = 0; i < times.size(); ++i) {
                const PeerTime& time = times[i];
                rows[i].peer = time.peer;
                rows[i].preset = time.preset;
                rows[i].theirs.push_back(time.seconds);
                rows[i].ours.push_back(seconds.at(time.preset));
                rows[i].ratios.push_back(time.seconds / rows[i].ours.back());
            }
            std::fprintf(stderr, "round %d of %d\n", round + 1, options_.rounds);
        }
        for (const PeerRow& row : rows) {
            report_.add(row, describe(parameters.list), peers.setup().at("torch"));
        }
    }

    const BenchOptimizerOptions& options_;
    Backend& backend_;
    const Noise noise_;
    OptimizerReport report_;
    const LlamaConfig model_;
    const std::vector<NamedPreset> presets_;
    const std::vector<std::string> sets_;
    std::vector<const NamedPreset*> compared_;  // those that PyTorch's side does too
    DType inner_;                               // inside of Newton-Schulz
    double copy_rate_ = 0, gemm_rate_ = 0;
};

}  // namespace

void run_bench_optimizer(const BenchOptimizerOptions& options) {
    const std::unique_ptr<Backend> backend = make_backend(options.device, options.threads);
    OptimizerBench(options, *backend).run();
}

}  // namespace lmo
