// metrics.jsonl with its resume, and the lines of the console.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "llmc/core/error.h"
#include "llmc/io/console.h"
#include "llmc/io/files.h"
#include "llmc/io/metrics.h"

namespace lmo {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

class Metrics : public ::testing::Test {
  protected:
    void SetUp() override {
        const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
        run_ = fs::temp_directory_path() /
               ("lmo_metrics_" + std::to_string(::getpid()) + "_" + test->name());
        fs::remove_all(run_);
        fs::create_directories(run_);
    }
    void TearDown() override { fs::remove_all(run_); }

    std::string log() const { return read_file((run_ / "metrics.jsonl").string()); }
    void set_log(const std::string& text) const {
        std::ofstream(run_ / "metrics.jsonl", std::ios::binary) << text;
    }
    // What is left of `text` after a resume at `step`.
    std::string resumed(const std::string& text, int64_t step) const {
        set_log(text);
        MetricsLog metrics(run_.string(), step, false);
        return log();
    }
    fs::path run_;
};

ordered_json train_line(int64_t step, double loss) {
    return {{"type", "train"}, {"step", step}, {"loss", loss}, {"phase", "warmup"}};
}

TEST_F(Metrics, OneObjectALineWithKeysInOrder) {
    MetricsLog metrics(run_.string(), 0, false);
    metrics.write(train_line(0, 10.5));
    // Readable at once, without a destructor or a flush.
    EXPECT_EQ(log(), R"({"type":"train","step":0,"loss":10.5,"phase":"warmup"})"
                     "\n");
    metrics.write({{"type", "val"}, {"step", 1}, {"loss", 0.1}});
    EXPECT_EQ(log(), R"({"type":"train","step":0,"loss":10.5,"phase":"warmup"})"
                     "\n"
                     R"({"type":"val","step":1,"loss":0.1})"
                     "\n");
    EXPECT_EQ(std::distance(fs::directory_iterator(run_), {}), 1) << "no events";
}

TEST_F(Metrics, NumbersThatAreNotFiniteAreNull) {
    MetricsLog metrics(run_.string(), 0, false);
    metrics.write(
        {{"type", "train"}, {"step", 0}, {"a", NAN}, {"b", INFINITY}, {"c", {-INFINITY}}});
    EXPECT_EQ(log(), R"({"type":"train","step":0,"a":null,"b":null,"c":[null]})"
                     "\n");
}

TEST_F(Metrics, ResumeDropsWhatTheCheckpointDoesNotKnow) {
    const std::string schedule = "{\"type\":\"schedule\",\"kappa\":3.5}\n";
    const std::string train8 = "{\"type\":\"train\",\"step\":8,\"loss\":3.25}\n";
    const std::string train9 = "{\"type\":\"train\",\"step\":9,\"loss\":3}\n";
    const std::string val10 = "{\"type\":\"val\",\"step\":10,\"loss\":3.5}\n";
    const std::string train10 = "{\"type\":\"train\",\"step\":10,\"loss\":2.5}\n";
    const std::string smooth10 = "{\"type\":\"smoothness\",\"step\":10,\"delta\":2.5}\n";
    const std::string val11 = "{\"type\":\"val\",\"step\":11,\"loss\":2.25}\n";
    const std::string summary = "{\"type\":\"summary\",\"steps\":11}\n";
    const std::string sample10 = "{\"type\":\"sample\",\"step\":10,\"text\":\"a\"}\n";
    const std::string sample11 = "{\"type\":\"sample\",\"step\":11,\"text\":\"b\"}\n";
    const std::string before = schedule + train8 + train9 + val10 + sample10;
    const std::string all = before + train10 + smooth10 + val11 + sample11 + summary;
    EXPECT_EQ(resumed(all, 10), before);
    EXPECT_EQ(resumed(all, 9), schedule + train8);
    EXPECT_EQ(resumed(all, 11), before + train10 + smooth10 + val11 + sample11);
    EXPECT_EQ(resumed(all, 100), before + train10 + smooth10 + val11 + sample11);
    EXPECT_EQ(resumed(before, 10), before);  // nothing to drop
    EXPECT_EQ(resumed(all, 0), "");          // from the start
    EXPECT_EQ(resumed("", 10), "");
    EXPECT_FALSE(fs::exists(run_ / "metrics.jsonl.tmp"));
}

TEST_F(Metrics, ResumeDropsWhatLaterUpdatesSaidOfThemselves) {
    std::string lines[2];
    for (const int64_t step : {9, 10}) {
        for (const char* type : {"nonfinite", "spike", "schedule"}) {
            lines[step - 9] += ordered_json({{"type", type}, {"step", step}}).dump() + "\n";
        }
    }
    EXPECT_EQ(resumed(lines[0] + lines[1], 10), lines[0]);
}

TEST_F(Metrics, ResumeDropsATornLastLine) {
    const std::string good = "{\"type\":\"train\",\"step\":8,\"loss\":3.25}\n";
    EXPECT_EQ(resumed(good + "{\"type\":\"tra", 9), good);
    EXPECT_EQ(resumed("{\"type\":\"tra", 9), "");
    // The next line begins a new one.
    set_log(good + "{\"type\":");
    MetricsLog metrics(run_.string(), 9, false);
    metrics.write(train_line(9, 1.0));
    EXPECT_EQ(log(), good + R"({"type":"train","step":9,"loss":1.0,"phase":"warmup"})" + "\n");
}

TEST_F(Metrics, ResumeDropsLinesNobodyCanReadAndSaysSo) {
    const std::string good = "{\"type\":\"train\",\"step\":8}\n";
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(resumed("{\"type\n" + good + "[1]\n\n{\"type\":3}\n", 9), good);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_NE(said.find("4 lines are not JSON objects"), std::string::npos) << said;
}

TEST_F(Metrics, AFullDiskIsReportedOnceAndCostsNoLine) {
    MetricsLog metrics(run_.string(), 0, false);
    metrics.write(
        {{"type", "note"}, {"text", std::string(4000, 'x')}});  // longer than stderr's file
    const std::string before = log();
    ::testing::internal::CaptureStderr();
    {
        void (*old_handler)(int) = std::signal(SIGXFSZ, SIG_IGN);
        rlimit old{};
        ::getrlimit(RLIMIT_FSIZE, &old);
        const rlimit limited{before.size() + 10, old.rlim_max};
        ::setrlimit(RLIMIT_FSIZE, &limited);
        EXPECT_NO_THROW(metrics.write(train_line(1, 2.0)));
        EXPECT_NO_THROW(metrics.write(train_line(2, 3.0)));
        ::setrlimit(RLIMIT_FSIZE, &old);
        std::signal(SIGXFSZ, old_handler);
    }
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_EQ(log(), before);
    EXPECT_EQ(said.find("warning"), said.rfind("warning")) << said;
    EXPECT_NE(said.find("metrics.jsonl"), std::string::npos) << said;
    metrics.write(train_line(3, 4.0));  // there is room again
    const auto line = [](int step, const char* loss) {
        return R"({"type":"train","step":)" + std::to_string(step) + R"(,"loss":)" + loss +
               R"(,"phase":"warmup"})" + "\n";
    };
    EXPECT_EQ(log(), before + line(1, "2.0") + line(2, "3.0") + line(3, "4.0"));
}

TEST_F(Metrics, AnAbsentFolderIsAnError) {
    EXPECT_THROW(MetricsLog((run_ / "no").string(), 0, false), Error);
}

TEST(Console, Durations) {
    EXPECT_EQ(format_duration(0), "0 s");
    EXPECT_EQ(format_duration(48.4), "48 s");
    EXPECT_EQ(format_duration(59.6), "1:00");
    EXPECT_EQ(format_duration(725), "12:05");
    EXPECT_EQ(format_duration(3599.6), "1:00:00");
    EXPECT_EQ(format_duration(11235), "3:07:15");
    EXPECT_EQ(format_duration(99 * 3600 + 3599.4), "99:59:59");
    EXPECT_EQ(format_duration(100 * 3600), "4d 4h");
    EXPECT_EQ(format_duration(-1), "-");
    EXPECT_EQ(format_duration(NAN), "-");
    EXPECT_EQ(format_duration(INFINITY), "-");
}

TEST(Console, Counts) {
    EXPECT_EQ(format_count(0), "0");
    EXPECT_EQ(format_count(987), "987");
    EXPECT_EQ(format_count(0.25), "0.25");
    EXPECT_EQ(format_count(1234), "1.23k");
    EXPECT_EQ(format_count(12345), "12.3k");
    EXPECT_EQ(format_count(999499), "999k");
    EXPECT_EQ(format_count(999500), "1.00M");
    EXPECT_EQ(format_count(124e6), "124M");
    EXPECT_EQ(format_count(NAN), "-");
    EXPECT_EQ(format_bytes(0), "0 B");
    EXPECT_EQ(format_bytes(1023), "1023 B");
    EXPECT_EQ(format_bytes(12.3 * 1048576), "12.3 MiB");
    EXPECT_EQ(format_bytes(1048570), "1.0 MiB");
}

TEST(Console, MessagesGoOnBelowThemselves) {
    const std::string words =
        "some words that together are more than one line of a terminal will hold";
    EXPECT_EQ(wrapped_message("memory     " + words),
              "memory     some words that together are more than one line of a terminal will\n"
              "           hold");
    EXPECT_EQ(wrapped_message("  norm     " + words),
              "  norm     some words that together are more than one line of a terminal will\n"
              "           hold");
    EXPECT_EQ(wrapped_message("update 10: " + words),
              "update 10: some words that together are more than one line of a terminal will\n"
              "    hold");
    EXPECT_EQ(wrapped_message(words), words);
    EXPECT_EQ(wrapped_message(""), "");
}

ProgressLine progress_line(int64_t step, int64_t steps) {
    ProgressLine line;
    line.step = step;
    line.steps = steps;
    line.loss = 10.98765;
    line.rate = 3e-4;
    line.phase = "constant";
    line.gradient_norm = 1.23456;
    line.tokens_per_second = 123456;
    line.mfu = 0.4123;
    line.seconds_left = 725;
    return line;
}

TEST(Console, LinesAreAlignedWithin80Columns) {
    EXPECT_EQ(format_header(2000),
              "     step      loss        lr  phase         |g|   tok/s    mfu  time left");
    EXPECT_EQ(format_progress(progress_line(120, 2000)),
              " 120/2000   10.9877  3.00e-04  constant    1.235    123k  41.2%      12:05");
    for (const int64_t steps : {1, 1000, 100000, 1000000}) {
        ProgressLine line = progress_line(steps, steps);
        line.loss = 1234567.89;
        line.gradient_norm = 1.2345e-12;
        line.seconds_left = 999999;
        const std::string text = format_progress(line);
        EXPECT_EQ(text.size(), format_header(steps).size());
        EXPECT_LE(text.size(), 80u);
    }
    ProgressLine line = progress_line(1, 10);
    line.mfu.reset();
    line.loss = NAN;
    EXPECT_NE(format_progress(line).find("nan"), std::string::npos);
    EXPECT_EQ(format_progress(line).size(), format_header(10).size());
}

TEST(Console, StatusFitsAnyWidth) {
    for (int columns = 0; columns <= 79; ++columns) {
        const std::string text = format_status(progress_line(500, 2000), columns);
        EXPECT_LE(static_cast<int>(text.size()), columns);
    }
    EXPECT_EQ(format_status(progress_line(500, 2000), 79),
              "[######..................]  25%  500/2000  loss 10.9877  123k tok/s  12:05 left");
}

TEST(Console, AFileGetsNeitherStatusNorALineAStep) {
    ::testing::internal::CaptureStdout();
    {
        Console console(1000);
        console.header();
        for (int step = 0; step < 1000; ++step) console.progress(progress_line(step, 1000));
        console.message("note");
        console.progress(progress_line(1000, 1000), true);
        console.finish();
    }
    // The first step, then nothing for two seconds, then what was forced.
    EXPECT_EQ(::testing::internal::GetCapturedStdout(),
              format_header(1000) + "\n" + format_progress(progress_line(0, 1000)) + "\nnote\n" +
                  format_progress(progress_line(1000, 1000)) + "\n");
}

}  // namespace
}  // namespace lmo
