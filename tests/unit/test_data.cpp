// Token files, the global order of samples, and the loader.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <thread>

#include "llmc/core/error.h"
#include "llmc/core/timer.h"
#include "llmc/data/dataset.h"
#include "llmc/data/loader.h"
#include "llmc/data/order.h"

namespace lmo {
namespace {

namespace fs = std::filesystem;
using Tokens = std::vector<uint16_t>;

Tokens counting(int64_t count, int first = 0) {
    Tokens tokens(static_cast<size_t>(count));
    std::iota(tokens.begin(), tokens.end(), static_cast<uint16_t>(first));
    return tokens;
}

std::string bytes_of(const Tokens& tokens) {
    return {reinterpret_cast<const char*>(tokens.data()), 2 * tokens.size()};
}

std::string shard(const Tokens& tokens, int32_t count = -1, int32_t version = 1,
                  int32_t magic = 20240520) {
    int32_t header[256] = {magic, version,
                           count == -1 ? static_cast<int32_t>(tokens.size()) : count};
    return std::string(reinterpret_cast<const char*>(header), sizeof header) + bytes_of(tokens);
}

class TokenFiles : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = (fs::temp_directory_path() / "lmo_data_XXXXXX").string();
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        folder_ = name;
    }
    void TearDown() override { fs::remove_all(folder_); }

    std::string path(const std::string& name) { return (folder_ / name).string(); }
    std::string write(const std::string& name, const std::string& bytes) {
        std::ofstream(path(name), std::ios::binary) << bytes;
        return path(name);
    }

    fs::path folder_;
};

template <typename F>
std::string error_of(F&& action) {
    try {
        action();
    } catch (const Error& error) {
        EXPECT_EQ(error.status(), ExitStatus::runtime_error);
        return error.what();
    }
    ADD_FAILURE() << "no error";
    return "";
}

#define EXPECT_ERROR(action, words)                                   \
    do {                                                              \
        const std::string message = error_of([&] { action; });        \
        EXPECT_NE(message.find(words), std::string::npos) << message; \
    } while (false)

// --- order ---

std::vector<uint64_t> permuted(uint64_t size, uint64_t seed, uint64_t epoch) {
    const Permutation permutation(size, seed, epoch);
    std::vector<uint64_t> order(size);
    for (uint64_t i = 0; i < size; ++i) order[i] = permutation(i);
    return order;
}

TEST(SampleOrder, IsABijection) {
    std::vector<uint64_t> sizes = {255, 256, 257, 1000, 65537};
    for (uint64_t size = 1; size <= 200; ++size) sizes.push_back(size);
    for (const uint64_t size : sizes) {
        std::vector<uint64_t> order = permuted(size, 1337, 2);
        std::sort(order.begin(), order.end());
        for (uint64_t i = 0; i < size; ++i) ASSERT_EQ(order[i], i) << size;
    }
}

TEST(SampleOrder, LargeSizesStayInRange) {
    for (const uint64_t size :
         {(uint64_t{1} << 40) + 1, uint64_t{1} << 62, (uint64_t{1} << 62) + 1}) {
        const Permutation permutation(size, 1, 0);
        std::set<uint64_t> seen;
        for (uint64_t i = 0; i < 1000; ++i) {
            EXPECT_LT(permutation(i), size);
            seen.insert(permutation(i));
        }
        EXPECT_EQ(seen.size(), 1000u);
        EXPECT_GT(*seen.rbegin(), size / 2);  // not only small numbers
    }
}

TEST(SampleOrder, DependsOnSeedAndEpochAndNothingElse) {
    const auto order = permuted(1000, 5, 0);
    EXPECT_EQ(order, permuted(1000, 5, 0));
    for (const auto& other :
         {permuted(1000, 5, 1), permuted(1000, 6, 0), permuted(1000, 5, uint64_t{1} << 32)}) {
        int equal = 0;
        for (size_t i = 0; i < 1000; ++i) equal += order[i] == other[i];
        EXPECT_LT(equal, 10);  // one is expected
    }
}

TEST(SampleOrder, EveryPlaceIsEquallyLikely) {
    constexpr int kSize = 7, kEpochs = 7000;
    for (const uint64_t from : {0, 3}) {
        double chi_square = 0, count[kSize] = {}, expected = kEpochs / kSize;
        for (uint64_t epoch = 0; epoch < kEpochs; ++epoch)
            ++count[Permutation(kSize, 9, epoch)(from)];
        for (const double n : count) chi_square += (n - expected) * (n - expected) / expected;
        EXPECT_LT(chi_square, 22.5);  // 6 degrees of freedom: p = 0.001
    }
}

