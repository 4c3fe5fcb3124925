// safetensors: our bytes against the format written down by hand, files of others, and damaged
// files.
#include <gtest/gtest.h>

#include <unistd.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "llmc/core/error.h"
#include "llmc/io/safetensors.h"

namespace lmo {
namespace {

namespace fs = std::filesystem;

class Safetensors : public ::testing::Test {
  protected:
    void SetUp() override {
        const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
        folder_ = fs::temp_directory_path() /
                  ("lmo_safetensors_" + std::to_string(::getpid()) + "_" + test->name());
        fs::remove_all(folder_);
        fs::create_directories(folder_);
    }
    void TearDown() override { fs::remove_all(folder_); }

    std::string path(const std::string& name) const { return (folder_ / name).string(); }

    std::string write(const std::string& name, const std::string& bytes) const {
        std::ofstream(path(name), std::ios::binary) << bytes;
        return path(name);
    }

    fs::path folder_;
};

std::string length_bytes(uint64_t length) {
    std::string bytes;
    for (int i = 0; i < 8; ++i) bytes += static_cast<char>(length >> (8 * i));
    return bytes;
}

std::string file_bytes(const std::string& header, const std::string& data) {
    return length_bytes(header.size()) + header + data;
}

template <typename T>
TensorSource source(const std::string& name, DType type, std::vector<int64_t> shape,
                    std::vector<T> values) {
    return {name, type, std::move(shape), [values](void* target) {
                std::memcpy(target, values.data(), values.size() * sizeof(T));
            }};
}

// The message of the Error that `action` throws; a failed check if it throws none.
template <typename Action>
std::string error_of(Action action) {
    try {
        action();
    } catch (const Error& error) {
        return error.what();
    }
    ADD_FAILURE() << "no Error was thrown";
    return "";
}

#define EXPECT_CONTAINS(text, part) \
    EXPECT_NE(std::string(text).find(part), std::string::npos) << "in: " << (text)

TEST_F(Safetensors, WritesTheBytesOfTheFormat) {
    const FileSummary summary =
        write_safetensors(path("a"),
                          {source<uint16_t>("h", DType::bf16, {1}, {0x3f80}),
                           source<float>("w", DType::f32, {1, 2}, {1.0f, -2.0f})},
                          {{"format", "pt"}});
    // 4-byte elements go first; the header is padded with spaces to a multiple of 8.
    std::string header = R"({"__metadata__":{"format":"pt"},)"
                         R"("w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
                         R"("h":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}})";
    while (header.size() % 8) header += ' ';
    const std::string data("\x00\x00\x80\x3f\x00\x00\x00\xc0\x80\x3f", 10);
    EXPECT_EQ(read_file(path("a")), file_bytes(header, data));
    EXPECT_EQ(summary.bytes, static_cast<int64_t>(fs::file_size(path("a"))));
    EXPECT_EQ(summary.xxh3_128, summarize_file(path("a")).xxh3_128);
}

TEST_F(Safetensors, ChecksumIsXxh3OfTheXxhashSpecification) {
    write("empty", "");
    write("letter", "a");
    EXPECT_EQ(summarize_file(path("empty")).xxh3_128, "99aa06d3014798d86001c324468d497f");
    EXPECT_EQ(summarize_file(path("letter")).xxh3_128, "a96faf705af16834e6c632b61e964e1f");
    EXPECT_EQ(summarize_file(path("letter")).bytes, 1);
}

TEST_F(Safetensors, RoundTripOfEveryType) {
    write_safetensors(path("a"),
                      {source<double>("f64", DType::f64, {2}, {0.1, -1e300}),
                       source<float>("f32", DType::f32, {1, 3}, {0.1f, -0.0f, 3e38f}),
                       source<uint16_t>("f16", DType::f16, {2}, {0x3c00, 0xfbff}),
                       source<uint16_t>("bf16", DType::bf16, {3}, {0x3f80, 0xc000, 0x7f80}),
                       source<int32_t>("i32", DType::i32, {2}, {-1, INT32_MAX}),
                       source<uint16_t>("u16", DType::u16, {1, 1, 2}, {0, 65535}),
                       source<float>("scalar", DType::f32, {}, {7.0f}),
                       source<float>("none", DType::f32, {3, 0}, {})});
    const SafetensorsFile file(path("a"));
    EXPECT_EQ(file.entries().size(), 8u);
    using V = std::vector<double>;
    EXPECT_EQ(file.read("f64", {2}), (V{0.1, -1e300}));
    EXPECT_EQ(file.read("f32", {1, 3}), (V{0.1f, -0.0, 3e38f}));
    EXPECT_TRUE(std::signbit(file.read("f32", {1, 3})[1]));
    EXPECT_EQ(file.read("f16", {2}), (V{1.0, -65504.0}));
    EXPECT_EQ(file.read("bf16", {3}), (V{1.0, -2.0, INFINITY}));
    EXPECT_EQ(file.read("i32", {2}), (V{-1, INT32_MAX}));
    EXPECT_EQ(file.read("u16", {1, 1, 2}), (V{0, 65535}));
    EXPECT_EQ(file.read("scalar", {}), V{7.0});
    EXPECT_EQ(file.read("none", {3, 0}), V{});
    for (const auto& [name, entry] : file.entries()) {
        const auto address = reinterpret_cast<uintptr_t>(entry.data);
        EXPECT_EQ(address % size_of(entry.dtype), 0u) << name;
    }
}

TEST_F(Safetensors, FetchesOneTensorAtATimeIntoOneBuffer) {
    std::vector<void*> targets;
    std::vector<TensorSource> tensors;
    for (int i = 0; i < 3; ++i) {
        tensors.push_back({"t" + std::to_string(i), DType::f32, {4}, [&targets, i](void* target) {
                               targets.push_back(target);
                               for (int k = 0; k < 4; ++k) static_cast<float*>(target)[k] = i;
                           }});
    }
    write_safetensors(path("a"), tensors);
    ASSERT_EQ(targets.size(), 3u);
    EXPECT_EQ(targets[0], targets[1]);
    EXPECT_EQ(targets[0], targets[2]);
    const SafetensorsFile file(path("a"));
    EXPECT_EQ(file.read("t2", {4}), (std::vector<double>{2, 2, 2, 2}));
}

TEST_F(Safetensors, ReadsAFileOfAnotherWriter) {
    const SafetensorsFile file("tests/data/hf_like.safetensors");
    using V = std::vector<double>;
    EXPECT_EQ(file.read("model.norm.weight", {3}), (V{1.0, -0.5, 3.25}));
    EXPECT_EQ(file.read("model.embed_tokens.weight", {2, 3}),
              (V{0.0, 1.5, -2.25, 1e-30f, -3e38f, 0.1f}));
    EXPECT_EQ(file.read("half", {2, 2}), (V{1.0, -65504.0, std::ldexp(1.0, -24), 0.333251953125}));
    EXPECT_EQ(file.read("double", {1}), V{0.1});
    EXPECT_EQ(file.read("int", {2}), (V{-7, 2147483647}));
    EXPECT_EQ(file.read("scalar", {}), V{42.0});
    EXPECT_EQ(file.read("empty", {0, 5}), V{});
    // Its I64 tensor is listed, but asking for it is an error that names it.
    EXPECT_EQ(file.names().size(), 8u);
    EXPECT_EQ(file.entries().count("steps"), 0u);
    EXPECT_CONTAINS(error_of([&] { file.find("steps"); }), "'steps' has element type I64");
    EXPECT_CONTAINS(error_of([&] { file.read("steps", {1}); }), "I64");
}

TEST_F(Safetensors, AbsentTensorsAndOtherShapesAreNamed) {
    const SafetensorsFile file("tests/data/hf_like.safetensors");
    EXPECT_EQ(file.find("nothing"), nullptr);
    EXPECT_CONTAINS(error_of([&] { file.read("nothing", {1}); }), "no tensor 'nothing'");
    const std::string message = error_of([&] { file.read("half", {4}); });
    EXPECT_CONTAINS(message, "[2, 2], expected [4]");
    EXPECT_CONTAINS(message, "hf_like.safetensors");
}

TEST_F(Safetensors, MovedFileStaysReadable) {
    std::vector<SafetensorsFile> files;
    for (int i = 0; i < 5; ++i) files.emplace_back("tests/data/hf_like.safetensors");
    for (const auto& file : files) EXPECT_EQ(file.read("double", {1})[0], 0.1);
}

struct Damaged {
    const char* name;
    std::string bytes;
    const char* expected;  // part of the message
};

std::vector<Damaged> damaged_files() {
    const std::string data(8, '\0');
    const auto tensor = [&](const std::string& entry) {
        return file_bytes("{\"w\":" + entry + "}", data);
    };
    const auto shaped = [&](const std::string& shape, const std::string& offsets) {
        return tensor(R"({"dtype":"F32","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}");
    };
    const std::string deep(100000, '[');
    return {
        {"empty file", "", "at least 8"},
        {"short length", "\x01\x02\x03", "3 bytes"},
        {"length only", length_bytes(1), "claims a header of 1 bytes"},
        {"huge length", length_bytes(UINT64_MAX) + "{}", "claims a header"},
        {"length just too long", length_bytes(3) + "{}", "claims a header of 3"},
        {"no header", length_bytes(0), "not valid JSON"},
        {"bad JSON", file_bytes("{\"w\":", data), "not valid JSON"},
        {"cut UTF-8", file_bytes("{\"\xe2\x82\":{}}", data), "not valid JSON"},
        {"deep nesting", file_bytes(deep, data), "not valid JSON"},
        {"a list", file_bytes("[]", data), "not a JSON object"},
        {"entry is a number", tensor("3"), "tensor 'w'"},
        {"no dtype", tensor(R"({"shape":[2],"data_offsets":[0,8]})"), "'dtype'"},
        {"dtype a number", tensor(R"({"dtype":3,"shape":[2],"data_offsets":[0,8]})"), "'dtype'"},
        {"no shape", tensor(R"({"dtype":"F32","data_offsets":[0,8]})"), "'shape'"},
        {"no offsets", tensor(R"({"dtype":"F32","shape":[2]})"), "'data_offsets'"},
        {"shape an object", shaped("{}", "[0,8]"), "'shape'"},
        {"negative shape", shaped("[-2]", "[0,8]"), "-2"},
        {"two negatives", shaped("[-1,-2]", "[0,8]"), "-1"},
        {"fractional shape", shaped("[2.0]", "[0,8]"), "2.0"},
        {"text in shape", shaped("[\"2\"]", "[0,8]"), "\"2\""},
        {"overflow by product", shaped("[4294967296,4294967296]", "[0,0]"), "does not fit"},
        {"overflow to the right size", shaped("[4611686018427387906]", "[0,8]"), "does not fit"},
        {"beyond 63 bits", shaped("[9223372036854775808]", "[0,8]"), "below 2^63"},
        {"beyond 64 bits", shaped("[99999999999999999999999]", "[0,8]"), "below 2^63"},
        {"one offset", shaped("[2]", "[0]"), "do not lie"},
        {"three offsets", shaped("[2]", "[0,8,8]"), "do not lie"},
        {"past the end", shaped("[3]", "[0,12]"), "do not lie in the 8 bytes"},
        {"begins past the end", shaped("[0]", "[9,9]"), "do not lie"},
        {"huge offset", shaped("[2]", "[9223372036854775799,9223372036854775807]"), "do not lie"},
        {"negative offset", shaped("[2]", "[-8,0]"), "-8"},
        {"backwards", shaped("[2]", "[8,0]"), "do not lie"},
        {"too few bytes", shaped("[2]", "[0,4]"), "does not fit the 4 bytes"},
        {"too many bytes", shaped("[1]", "[0,8]"), "does not fit the 8 bytes"},
        {"bad offsets of an unknown type",
         tensor(R"({"dtype":"I64","shape":[9],"data_offsets":[0,72]})"), "do not lie"},
    };
}

TEST_F(Safetensors, DamagedFilesAreErrorsNamingFileAndProblem) {
    for (const Damaged& damaged : damaged_files()) {
        SCOPED_TRACE(damaged.name);
        write("damaged", damaged.bytes);
        const std::string message = error_of([&] { SafetensorsFile file(path("damaged")); });
        EXPECT_CONTAINS(message, path("damaged"));
        EXPECT_CONTAINS(message, damaged.expected);
    }
}

TEST_F(Safetensors, EveryTruncationIsAnError) {
    const std::string whole = read_file("tests/data/hf_like.safetensors");
    for (size_t length = 0; length < whole.size(); ++length) {
        write("cut", whole.substr(0, length));
        EXPECT_THROW(SafetensorsFile file(path("cut")), Error) << length;
    }
}

TEST_F(Safetensors, EverySingleByteChangeIsReadWithinBoundsOrRefused) {
    const std::string whole = read_file("tests/data/hf_like.safetensors");
    int refused = 0;
    for (size_t at = 0; at < whole.size(); ++at) {
        for (const int flip : {0x01, 0x10, 0x80}) {
            std::string bytes = whole;
            bytes[at] = static_cast<char>(bytes[at] ^ flip);
            write("flipped", bytes);
            try {
                const SafetensorsFile file(path("flipped"));
                for (const auto& [name, entry] : file.entries()) file.read(name, entry.shape);
            } catch (const Error&) {
                ++refused;
            }
        }
    }
    EXPECT_GT(refused, 1000);
}

TEST_F(Safetensors, UnreadablePathsAreErrors) {
    EXPECT_CONTAINS(error_of([&] { SafetensorsFile file(path("absent")); }), "No such file");
    EXPECT_CONTAINS(error_of([&] { SafetensorsFile file(folder_.string()); }), "not a regular");
    EXPECT_CONTAINS(error_of([&] { write_safetensors(path("no/such/folder"), {}); }),
                    "No such file");
}

TEST_F(Safetensors, FullDiskIsAnErrorNamingThePath) {
    if (!fs::exists("/dev/full")) GTEST_SKIP() << "no /dev/full here";
    const std::string message = error_of(
        [&] { write_safetensors("/dev/full", {source<float>("w", DType::f32, {1}, {1.0f})}); });
    EXPECT_CONTAINS(message, "'/dev/full'");
    EXPECT_CONTAINS(message, "No space left");
}

TEST_F(Safetensors, WeightFolderWithOneFile) {
    write_safetensors(path("model.safetensors"), {source<float>("w", DType::f32, {1}, {3.0f})});
    const WeightFolder weights(folder_.string());
    EXPECT_TRUE(weights.has("w"));
    EXPECT_FALSE(weights.has("v"));
    EXPECT_EQ(weights.names(), std::vector<std::string>{"w"});
    EXPECT_EQ(weights.read("w", {1}), std::vector<double>{3.0});
    const std::string message = error_of([&] { weights.read("v", {1}); });
    EXPECT_CONTAINS(message, "'v'");
    EXPECT_CONTAINS(message, folder_.string());
}

TEST_F(Safetensors, WeightFolderWithShards) {
    write_safetensors(path("one.safetensors"), {source<float>("a", DType::f32, {1}, {1.0f}),
                                                source<float>("b", DType::f32, {1}, {2.0f})});
    write_safetensors(path("two.safetensors"), {source<float>("c", DType::f32, {1}, {3.0f})});
    const std::string index = "model.safetensors.index.json";
    write(index, R"({"metadata": {"total_size": 12}, "weight_map":
        {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}})");
    const WeightFolder weights(folder_.string());
    EXPECT_EQ(weights.names(), (std::vector<std::string>{"a", "b", "c"}));
    EXPECT_EQ(weights.read("b", {1})[0], 2.0);
    EXPECT_EQ(weights.read("c", {1})[0], 3.0);

