// Tokenizers against the cases of dev/reference/tokenizer_golden.py, and by hand where a reference
// has no say: bytes that are not UTF-8, damaged vocabularies, long words.
#include "llmc/data/tokenizer.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "llmc/core/error.h"
#include "llmc/data/split.h"

namespace lmo {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<int32_t>;

const std::string kGolden = "tests/data/tokenizer/";
const std::string kRanks = kGolden + "tiny.tiktoken";
const std::string kMerges = kGolden + "merges";

nlohmann::json golden_cases() {
    std::ifstream file(kGolden + "cases.json");
    return nlohmann::json::parse(file);
}

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> pieces;
    for (const auto piece : split_gpt2(text)) pieces.emplace_back(piece);
    return pieces;
}

std::string read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

std::string random_bytes(size_t count) {
    std::mt19937 random(7);
    std::string text;
    for (size_t i = 0; i < count; ++i) text += static_cast<char>(random());
    return text;
}

// A folder of its own for damaged vocabularies.
class VocabularyFiles : public testing::Test {
  protected:
    void SetUp() override {
        std::string name = (fs::temp_directory_path() / "lmo_tokenizer_XXXXXX").string();
        ASSERT_NE(mkdtemp(name.data()), nullptr);
        folder_ = name;
    }
    void TearDown() override { fs::remove_all(folder_); }

    std::string write(const std::string& name, const std::string& text) {
        const std::string path = (folder_ / name).string();
        std::ofstream(path, std::ios::binary) << text;
        return path;
    }
    std::string error(const std::string& name, ExitStatus status = ExitStatus::runtime_error) {
        try {
            make_tokenizer(name);
        } catch (const Error& error) {
            EXPECT_EQ(error.status(), status);
            return error.what();
        }
        ADD_FAILURE() << name << ": no error";
        return "";
    }
    void expect_error(const std::string& name, const std::string& words) {
        EXPECT_NE(error(name).find(words), std::string::npos) << error(name);
    }

    fs::path folder_;
};

TEST(ByteTokenizer, IdsAreTheBytes) {
    const auto tokenizer = make_tokenizer("bytes");
    EXPECT_EQ(tokenizer->vocab_size(), 256);
    EXPECT_EQ(tokenizer->encode("A\n\xff"), (Ids{65, 10, 255}));
    EXPECT_EQ(tokenizer->decode({72, 105, 256, -1, 33}), "Hi!");
    const std::string text = random_bytes(1000);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
}

TEST(Gpt2Split, AgreesWithTheReference) {
    const auto cases = golden_cases();
    ASSERT_GE(cases.size(), 150u);
    for (const auto& one : cases)
        EXPECT_EQ(split(one["text"]), one["pieces"].get<std::vector<std::string>>()) << one;
}

TEST(Gpt2Split, InvalidUtf8IsSymbols) {
    using Pieces = std::vector<std::string>;
    EXPECT_EQ(split("a\xff\xfe b"), (Pieces{"a", "\xff\xfe", " b"}));
    EXPECT_EQ(split("\xc3"), (Pieces{"\xc3"}));                // cut off
    EXPECT_EQ(split("\xe4\xb8z"), (Pieces{"\xe4\xb8", "z"}));  // cut off by a letter
    EXPECT_EQ(split("\xc1\x81"
                    "A"),
              (Pieces{"\xc1\x81", "A"}));                                      // overlong A
    EXPECT_EQ(split(" \xed\xa0\x80"), (Pieces{" \xed\xa0\x80"}));              // surrogate
    EXPECT_EQ(split("1\xf4\x90\x80\x80"), (Pieces{"1", "\xf4\x90\x80\x80"}));  // above U+10FFFF
    EXPECT_EQ(split("\xe4\xb8\xad\xe4"), (Pieces{"\xe4\xb8\xad", "\xe4"}));
}

TEST(BpeTokenizer, BothFormatsAgreeWithTheReference) {
    for (const std::string& path : {kRanks, kMerges, kGolden}) {
        const auto tokenizer = make_tokenizer(path);
        EXPECT_EQ(tokenizer->vocab_size(), 557) << path;  // 256 bytes, 300 merges, end of text
        for (const auto& one : golden_cases()) {
            EXPECT_EQ(tokenizer->encode(one["text"].get<std::string>()), one["ids"].get<Ids>())
                << path << ": " << one;
            EXPECT_EQ(tokenizer->decode(one["ids"].get<Ids>()), one["text"].get<std::string>());
        }
    }
}

TEST(BpeTokenizer, AnyBytesComeBack) {
    const auto tokenizer = make_tokenizer(kRanks);
    const std::string text = random_bytes(20000);
    EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    EXPECT_EQ(tokenizer->decode({556, -1, 557, 1 << 30}), "");  // end of text has none
}

TEST(BpeTokenizer, ALongWordIsNoTrap) {  // a quadratic algorithm would need hours
    const auto tokenizer = make_tokenizer(kRanks);
    for (const char* unit : {" ", "t", "th"}) {
        std::string text;
        while (text.size() < 1 << 20) text += unit;
        const Ids ids = tokenizer->encode(text);
        EXPECT_LE(ids.size(), text.size());
        EXPECT_EQ(tokenizer->decode(ids), text);
    }
}

