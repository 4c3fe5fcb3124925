// metrics.jsonl with its resume, TensorBoard's bytes, and the lines of the console.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "llmc/core/error.h"
#include "llmc/io/console.h"
#include "llmc/io/files.h"
#include "llmc/io/metrics.h"
#include "llmc/io/tensorboard.h"

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
    std::vector<fs::path> event_files() const {
        std::vector<fs::path> files;
        for (const auto& entry : fs::directory_iterator(run_)) {
            const std::string name = entry.path().filename().string();
            if (name.rfind("events.out.tfevents.", 0) == 0) files.push_back(entry.path());
        }
        std::sort(files.begin(), files.end());
        return files;
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
    EXPECT_TRUE(event_files().empty());
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

TEST_F(Metrics, EventFilesAreInTheOrderOfTheirNamesWhateverTheClockSays) {
    std::ofstream(run_ / "events.out.tfevents.9000000000.host.1.0") << "of a clock set back since";
    { TensorboardWriter writer(run_.string()); }
    { TensorboardWriter writer(run_.string(), 5); }
    std::vector<std::string> names;
    for (const fs::path& file : event_files()) names.push_back(file.filename().string());
    ASSERT_EQ(names.size(), 3u);
    EXPECT_EQ(names[1].substr(0, 31), "events.out.tfevents.9000000001.");
    EXPECT_EQ(names[2].substr(0, 31), "events.out.tfevents.9000000002.");
}

TEST_F(Metrics, AnAbsentFolderIsAnError) {
    EXPECT_THROW(MetricsLog((run_ / "no").string(), 0, false), Error);
    EXPECT_THROW(TensorboardWriter((run_ / "no").string()), Error);
}

TEST(Crc32c, VectorsOfRfc3720) {
    EXPECT_EQ(crc32c("123456789", 9), 0xE3069283u);
    EXPECT_EQ(crc32c("", 0), 0u);
    EXPECT_EQ(crc32c(std::string(32, '\0').data(), 32), 0x8A9136AAu);
    EXPECT_EQ(crc32c(std::string(32, '\xff').data(), 32), 0x62A8AB43u);
    std::string rising;
    for (int i = 0; i < 32; ++i) rising += static_cast<char>(i);
    EXPECT_EQ(crc32c(rising.data(), 32), 0x46DD794Eu);
}

// A second, general reader of TFRecord and protobuf: field number -> raw value.
struct Field {
    int number;
    uint64_t integer;   // varint, or the bits of a fixed-width number
    std::string bytes;  // length-delimited
};

uint64_t little_endian(const std::string& text, size_t at, int bytes) {
    uint64_t value = 0;
    for (int i = bytes - 1; i >= 0; --i) {
        value = value << 8 | static_cast<unsigned char>(text.at(at + static_cast<size_t>(i)));
    }
    return value;
}

uint64_t read_varint(const std::string& text, size_t* at) {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
        const auto byte = static_cast<unsigned char>(text.at((*at)++));
        value |= uint64_t{byte & 0x7fu} << shift;
        if (byte < 0x80) return value;
    }
}

std::vector<Field> parse_message(const std::string& text) {
    std::vector<Field> fields;
    for (size_t at = 0; at < text.size();) {
        const uint64_t key = read_varint(text, &at);
        Field field{static_cast<int>(key >> 3), 0, ""};
        switch (key & 7) {
            case 0:
                field.integer = read_varint(text, &at);
                break;
            case 1:
                field.integer = little_endian(text, at, 8), at += 8;
                break;
            case 5:
                field.integer = little_endian(text, at, 4), at += 4;
                break;
            case 2: {
                const size_t size = read_varint(text, &at);
                field.bytes = text.substr(at, size);
                EXPECT_EQ(field.bytes.size(), size);
                at += size;
                break;
            }
            default:
                ADD_FAILURE() << "wire type " << (key & 7);
                return fields;
        }
        fields.push_back(field);
    }
    return fields;
}

uint32_t unmask(uint64_t masked) {
    const uint32_t rotated = static_cast<uint32_t>(masked) - 0xa282ead8u;
    return rotated >> 17 | rotated << 15;
}

