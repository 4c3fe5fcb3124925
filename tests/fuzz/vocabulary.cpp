// Vocabularies: a .tiktoken file, or merges and ids. The 256 single bytes are added to the input, as
// chance does not find them. Accepted means: any bytes come back from their tokens.
#include <filesystem>

#include "llmc/data/bpe.h"
#include "llmc/data/tokenizer.h"
#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

namespace {

namespace fs = std::filesystem;

std::string base64_of_byte(int byte) {
    const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    return {digits[byte >> 2], digits[(byte & 3) << 4], '=', '='};
}

// The 256 characters that stand for bytes in merges and ids, in an order of their own.
std::string byte_ids() {
    std::string text;
    int id = 0;
    const auto add = [&](int code) {
        std::string character(1, static_cast<char>(code));
        if (code >= 0x80) {
            character = {static_cast<char>(0xc0 | (code >> 6)), static_cast<char>(0x80 | (code & 63))};
        }
        if (code == '"' || code == '\\') character.insert(0, "\\");
        text += "\"" + character + "\":" + std::to_string(id++) + ",";
    };
    for (int code = '!'; code <= '~'; ++code) add(code);
    for (int code = 0xa1; code <= 0xff; ++code) {
        if (code != 0xad) add(code);
    }
    const int rest = 256 - id;
    for (int i = 0; i < rest; ++i) add(256 + i);
    return text;
}

void encode_and_decode(const Tokenizer& tokenizer, const std::string& text) {
    const std::vector<int32_t> ids = tokenizer.encode(text);
    for (const int32_t id : ids) require(id >= 0 && id < tokenizer.vocab_size(), "an id out of range");
    require(tokenizer.decode(ids) == text, "another text comes back");
}

bool works(const std::string& name, std::string_view input) {
    return accepts(
        [&] {
            const auto tokenizer = make_tokenizer(name);
            encode_and_decode(*tokenizer, std::string(input));
            encode_and_decode(*tokenizer, std::string("the th\xff hello \n\n  1") + '\0');
            tokenizer->decode({-1, 0, 1 << 30});
        },
        {scratch_folder()});
}

}  // namespace

bool vocabulary(std::string_view input) {
    static const std::string bytes = byte_ids();
    fs::create_directories(scratch("bpe"));
    const auto files = split_files(input, "ranks", {"ranks", "merges", "ids", "all ids"});
    const auto text = [&](const char* name) {
        const auto found = files.find(name);
        return found == files.end() ? std::string() : found->second;
    };
    std::string ranks = text("ranks");
    if (ranks.substr(0, 1) != "!") {  // as it is: also without the bytes
        std::string all;
        for (int byte = 0; byte < 256; ++byte) {
            all += base64_of_byte(byte) + " " + std::to_string(byte) + "\n";
        }
        ranks = all + ranks;
    }
    write("x.tiktoken", ranks);
    write("bpe/merges.txt", text("merges"));
    const std::string ids = text("ids");
    const std::string object = "{" + bytes + (ids.empty() ? "\"<|endoftext|>\":256" : ids) + "}";
    write("bpe/vocab.json", files.count("all ids") > 0 ? text("all ids") : object);
    const bool first = works(scratch("x.tiktoken"), input), second = works(scratch("bpe"), input);
    encode_and_decode(*make_tokenizer("bytes"), std::string(input));
    return first || second;
}

}  // namespace lmo::fuzz
