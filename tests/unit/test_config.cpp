// Configuration files: include, merge, --set, defaults, the resolved form, resuming.

#include <sstream>

#include "config_files.h"

using namespace lmo;

namespace {

using Json = nlohmann::ordered_json;

// Every field of a Config in one text, to compare two of them.
std::string describe(const Config& c) {
    std::ostringstream out;
    out.precision(17);
    out << c.run.name << ' ' << c.run.dir << ' ' << c.run.device << ' ' << c.run.seed << ' '
        << c.run.steps << ' ' << c.run.threads << " | " << c.model.n_layer << ' ' << c.model.n_head
        << ' ' << c.model.n_kv_head << ' ' << c.model.d_model << ' ' << c.model.d_ff << ' '
        << c.model.vocab_size << ' ' << c.model.seq_len << ' ' << c.model.rope_theta << ' '
        << c.model.norm_eps << ' ' << c.model.init_std << ' ' << c.model.tie_embeddings << " | "
        << c.init_from << " | ";
    for (const std::string& file : c.data.train) out << file << ' ';
    for (const std::string& file : c.data.val) out << file << ' ';
    out << int(c.data.format) << ' ' << c.data.seed << ' ' << c.data.tokenizer << " | "
        << c.batch.sequences << ' ' << c.batch.micro_batch << ' ' << int(c.compute) << ' '
        << int(c.residual) << " | ";
    for (const GroupConfig& g : c.optimizer.groups) {
        out << (g.match.role ? to_string(*g.match.role) : "any") << ' ' << g.match.name << ' '
            << int(g.momentum.type) << ' ' << g.momentum.beta << ' ' << g.momentum.beta1 << ' '
            << g.momentum.beta2 << ' ' << g.momentum.eps << ' ' << g.momentum.eps_inside << ' '
            << int(g.norm.type) << ' ' << g.norm.newton_schulz.norm_scale << ' '
            << g.norm.newton_schulz.eps << ' ';
        for (const NewtonSchulzStep& s : g.norm.newton_schulz.steps) {
            out << s.a << ',' << s.b << ',' << s.c << ' ';
        }
        out << int(g.radius.rule) << ' ' << g.radius.factor << ' ' << int(g.decay.type) << ' '
            << g.decay.weight_decay.value_or(-1) << ' ' << g.decay.roles.size() << ' ' << g.lr_scale
            << "; ";
    }
    const WarmupConfig& w = c.schedule.warmup;
    const LrDecayConfig& d = c.schedule.decay;
    out << c.optimizer.weight_decay << ' ' << c.optimizer.clip_norm << ' ' << c.optimizer.fuse_qkv
        << " | " << c.schedule.lr << ' ' << c.schedule.steps << ' ' << int(w.type) << ' ' << w.steps
        << ' ' << w.div << ' ' << w.target_loss << ' ' << int(w.delta_star_mode) << ' '
        << w.delta_star << ' ' << w.sigma_F << ' ' << w.loss_ema << ' ' << w.max_fraction << ' '
        << int(d.type) << ' ' << d.final_div << ' ' << d.fraction << ' ' << int(d.shape) << " | "
        << c.eval.every << ' ' << c.eval.batches << ' ' << c.eval.sample.value_or("-") << ' '
        << c.checkpoint.every << ' ' << c.checkpoint.keep << ' ' << c.log.every << ' '
        << c.log.tensorboard;
    return out.str();
}

}  // namespace

class ConfigTest : public ConfigFiles {};