// Ranks that no training makes: "abc" can arise as ab + c or a + bc. A list of merges knows only
// the pairs it names, ranks know both.
TEST_F(VocabularyFiles, MergesAreByPairAndRanksByText) {
    const auto all = nlohmann::json::parse(read(kMerges + "/encoder.json"));
    nlohmann::json ids;
    for (const auto& [token, id] : all.items())
        if (id < 256) ids[token] = id;
    ids["bc"] = 256, ids["ab"] = 257, ids["abc"] = 258;
    write("vocab.json", ids.dump());
    write("merges.txt", "b c\na b\nab c\n");
    const auto tokenizer = make_tokenizer(folder_.string());
    const int32_t a = tokenizer->encode("a")[0];
    EXPECT_EQ(tokenizer->encode("abc"), (Ids{a, 256}));  // b c first; then a bc is no merge
    EXPECT_EQ(tokenizer->encode("ab"), Ids{257});
    EXPECT_EQ(tokenizer->vocab_size(), 259);

    std::string ranks = read(kRanks);
    ranks.resize(ranks.find(" 255\n") + 5);
    const std::string path = write("x.tiktoken", ranks + "YmM= 256\nYWI= 257\nYWJj 258\n");
    EXPECT_EQ(make_tokenizer(path)->encode("abc"), Ids{258});
    EXPECT_EQ(make_tokenizer(path)->encode("aabc"), (Ids{a, 258}));
}

TEST_F(VocabularyFiles, DamagedVocabulariesAreNamed) {
    const std::string ranks = read(kRanks);
    expect_error(write("empty.tiktoken", ""), "no token for the single byte 0");
    expect_error(write("half.tiktoken", ranks.substr(0, 1000)), "half.tiktoken: ");
    expect_error(write("word.tiktoken", "IQ== 0\nIg== one\n"), "word.tiktoken: line 2: ");
    expect_error(write("code.tiktoken", "I!== 0\n"), "\"I!==\" is not base64");
    expect_error(write("minus.tiktoken", "IQ== -1\n"), "line 1: expected a token in base64");
    expect_error(write("huge.tiktoken", "IQ== 99999999999\n"), "line 1: expected");
    expect_error(write("twice.tiktoken", ranks + "IQ== 900\n"), "line 557: this token or rank");
    expect_error(write("rank.tiktoken", ranks + "dGh0aHRo 3\n"), "line 557: this token or rank");
    expect_error(write("binary.tiktoken", random_bytes(5000)), "binary.tiktoken: line 1");
}

TEST_F(VocabularyFiles, DamagedMergesAreNamed) {
    const std::string ids = read(kMerges + "/encoder.json"), merges = read(kMerges + "/vocab.bpe");
    write("vocab.bpe", merges);
    for (const std::string& text : {std::string("{\"a\": "), std::string("[1]"), std::string()}) {
        write("encoder.json", text);
        expect_error(folder_.string(), "encoder.json: not a JSON object");
    }
    write("encoder.json", "{\"a\": \"b\"}");
    expect_error(folder_.string(), "token \"a\": id \"b\", expected an integer");
    write("encoder.json", "{\"a\": 1, \"b\": 1}");
    expect_error(folder_.string(), "id 1 is given twice");
    write("encoder.json", "{\"a\": 1}");
    expect_error(folder_.string(), "no token for the single byte 0");
    write("encoder.json", ids);
    write("vocab.bpe", merges + "q q\n");
    expect_error(folder_.string(), "vocab.bpe: line 302: token \"qq\" is not in ");
    write("vocab.bpe", "#version: 0.2\na b c\n");
    expect_error(folder_.string(), "vocab.bpe: line 2: expected two tokens");
}

TEST_F(VocabularyFiles, WhatIsNotThereIsSaid) {
    const auto status = ExitStatus::usage_error;
    EXPECT_NE(error("nonsense", status).find("'nonsense': expected bytes, gpt2, a .tiktoken file"),
              std::string::npos);
    EXPECT_NE(error(folder_.string(), status).find("merges.txt and vocab.json"), std::string::npos);
    write("a.tiktoken", read(kRanks));
    EXPECT_EQ(make_tokenizer(folder_.string())->vocab_size(), 557);
    write("b.tiktoken", read(kRanks));
    EXPECT_NE(error(folder_.string(), status).find("several .tiktoken files"), std::string::npos);
}

TEST_F(VocabularyFiles, Gpt2IsLookedForInDataGpt2) {
    const fs::path golden = fs::absolute(kRanks), before = fs::current_path();
    fs::current_path(folder_);
    EXPECT_NE(error("gpt2", ExitStatus::usage_error).find("scripts/prepare_data.py"),
              std::string::npos);
    fs::create_directories("data/gpt2");
    fs::copy_file(golden, "data/gpt2/gpt2.tiktoken");
    EXPECT_EQ(make_tokenizer("gpt2")->vocab_size(), 557);
    fs::current_path(before);
}

}  // namespace
}  // namespace lmo
