// run.on_nonfinite: NaN and infinities put into losses, gradients and weights of the real Trainer.
// What is left must equal, bit by bit, a plain loop that leaves the update out.
#include <csignal>

#include "tests/unit/poisoned_run.h"

namespace lmo {
namespace {

using Where = Poison::Where;

std::string text_of(double value) { return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf"; }

class Nonfinite : public PoisonedRun {
  protected:
    // The update's only line is this one.
    void expect_left_out(const std::string& run, int64_t update, const std::string& what,
                         const std::string& value, const ordered_json& tensor) const {
        const ordered_json expected = {{"type", "nonfinite"},
                                       {"step", update},
                                       {"what", what},
                                       {"value", value},
                                       {"tensor", tensor}};
        EXPECT_EQ(metrics(run, "nonfinite"), std::vector<ordered_json>{expected});
        const auto lines = metrics(run, "train");
        EXPECT_EQ(static_cast<int64_t>(lines.size()), steps() - 1);
        for (const ordered_json& line : lines) EXPECT_NE(line["step"], update);
        EXPECT_EQ(metrics(run, "schedule").size(), 1u);
        EXPECT_EQ(metrics(run, "val").size(), 1u);
        EXPECT_EQ(metrics(run, "summary").size(), 1u);
    }
    std::string run_;
    static std::string number(const std::string& run, int index) {
        return run + std::to_string(index);
    }
};

const char* kDown = "model.layers.0.mlp.down_proj.weight";

int index_of_down(const Config& config) { return llama_parameters(config.model).find(kDown); }

TEST_F(Nonfinite, StopEndsWithAnErrorAndKeepsWhatIsSaved) {
    ASSERT_GE(index_of_down(config("x")), 0);
    int n = 0;
    for (const double value : kNotFinite) {
        const std::string inside = "(" + text_of(value) + ")";
        backend_.poisons = {poison(3, Where::loss, value)};
        std::string error = train(number("loss", n));
        EXPECT_NE(error.find("update 3: the loss is not finite " + inside), std::string::npos)
            << error;
        EXPECT_NE(error.find("The checkpoint after 2 updates is kept"), std::string::npos);
        EXPECT_EQ(newest_step(number("loss", n)), 2);

        backend_.poisons = {poison(3, Where::gradient, value, index_of_down(config("x")))};
        error = train(number("gradient", n));
        EXPECT_NE(error.find("update 3: the norm of the gradient is not finite"),
                  std::string::npos);
        EXPECT_NE(error.find(kDown), std::string::npos) << error;
        EXPECT_EQ(newest_step(number("gradient", n)), 2);

        // Found by the check of a save.
        backend_.poisons = {poison(3, Where::weight, value)};
        error = train(number("weight", n));
        EXPECT_NE(error.find("after update 3: the weights are not finite"), std::string::npos)
            << error;
        EXPECT_EQ(newest_step(number("weight", n)), 2);
        ++n;
    }
}

TEST_F(Nonfinite, SkipLeavesTheUpdateOut) {
    policy("skip");
    const Values expected = reference({3});
    int n = 0;
    for (const double value : kNotFinite) {
        const std::string loss = number("loss", n), gradient = number("gradient", n++);
        backend_.poisons = {poison(3, Where::loss, value)};
        EXPECT_EQ(train(loss), "");
        EXPECT_EQ(saved(loss), expected);
        expect_left_out(loss, 3, "loss", text_of(value), nullptr);
        EXPECT_NE(err_.find("warning: update 3: the loss is not finite"), std::string::npos);

        backend_.poisons = {poison(3, Where::gradient, value, index_of_down(config("x")))};
        EXPECT_EQ(train(gradient), "");
        EXPECT_EQ(saved(gradient), expected);
        expect_left_out(gradient, 3, "gradient norm", std::isnan(value) ? "nan" : "inf", kDown);
    }
    EXPECT_NE(expected, reference({}));
    EXPECT_NE(expected, reference({4}));
}

TEST_F(Nonfinite, SkipCannotMendBrokenWeights) {
    policy("skip");
    settings_["checkpoint"]["every"] = 0;
    int n = 0;
    for (const double value : kNotFinite) {
        backend_.poisons = {poison(3, Where::weight, value)};
        const std::string error = train(number("run", n));
        EXPECT_NE(error.find("after update 3: the weights are not finite"), std::string::npos)
            << error;
        EXPECT_TRUE(metrics(number("run", n), "nonfinite").empty());
        EXPECT_EQ(newest_step(number("run", n++)), -1);
    }
}

TEST_F(Nonfinite, RollbackLeavesTheUpdateOut) {
    policy("rollback");
    const Values expected = reference({3});
    int n = 0;
    for (const int every : {2, 0}) {  // back to a checkpoint, and to the initial weights
        settings_["checkpoint"]["every"] = every;
        const std::string back = every ? "back to " + path("") : "back to the initial weights";
        for (const double value : kNotFinite) {
            const std::string run = number("run", n++);
            backend_.poisons = {poison(3, Where::loss, value)};
            EXPECT_EQ(train(run + "l"), "");
            EXPECT_EQ(saved(run + "l"), expected);
            expect_left_out(run + "l", 3, "loss", text_of(value), nullptr);
            EXPECT_NE(err_.find(back), std::string::npos) << err_;

            backend_.poisons = {poison(3, Where::gradient, value)};
            EXPECT_EQ(train(run + "g"), "");
            EXPECT_EQ(saved(run + "g"), expected);
            expect_left_out(run + "g", 3, "gradient norm", std::isnan(value) ? "nan" : "inf",
                            "model.embed_tokens.weight");

            backend_.poisons = {poison(3, Where::weight, value)};
            EXPECT_EQ(train(run + "w"), "");
            EXPECT_EQ(saved(run + "w"), expected);
            EXPECT_EQ(metrics(run + "w", "nonfinite").at(0)["what"], "weights");
            EXPECT_EQ(metrics(run + "w", "nonfinite").at(0)["step"], 3);
            EXPECT_EQ(metrics(run + "w", "train").size(), 7u);
        }
    }
}

TEST_F(Nonfinite, RollbackAndSkipWriteTheSameRun) {
    backend_.poisons = {poison(0, Where::loss, kInf), poison(5, Where::gradient, kInf)};
    for (const int every : {2, 0}) {
        settings_["checkpoint"]["every"] = every;
        policy("skip");
        EXPECT_EQ(train(number("skip", every)), "");
        policy("rollback");
        EXPECT_EQ(train(number("rollback", every)), "");
        expect_same_run(number("skip", every), number("rollback", every));
        EXPECT_EQ(saved(number("skip", every)), reference({0, 5}));
        EXPECT_EQ(metrics(number("skip", every), "schedule").at(0)["step"], 1);
    }
}

// No batch has the token whose embedding breaks: losses and gradients never show it.
TEST_F(Nonfinite, RollbackKnowsTheUpdateThatBrokeTheWeights) {
    settings_["model"]["vocab_size"] = 64;
    settings_["model"]["tie_embeddings"] = false;
    settings_["checkpoint"]["every"] = 0;
    policy("rollback");
    backend_.poisons = {poison(3, Where::weight, kInf, 8)};
    EXPECT_EQ(train("run"), "");
    EXPECT_EQ(metrics("run", "nonfinite").at(0)["tensor"], "model.embed_tokens.weight");
    EXPECT_EQ(saved("run"), reference({3}));
}

TEST_F(Nonfinite, EveryPresetWithOneBadMicroBatch) {
    policy("skip");
    Poison micro = poison(2, Where::micro_gradient, kInf);
    for (const EmbeddedPreset& preset : embedded_presets()) {
        SCOPED_TRACE(preset.name);
        settings_["optimizer"]["preset"] = preset.name;
        // Momentum that has seen a gradient before its norm is known is neither clipped nor skipped.
        const std::string name = preset.name;
        const bool kept = name == "scion-light" || name == "ef21-muon";
        // reference() takes the plain gradient of each batch.
        const std::string json = preset.json;
        const bool simulated = json.find("\"estimator\"") == std::string::npos &&
                               json.find("\"communication\"") == std::string::npos;
        settings_["optimizer"]["clip_norm"] = kept ? 0.0 : 1.0;
        policy(kept ? "rollback" : "skip");
        for (const int64_t bad : {0, 1}) {
            micro.tokens = tokens(2, bad);
            backend_.poisons = {micro};
            if (kept) break;
            const std::string run = preset.name + std::to_string(bad);
            EXPECT_EQ(train(run), "");
            if (simulated) {
                EXPECT_EQ(saved(run), reference({2}));
            }
        }
        policy("rollback");
        EXPECT_EQ(train(preset.name), "");
        if (!simulated) {
            // Both ways leave the same behind, where there are two.
            if (!kept) {
                EXPECT_EQ(saved(preset.name), saved(name + "0"));
            }
            continue;
        }
        EXPECT_EQ(saved(preset.name), reference({2}));
    }
}

TEST_F(Nonfinite, AdaptiveWarmupStartsWithTheFirstFiniteLoss) {
    settings_["optimizer"]["preset"] = "muon";
    settings_["schedule"] = {
        {"warmup", {{"type", "adaptive"}, {"target_loss", 2.0}, {"div", 10}, {"loss_ema", 0.5}}}};
    backend_.poisons = {poison(0, Where::loss, std::nan("")), poison(2, Where::loss, -kInf)};
    for (const char* name : {"skip", "rollback"}) {
        policy(name);
        EXPECT_EQ(train(name), "");
        EXPECT_EQ(saved(name), reference({0, 2}));
        const ordered_json schedule = metrics(name, "schedule").at(0);
        const double first = metrics(name, "train").at(0)["loss"];
        EXPECT_EQ(metrics(name, "train").at(0)["step"], 1);
        EXPECT_EQ(schedule["delta0"], first - 2.0);
        EXPECT_EQ(state(name)["schedule"]["loss0"], first);
    }
}

TEST_F(Nonfinite, LimitOfUpdatesInARow) {
    policy("skip");
    settings_["run"]["nonfinite_limit"] = 2;
    // Three in a row are too many, three in all are not.
    for (const int64_t update : {2, 3, 5}) {
        backend_.poisons.push_back(poison(update, Where::loss, kInf));
    }
    EXPECT_EQ(train("apart"), "");
    EXPECT_EQ(saved("apart"), reference({2, 3, 5}));
    backend_.poisons.push_back(poison(4, Where::loss, kInf));
    const std::string error = train("row");
    EXPECT_NE(error.find("update 4: the loss is not finite"), std::string::npos) << error;
    EXPECT_NE(error.find("run.nonfinite_limit"), std::string::npos);
    EXPECT_EQ(metrics("row", "nonfinite").size(), 2u);
    // A resumed run counts on, and may be given more.
    EXPECT_EQ(newest_step("row"), 4);
    EXPECT_EQ(train("row"), error);
    settings_["run"]["nonfinite_limit"] = 4;
    EXPECT_EQ(train("row"), "");
    EXPECT_EQ(saved("row"), reference({2, 3, 4, 5}));
}

TEST_F(Nonfinite, LimitOfRollbacksToOneCheckpoint) {
    policy("rollback");
    settings_["run"]["nonfinite_limit"] = 2;
    settings_["checkpoint"]["every"] = 4;
    for (const int64_t update : {1, 3, 5, 6}) {
        backend_.poisons.push_back(poison(update, Where::weight, kInf));
    }
    EXPECT_EQ(train("spread"), "");
    EXPECT_EQ(saved("spread"), reference({1, 3, 5, 6}));
    backend_.poisons.push_back(poison(7, Where::gradient, kInf));
    const std::string error = train("close");
    EXPECT_NE(error.find("update 7"), std::string::npos) << error;
    EXPECT_NE(error.find("2 updates in a row or since the checkpoint are left out"),
              std::string::npos);
    EXPECT_EQ(newest_step("close"), 4);
    // A checkpoint with nothing but updates left out is no progress.
    settings_["checkpoint"]["every"] = 1;
    backend_.poisons.clear();
    for (int64_t update = 1; update < steps(); ++update) {
        backend_.poisons.push_back(poison(update, Where::weight, kInf));
    }
    EXPECT_NE(train("all").find("after update 3"), std::string::npos);
}

// A kill -9 leaves a run with some of its checkpoints, and metrics that are ahead of them.
TEST_F(Nonfinite, ResumeAfterAKillAtAnyCheckpoint) {
    settings_["checkpoint"]["every"] = 1;
    for (const std::string name : {"skip", "rollback"}) {
        policy(name);
        backend_.poisons = {poison(0, Where::gradient, kInf), poison(2, Where::loss, std::nan("")),
                            poison(3, Where::gradient, -kInf)};
        if (name == "rollback") backend_.poisons.push_back(poison(5, Where::weight, kInf));
        EXPECT_EQ(train(name), "");
        for (int64_t step = 0; step < steps(); ++step) {
            SCOPED_TRACE(name + " " + std::to_string(step));
            const std::string part = number(name, static_cast<int>(step));
            copy_until(name, part, step);
            EXPECT_EQ(train(part), "");
            expect_same_run(name, part);
        }
    }
}

// With few checkpoints a resumed run has to roll back by itself.
TEST_F(Nonfinite, ResumeMeetsTheTroubleAgain) {
    settings_["checkpoint"]["every"] = 4;
    policy("rollback");
    backend_.poisons = {poison(2, Where::weight, kInf), poison(5, Where::weight, kInf),
                        poison(6, Where::loss, kInf)};
    EXPECT_EQ(train("whole"), "");
    copy_until("whole", "part", 4);
    EXPECT_EQ(train("part"), "");
    EXPECT_NE(err_.find("2 of at most 10"), std::string::npos) << err_;
    expect_same_run("whole", "part");
}

// A signal between a rollback and the update that is left out: the checkpoint knows of an update
// that is still to come.
TEST_F(Nonfinite, StopOnTheWayBackFromARollback) {
    settings_["checkpoint"]["every"] = 0;
    policy("rollback");
    backend_.poisons = {poison(5, Where::weight, kInf)};
    EXPECT_EQ(train("whole"), "");
    const std::vector<int32_t> second = tokens(2);
    int seen = 0;
    backend_.on_batch = [&](const std::vector<int32_t>& batch) {
        if (batch == second && ++seen == 2) std::raise(SIGTERM);
    };
    EXPECT_EQ(train("parts"), "");
    EXPECT_EQ(status_, ExitStatus::stopped);
    EXPECT_EQ(newest_step("parts"), 3);
    const ordered_json left_out = saved_state(checkpoint("parts", 3))["left_out"];
    ASSERT_EQ(left_out.size(), 1u);
    EXPECT_EQ(left_out[0]["step"], 5);
    EXPECT_TRUE(metrics("parts", "nonfinite").empty());
    EXPECT_EQ(train("parts"), "");
    EXPECT_EQ(err_, "");  // no rollback was needed any more
    std::filesystem::remove_all(checkpoint("parts", 3));
    expect_same_run("whole", "parts");
}

// The weights are finite, the loss of the validation set is not: the newest update goes.
TEST_F(Nonfinite, ValidationLoss) {
    settings_["eval"]["every"] = 3;
    settings_["checkpoint"]["every"] = 2;
    const Config c = config("x");
    const Dataset set(c.data.val, c.data.format, c.model.seq_len, c.model.vocab_size);
    Loader loader(set, c.data.seed, c.batch.micro_batch, 0);
    Poison bad{Where::loss, kInf, loader.next().inputs};
    bad.once = true;
    backend_.poisons = {bad};
    policy("rollback");
    EXPECT_EQ(train("rollback"), "");
    EXPECT_EQ(saved("rollback"), reference({2}));
    EXPECT_EQ(metrics("rollback", "val").size(), 3u);
    EXPECT_EQ(metrics("rollback", "nonfinite").at(0)["what"], "validation loss");
    for (const char* name : {"skip", "stop"}) {
        policy(name);
        backend_.poisons = {bad};
        EXPECT_NE(train(name).find("after 3 updates: the validation loss is not finite"),
                  std::string::npos);
        EXPECT_EQ(newest_step(name), 2);
    }
    bad.once = false;  // the third update before a checkpoint that no rollback goes behind
    backend_.poisons = {bad};
    policy("rollback");
    EXPECT_NE(train("hopeless").find("no update since the checkpoint can be left out"),
              std::string::npos);
}

TEST_F(Nonfinite, DamagedCheckpointIsNotRolledBackTo) {
    policy("rollback");
    backend_.poisons = {poison(5, Where::weight, kInf)};
    const std::vector<int32_t> fifth = tokens(5);
    const auto spoil = [&](std::set<int64_t> bad) {
        backend_.on_batch = [this, fifth, bad](const std::vector<int32_t>& batch) {
            if (batch != fifth) return;
            for (const int64_t step : bad) {
                std::ofstream(checkpoint(run_, step) + "/model.safetensors") << "x";
            }
        };
    };
    spoil({4});
    run_ = "one";
    EXPECT_EQ(train(run_), "");
    EXPECT_NE(err_.find("step_00000002"), std::string::npos) << err_;
    EXPECT_EQ(saved(run_), reference({5}));
    spoil({4, 2});
    run_ = "all";
    EXPECT_NE(train(run_).find("no complete checkpoint is left"), std::string::npos);
}

TEST_F(Nonfinite, InitialWeightsThatCannotBeHadAgain) {
    settings_["checkpoint"]["every"] = 0;
    EXPECT_EQ(train("first"), "");
    settings_["run"]["seed"] = 7;
    EXPECT_EQ(train("other"), "");
    settings_["init"]["from"] = checkpoint("first", 8);
    policy("rollback");
    backend_.poisons = {poison(3, Where::loss, kInf)};
    EXPECT_EQ(train("same"), "");
    EXPECT_EQ(metrics("same", "nonfinite").size(), 1u);
    const std::vector<int32_t> third = tokens(3);
    backend_.on_batch = [&](const std::vector<int32_t>& batch) {
        if (batch != third) return;
        std::filesystem::copy_file(checkpoint("other", 8) + "/model.safetensors",
                                   checkpoint("first", 8) + "/model.safetensors",
                                   std::filesystem::copy_options::overwrite_existing);
    };
    EXPECT_NE(train("changed").find("init.from"), std::string::npos);
}

TEST_F(Nonfinite, CheckpointsOfOlderVersionsLoad) {
    EXPECT_EQ(train("whole"), "");
    copy_until("whole", "old", 4);
    const std::string folder = checkpoint("old", 4);
    ordered_json state = saved_state(folder);
    state.erase("left_out");
    state.erase("spike");
    state.erase("data");
    state["schedule"].erase("previous_loss");
    state["config"]["log"].erase("spike");
    std::ofstream(folder + "/state.json") << state.dump(2);
    ordered_json manifest = ordered_json::parse(read_file(folder + "/manifest.json"));
    const FileSummary summary = summarize_file(folder + "/state.json");
    manifest["files"]["state.json"] = {{"bytes", summary.bytes}, {"xxh3_128", summary.xxh3_128}};
    std::ofstream(folder + "/manifest.json") << manifest.dump();
    policy("rollback");  // which a resumed run may change
    EXPECT_EQ(train("old"), "");
    EXPECT_NE(out_.find("resumed after 4 updates"), std::string::npos);
    EXPECT_EQ(saved("old"), saved("whole"));
    EXPECT_EQ(metrics("old"), metrics("whole"));
}

}  // namespace
}  // namespace lmo