TEST_F(ConfigTest, DefaultsAreTheContracts) {
    const Config c = load("base.json");
    EXPECT_EQ(c.run.name, "run");
    EXPECT_EQ(c.run.dir, "runs/run");
    EXPECT_EQ(c.run.seed, 0u);
    EXPECT_EQ(c.run.steps, 100);
    EXPECT_EQ(c.run.device, "auto");
    EXPECT_EQ(c.run.threads, 0);
    EXPECT_EQ(c.model.n_kv_head, 4);
    EXPECT_EQ(c.model.rope_theta, 10000.0);
    EXPECT_EQ(c.model.norm_eps, 1e-5);
    EXPECT_EQ(c.model.init_std, 0.02);
    EXPECT_TRUE(c.model.tie_embeddings);
    EXPECT_EQ(c.init_from, "");
    EXPECT_EQ(c.data.train, std::vector<std::string>{"t*.bin"});
    EXPECT_EQ(c.data.val, (std::vector<std::string>{"v1.bin", "v2.bin"}));
    EXPECT_EQ(c.data.format, TokenFormat::automatic);
    EXPECT_EQ(c.data.seed, 1337u);
    EXPECT_EQ(c.data.tokenizer, "");
    EXPECT_EQ(c.batch.micro_batch, 8);
    EXPECT_EQ(c.compute, ComputeChoice::automatic);
    EXPECT_EQ(c.residual, DType::f32);
    EXPECT_EQ(c.optimizer.weight_decay, 0.0);
    EXPECT_EQ(c.optimizer.clip_norm, 0.0);
    EXPECT_TRUE(c.optimizer.fuse_qkv);
    EXPECT_EQ(c.schedule.lr, 0.001);
    EXPECT_EQ(c.schedule.steps, 100);
    EXPECT_EQ(c.schedule.warmup.type, WarmupType::none);
    EXPECT_EQ(c.schedule.decay.type, LrDecayType::constant);
    EXPECT_EQ(c.eval.every, 0);
    EXPECT_EQ(c.eval.batches, 32);
    EXPECT_FALSE(c.eval.sample);
    EXPECT_EQ(c.checkpoint.every, 0);
    EXPECT_EQ(c.checkpoint.keep, 2);
    EXPECT_EQ(c.log.every, 1);
    EXPECT_TRUE(c.log.tensorboard);

    const Config adaptive = load(
        "base.json",
        {R"(schedule.warmup={"type": "adaptive", "target_loss": 3})", "schedule.decay.type=wsd"});
    EXPECT_EQ(adaptive.schedule.warmup.div, 100.0);
    EXPECT_EQ(adaptive.schedule.warmup.delta_star_mode, DeltaStarMode::exact);
    EXPECT_EQ(adaptive.schedule.warmup.sigma_F, 1e-3);
    EXPECT_EQ(adaptive.schedule.warmup.loss_ema, 0.0);
    EXPECT_EQ(adaptive.schedule.warmup.max_fraction, 0.5);
    EXPECT_EQ(adaptive.schedule.decay.final_div, 1e4);
    EXPECT_EQ(adaptive.schedule.decay.fraction, 0.2);
    EXPECT_EQ(adaptive.schedule.decay.shape, WsdShape::linear);
}

TEST_F(ConfigTest, EveryChoiceReachesItsField) {
    const Config c =
        load("base.json",
             {"run.name=a",
              "run.dir=b",
              "run.seed=9007199254740",
              "run.device=cpu",
              "run.threads=3",
              "model.n_kv_head=2",
              "model.rope_theta=5e5",
              "model.norm_eps=1e-6",
              "model.init_std=0.1",
              "model.tie_embeddings=false",
              "init.from=hf",
              "data.format=uint16",
              "data.seed=7",
              "data.tokenizer=bytes",
              "batch.micro_batch=2",
              "precision.compute=bf16",
              "precision.residual=bf16",
              "optimizer.weight_decay=0.1",
              "optimizer.clip_norm=0.5",
              "optimizer.qkv=split",
              "eval.every=10",
              "eval.batches=4",
              "eval.sample=Once",
              "checkpoint.every=20",
              "checkpoint.keep=5",
              "log.every=2",
              "log.tensorboard=false",
              R"(schedule.warmup={"type":"adaptive","target_loss":3.5,"div":2,"delta_star":0.38,)"
              R"("sigma_F":0.01,"loss_ema":0.9,"max_fraction":1})",
              R"(schedule.decay={"type":"gap","final_div":10})"});
    EXPECT_EQ(
        describe(c),
        "a b cpu 9007199254740 100 3 | 2 4 2 32 64 256 16 500000 9.9999999999999995e-07 "
        "0.10000000000000001 0 | hf | t*.bin v1.bin v2.bin 2 7 bytes | 8 2 3 3 | "
        "matrix  3 0.94999999999999996 0 0 1e-08 0 3 1 9.9999999999999995e-08 " +
            [] {
                std::string five;
                for (int i = 0; i < 5; ++i) {
                    five += "3.4445000000000001,-4.7750000000000004,2.0314999999999999 ";
                }
                return five;
            }() +
            "3 0.20000000000000001 1 -1 2 1; "
            "any  6 0 0.80000000000000004 0.999 1e-08 1 0 1 9.9999999999999995e-08 "
            "0 1 1 -1 2 1; "
            "0.10000000000000001 0.5 0 | 0.001 100 3 0 2 3.5 1 0.38 0.01 "
            "0.90000000000000002 1 4 10 0.20000000000000001 0 | 10 4 Once 20 5 2 0");
    EXPECT_EQ(load("base.json", {"precision.compute=fp64"}).residual, DType::f64);
    EXPECT_EQ(load("base.json", {"data.format=llmc"}).data.format, TokenFormat::llmc);
    const Config wsd = load("base.json", {R"(schedule.decay={"type":"wsd","shape":"sqrt"})",
                                          R"(schedule.warmup={"type":"cosine","steps":100})"});
    EXPECT_EQ(wsd.schedule.decay.shape, WsdShape::sqrt);
    EXPECT_EQ(wsd.schedule.warmup.type, WarmupType::cosine);
    EXPECT_EQ(wsd.schedule.warmup.steps, 100);
}

