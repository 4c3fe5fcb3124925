// Checkpoint folders: what is written, and that a valid checkpoint survives every failure.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "llmc/core/error.h"
#include "llmc/io/checkpoint.h"
#include "llmc/io/files.h"

namespace lmo {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr int64_t kElements = 5000;

class Checkpoint : public ::testing::Test {
  protected:
    void SetUp() override {
        const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
        run_ = fs::temp_directory_path() /
               ("lmo_checkpoint_" + std::to_string(::getpid()) + "_" + test->name());
        fs::remove_all(run_);
        fs::create_directories(run_);
    }
    void TearDown() override { fs::remove_all(run_); }

    // A model of one tensor, all elements `value`. `before_fetch` runs when its turn comes.
    std::string save(int64_t step, float value, int keep = 0,
                     std::function<void()> before_fetch = nullptr) const {
        const auto fill = [=](void* target) {
            if (before_fetch) before_fetch();
            std::fill_n(static_cast<float*>(target), kElements, value);
        };
        const json config = {{"model_type", "llama"}}, state = {{"step", step}, {"value", value}};
        const CheckpointContents contents{{{"w", DType::f32, {kElements}, fill}},
                                          {{"w.momentum", DType::f32, {kElements}, fill}},
                                          &config,
                                          &state};
        return save_checkpoint(run_.string(), step, contents, keep);
    }

    std::set<std::string> listing() const {
        std::set<std::string> names;
        for (const auto& entry : fs::directory_iterator(run_ / "checkpoints")) {
            names.insert(entry.path().filename().string());
        }
        return names;
    }

    fs::path folder(const std::string& name) const { return run_ / "checkpoints" / name; }

    std::string newest(std::vector<std::string>* warnings = nullptr) const {
        const auto found = newest_checkpoint(run_.string(), warnings);
        return found ? fs::path(*found).filename().string() : "none";
    }

    static double stored_value(const std::string& folder) {
        return SafetensorsFile(folder + "/model.safetensors").read("w", {kElements})[0];
    }

