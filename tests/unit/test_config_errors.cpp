// What a user reads when a configuration is wrong: file, key, value, what was expected.

#include "config_files.h"

using namespace lmo;

class ConfigErrors : public ConfigFiles {
  protected:
    std::string text(const std::string& json) const {
        write("x.json", json);
        return error("x.json");
    }
    std::string set(const std::string& override) const { return error("base.json", {override}); }
};

TEST_F(ConfigErrors, Json) {
    EXPECT_EQ(text("{\n  \"run\": {\n    \"steps\": 1,}}").substr(0, 24),
              "x.json: line 3, column 1");
    EXPECT_EQ(text("{\"run\": {\"steps\": 1,}}"),
              "x.json: line 1, column 21: syntax error while parsing object key - unexpected '}'; "
              "expected string literal");
    EXPECT_EQ(text("{\n  // steps\n \"run\": {}}"),
              "x.json: line 2, column 3: syntax error while parsing object key - invalid literal; "
              "last read: '{<U+000A>  /'; expected string literal (JSON has no comments)");
    EXPECT_EQ(text("{\"run\": {\"steps\": 1}} {}").substr(0, 26), "x.json: line 1, column 23:");
    EXPECT_EQ(text("{\"a\": 1e999}"), "x.json: line 1, column 12: number overflow parsing '1e999'");
    EXPECT_EQ(text("{\"a\": NaN}").substr(0, 25), "x.json: line 1, column 7:");
    EXPECT_EQ(text("").substr(0, 8), "x.json: ");
    EXPECT_EQ(text("[1]"), "x.json: [1]: expected an object, {\"key\": value}");
    EXPECT_EQ(text("{\"run\": {\"steps\": 1,\n \"steps\": 2}}"),
              "x.json: line 2, column 8: the key \"steps\" appears twice in one object; "
              "keep one of the two");
    EXPECT_EQ(text("{\"run\": {\"steps\": 1}, \"data\": {\"seed\": 1}, \"run\": {}}"),
              "x.json: line 1, column 48: the key \"run\" appears twice in one object; "
              "keep one of the two");
    EXPECT_NE(text(std::string(100000, '[')).find("nested deeper than 64 levels"),
              std::string::npos);
}

TEST_F(ConfigErrors, Includes) {
    EXPECT_EQ(error("nowhere.json"), "cannot read nowhere.json: No such file or directory");
    EXPECT_EQ(text(R"({"include": "sub/nope.json"})"),
              "x.json: include: cannot read sub/nope.json: No such file or directory");
    EXPECT_EQ(text(R"({"include": "."})").substr(0, 29), "x.json: include: cannot read ");
    EXPECT_EQ(text(R"({"include": 3})"),
              "x.json: include = 3: expected a path, or a list of paths, relative to this file");
    EXPECT_EQ(text(R"({"include": ["base.json", ""]})").substr(0, 18), "x.json: include = ");
    write("sub/a.json", R"({"include": "../b.json"})");
    write("b.json", R"({"include": ["base.json", "sub/a.json"]})");
    EXPECT_EQ(error("b.json"),
              "sub/a.json: include: the files include one another in a circle: "
              "b.json -> sub/a.json -> b.json");
    EXPECT_EQ(text(R"({"include": "x.json"})"),
              "x.json: include: the files include one another in a circle: x.json -> x.json");
    write("twice.json", R"({"include": ["base.json", "base.json"]})");
    EXPECT_EQ(error("twice.json"), "no error");
}

