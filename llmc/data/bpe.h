// Byte-level byte pair encoding (Sennrich et al. 2016; bytes and split pattern: Radford et al.
// 2019).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "llmc/data/tokenizer.h"

namespace lmo {

// What an encoder needs to know, read from files and checked. Two adjacent tokens merge into
// another one; of all possible merges in a word the one of least rank comes first, the leftmost of
// equals.
struct BpeVocabulary {
    struct Merge {
        int32_t rank, id;
    };
    std::vector<std::string> text;                // bytes of each id; empty: special, or a gap
    std::unordered_map<std::string, int32_t> id;  // of the bytes
    std::array<int32_t, 256> byte_id;             // the token of each single byte
    std::unordered_map<uint64_t, Merge> merges;   // by pair_key
    bool whole_words = false;  // a word that is a token needs no merges (.tiktoken files)

    static uint64_t pair_key(int32_t left, int32_t right) {
        return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) |
               static_cast<uint32_t>(right);
    }
};

// `merges`: lines "A B" in order of rank; `ids`: a JSON object of token to id. Both write each byte
// as one printable character, GPT-2's way. An entry of `ids` in other characters, or <|endoftext|>,
// is a special token. Throws Error naming file and line.
BpeVocabulary read_merges(const std::string& merges_path, const std::string& ids_path);

// Lines "BASE64 RANK", where rank is the id as well as the order of merges. The id after the last
// one is <|endoftext|>. Throws Error naming file and line.
BpeVocabulary read_tiktoken(const std::string& path);

class BpeTokenizer : public Tokenizer {
  public:
    explicit BpeTokenizer(BpeVocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

    std::vector<int32_t> encode(std::string_view text) const override;
    std::string decode(const std::vector<int32_t>& ids) const override;
    int64_t vocab_size() const override { return static_cast<int64_t>(vocabulary_.text.size()); }

  private:
    void encode_word(std::string_view word, std::vector<int32_t>& ids) const;

    BpeVocabulary vocabulary_;
};

}  // namespace lmo
