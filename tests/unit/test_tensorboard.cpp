// The bytes of TensorBoard's event files, by a reader of its own.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>

#include "llmc/core/error.h"
#include "llmc/io/files.h"
#include "llmc/io/metrics.h"
#include "llmc/io/tensorboard.h"

namespace lmo {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

class Tensorboard : public ::testing::Test {
  protected:
    void SetUp() override {
        const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
        run_ = fs::temp_directory_path() /
               ("lmo_tensorboard_" + std::to_string(::getpid()) + "_" + test->name());
        fs::remove_all(run_);
        fs::create_directories(run_);
    }
    void TearDown() override { fs::remove_all(run_); }

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

std::vector<double> as_doubles(const std::string& packed) {
    std::vector<double> values;
    for (size_t at = 0; at < packed.size(); at += 8) {
        values.push_back(as_double(little_endian(packed, at, 8)));
    }
    return values;
}

struct Histogram {
    std::map<int, double> numbers;  // min, max, num, sum, sum_squares by their field
    std::vector<double> limits, counts;
};

Histogram parse_histogram(const std::string& text) {
    Histogram histogram;
    for (const Field& field : parse_message(text)) {
        if (field.number <= 5) histogram.numbers[field.number] = as_double(field.integer);
        if (field.number == 6) histogram.limits = as_doubles(field.bytes);
        if (field.number == 7) histogram.counts = as_doubles(field.bytes);
    }
    return histogram;
}

// One value of a summary: "tag=number", or "tag=least..most (count)" of a histogram.
std::string read_value(const std::string& text) {
    const std::vector<Field> value = parse_message(text);
    EXPECT_EQ(value.size(), 2u);
    EXPECT_EQ(value[0].number, 1);
    if (value[1].number == 5) {
        const Histogram histogram = parse_histogram(value[1].bytes);
        char range[96];
        std::snprintf(range, sizeof range, "=%g..%g (%g)", histogram.numbers.at(1),
                      histogram.numbers.at(2), histogram.numbers.at(3));
        return value[0].bytes + range;
    }
    EXPECT_EQ(value[1].number, 2);
    const uint32_t bits = static_cast<uint32_t>(value[1].integer);
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return value[0].bytes + "=" + std::to_string(number);
}

// "value@step" of each summary; "version ...", "start@step" for the other events.
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
            what = read_value(summary[0].bytes);
        }
        events.push_back(what + "@" + step);
    }
    return events;
}

TEST_F(Tensorboard, EventFilesAreInTheOrderOfTheirNamesWhateverTheClockSays) {
    std::ofstream(run_ / "events.out.tfevents.9000000000.host.1.0") << "of a clock set back since";
    { TensorboardWriter writer(run_.string()); }
    { TensorboardWriter writer(run_.string(), 5); }
    std::vector<std::string> names;
    for (const fs::path& file : event_files()) names.push_back(file.filename().string());
    ASSERT_EQ(names.size(), 3u);
    EXPECT_EQ(names[1].substr(0, 31), "events.out.tfevents.9000000001.");
    EXPECT_EQ(names[2].substr(0, 31), "events.out.tfevents.9000000002.");
}

TEST_F(Tensorboard, FileBeginsLikeEveryOther) {
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

TEST_F(Tensorboard, HasTheNumbersOfLinesWithAStep) {
    {
        MetricsLog metrics(run_.string(), 0, true);
        metrics.write({{"type", "schedule"}, {"kappa", 3.5}});
        metrics.write({{"type", "train"}, {"step", 0}, {"loss", 10.5}, {"phase", "warmup"}});
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
    metrics.write({{"type", "train"}, {"step", 300}, {"loss", 4.5}});
    ASSERT_EQ(event_files().size(), 2u);
    EXPECT_EQ(read_events(event_files()[1]),
              (std::vector<std::string>{"version brain.Event:2@0", "start@301",
                                        "train/loss=4.500000@300"}));
}

TEST_F(Tensorboard, NumbersOfTensorsAreAHistogramOfEachKind) {
    {
        MetricsLog metrics(run_.string(), 0, true);
        ordered_json tensors = {{"model.embed_tokens.weight", 0.25},
                                {"model.layers.0.self_attn.q_proj.weight", 0.5},
                                {"model.layers.0.mlp.up_proj.weight", 0.125},
                                {"model.layers.1.self_attn.q_proj.weight", 0.75},
                                {"model.layers.1.mlp.up_proj.weight", NAN},
                                {"model.norm.weight", nullptr}};
        metrics.write({{"type", "update_norms"}, {"step", 7}, {"tensors", tensors}});
    }
    // What is not finite is not there; who is alone is a scalar.
    EXPECT_EQ(read_events(event_files().at(0)),
              (std::vector<std::string>{
                  "version brain.Event:2@0", "update_norms/embed_tokens=0.250000@7",
                  "update_norms/q_proj=0.5..0.75 (2)@7", "update_norms/up_proj=0.125000@7"}));
}

Histogram histogram_of(const std::string& folder, const std::vector<double>& values) {
    std::string path;
    {
        TensorboardWriter writer(folder);
        EXPECT_TRUE(writer.histogram("h", 1, values));
        path = writer.path();
    }
    const std::vector<std::string> records = read_records(read_file(path));
    for (const Field& field : parse_message(records.at(1))) {
        if (field.number != 5) continue;
        const std::string value = parse_message(field.bytes).at(0).bytes;
        return parse_histogram(parse_message(value).at(1).bytes);
    }
    ADD_FAILURE() << "no summary";
    return {};
}

TEST_F(Tensorboard, HistogramsCountEveryValueOnce) {
    std::vector<double> values;
    for (int i = 0; i < 1000; ++i) values.push_back(std::sin(i) * std::exp(0.01 * i));
    const Histogram found = histogram_of(run_.string(), values);
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    EXPECT_EQ(found.numbers.at(1), *least);
    EXPECT_EQ(found.numbers.at(2), *most);
    EXPECT_EQ(found.numbers.at(3), 1000.0);
    EXPECT_NEAR(found.numbers.at(4), std::accumulate(values.begin(), values.end(), 0.0), 1e-6);
    EXPECT_NEAR(found.numbers.at(5),
                std::inner_product(values.begin(), values.end(), values.begin(), 0.0), 1e-4);
    ASSERT_EQ(found.limits.size(), 30u);
    ASSERT_EQ(found.counts.size(), 30u);
    EXPECT_EQ(found.limits.back(), *most);
    double below = -INFINITY;
    for (size_t i = 0; i < 30; ++i) {
        const double limit = found.limits[i];
        ASSERT_LT(below, limit);
        EXPECT_EQ(found.counts[i],
                  std::count_if(values.begin(), values.end(),
                                [&](double value) { return below < value && value <= limit; }))
            << i;
        below = limit;
    }
}

TEST_F(Tensorboard, EqualValuesAreOneBucket) {
    const Histogram found = histogram_of(run_.string(), {0.5, 0.5, 0.5});
    EXPECT_EQ(found.limits, std::vector<double>{0.5});
    EXPECT_EQ(found.counts, std::vector<double>{3.0});
}

TEST_F(Tensorboard, AnAbsentFolderIsAnError) {
    EXPECT_THROW(TensorboardWriter((run_ / "no").string()), Error);
}

}  // namespace
}  // namespace lmo