    fs::path run_;
};

using Names = std::set<std::string>;

TEST_F(Checkpoint, HasTheFilesAndTheManifestOfTheContract) {
    const fs::path saved = save(1000, 1.5f);
    EXPECT_EQ(saved, folder("step_00001000"));
    Names names;
    for (const auto& entry : fs::directory_iterator(saved)) {
        names.insert(entry.path().filename().string());
    }
    EXPECT_EQ(names, (Names{"config.json", "manifest.json", "model.safetensors",
                            "optimizer.safetensors", "state.json"}));
    const json manifest = json::parse(read_file((saved / "manifest.json").string()));
    EXPECT_EQ(manifest["format"], 1);
    EXPECT_EQ(manifest["step"], 1000);
    EXPECT_EQ(manifest["files"].size(), 4u);
    for (const auto& [name, line] : manifest["files"].items()) {
        EXPECT_EQ(line["bytes"], fs::file_size(saved / name)) << name;
        EXPECT_EQ(line["xxh3_128"], summarize_file((saved / name).string()).xxh3_128) << name;
    }
    EXPECT_EQ(json::parse(read_file((saved / "config.json").string()))["model_type"], "llama");
    EXPECT_EQ(json::parse(read_file((saved / "state.json").string()))["step"], 1000);
    const std::string bytes = read_file((saved / "model.safetensors").string());
    EXPECT_NE(bytes.find(R"("__metadata__":{"format":"pt"})"), std::string::npos);
    const SafetensorsFile optimizer((saved / "optimizer.safetensors").string());
    EXPECT_EQ(optimizer.read("w.momentum", {kElements})[kElements - 1], 1.5);
    std::string reason = "x";
    EXPECT_TRUE(checkpoint_is_valid(saved.string(), &reason));
    EXPECT_EQ(reason, "");
}

TEST_F(Checkpoint, AnUnusedFolderHasNoCheckpoint) {
    EXPECT_EQ(newest(), "none");
    EXPECT_FALSE(run_folder_is_used(run_.string()));
    EXPECT_FALSE(run_folder_is_used((run_ / "absent").string()));
    fs::create_directories(run_ / "checkpoints" / "step_x");
    EXPECT_EQ(newest(), "none");
    EXPECT_FALSE(run_folder_is_used(run_.string()));
    std::ofstream(run_ / "metrics.jsonl") << "{}\n";
    EXPECT_TRUE(run_folder_is_used(run_.string()));
    fs::remove(run_ / "metrics.jsonl");
    save(0, 1);
    EXPECT_TRUE(run_folder_is_used(run_.string()));
    EXPECT_EQ(newest(), "step_00000000");
}

TEST_F(Checkpoint, NewestIsByNumberNotByName) {
    save(99999999, 1);
    save(100000000, 2);
    EXPECT_EQ(newest(), "step_100000000");
}

TEST_F(Checkpoint, EveryKindOfDamageIsNoticedNamedAndPassedOver) {
    const auto flip = [](const fs::path& path) {
        std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
        const auto at = static_cast<std::streamoff>(fs::file_size(path) - 3);
        file.seekg(at);
        const int byte = file.get();
        file.seekp(at);
        file.put(static_cast<char>(byte ^ 1));
    };
    const auto edit = [](const fs::path& path, const std::function<void(json*)>& change) {
        json manifest = json::parse(read_file(path.string()));
        change(&manifest);
        std::ofstream(path) << manifest;
    };
    struct Case {
        const char* expected;
        std::function<void(const fs::path&)> damage;
    };
    const std::vector<Case> cases = {
        {"model.safetensors does not have the checksum",
         [&](const fs::path& f) { flip(f / "model.safetensors"); }},
        {"optimizer.safetensors does not have the checksum",
         [&](const fs::path& f) { flip(f / "optimizer.safetensors"); }},
        {"state.json does not have the checksum",
         [&](const fs::path& f) { flip(f / "state.json"); }},
        {"model.safetensors has 100 bytes",
         [](const fs::path& f) { fs::resize_file(f / "model.safetensors", 100); }},
        {"config.json is missing", [](const fs::path& f) { fs::remove(f / "config.json"); }},
        {"no manifest.json", [](const fs::path& f) { fs::remove(f / "manifest.json"); }},
        {"damaged", [](const fs::path& f) { fs::resize_file(f / "manifest.json", 40); }},
        {"damaged", [](const fs::path& f) { fs::resize_file(f / "manifest.json", 0); }},
        {"does not name model.safetensors",
         [&](const fs::path& f) {
             edit(f / "manifest.json", [](json* m) { (*m)["files"].erase("model.safetensors"); });
         }},
        {"not a plain name",
         [&](const fs::path& f) {
             edit(f / "manifest.json",
                  [](json* m) { (*m)["files"]["../x"] = (*m)["files"]["config.json"]; });
         }},
        {"lacks size or checksum",
         [&](const fs::path& f) {
             edit(f / "manifest.json", [](json* m) { (*m)["files"]["config.json"]["bytes"] = -1; });
         }},
        {"format 2",
         [&](const fs::path& f) {
             edit(f / "manifest.json", [](json* m) { (*m)["format"] = 2; });
         }},
        {"of step 21",
         [&](const fs::path& f) {
             edit(f / "manifest.json", [](json* m) { (*m)["step"] = 21; });
         }},
    };
    save(10, 1);
    for (const Case& item : cases) {
        SCOPED_TRACE(item.expected);
        const fs::path saved = save(20, 2);
        ASSERT_EQ(newest(), "step_00000020");
        item.damage(saved);
        std::string reason;
        EXPECT_FALSE(checkpoint_is_valid(saved.string(), &reason));
        EXPECT_NE(reason.find(item.expected), std::string::npos) << reason;
        std::vector<std::string> warnings;
        EXPECT_EQ(newest(&warnings), "step_00000010");
        ASSERT_EQ(warnings.size(), 1u);
        EXPECT_NE(warnings[0].find("step_00000020"), std::string::npos) << warnings[0];
        EXPECT_NE(warnings[0].find(item.expected), std::string::npos) << warnings[0];
    }
}

TEST_F(Checkpoint, PruningKeepsTheNewest) {
    for (int step = 1; step <= 5; ++step) save(step, 1, 2);
    EXPECT_EQ(listing(), (Names{"step_00000004", "step_00000005"}));
    save(6, 1, 1);
    EXPECT_EQ(listing(), (Names{"step_00000006"}));
    save(7, 1, 0);  // all
    EXPECT_EQ(listing(), (Names{"step_00000006", "step_00000007"}));
}

TEST_F(Checkpoint, PruningNeverRemovesTheOneJustSavedNorCountsBrokenOnes) {
    save(100, 1);
    save(50, 2, 1);  // after going back
    EXPECT_EQ(listing(), (Names{"step_00000050"}));
    fs::remove(fs::path(save(60, 3)) / "manifest.json");
    save(70, 4, 2);
    EXPECT_EQ(listing(), (Names{"step_00000050", "step_00000060", "step_00000070"}));
}

TEST_F(Checkpoint, TheSameStepIsReplaced) {
    save(5, 1);
    const std::string saved = save(5, 2);
    EXPECT_EQ(stored_value(saved), 2.0);
    EXPECT_EQ(listing(), Names{"step_00000005"});
    fs::remove(fs::path(saved) / "manifest.json");  // a broken one as well
    EXPECT_EQ(stored_value(save(5, 3)), 3.0);
    EXPECT_EQ(listing(), Names{"step_00000005"});
    EXPECT_EQ(newest(), "step_00000005");
}

TEST_F(Checkpoint, KilledBetweenTheTwoRenamesOfAReplacement) {
    fs::rename(save(5, 1), folder("step_00000005.old"));
    fs::create_directories(folder(".tmp_step_00000005"));
    EXPECT_EQ(newest(), "step_00000005.old");
    EXPECT_EQ(stored_value(folder("step_00000005.old").string()), 1.0);
    save(5, 2);
    EXPECT_EQ(newest(), "step_00000005");
    EXPECT_EQ(listing(), Names{"step_00000005"});
}

TEST_F(Checkpoint, KilledWhileWritingLeavesTheEarlierOneAndIsCleanedUp) {
    save(1, 1);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        save(2, 2, 1, [] { ::kill(::getpid(), SIGKILL); });
        ::_exit(0);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
    EXPECT_EQ(listing(), (Names{".tmp_step_00000002", "step_00000001"}));
    EXPECT_EQ(newest(), "step_00000001");
    save(3, 3);
    EXPECT_EQ(listing(), (Names{"step_00000001", "step_00000003"}));
}

TEST_F(Checkpoint, TheNextRunRemovesTemporariesAndNothingElse) {
    save(1, 1);
    fs::create_directories(folder(".tmp_step_00000002") / "more");
    fs::rename(save(3, 3), folder(".tmp_step_00000003_removed"));
    std::ofstream(run_ / "metrics.jsonl.tmp") << "x";
    std::ofstream(run_ / "run_config.json.tmp") << "x";
    std::ofstream(run_ / "notes.tmp") << "not ours";
    std::vector<std::string> warnings;
    remove_temporaries(run_.string(), &warnings);
    EXPECT_TRUE(warnings.empty());
    EXPECT_EQ(listing(), Names{"step_00000001"});
    EXPECT_FALSE(fs::exists(run_ / "metrics.jsonl.tmp"));
    EXPECT_FALSE(fs::exists(run_ / "run_config.json.tmp"));
    EXPECT_TRUE(fs::exists(run_ / "notes.tmp"));
    remove_temporaries((run_ / "absent").string(), &warnings);
    EXPECT_TRUE(warnings.empty());
}

// Limits the size of files that this process may write, for the life of the object.
class FileSizeLimit {
  public:
    explicit FileSizeLimit(rlim_t bytes) : old_handler_(std::signal(SIGXFSZ, SIG_IGN)) {
        ::getrlimit(RLIMIT_FSIZE, &old_);
        const rlimit limited{bytes, old_.rlim_max};
        ::setrlimit(RLIMIT_FSIZE, &limited);
    }
    ~FileSizeLimit() {
        ::setrlimit(RLIMIT_FSIZE, &old_);
        std::signal(SIGXFSZ, old_handler_);
    }