TEST_F(ConfigTest, IncludesMergeInOrderAndNullDeletes) {
    write("sub/a.json", R"({"run": {"seed": 1, "threads": 1, "name": "a"}})");
    write("sub/b.json", R"({"run": {"seed": 2, "device": "cpu"}, "optimizer": {"clip_norm": 1}})");
    write("sub/top.json", R"({"include": ["../base.json", "a.json", "b.json"],
        "run": {"threads": 7, "device": null}, "optimizer": {"clip_norm": null}})");
    const Config c = load("sub/top.json");
    EXPECT_EQ(c.run.seed, 2u);        // b over a
    EXPECT_EQ(c.run.threads, 7);      // own over included
    EXPECT_EQ(c.run.name, "a");       // kept
    EXPECT_EQ(c.run.device, "auto");  // deleted: the default
    EXPECT_EQ(c.optimizer.clip_norm, 0.0);
    EXPECT_EQ(c.run.steps, 100);
}

TEST_F(ConfigTest, SetTakesJsonOrText) {
    const Config c = load(
        "base.json", {"run.steps=1e3", "run.name=1x", "run.dir=a=b", "data.train=[\"a\", \"b\"]",
                      "optimizer.lr=2", "run.seed=5", "run.seed=null"});
    EXPECT_EQ(c.run.steps, 1000);
    EXPECT_EQ(c.resolved["run"]["steps"].dump(), "1000");
    EXPECT_EQ(c.run.name, "1x");
    EXPECT_EQ(c.run.dir, "a=b");
    EXPECT_EQ(c.data.train, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(c.resolved["optimizer"]["lr"].dump(), "2.0");
    EXPECT_EQ(c.run.seed, 0u);
}

TEST_F(ConfigTest, SetReplacesAnObjectWhole) {
    write("linear.json", R"({"include": "base.json",
        "schedule": {"warmup": {"type": "linear", "steps": 10, "div": 7}}})");
    const Config c = load("linear.json", {R"(schedule.warmup={"type":"cosine","steps":5})"});
    EXPECT_EQ(c.schedule.warmup.type, WarmupType::cosine);
    EXPECT_EQ(c.schedule.warmup.div, 100.0);
    EXPECT_EQ(load("linear.json", {"schedule.warmup.steps=6"}).schedule.warmup.div, 7.0);
    EXPECT_EQ(load("linear.json", {"schedule.warmup=null"}).schedule.warmup.type, WarmupType::none);
}

TEST_F(ConfigTest, ScheduleNeedsNoDataNorBatch) {
    write("s.json", R"({"include": "base.json", "data": null, "batch": null, "run": null})");
    const Config c = load("s.json", {}, ConfigUse::schedule);
    EXPECT_EQ(c.run.steps, 0);
    EXPECT_EQ(c.schedule.steps, 0);
    EXPECT_TRUE(c.data.train.empty());
    EXPECT_EQ(error("s.json"),
              "s.json: missing: run.steps (an integer >= 1), "
              "data.train (a non-empty string, or a list of them), "
              "data.val (a non-empty string, or a list of them), "
              "batch.sequences (an integer >= 1 and <= 1048576)");
}

