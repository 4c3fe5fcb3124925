// Runs of the real Trainer on a backend that damages chosen updates, and what they must equal: a
// plain loop that knows no policy and leaves the updates out that it is told to.
#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <set>

#include "llmc/io/checkpoint.h"
#include "llmc/io/files.h"
#include "llmc/io/run_lock.h"
#include "llmc/train/device.h"
#include "llmc/train/resume.h"
#include "llmc/train/trainer.h"
#include "tests/unit/poisoned_backend.h"

namespace lmo {

using nlohmann::ordered_json;
using Values = std::map<std::string, std::vector<double>>;  // by tensor

inline constexpr double kInf = std::numeric_limits<double>::infinity();
inline const double kNotFinite[] = {std::nan(""), kInf, -kInf};

class PoisonedRun : public ::testing::Test {
  protected:
    PoisonedRun() : cpu_(make_cpu_backend(1)), backend_(*cpu_) {
        const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
        // In memory where that is possible: hundreds of small checkpoints are synced to the disk.
        const std::filesystem::path memory = "/dev/shm";
        folder_ = (::access(memory.c_str(), W_OK) == 0 ? memory
                                                       : std::filesystem::temp_directory_path()) /
                  ("lmo_poisoned_" + std::to_string(::getpid()) + "_" + info->name());
        std::filesystem::remove_all(folder_);
        std::filesystem::create_directories(folder_);
        for (const char* name : {"train.bin", "val.bin"}) {
            std::ofstream file(folder_ / name, std::ios::binary);
            uint16_t token = name[0];
            for (int i = 0; i < 1200; ++i) {
                token = static_cast<uint16_t>((token * 5 + i % 7) % 32);
                file.write(reinterpret_cast<const char*>(&token), sizeof token);
            }
        }
        settings_ = {{"run", {{"steps", 8}, {"threads", 1}}},
                     {"model",
                      {{"n_layer", 1},
                       {"n_head", 2},
                       {"d_model", 16},
                       {"d_ff", 24},
                       {"vocab_size", 32},
                       {"seq_len", 8}}},
                     {"data", {{"train", path("train.bin")}, {"val", path("val.bin")}}},
                     {"batch", {{"sequences", 4}, {"micro_batch", 2}}},
                     {"precision", {{"compute", "fp32"}}},
                     {"optimizer", {{"preset", "adamw"}, {"lr", 0.01}, {"clip_norm", 1.0}}},
                     {"eval", {{"batches", 1}}},
                     {"checkpoint", {{"every", 2}, {"keep", 0}}},
                     {"log", {{"tensorboard", false}}}};
    }
    ~PoisonedRun() override { std::filesystem::remove_all(folder_); }

    std::string path(const std::string& name) const { return (folder_ / name).string(); }
    void policy(const std::string& name) { settings_["run"]["on_nonfinite"] = name; }

    Config config(const std::string& run) const {
        ordered_json settings = settings_;
        settings["run"]["dir"] = path(run);
        return config_from_json(settings, "test", ConfigUse::train);
    }

    // Inputs of a micro-batch of an update.
    std::vector<int32_t> tokens(int64_t update, int64_t micro = 0) const {
        const Config c = config("unused");
        const Dataset set(c.data.train, c.data.format, c.model.seq_len, c.model.vocab_size);
        Loader loader(set, c.data.seed, c.batch.micro_batch,
                      update * c.batch.sequences + micro * c.batch.micro_batch);
        return loader.next().inputs;
    }
    Poison poison(int64_t update, Poison::Where where, double value, int tensor = 0) const {
        return {where, value, tokens(update), tensor};
    }

    // Trains, or goes on from the newest checkpoint. Returns the error's text, or "".
    std::string train(const std::string& run) {
        const Config c = config(run);
        ::testing::internal::CaptureStdout();
        ::testing::internal::CaptureStderr();
        std::string error;
        try {
            const RunLock lock(c.run.dir);
            Ranks alone;
            const auto nothing = make_collectives(backend_, alone);
            Trainer trainer(c, backend_, find_checkpoint(c, "auto"), alone, *nothing);
            status_ = trainer.run();
        } catch (const Error& e) {
            error = e.what();
        }
        out_ = ::testing::internal::GetCapturedStdout();
        err_ = ::testing::internal::GetCapturedStderr();
        return error;
    }

    std::string checkpoint(const std::string& run, int64_t step) const {
        char name[64];
        std::snprintf(name, sizeof name, "/checkpoints/step_%08lld", static_cast<long long>(step));
        return path(run) + name;
    }
    int64_t newest_step(const std::string& run) const {
        const auto newest = newest_checkpoint(path(run), nullptr);
        return newest ? std::stoll(newest->substr(newest->rfind('_') + 1)) : -1;
    }
    // A copy of a run as a kill would have left it: without checkpoints past `step`.
    void copy_until(const std::string& from, const std::string& to, int64_t step) const {
        std::filesystem::copy(path(from), path(to), std::filesystem::copy_options::recursive);
        for (int64_t s = step + 1; s <= steps(); ++s)
            std::filesystem::remove_all(checkpoint(to, s));
    }
    int64_t steps() const { return settings_["run"]["steps"]; }