TEST(SampleOrder, PositionsRunThroughEpochs) {
    for (uint64_t position = 0; position < 30; ++position)
        EXPECT_EQ(sample_at(position, 10, 3), permuted(10, 3, position / 10)[position % 10]);
}

// --- files ---

TEST_F(TokenFiles, BothFormatsAreToldApart) {
    const Tokens tokens = counting(100, 300);
    write("plain.bin", bytes_of(tokens));
    write("shard.bin", shard(tokens));
    for (const std::string name : {"plain.bin", "shard.bin"}) {
        const TokenFile file(path(name), TokenFormat::automatic);
        EXPECT_EQ(Tokens(file.tokens(), file.tokens() + file.size()), tokens) << name;
    }
    EXPECT_EQ(TokenFile(path("shard.bin"), TokenFormat::llmc).size(), 100);
    EXPECT_EQ(TokenFile(path("shard.bin"), TokenFormat::uint16).size(), 612);  // as asked
    EXPECT_EQ(TokenFile(write("one.bin", "ab"), TokenFormat::automatic).size(), 1);
    TokenFile first(path("plain.bin"), TokenFormat::automatic);
    const TokenFile second(std::move(first));
    EXPECT_EQ(second.tokens()[99], 399);
}

TEST_F(TokenFiles, DamagedFilesAreNamed) {
    const auto open = [&](const std::string& bytes, TokenFormat format = TokenFormat::automatic) {
        return TokenFile(write("x.bin", bytes), format);
    };
    const Tokens tokens = counting(100);
    const std::string good = shard(tokens);
    EXPECT_ERROR(open(""), path("x.bin") + ": empty");
    EXPECT_ERROR(open("abc"), "x.bin: odd size of 3 bytes: byte 2 is half a token");
    EXPECT_ERROR(open(good.substr(0, 1200)),
                 "x.bin: truncated: 1200 bytes, expected 1224 bytes for the 100 tokens");
    EXPECT_ERROR(open(good + "ab"), "x.bin: too long: 1226 bytes, expected 1224 bytes");
    EXPECT_ERROR(open(good.substr(0, 500)),
                 "x.bin: truncated: 500 bytes, expected a header of 1024");
    EXPECT_ERROR(open(shard(tokens, 100, 2)),
                 "x.bin: byte 4: version 2 of an llm.c shard, expected 1");
    EXPECT_ERROR(open(shard(tokens, INT32_MIN)), "x.bin: ");
    EXPECT_ERROR(open(shard(tokens, 100, 7, 20240801)), "x.bin: byte 0: an llm.c shard of 32-bit");
    EXPECT_ERROR(open(bytes_of(tokens), TokenFormat::llmc),
                 "x.bin: byte 0: magic 65536, expected 20240520");
    EXPECT_ERROR(open("ab", TokenFormat::llmc), "x.bin: byte 0: magic");
    EXPECT_ERROR(TokenFile(path("none.bin"), TokenFormat::automatic),
                 "none.bin: cannot open: No such file");
    EXPECT_ERROR(TokenFile(folder_.string(), TokenFormat::automatic), "not a regular file");
}

TEST_F(TokenFiles, GlobsAreSortedAndInTheOrderGiven) {
    for (const char* name : {"b2.bin", "b1.bin", "a.bin", "[x].bin"}) write(name, "ab");
    EXPECT_EQ(expand_globs({path("b*.bin"), path("a.bin"), path("b1.bin"), path("[x].bin")}),
              (std::vector<std::string>{path("b1.bin"), path("b2.bin"), path("a.bin"),
                                        path("b1.bin"), path("[x].bin")}));
    EXPECT_ERROR(expand_globs({path("a.bin"), path("c*.bin")}),
                 "no file matches '" + path("c*.bin"));
}