  private:
    void (*old_handler_)(int);
    rlimit old_{};
};

TEST_F(Checkpoint, AWriteThatFailsAnywhereLeavesNoTraceAndNamesTheFile) {
    save(1, 1);
    const auto size = fs::file_size(folder("step_00000001") / "model.safetensors");
    // The limit falls into the length, the header, the data, the last byte.
    for (const rlim_t limit : {rlim_t{0}, rlim_t{4}, rlim_t{60}, rlim_t{10000}, rlim_t{size - 1}}) {
        std::string message;
        {
            const FileSizeLimit limited(limit);
            try {
                save(2, 2, 1);
            } catch (const Error& error) {
                message = error.what();
            }
        }
        EXPECT_NE(message.find("checkpoint of step 2 not saved"), std::string::npos) << message;
        EXPECT_NE(message.find("model.safetensors"), std::string::npos) << message;
        EXPECT_NE(message.find("File too large"), std::string::npos) << message;
        EXPECT_EQ(listing(), Names{"step_00000001"});
        EXPECT_EQ(newest(), "step_00000001");
    }
    save(2, 2, 1);
    EXPECT_EQ(listing(), Names{"step_00000002"});
}

TEST_F(Checkpoint, AFailedReplacementKeepsTheOldOne) {
    save(1, 1);
    {
        const FileSizeLimit limited(10000);
        EXPECT_THROW(save(1, 2), Error);
    }
    EXPECT_EQ(newest(), "step_00000001");
    EXPECT_EQ(stored_value(folder("step_00000001").string()), 1.0);
    EXPECT_EQ(listing(), Names{"step_00000001"});
}

TEST_F(Checkpoint, AFetchThatThrowsLeavesNoTrace) {
    save(1, 1);
    try {
        save(2, 2, 1, [] { throw Error("device lost"); });
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("device lost"), std::string::npos);
    }
    EXPECT_EQ(listing(), Names{"step_00000001"});
}

TEST_F(Checkpoint, AFileWhereTheFolderShouldBe) {
    std::ofstream(run_ / "checkpoints") << "x";
    try {
        save(1, 1);
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("checkpoints"), std::string::npos);
    }
    EXPECT_THROW(newest(), Error);
}

TEST_F(Checkpoint, AtomicWriteReplacesTheWholeFileOrNothing) {
    const std::string path = (run_ / "file.json").string();
    write_file_atomically(path, "first");
    write_file_atomically(path, "second");
    EXPECT_EQ(read_file(path), "second");
    {
        const FileSizeLimit limited(3);
        EXPECT_THROW(write_file_atomically(path, "third and longer"), Error);
    }
    EXPECT_EQ(read_file(path), "second");
    EXPECT_FALSE(fs::exists(path + ".tmp"));
    EXPECT_THROW(read_file((run_ / "absent").string()), Error);
    EXPECT_THROW(read_file(run_.string()), Error);
}

}  // namespace
}  // namespace lmo