TEST_F(ConfigTest, ResolvedHoldsWhatAppliesAndRoundTrips) {
    write("r.json", R"({"include": "base.json", "schedule": {"warmup": {"type": "adaptive",
        "target_loss": 3.2, "delta_star": 0.5}, "decay": {"type": "wsd", "shape": "cosine"}}})");
    const Config c = load("r.json");
    const Json& r = c.resolved;
    EXPECT_FALSE(r.contains("include"));
    EXPECT_EQ(r["model"]["n_kv_head"], 4);
    EXPECT_EQ(r["batch"]["micro_batch"], 8);
    EXPECT_EQ(r["run"]["dir"], "runs/run");
    EXPECT_EQ(r["schedule"]["warmup"].dump(),
              R"({"type":"adaptive","div":100.0,"target_loss":3.2,"delta_star":0.5,)"
              R"("sigma_F":0.001,"loss_ema":0.0,"max_fraction":0.5})");  // no steps
    EXPECT_EQ(r["schedule"]["decay"].dump(),
              R"({"type":"wsd","final_div":10000.0,"fraction":0.2,"shape":"cosine"})");
    EXPECT_EQ(r["optimizer"]["groups"][0]["momentum"].dump(),
              R"({"type":"nesterov","beta":0.95,"ema":false,"start":"zero"})");
    EXPECT_EQ(r["optimizer"]["groups"][1]["norm"].dump(), R"({"type":"none"})");

    const Config again = config_from_json(r, "state.json", ConfigUse::train);
    EXPECT_EQ(again.resolved.dump(), r.dump());
    EXPECT_EQ(describe(again), describe(c));
    // A file that went through a reader which sorts keys is the same configuration.
    const Config sorted =
        config_from_json(Json(nlohmann::json::parse(r.dump())), "state.json", ConfigUse::train);
    EXPECT_EQ(sorted.resolved.dump(), r.dump());
    EXPECT_THROW(config_from_json(Json::array(), "state.json", ConfigUse::train), UsageError);
    Json wrong = r;
    wrong["optimizer"]["lr"] = 0;
    try {
        config_from_json(wrong, "state.json", ConfigUse::train);
        FAIL() << "lr 0 was taken";
    } catch (const UsageError& error) {
        EXPECT_STREQ(error.what(), "state.json: optimizer.lr = 0: expected a number > 0");
    }
}

TEST_F(ConfigTest, ResumeConflictsNameOldAndNew) {
    const Json saved = load("base.json").resolved;
    EXPECT_TRUE(resume_conflicts(saved, saved).empty());
    const Config may = load("base.json", {"run.dir=x", "run.name=y", "run.device=cpu",
                                          "log.every=5", "eval.every=3", "checkpoint.keep=9",
                                          "model.attention=cudnn", "model.recompute=block"});
    EXPECT_TRUE(resume_conflicts(saved, may.resolved).empty());
    const Config other =
        load("base.json", {"optimizer.lr=0.002", "optimizer.preset=nsgd", "run.threads=2",
                           R"(schedule.warmup={"type":"linear","steps":5})"});
    const std::vector<std::string> conflicts = resume_conflicts(saved, other.resolved);
    ASSERT_EQ(conflicts.size(), 7u);
    EXPECT_EQ(conflicts[0], "run.threads: 0 -> 2");
    EXPECT_EQ(conflicts[1].substr(0, 19), "optimizer.groups: [");
    EXPECT_EQ(conflicts[2], "optimizer.lr: 0.001 -> 0.002");
    EXPECT_EQ(conflicts[3], "schedule.warmup.type: \"none\" -> \"linear\"");
    EXPECT_EQ(conflicts[4], "schedule.warmup.steps: none -> 5");
    EXPECT_EQ(conflicts[5], "schedule.warmup.div: none -> 100.0");
    EXPECT_EQ(conflicts[6], "schedule.compat: none -> {\"onecycle\":false}");

    Json beta = saved;
    beta["optimizer"]["groups"][0]["momentum"]["beta"] = 0.5;
    EXPECT_EQ(resume_conflicts(saved, beta),
              std::vector<std::string>{"optimizer.groups[0].momentum.beta: 0.95 -> 0.5"});
}

TEST(ConfigReference, PageInTheRepositoryIsCurrent) {
    std::ostringstream page;
    page << std::ifstream("dev/docs/config.md").rdbuf();
    EXPECT_TRUE(page.str() == config_reference()) << "dev/docs/config.md is stale: run `make docs`";
}

TEST(ShippedConfigs, EveryRunLoads) {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator("configs/run")) {
        if (entry.path().extension() != ".json") continue;
        EXPECT_NO_THROW({
            const Config c = load_config(entry.path().string(), {}, ConfigUse::train);
            EXPECT_EQ(describe(config_from_json(c.resolved, "again", ConfigUse::train)),
                      describe(c));
        }) << entry.path();
        ++count;
    }
    EXPECT_GE(count, 5);
}

TEST(ShippedConfigs, PublishedModels) {
    for (const auto& [name, layers] : {std::pair("124m", 12), std::pair("210m", 24)}) {
        const Config c =
            load_config(std::string("configs/model/llama-") + name + ".json",
                        {"optimizer.preset=muon", "optimizer.lr=1"}, ConfigUse::schedule);
        EXPECT_EQ(c.model.n_layer, layers);
        EXPECT_EQ(c.model.n_head, 12);
        EXPECT_EQ(c.model.n_kv_head, 12);
        EXPECT_EQ(c.model.d_model, 768);
        EXPECT_EQ(c.model.d_ff, 2048);
        EXPECT_EQ(c.model.vocab_size, 50304);
        EXPECT_EQ(c.model.seq_len, 512);
        EXPECT_TRUE(c.model.tie_embeddings);
    }
}