std::vector<std::string> read_records(const std::string& text) {
    std::vector<std::string> records;
    for (size_t at = 0; at < text.size();) {
        const uint64_t length = little_endian(text, at, 8);
        EXPECT_EQ(unmask(little_endian(text, at + 8, 4)), crc32c(text.data() + at, 8));
        records.push_back(text.substr(at + 12, length));
        EXPECT_EQ(unmask(little_endian(text, at + 12 + length, 4)),
                  crc32c(records.back().data(), records.back().size()));
        at += 16 + length;
    }
    return records;
}

double as_double(uint64_t bits) {
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// "tag@step=value" of each scalar; "version ...", "start@step" for the other events.
std::vector<std::string> read_events(const fs::path& path) {
    std::vector<std::string> events;
    for (const std::string& record : read_records(read_file(path.string()))) {
        std::string step = "0", what;
        for (const Field& field : parse_message(record)) {
            if (field.number == 1) {
                EXPECT_NEAR(as_double(field.integer), std::time(nullptr), 60);
            }
            if (field.number == 2) step = std::to_string(static_cast<int64_t>(field.integer));
            if (field.number == 3) what = "version " + field.bytes;
            if (field.number == 7) {
                EXPECT_EQ(field.bytes, std::string("\x08\x01"));
                what = "start";
            }
            if (field.number != 5) continue;
            const std::vector<Field> summary = parse_message(field.bytes);
            EXPECT_EQ(summary.size(), 1u);
            EXPECT_EQ(summary[0].number, 1);
            const std::vector<Field> value = parse_message(summary[0].bytes);
            EXPECT_EQ(value.size(), 2u);
            EXPECT_EQ(value[0].number, 1);
            EXPECT_EQ(value[1].number, 2);
            const uint32_t bits = static_cast<uint32_t>(value[1].integer);
            float number;
            std::memcpy(&number, &bits, sizeof number);
            what = value[0].bytes + "=" + std::to_string(number);
        }
        events.push_back(what + "@" + step);
    }
    return events;
}

TEST_F(Metrics, TensorboardFileBeginsLikeEveryOther) {
    { TensorboardWriter writer(run_.string()); }
    ASSERT_EQ(event_files().size(), 1u);
    const std::string text = read_file(event_files()[0].string());
    // Length 24 and its masked checksum: the first 12 bytes of any event file.
    const std::string length("\x18\x00\x00\x00\x00\x00\x00\x00\xa3\x7f\x4b\x22", 12);
    EXPECT_EQ(text.substr(0, 12), length);
    EXPECT_EQ(text.substr(12 + 9, 15),
              "\x1a\x0d"
              "brain.Event:2");
    EXPECT_EQ(text.size(), 40u);
}

TEST_F(Metrics, TensorboardHasTheNumbersOfLinesWithAStep) {
    {
        MetricsLog metrics(run_.string(), 0, true);
        metrics.write({{"type", "schedule"}, {"kappa", 3.5}});
        metrics.write(train_line(0, 10.5));
        metrics.write({{"type", "train"}, {"step", 300}, {"loss", 2.25}, {"lr", 0.5}});
        metrics.write({{"type", "val"}, {"step", 5000000000}, {"loss", -1.0}});
        metrics.write({{"type", "summary"}, {"steps", 11}});
        // Flushed line by line: complete while the run is going on.
        const std::vector<std::string> expected = {
            "version brain.Event:2@0", "train/loss=10.500000@0", "train/loss=2.250000@300",
            "train/lr=0.500000@300", "val/loss=-1.000000@5000000000"};
        ASSERT_EQ(event_files().size(), 1u);
        EXPECT_EQ(read_events(event_files()[0]), expected);
    }
    // A resumed run begins a second file, which takes back what is past the checkpoint.
    MetricsLog metrics(run_.string(), 300, true);
    metrics.write(train_line(300, 4.5));
    ASSERT_EQ(event_files().size(), 2u);
    EXPECT_EQ(read_events(event_files()[1]),
              (std::vector<std::string>{"version brain.Event:2@0", "start@301",
                                        "train/loss=4.500000@300"}));
}

TEST(Console, Durations) {
    EXPECT_EQ(format_duration(0), "0 s");
    EXPECT_EQ(format_duration(48.4), "48 s");
    EXPECT_EQ(format_duration(59.6), "1:00");
    EXPECT_EQ(format_duration(725), "12:05");
    EXPECT_EQ(format_duration(3599.6), "1:00:00");
    EXPECT_EQ(format_duration(11235), "3:07:15");
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
