// Token files as one long list of training sequences.
//
// Formats: llm.c shards (256 int32 of header: magic 20240520, version 1, token count; then uint16)
// and headerless little-endian uint16 (nanoGPT, llm-baselines); told apart by the header. Files are
// memory-mapped. In each file sequence i covers tokens i*T .. i*T + T (T inputs and the T targets
// one later); the rest of a file that does not fill a sequence is left out.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lmo {

enum class TokenFormat { automatic, llmc, uint16 };

// Paths of files and globs, in the order given, each glob sorted; "~" is not expanded. Throws Error
// naming a pattern that matches no file.
std::vector<std::string> expand_globs(const std::vector<std::string>& patterns);

// One memory-mapped file. Throws Error naming the file and the byte: missing, empty, odd size,
// foreign header version, truncated against its header's count.
class TokenFile {
  public:
    TokenFile(const std::string& path, TokenFormat format);
    ~TokenFile();
    TokenFile(TokenFile&& other) noexcept;
    TokenFile(const TokenFile&) = delete;
    TokenFile& operator=(const TokenFile&) = delete;

    const std::string& path() const { return path_; }
    int64_t size() const { return count_; }
    const uint16_t* tokens() const { return tokens_; }

  private:
    std::string path_;
    void* map_ = nullptr;
    size_t map_bytes_ = 0;
    const uint16_t* tokens_ = nullptr;
    int64_t count_ = 0;
};

class Dataset {
  public:
    // Throws Error when the files hold no complete sequence of T + 1 tokens.
    Dataset(const std::vector<std::string>& patterns, TokenFormat format, int64_t sequence_length,
            int64_t vocab_size);

    int64_t sequences() const { return sequences_; }
    int64_t sequence_length() const { return sequence_length_; }
    int64_t tokens() const;  // in all files
    const std::vector<TokenFile>& files() const { return files_; }
    // Copies sequence `index`: inputs[T] and targets[T]. Throws Error naming file and token
    // position when an id is not below vocab_size.
    void copy_sequence(int64_t index, int32_t* inputs, int32_t* targets) const;
    // The same for the T + 1 tokens from `start` on in all files as one text; T + 1 <= tokens() -
    // start.
    void copy_window(int64_t start, int32_t* inputs, int32_t* targets) const;

  private:
    void check_ids(const TokenFile& file, int64_t start, int64_t count) const;

    std::vector<TokenFile> files_;
    std::vector<int64_t> first_;  // first sequence of each file
    int64_t sequences_ = 0, sequence_length_, vocab_size_;
};

}  // namespace lmo
