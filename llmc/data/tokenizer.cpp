#include "llmc/data/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "llmc/core/error.h"
#include "llmc/data/bpe.h"

namespace lmo {
namespace {

namespace fs = std::filesystem;

class ByteTokenizer : public Tokenizer {
  public:
    std::vector<int32_t> encode(std::string_view text) const override {
        std::vector<int32_t> ids;
        ids.reserve(text.size());
        for (const char character : text) ids.push_back(static_cast<uint8_t>(character));
        return ids;
    }
    std::string decode(const std::vector<int32_t>& ids) const override {
        std::string text;
        for (const int32_t id : ids)
            if (id >= 0 && id < vocab_size()) text += static_cast<char>(id);
        return text;
    }
    int64_t vocab_size() const override { return 256; }
};

// The vocabulary in a folder, or nothing if there is none.
std::unique_ptr<Tokenizer> from_folder(const fs::path& folder) {
    const std::pair<const char*, const char*> pairs[] = {{"vocab.bpe", "encoder.json"},
                                                         {"merges.txt", "vocab.json"}};
    for (const auto& [merges, ids] : pairs)
        if (fs::is_regular_file(folder / merges) && fs::is_regular_file(folder / ids))
            return std::make_unique<BpeTokenizer>(
                read_merges((folder / merges).string(), (folder / ids).string()));
    std::vector<std::string> ranks;
    for (const auto& entry : fs::directory_iterator(folder))
        if (entry.path().extension() == ".tiktoken") ranks.push_back(entry.path().string());
    if (ranks.size() > 1) {
        std::sort(ranks.begin(), ranks.end());
        throw UsageError("tokenizer '" + folder.string() + "' has several .tiktoken files (" +
                         ranks[0] + ", " + ranks[1] + "); name the one to use");
    }
    if (ranks.empty()) return nullptr;
    return std::make_unique<BpeTokenizer>(read_tiktoken(ranks[0]));
}

}  // namespace

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name) {
    if (name == "bytes") return std::make_unique<ByteTokenizer>();
    const std::string kinds =
        "a .tiktoken file, or vocab.bpe and encoder.json, or merges.txt and vocab.json";
    const fs::path path = name == "gpt2" ? "data/gpt2" : name;
    std::error_code ignored;
    if (fs::is_regular_file(path, ignored))
        return std::make_unique<BpeTokenizer>(read_tiktoken(path.string()));
    if (fs::is_directory(path, ignored)) {
        try {
            if (auto tokenizer = from_folder(path)) return tokenizer;
        } catch (const fs::filesystem_error& error) {
            throw Error(path.string() + ": cannot read the folder: " + error.code().message());
        }
    }
    if (name == "gpt2")
        throw UsageError("tokenizer 'gpt2': no vocabulary in data/gpt2/ (looked for " + kinds +
                         "); scripts/prepare_data.py leaves it there, or copy GPT-2's there");
    throw UsageError("tokenizer '" + name +
                     "': expected bytes, gpt2, a .tiktoken file, or a folder "
                     "with " +
                     kinds);
}

std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& prompt,
                                   int64_t vocab_size, const std::string& key) {
    std::vector<int32_t> ids = tokenizer.encode(prompt);
    if (ids.empty()) throw UsageError(key + " is empty; give at least one character");
    for (const int32_t id : ids) {
        if (id < vocab_size) continue;
        throw UsageError(key + ": token id " + std::to_string(id) +
                         " is not in the model's vocabulary of " + std::to_string(vocab_size) +
                         "; is this the model's tokenizer?");
    }
    return ids;
}

}  // namespace lmo