// Each file includes the next one twice, a chain of files, a large one.
TEST_F(ConfigErrors, IncludesAreBounded) {
    const auto name = [](int i) { return "f" + std::to_string(i) + ".json"; };
    for (int i = 0; i < 40; ++i) {
        const std::string next = "\"" + name(i + 1) + "\"";
        write(name(i), "{\"include\": [" + next + ", " + next + "]}");
    }
    write(name(20), "{}");
    EXPECT_NE(error(name(0)).find("more than 1000 files are included"), std::string::npos);
    for (int i = 0; i < 40; ++i) write(name(i), "{\"include\": \"" + name(i + 1) + "\"}");
    EXPECT_NE(error(name(0)).find("deeper than 32 levels"), std::string::npos);
    write(name(40), "{\"include\": \"base.json\"}");
    EXPECT_EQ(error(name(11)), "no error");
    write("half.json", "{}" + std::string(300'000, ' '));
    EXPECT_EQ(text(R"({"include": ["base.json", "half.json"]})"), "no error");
    EXPECT_NE(text(R"({"include": ["base.json", "half.json", "half.json"]})").find("524288 bytes"),
              std::string::npos);
}

TEST_F(ConfigErrors, NameOfARunStaysInRuns) {
    for (const char* name : {"..", "../x", "a/../../x", "a/.."}) {
        EXPECT_NE(set(std::string("run.name=") + name).find("run.name"), std::string::npos) << name;
    }
    EXPECT_EQ(set("run.name=a..b/c"), "no error");
    EXPECT_EQ(error("base.json", {"run.name=..", "run.dir=../elsewhere"}), "no error");
}

TEST_F(ConfigErrors, ValuesNameTheirSource) {
    write("inner.json", R"({"include": "base.json", "optimizer": {"clip_norm": -2}})");
    write("outer.json", R"({"include": "inner.json", "run": {"seed": 1}})");
    EXPECT_EQ(error("outer.json"), "inner.json: optimizer.clip_norm = -2: expected a number >= 0");
    EXPECT_EQ(error("outer.json", {"optimizer.clip_norm=-3"}),
              "--set: optimizer.clip_norm = -3: expected a number >= 0");
    EXPECT_EQ(error("outer.json", {"optimizer.clip_norm=1"}), "no error");
    EXPECT_EQ(error("outer.json", {R"(optimizer={"clip_norm": 0, "lr": true, "preset": "muon"})"}),
              "--set: optimizer.lr = true: expected a number > 0");
    EXPECT_EQ(error("outer.json", {"data.train=[a, b]", "optimizer.clip_norm=1"}), "no error");
    EXPECT_EQ(error("outer.json", {"schedule={type: 1}", "optimizer.clip_norm=1"}),
              "--set (taken as text, as it is not valid JSON): schedule = \"{type: 1}\": "
              "expected an object");
}

TEST_F(ConfigErrors, Set) {
    const std::string expected = ": expected key.path=value, for example --set optimizer.lr=0.001";
    for (const char* wrong :
         {"optimizer.lr", "=1", "optimizer..lr=1", "optimizer.=1", ".lr=1", ""}) {
        EXPECT_EQ(set(wrong), std::string("--set ") + wrong + expected);
    }
    EXPECT_EQ(set("include=b.json"),
              "--set include=b.json: include is for files; name a file that includes it");
    EXPECT_EQ(set("run.name=\xff"), "--set run.name: the value is not valid UTF-8");
    EXPECT_EQ(set("run.steps.x=1"), "--set: run.steps = {\"x\":1}: expected an integer >= 1");
}

TEST_F(ConfigErrors, UnknownKeysNameTheNearest) {
    EXPECT_EQ(error_with(R"({"optimizer": {"lrr": 1}})"),
              "x.json: unknown key \"optimizer.lrr\"; did you mean \"optimizer.lr\"?");
    EXPECT_EQ(set("schedule.warmup_steps=3"),
              "--set: unknown key \"schedule.warmup_steps\"; did you mean "
              "\"schedule.warmup.steps\"?");
    EXPECT_EQ(set("optimiser.lr=1"),
              "--set: unknown key \"optimiser\"; did you mean \"optimizer\"?");
    EXPECT_EQ(set("lr=1"), "--set: unknown key \"lr\"; did you mean \"optimizer.lr\"?");
    EXPECT_EQ(set("run.step=1"), "--set: unknown key \"run.step\"; did you mean \"run.steps\"?");
    EXPECT_EQ(set("train.steps=1"), "--set: unknown key \"train\"; did you mean \"data.train\"?");
    EXPECT_EQ(error_with(R"({"optimizer.lr": 1})"),
              "x.json: unknown key \"optimizer.lr\": in a file write nested objects, "
              "{\"optimizer\": {...}}");
}

TEST_F(ConfigErrors, KeysThatTheTypeDoesNotUse) {
    EXPECT_EQ(error_with(R"({"schedule": {"warmup":
                  {"type": "adaptive", "target_loss": 3, "steps": 5}}})"),
              "x.json: schedule.warmup.steps = 5 is not used with schedule.warmup.type = "
              "\"adaptive\", only with \"linear\", \"cosine\"; remove it or set it to null");
    EXPECT_EQ(set("schedule.warmup.target_loss=3"),
              "--set: schedule.warmup.target_loss = 3 is not used with schedule.warmup.type = "
              "\"none\", only with \"adaptive\"; remove it or set it to null");
    EXPECT_EQ(error_with(R"({"schedule": {"decay": {"type": "cosine", "fraction": 0.1}}})"),
              "x.json: schedule.decay.fraction = 0.1 is not used with schedule.decay.type = "
              "\"cosine\", only with \"wsd\"; remove it or set it to null");
    EXPECT_NE(set("schedule.decay.final_div=10").find("schedule.decay.type = \"constant\""),
              std::string::npos);
    EXPECT_EQ(error("base.json", {"precision.compute=fp64", "precision.residual=bf16"}),
              "--set: precision.residual = \"bf16\" is not used with precision.compute = \"fp64\", "
              "only with \"auto\", \"bf16\", \"fp32\"; remove it or set it to null");
    EXPECT_EQ(error_with(R"({"schedule": {"warmup": {"type": "none", "steps": null}}})"),
              "no error");
}

