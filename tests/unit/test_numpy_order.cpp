// The published order of samples. Golden data: dev/reference/published.py, from NumPy itself.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/data/loader.h"
#include "llmc/data/numpy_random.h"
#include "llmc/data/stream.h"
#include "llmc/io/files.h"
#include "tests/unit/published_golden.h"

namespace lmo {
namespace {

using nlohmann::json;

TEST(NumpyRandom, Permutations) {
    for (const json& row : golden("permutations")) {
        SCOPED_TRACE(row.dump());
        NumpyGenerator generator(row.at("seed"));
        const std::vector<uint32_t> order = generator.permutation(row.at("count"));
        uint64_t check = 0;
        for (size_t i = 0; i < order.size(); ++i) check += (i + 1) * order[i];
        EXPECT_EQ(check, row.at("check").get<uint64_t>());
        const std::vector<uint32_t> first = row.at("first");
        for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(order[i], first[i]);
        EXPECT_EQ(generator.below(row.at("length")), row.at("offset").get<uint64_t>());
    }
}

TEST(NumpyRandom, BoundedIntegersOf32And64Bits) {
    for (const json& row : golden("bounded")) {
        SCOPED_TRACE(row.dump());
        NumpyGenerator generator(row.at("seed"));
        for (size_t i = 0; i < row.at("bounds").size(); ++i) {
            EXPECT_EQ(generator.below(row["bounds"][i]), row["draws"][i].get<uint64_t>());
        }
    }
}

class NumpyStream : public ::testing::Test {
  protected:
    NumpyStream() {
        const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
        folder_ = std::filesystem::temp_directory_path() /
                  ("lmo_stream_" + std::to_string(getpid()) + "_" + info->name());
        std::filesystem::create_directories(folder_);
    }
    ~NumpyStream() override { std::filesystem::remove_all(folder_); }

    // Tokens 0, 1, 2, ..., in files that end at these tokens.
    Dataset dataset(int64_t length, const std::vector<int64_t>& ends) const {
        std::vector<std::string> paths;
        int64_t token = 0;
        for (const int64_t end : ends) {
            paths.push_back((folder_ / (std::to_string(end) + ".bin")).string());
            std::ofstream file(paths.back(), std::ios::binary);
            for (; token < end; ++token) {
                const auto value = static_cast<uint16_t>(token);
                file.write(reinterpret_cast<const char*>(&value), sizeof value);
            }
        }
        return Dataset(paths, TokenFormat::uint16, length, 65536);
    }

    std::filesystem::path folder_;
};

TEST_F(NumpyStream, IsThePublishedReaders) {
    for (const json& row : golden("stream")) {
        const int64_t tokens = row.at("tokens"), length = row.at("length"), batch = row.at("batch");
        SCOPED_TRACE(tokens);
        // As one file, and as three with windows that cross their borders.
        for (const auto& ends : {std::vector<int64_t>{tokens},
                                 std::vector<int64_t>{tokens / 3, tokens / 3 + 2, tokens}}) {
            const Dataset data = dataset(length, ends);
            SampleStream stream(data, OrderType::numpy, row.at("seed"), batch);
            std::vector<int32_t> inputs(static_cast<size_t>(length)), targets(inputs.size());
            for (size_t at = 0; at < row.at("starts").size(); ++at) {
                stream.copy(static_cast<int64_t>(at), inputs.data(), targets.data());
                for (size_t t = 0; t < inputs.size(); ++t) {
                    ASSERT_EQ(inputs[t], row["starts"][at].get<int32_t>() + static_cast<int>(t));
                    ASSERT_EQ(targets[t], inputs[t] + 1);
                }
            }
        }
    }
}

TEST_F(NumpyStream, LoaderResumesAnywhere) {
    const json& row = golden("stream").at(0);
    const Dataset data = dataset(row.at("length"), {row.at("tokens")});
    for (const int64_t position : {0, 4, 24, 28, 60}) {
        Loader loader(data, row.at("seed"), row.at("batch"), position, OrderType::numpy);
        for (int64_t at = position; at < 120; at += 4) {
            const HostBatch& batch = loader.next();
            for (int64_t r = 0; r < 4; ++r) {
                EXPECT_EQ(batch.inputs[static_cast<size_t>(r * batch.length)],
                          row["starts"][static_cast<size_t>(at + r)].get<int32_t>());
            }
        }
    }
}

TEST_F(NumpyStream, TooFewTokensForABatch) {
    const Dataset data = dataset(8, {50});  // (50 - 8 - 1)/8 - 1 = 4 windows
    EXPECT_EQ(SampleStream(data, OrderType::numpy, 1, 4).epoch_length(), 4);
    try {
        SampleStream(data, OrderType::numpy, 1, 5);
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(
            std::string(error.what()).find("4 windows of 8, fewer than batch.micro_batch = 5"),
            std::string::npos)
            << error.what();
    }
}

}  // namespace
}  // namespace lmo
