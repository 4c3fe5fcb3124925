// Text to token ids and back.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lmo {

class Tokenizer {
  public:
    virtual ~Tokenizer() = default;
    virtual std::vector<int32_t> encode(std::string_view text) const = 0;
    // Bytes of the ids, not necessarily whole UTF-8 characters; an id without text is skipped.
    virtual std::string decode(const std::vector<int32_t>& ids) const = 0;
    virtual int64_t vocab_size() const = 0;
};

// "bytes" (vocabulary 256), "gpt2" (GPT-2's byte-level BPE from data/gpt2/), or the path of a
// folder with vocab.bpe + encoder.json (or merges.txt + vocab.json) or of a .tiktoken file. Throws
// UsageError saying what was looked for.
std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name);

// The ids of a prompt, at least one, all below the model's vocabulary; else a UsageError that names
// `key`, the option or configuration key that holds the prompt.
std::vector<int32_t> encode_prompt(const Tokenizer& tokenizer, const std::string& prompt,
                                   int64_t vocab_size, const std::string& key);

}  // namespace lmo