TEST_F(TokenFiles, SequencesOfAllFiles) {
    // 9 tokens hold two sequences of 4 + 1; 8 hold one; 4 hold none; 13 hold three.
    write("1.bin", bytes_of(counting(9, 100)));
    write("2.bin", shard(counting(8, 200)));
    write("3.bin", bytes_of(counting(4, 300)));
    write("4.bin", shard(counting(13, 400)));
    const Dataset dataset({path("*.bin")}, TokenFormat::automatic, 4, 50257);
    EXPECT_EQ(dataset.tokens(), 34);
    EXPECT_EQ(dataset.sequence_length(), 4);
    ASSERT_EQ(dataset.sequences(), 6);
    const int32_t first[] = {100, 104, 200, 400, 404, 408};
    for (int64_t i = 0; i < 6; ++i) {
        int32_t inputs[4], targets[4];
        dataset.copy_sequence(i, inputs, targets);
        for (int t = 0; t < 4; ++t) {
            EXPECT_EQ(inputs[t], first[i] + t);
            EXPECT_EQ(targets[t], first[i] + t + 1);
        }
    }
}

TEST_F(TokenFiles, TooFewTokens) {
    write("1.bin", bytes_of(counting(8)));
    EXPECT_ERROR(Dataset({path("1.bin")}, TokenFormat::automatic, 8, 256),
                 "1.bin holds 8 tokens and no sequence of 8 + 1 tokens");
    write("2.bin", shard({}));
    EXPECT_ERROR(Dataset({path("*.bin")}, TokenFormat::automatic, 8, 256),
                 "1.bin and the files after it hold 8 tokens");
    EXPECT_ERROR(Dataset({}, TokenFormat::automatic, 8, 256), "list of data files is empty");
    EXPECT_EQ(Dataset({path("1.bin")}, TokenFormat::automatic, 7, 256).sequences(), 1);
}

TEST_F(TokenFiles, TokensAreCheckedAgainstTheVocabulary) {
    Tokens tokens = counting(33, 0);
    tokens[24] = 500;  // the last target of sequence 2 and the first input of sequence 3
    write("x.bin", shard(tokens));
    const Dataset dataset({path("x.bin")}, TokenFormat::automatic, 8, 500);
    int32_t inputs[8], targets[8];
    dataset.copy_sequence(0, inputs, targets);
    for (const int64_t index : {2, 3})
        EXPECT_ERROR(dataset.copy_sequence(index, inputs, targets),
                     "x.bin: token 24 has id 500, expected below model.vocab_size 500");
    const Dataset larger({path("x.bin")}, TokenFormat::automatic, 8, 501);
    larger.copy_sequence(3, inputs, targets);
    EXPECT_EQ(inputs[0], 500);
}

// --- loader ---

class DataLoader : public TokenFiles {
  protected:
    void SetUp() override {
        TokenFiles::SetUp();
        write("a.bin", bytes_of(counting(60)));
        write("b.bin", shard(counting(45, 1000)));
        dataset_ = std::make_unique<Dataset>(std::vector<std::string>{path("?.bin")},
                                             TokenFormat::automatic, 4, 2000);
        ASSERT_EQ(dataset_->sequences(), 14 + 11);
    }

    // The first input of each of `count` sequences from `position` on; checks the rest of them.
    std::vector<int32_t> stream(int64_t micro_batch, int64_t position, int64_t count,
                                uint64_t seed = 1) {
        Loader loader(*dataset_, seed, micro_batch, position);
        std::vector<int32_t> first;
        while (static_cast<int64_t>(first.size()) < count) {
            const HostBatch& batch = loader.next();
            EXPECT_EQ(batch.sequences, micro_batch);
            EXPECT_EQ(batch.length, 4);
            EXPECT_EQ(batch.inputs.size(), static_cast<size_t>(4 * micro_batch));
            for (int64_t row = 0; row < micro_batch; ++row)
                for (int64_t t = 0; t < 4; ++t) {
                    const auto at = static_cast<size_t>(row * 4 + t);
                    EXPECT_EQ(batch.inputs[at], batch.inputs[static_cast<size_t>(row * 4)] + t);
                    EXPECT_EQ(batch.targets[at], batch.inputs[at] + 1);
                    if (t == 0) first.push_back(batch.inputs[at]);
                }
        }
        return first;
    }

    std::unique_ptr<Dataset> dataset_;
};