    // Every tensor of the last checkpoint.
    Values saved(const std::string& run) const {
        Values result;
        for (const char* name : {"/model.safetensors", "/optimizer.safetensors"}) {
            const SafetensorsFile file(checkpoint(run, steps()) + name);
            for (const auto& [tensor, entry] : file.entries()) {
                result[tensor] = file.read(tensor, entry.shape);
            }
        }
        return result;
    }
    ordered_json state(const std::string& run) const {
        ordered_json state = saved_state(checkpoint(run, steps()));
        state.erase("config");
        return state;
    }
    // Lines of metrics.jsonl without what a clock measured.
    std::vector<ordered_json> metrics(const std::string& run, const std::string& type = "") const {
        std::vector<ordered_json> lines;
        std::ifstream file(path(run) + "/metrics.jsonl");
        for (std::string text; std::getline(file, text);) {
            ordered_json line = ordered_json::parse(text);
            for (const char* key : {"tokens_per_s", "mfu", "step_ms", "seconds"}) line.erase(key);
            if (type.empty() || line["type"] == type) lines.push_back(line);
        }
        return lines;
    }
    void expect_same_run(const std::string& one, const std::string& other) const {
        EXPECT_EQ(saved(one), saved(other));
        EXPECT_EQ(state(one), state(other));
        EXPECT_EQ(metrics(one), metrics(other));
        EXPECT_FALSE(metrics(one).empty());
    }

    Values reference(const std::set<int64_t>& left_out) const;

    std::filesystem::path folder_;
    ordered_json settings_;
    std::unique_ptr<Backend> cpu_;
    PoisonedBackend backend_;
    ExitStatus status_ = ExitStatus::runtime_error;
    std::string out_, err_;
};

// The updates but those of `left_out`: the data go on behind them, the optimizer does not notice.
inline Values PoisonedRun::reference(const std::set<int64_t>& left_out) const {
    const Config c = config("unused");
    Backend& backend = *cpu_;
    Arena arena(backend);
    const ParameterList list = llama_parameters(c.model);
    const ModelPrecision precision{DType::f32, DType::f32, DType::f32};
    const Dataset set(c.data.train, c.data.format, c.model.seq_len, c.model.vocab_size);
    const BatchTensors batch(arena, c.batch.micro_batch, c.model.seq_len);
    Llama model(backend, arena, c.model, list, precision, c.batch.micro_batch, true);
    Weights weights(backend, arena, list, precision, true);
    const ParameterBuffer gradients{&list,
                                    arena.take("gradients", DType::f32, {list.buffer_length()})};
    Optimizer optimizer(backend, arena, c.optimizer, list, DType::f32);
    Schedule schedule(c.schedule, warmup_kappa(c.optimizer, list));
    Loader loader(set, c.data.seed, c.batch.micro_batch, 0);
    weights.initialise(c.run.seed);
    optimizer.bind_gradients(gradients);
    optimizer.initialise(weights.master());
    int64_t applied = 0;
    for (int64_t update = 0; update < c.run.steps; ++update) {
        optimizer.clear(gradients);
        backend.zero(batch.loss);
        for (int64_t done = 0; done < c.batch.sequences; done += c.batch.micro_batch) {
            const HostBatch& host = loader.next();
            if (left_out.count(update)) continue;
            backend.copy_in(batch.tokens, host.inputs.data());
            backend.copy_in(batch.targets, host.targets.data());
            model.forward_backward(weights.compute(), gradients, batch.tokens, batch.targets,
                                   1.0 / static_cast<double>(c.batch.sequences * c.model.seq_len),
                                   batch.loss, optimizer.lowest_layer(applied));
        }
        if (left_out.count(update)) continue;
        double loss = 0.0;
        backend.copy_out(&loss, batch.loss);
        optimizer.gradient_norm(gradients);
        optimizer.set_scalars(schedule.next(update, loss).rate, applied++);
        optimizer.step(weights.master(), weights.copies(), gradients);
    }
    Values result;
    const auto keep = [&](const std::string& name, const Tensor& tensor) {
        std::vector<float> values(static_cast<size_t>(tensor.count()));
        backend.copy_out(values.data(), tensor);
        result[name] = {values.begin(), values.end()};
    };
    for (int i = 0; i < list.size(); ++i) keep(list[i].name, weights.master()[i]);
    for (const StateTensor& state : optimizer.states()) keep(state.name, state.tensor);
    return result;
}

}  // namespace lmo