    const auto failure = [&] { return error_of([&] { WeightFolder broken(folder_.string()); }); };
    fs::remove(path("two.safetensors"));
    EXPECT_CONTAINS(failure(), "two.safetensors");
    for (const char* name : {"../one.safetensors", "/etc/passwd", "..", ".", ""}) {
        write(index, std::string(R"({"weight_map": {"a": ")") + name + "\"}}");
        EXPECT_CONTAINS(failure(), "expected the name of a file in the same folder") << name;
    }
    write(index, R"({"weight_map": {"a": 3}})");
    EXPECT_CONTAINS(failure(), "weight_map.a is 3");
    write(index, "{}");
    EXPECT_CONTAINS(failure(), "'weight_map' should be");
    write(index, "{");
    EXPECT_CONTAINS(failure(), "not valid JSON");
    fs::remove(path(index));
    EXPECT_CONTAINS(failure(), "holds neither");
}

TEST_F(Safetensors, IndexThatNamesATensorItsShardLacks) {
    write_safetensors(path("one.safetensors"), {source<float>("a", DType::f32, {1}, {1.0f})});
    write("model.safetensors.index.json", R"({"weight_map": {"z": "one.safetensors"}})");
    const WeightFolder weights(folder_.string());
    EXPECT_CONTAINS(error_of([&] { weights.read("z", {1}); }), "no tensor 'z'");
}

}  // namespace
}  // namespace lmo