TEST_F(ConfigErrors, TypesAndRanges) {
    const std::vector<std::pair<std::string, std::string>> cases = {
        {"run=5", "run = 5: expected an object"},
        {"run.steps=many", "run.steps = \"many\": expected an integer >= 1"},
        {"run.steps=0", "run.steps = 0: expected an integer >= 1"},
        {"run.steps=1.5", "run.steps = 1.5: expected an integer >= 1"},
        {"run.steps=true", "run.steps = true: expected an integer >= 1"},
        {"run.steps=1e300", "run.steps = 1e+300: expected an integer >= 1 and <= 1e15"},
        {"run.steps=18446744073709551615",
         "run.steps = 18446744073709551615: expected an integer >= 1 and <= 1e15"},
        {"run.seed=-1", "run.seed = -1: expected an integer >= 0"},
        {"run.name=", "run.name = \"\": expected a non-empty string"},
        {"run.name=5", "run.name = 5: expected a non-empty string"},
        {"run.device=gpu", "run.device = \"gpu\": expected one of \"auto\", \"cpu\", \"cuda\""},
        {"run.threads=-1", "run.threads = -1: expected an integer >= 0 and <= 4096"},
        {"model.vocab_size=70000",
         "model.vocab_size = 70000: expected an integer >= 1 and <= 65536"},
        {"model.seq_len=0", "model.seq_len = 0: expected an integer >= 1 and <= 1048576"},
        {"model.tie_embeddings=1", "model.tie_embeddings = 1: expected true or false"},
        {"data.train=[]", "data.train = []: expected a non-empty string, or a list of them"},
        {"data.val=[1]", "data.val = [1]: expected a non-empty string, or a list of them"},
        {"data.format=csv",
         "data.format = \"csv\": expected one of \"auto\", \"llmc\", \"uint16\""},
        {"optimizer.lr=0", "optimizer.lr = 0: expected a number > 0"},
        {"optimizer.lr=1e999", "optimizer.lr = \"1e999\": expected a number > 0"},
        {"optimizer.lr=NaN", "optimizer.lr = \"NaN\": expected a number > 0"},
        {"optimizer.weight_decay=-0.1", "optimizer.weight_decay = -0.1: expected a number >= 0"},
        {"optimizer.qkv=both", "optimizer.qkv = \"both\": expected one of \"fused\", \"split\""},
        {"schedule.warmup.type=exp",
         "schedule.warmup.type = \"exp\": expected one of \"none\", \"linear\", \"cosine\", "
         "\"adaptive\", \"rates\""},
        {R"(schedule.warmup={"type":"rates","rates":[0.1,0]})",
         "schedule.warmup.rates = [0.1,0]: expected a list of numbers > 0"},
        {R"(schedule.warmup={"type":"rates","rates":[]})",
         "schedule.warmup.rates = []: expected a list of numbers > 0"},
        {R"(schedule.warmup={"type":"linear","steps":5,"div":1})",
         "schedule.warmup.div = 1: expected a number > 1"},
        {R"(schedule.warmup={"type":"adaptive","target_loss":3,"loss_ema":1})",
         "schedule.warmup.loss_ema = 1: expected a number >= 0 and < 1"},
        {R"(schedule.warmup={"type":"adaptive","target_loss":3,"max_fraction":0})",
         "schedule.warmup.max_fraction = 0: expected a number > 0 and <= 1"},
        {R"(schedule.warmup={"type":"adaptive","target_loss":3,"delta_star":0})",
         "schedule.warmup.delta_star = 0: expected \"exact\", \"unweighted\", \"quadpack\", "
         "\"gk21\", \"measured\" or a number > 0"},
        {R"(schedule.decay={"type":"wsd","fraction":1.5})",
         "schedule.decay.fraction = 1.5: expected a number > 0 and <= 1"},
        {"eval.batches=0", "eval.batches = 0: expected an integer >= 1"},
        {"log.every=0", "log.every = 0: expected an integer >= 1"},
    };
    for (const auto& [override, message] : cases) EXPECT_EQ(set(override), "--set: " + message);
}

