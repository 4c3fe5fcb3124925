// Every file of tests/fuzz/corpus through its target: seeds, and inputs that once broke a reader.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "llmc/io/files.h"
#include "tests/fuzz/fuzz.h"

using namespace lmo;

class FuzzCorpus : public ::testing::TestWithParam<fuzz::Target> {};

TEST_P(FuzzCorpus, KeepsItsPromises) {
    const auto folder = std::filesystem::path("tests/fuzz/corpus") / GetParam().name;
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) files.push_back(entry);
    std::sort(files.begin(), files.end());
    int accepted = 0;
    for (const auto& file : files) {
        bool good = false;
        EXPECT_NO_THROW(good = GetParam().run(read_file(file.string()))) << file;
        const std::string name = file.filename().string();
        // good_* are what the reader has to take, bad_* what it has to refuse.
        const bool to_be_taken = name.rfind("good_", 0) == 0;
        const bool to_be_refused = name.rfind("bad_", 0) == 0;
        if (to_be_taken || to_be_refused) {
            EXPECT_EQ(good, to_be_taken) << file;
        }
        accepted += good;
    }
    EXPECT_GT(accepted, 0) << "nothing in " << folder << " gets past the reader";
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpus, ::testing::ValuesIn(fuzz::kTargets),
                         [](const auto& info) { return std::string(info.param.name); });