TEST_F(DataLoader, TheOrderOfTheStream) {
    const auto first = stream(1, 0, 60);  // more than two epochs
    for (int epoch = 0; epoch < 2; ++epoch) {
        const std::set<int32_t> seen(first.begin() + 25 * epoch, first.begin() + 25 * (epoch + 1));
        EXPECT_EQ(seen.size(), 25u);  // each once
    }
    for (uint64_t position = 0; position < 60; ++position) {
        int32_t inputs[4], targets[4];
        dataset_->copy_sequence(static_cast<int64_t>(sample_at(position, 25, 1)), inputs, targets);
        EXPECT_EQ(first[position], inputs[0]);
    }
    EXPECT_NE(first, stream(1, 0, 60, 2));
}

TEST_F(DataLoader, MicroBatchDoesNotMatter) {
    const auto first = stream(1, 0, 120);
    for (const int64_t micro_batch : {2, 3, 4, 40})
        EXPECT_EQ(first, stream(micro_batch, 0, 120)) << micro_batch;
}

// The micro-batches of several ranks, laid side by side, are the stream.
TEST_F(DataLoader, RanksShareTheStream) {
    const auto first = stream(1, 0, 120);
    for (const int64_t ranks : {2, 3, 4})
        for (const int64_t micro_batch : {1, 2, 5})
            for (int64_t rank = 0; rank < ranks; ++rank) {
                Loader loader(*dataset_, 1, micro_batch, 7 + rank * micro_batch, OrderType::own,
                              ranks * micro_batch);
                for (int64_t n = 0; n < 5; ++n) {
                    const HostBatch& batch = loader.next();
                    const int64_t at = 7 + (n * ranks + rank) * micro_batch;
                    for (int64_t row = 0; row < micro_batch; ++row)
                        EXPECT_EQ(batch.inputs[static_cast<size_t>(4 * row)],
                                  first[static_cast<size_t>(at + row)]);
                }
            }
}

TEST_F(DataLoader, ResumeContinues) {
    const auto first = stream(2, 0, 120);
    for (const int64_t position : {1, 2, 24, 25, 26, 60})
        EXPECT_EQ(std::vector<int32_t>(first.begin() + position, first.begin() + position + 60),
                  stream(2, position, 60))
            << position;
}

TEST_F(DataLoader, ABatchStaysUntilTheCallAfterTheNext) {
    Loader loader(*dataset_, 1, 2, 0);
    const auto expected = stream(2, 0, 100);
    const HostBatch* before = nullptr;
    for (size_t i = 0; i < 50; ++i) {
        const HostBatch& batch = loader.next();
        std::this_thread::sleep_for(std::chrono::microseconds(200));  // let the thread run ahead
        EXPECT_EQ(batch.inputs[0], expected[2 * i]);
        if (before != nullptr) {
            EXPECT_EQ(before->inputs[0], expected[2 * i - 2]);
        }
        before = &batch;
    }
}

TEST_F(DataLoader, StopsWhileTheQueueIsFull) {
    for (int i = 0; i < 20; ++i) {
        const Timer timer;
        {
            Loader loader(*dataset_, 1, 2, 0);
            if (i % 2 == 0) loader.next();
            std::this_thread::sleep_for(std::chrono::milliseconds(i % 4));
        }
        EXPECT_LT(timer.seconds(), 2.0);
    }
}

TEST_F(DataLoader, StopsInTheMiddleOfALargeBatch) {
    const Dataset dataset({path("a.bin")}, TokenFormat::automatic, 1, 2000);
    const std::clock_t start = std::clock();      // of the processor: other programs do not count
    { Loader loader(dataset, 1, 8'000'000, 0); }  // many seconds of work
    EXPECT_LT(static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC, 2.0);
}

TEST_F(DataLoader, AnErrorComesAtItsBatch) {
    // The only bad sequence stands at some position of the first epoch; all batches before it are
    // served, and every call after that repeats the error.
    Tokens tokens = counting(41);
    tokens[22] = 60000;
    write("bad.bin", bytes_of(tokens));
    const Dataset dataset({path("bad.bin")}, TokenFormat::automatic, 4, 2000);
    for (uint64_t seed = 0; seed < 5; ++seed) {
        Loader loader(dataset, seed, 1, 0);
        uint64_t position = 0;
        for (; sample_at(position, 10, seed) != 5; ++position) EXPECT_NO_THROW(loader.next());
        for (int repeat = 0; repeat < 2; ++repeat)
            EXPECT_ERROR(loader.next(), "bad.bin: token 22 has id 60000");
    }
}

}  // namespace
}  // namespace lmo