TEST_F(ConfigErrors, KeysTogether) {
    EXPECT_EQ(set("model.d_model=34"),
              "--set: model.d_model = 34: expected a multiple of model.n_head = 4");
    EXPECT_EQ(set("model.d_model=12"),
              "--set: model.d_model = 12: expected an even head size, as RoPE turns pairs, not "
              "d_model / n_head = 3");
    EXPECT_EQ(set("model.n_kv_head=3"),
              "--set: model.n_kv_head = 3: expected a divisor of model.n_head = 4");
    EXPECT_EQ(set("batch.micro_batch=3"),
              "--set: batch.micro_batch = 3: expected a divisor of batch.sequences = 8");
    EXPECT_EQ(error_with(R"({"schedule": {"warmup": {"type": "linear", "steps": 101}}})"),
              "x.json: schedule.warmup.steps = 101: expected at most run.steps = 100");
    EXPECT_EQ(error_with(R"({"run": {"steps": 2}, "schedule": {"warmup":
                  {"type": "rates", "rates": [1, 2, 3]}}})"),
              "x.json: schedule.warmup.rates = [1,2,3]: expected at most one for each update, "
              "run.steps = 2");
    EXPECT_EQ(set("schedule.decay.type=gap"),
              "--set: schedule.decay.type = \"gap\": expected schedule.warmup.type = \"adaptive\" "
              "with it (it follows the gap of that warm-up), not schedule.warmup.type = \"none\"");
    EXPECT_EQ(set("eval.sample=Once"),
              "--set: eval.sample = \"Once\": expected data.tokenizer with it, to turn tokens into "
              "text");
}

TEST_F(ConfigErrors, AllThatIsMissingAtOnce) {
    EXPECT_EQ(text(R"({"model": {"n_layer": 1, "n_head": 1, "d_model": 2, "d_ff": 2},
                       "data": {"train": "a"}, "batch": {"sequences": 1},
                       "schedule": {"warmup": {"type": "adaptive"}}})"),
              "x.json: missing: run.steps (an integer >= 1), "
              "model.vocab_size (an integer >= 1 and <= 65536), "
              "model.seq_len (an integer >= 1 and <= 1048576), "
              "data.val (a non-empty string, or a list of them), optimizer.lr (a number > 0), "
              "schedule.warmup.target_loss (a number >= 0), optimizer.preset or optimizer.groups");
    EXPECT_EQ(set("optimizer.lr=null"), "base.json: missing: optimizer.lr (a number > 0)");
}

TEST_F(ConfigErrors, AttentionByCudnn) {
    EXPECT_EQ(set("model.attention=flash"),
              "--set: model.attention = \"flash\": expected one of \"own\", \"cudnn\"");
    EXPECT_EQ(set("model.attention=cudnn"), "no error");
    EXPECT_EQ(
        error("base.json", {"model.attention=cudnn", "optimizer.qk_clip=100"}),
        "--set: model.attention = \"cudnn\": expected \"own\", as optimizer.qk_clip needs the "
        "largest scores, which cuDNN does not tell");
}

TEST_F(ConfigErrors, AnEmptyObjectChangesNothing) {
    EXPECT_EQ(set("schedule.compat={}"), "no error");
}

