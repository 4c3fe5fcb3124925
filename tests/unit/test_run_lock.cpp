// One run in a folder at a time, and the fingerprints of its data.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "llmc/core/error.h"
#include "llmc/io/files.h"
#include "llmc/io/run_lock.h"
#include "llmc/train/data_fingerprint.h"

namespace lmo {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

class RunFolder : public ::testing::Test {
  protected:
    void SetUp() override {
        const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
        base_ = fs::temp_directory_path() /
                ("lmo_run_" + std::to_string(::getpid()) + "_" + test->name());
        fs::remove_all(base_);
        fs::create_directories(base_);
        run_ = (base_ / "runs" / "one").string();
    }
    void TearDown() override { fs::remove_all(base_); }

    static std::string error_of(const std::function<void()>& action) {
        try {
            action();
        } catch (const Error& error) {
            return error.what();
        }
        return "";
    }

    fs::path base_;
    std::string run_;
};

TEST_F(RunFolder, ASecondLockIsRefusedByNameUntilTheFirstIsGone) {
    {
        const RunLock first(run_);
        const std::string message = error_of([&] { const RunLock second(run_); });
        for (const std::string& word :
             {run_, "process " + std::to_string(::getpid()), std::string("run.dir")}) {
            EXPECT_NE(message.find(word), std::string::npos) << message;
        }
        EXPECT_THROW(RunLock{run_}, UsageError);
        EXPECT_TRUE(fs::exists(fs::path(run_) / "run.lock"));
        std::ofstream(fs::path(run_) / "file") << "x";
    }
    EXPECT_FALSE(fs::exists(fs::path(run_) / "run.lock"));
    EXPECT_TRUE(fs::exists(fs::path(run_) / "file"));
    const RunLock third(run_);
}

TEST_F(RunFolder, AnUnusedFolderIsNotLeftBehind) {
    { const RunLock lock(run_); }
    EXPECT_FALSE(fs::exists(run_));
    fs::create_directories(run_);
    { const RunLock lock(run_); }
    EXPECT_TRUE(fs::exists(run_));  // it was there before
}

TEST_F(RunFolder, AKilledHolderBlocksNobody) {
    int ready[2];
    ASSERT_EQ(::pipe(ready), 0);
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        const RunLock lock(run_);
        [[maybe_unused]] const ssize_t told = ::write(ready[1], "x", 1);
        for (;;) ::pause();
    }
    char byte;
    ASSERT_EQ(::read(ready[0], &byte, 1), 1);
    const std::string message = error_of([&] { const RunLock lock(run_); });
    EXPECT_NE(message.find("process " + std::to_string(child)), std::string::npos) << message;
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
    EXPECT_TRUE(fs::exists(fs::path(run_) / "run.lock"));
    const RunLock lock(run_);
    ::close(ready[0]);
    ::close(ready[1]);
}

// Many processes at once: never two inside, and each gets in at last.
TEST_F(RunFolder, LocksExcludeWhileFilesComeAndGo) {
    std::vector<pid_t> children;
    for (int i = 0; i < 6; ++i) {
        const pid_t child = ::fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            for (int entered = 0; entered < 30;) {
                try {
                    const RunLock lock(run_);
                    const fs::path inside = base_ / "inside";
                    if (!fs::create_directory(inside)) ::_exit(1);
                    fs::remove(inside);
                    ++entered;
                } catch (const UsageError&) {
                    ::usleep(50);
                } catch (...) {
                    ::_exit(2);
                }
            }
            ::_exit(0);
        }
        children.push_back(child);
    }
    for (const pid_t child : children) {
        int status = -1;
        ::waitpid(child, &status, 0);
        EXPECT_EQ(status, 0);
    }
    EXPECT_FALSE(fs::exists(fs::path(run_) / "run.lock"));
}

TEST_F(RunFolder, AFolderThatCannotBeMadeIsAnError) {
    std::ofstream(base_ / "runs") << "a file";
    EXPECT_NE(error_of([&] { const RunLock lock(run_); }).find("runs"), std::string::npos);
}

// ---------------------------------------------------------------------------------- fingerprints

using DataFingerprint = RunFolder;

TEST_F(DataFingerprint, WholeFilesAreHashedWhole) {
    const std::string path = (base_ / "a.bin").string();
    std::ofstream(path) << std::string(1000, 'x');
    const ordered_json data = data_fingerprint(Dataset({path}, TokenFormat::uint16, 4, 65536));
    EXPECT_EQ(data["sampled"], false);
    EXPECT_EQ(data["files"][0]["path"], path);
    EXPECT_EQ(data["files"][0]["bytes"], 1000);
    EXPECT_EQ(data["files"][0]["xxh3_128"], summarize_file(path).xxh3_128);
}

TEST_F(DataFingerprint, ALargeSetIsSampledAtBothEndsAndBetween) {
    const std::string path = (base_ / "a.bin").string(), other = (base_ / "b.bin").string();
    constexpr int64_t kBytes = 40 << 20;
    std::ofstream(path) << std::string(kBytes, 'x');
    std::ofstream(other) << "short";
    fs::resize_file(other, 6);
    const auto print = [&](int64_t limit) {
        return data_fingerprint(Dataset({path, other}, TokenFormat::uint16, 4, 65536), limit);
    };
    const auto put = [&](const std::string& file, int64_t at, char value) {
        std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
        stream.seekp(at);
        stream.put(value);
    };
    const ordered_json sampled = print(kBytes), whole = print(kBytes + 6);
    EXPECT_EQ(sampled["sampled"], true);
    EXPECT_EQ(whole["sampled"], false);
    EXPECT_EQ(sampled, print(kBytes));
    EXPECT_EQ(sampled["files"][0]["bytes"], kBytes);
    for (const auto& [file, at] : std::vector<std::pair<std::string, int64_t>>{
             {path, 0}, {path, 65535}, {path, kBytes - 65536}, {path, kBytes - 1}, {other, 5}}) {
        put(file, at, 'y');
        EXPECT_NE(sampled, print(kBytes)) << file << " byte " << at;
        put(file, at, file == path ? 'x' : '\0');
        EXPECT_EQ(sampled, print(kBytes));
    }
    // Any stretch as long as the distance of two blocks holds one: here every 10 KiB.
    std::fstream stream(path, std::ios::in | std::ios::out | std::ios::binary);
    stream.seekp(kBytes / 2);
    stream << std::string(10300, 'y');
    stream.close();
    EXPECT_NE(sampled, print(kBytes));
}

TEST_F(DataFingerprint, ADifferenceNamesTheFile) {
    const auto set = [](const std::string& hash, int64_t bytes) {
        return ordered_json{{"path", "data/" + hash}, {"bytes", bytes}, {"xxh3_128", hash}};
    };
    const ordered_json saved = {{"files", {set("a", 10), set("b", 20)}}};
    const auto differs = [&](const ordered_json& now) {
        return error_of([&] { require_same_data("data.val", saved, now, "step_7"); });
    };
    EXPECT_EQ(differs(saved), "");
    const std::vector<std::pair<ordered_json, std::string>> cases = {
        {{{"files", {set("a", 10)}}}, "1 files, but 2"},
        {{{"files", {set("a", 10), set("c", 20)}}}, "data/c does not hold"},
        {{{"files", {set("a", 12), set("b", 20)}}}, "data/a has 12 bytes"}};
    for (const auto& [now, expected] : cases) {
        const std::string message = differs(now);
        for (const std::string& word : {expected, std::string("data.val"), std::string("step_7")}) {
            EXPECT_NE(message.find(word), std::string::npos) << message;
        }
    }
}

}  // namespace
}  // namespace lmo