TEST_F(ConfigErrors, BatchesAreCutOverRanks) {
    const auto micro_batch = [&](int ranks, const std::vector<std::string>& overrides = {}) {
        lmo::Config config = load("base.json", overrides);
        lmo::cut_over_ranks(config, ranks);
        EXPECT_EQ(config.resolved["batch"]["micro_batch"], config.batch.micro_batch);
        return config.batch.micro_batch;
    };
    EXPECT_EQ(micro_batch(1), 8);
    EXPECT_EQ(micro_batch(4), 2);
    EXPECT_EQ(micro_batch(1, {"batch.micro_batch=2"}), 2);
    EXPECT_EQ(micro_batch(2, {"batch.micro_batch=2"}), 2);
    const auto error_of = [&](int ranks, const std::vector<std::string>& overrides) -> std::string {
        try {
            micro_batch(ranks, overrides);
        } catch (const lmo::UsageError& error) {
            return error.what();
        }
        return "no error";
    };
    EXPECT_EQ(error_of(3, {}),
              "batch.sequences = 8: expected a multiple of 3 ranks, which share every batch");
    EXPECT_EQ(error_of(4, {"batch.micro_batch=4"}),
              "batch.micro_batch = 4: expected a divisor of 2, the batch.sequences = 8 over 4 "
              "ranks; leave it out, or set it to 2");
    const std::vector<std::string> local = {
        R"(schedule.warmup={"type": "adaptive", "target_loss": 3})",
        "schedule.compat.loss_source=local"};
    EXPECT_EQ(error_of(1, local), "no error");
    EXPECT_EQ(error_of(2, local), "no error");
    std::vector<std::string> measured = local, skipping = local;
    measured.push_back("smoothness.every=5");
    skipping.push_back("run.on_nonfinite=skip");
    const std::string drift =
        "schedule.compat.loss_source = \"local\" on 2 ranks, whose weights drift apart: expected ";
    EXPECT_EQ(error_of(2, measured), drift + "smoothness.every = 0");
    EXPECT_EQ(error_of(2, skipping), drift + "run.on_nonfinite = \"stop\"");
    EXPECT_EQ(error_of(1, measured), "no error");
}

TEST_F(ConfigErrors, PublishedBehavioursThatFitNothing) {
    EXPECT_EQ(set("optimizer.compat.mom_init=parameters"),
              "--set: unknown key \"optimizer.compat.mom_init\"; did you mean "
              "\"optimizer.compat.momentum_init\"?");
    EXPECT_EQ(set("schedule.compat.first_lr=peak"),
              "--set: schedule.compat.first_lr = \"peak\" is not used with schedule.warmup.type = "
              "\"none\", only with \"adaptive\"; remove it or set it to null");
    const auto schedule = [&](const std::string& keys) {
        return text("{\"include\": \"base.json\", \"schedule\": {" + keys + "}}");
    };
    EXPECT_EQ(schedule(R"("warmup": {"type": "cosine", "steps": 5}, "compat": {"onecycle": true})"),
              "x.json: schedule.compat.onecycle = true: expected schedule.decay.type = \"cosine\" "
              "with it, as the warm-up, not \"constant\"");
    EXPECT_EQ(schedule(R"("warmup": {"type": "cosine", "steps": 0}, "decay": {"type": "cosine"})"),
              "x.json: schedule.warmup.steps = 0: expected at least 1 (schedule.warmup.type = "
              "\"none\" is a run without a warm-up)");
    EXPECT_EQ(schedule(R"("warmup": {"type": "cosine", "steps": 0}, "decay": {"type": "cosine"},
                          "compat": {"onecycle": true})"),
              "no error");
    EXPECT_EQ(
        schedule(R"("warmup": {"type": "adaptive", "target_loss": 3},
                          "decay": {"type": "wsd"}, "compat": {"late_decay": true})"),
        "x.json: schedule.compat.late_decay = true: expected schedule.decay.type = \"cosine\" "
        "or \"linear\" with it, not \"wsd\"");
    EXPECT_EQ(set("optimizer.compat.momentum_init=parameters"), "no error");  // muon's nesterov
    EXPECT_EQ(text(R"({"include": "base.json", "optimizer": {"preset": "lion",
                       "compat": {"momentum_init": "parameters"}}})"),
              "x.json: optimizer.compat.momentum_init = \"parameters\": expected \"zero\", as no "
              "group has momentum.type = \"heavy_ball\" or \"nesterov\"");
}
