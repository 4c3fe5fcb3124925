#include "llmc/data/dataset.h"

#include <fcntl.h>
#include <glob.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <utility>

#include "llmc/core/error.h"

namespace lmo {
namespace {

constexpr int32_t kMagic = 20240520;        // llm.c, 16-bit tokens
constexpr int32_t kMagicLlama3 = 20240801;  // llm.c, 32-bit tokens of the Llama 3 tokenizer
constexpr int64_t kHeaderBytes = 256 * sizeof(int32_t);

class FileDescriptor {
  public:
    explicit FileDescriptor(const std::string& path)
        : value_(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {  // a FIFO would block
        if (value_ < 0) throw Error(path + ": cannot open: " + std::strerror(errno));
    }
    ~FileDescriptor() { close(value_); }
    FileDescriptor(const FileDescriptor&) = delete;
    FileDescriptor& operator=(const FileDescriptor&) = delete;
    operator int() const { return value_; }

  private:
    int value_;
};

std::string bytes_text(int64_t bytes) { return std::to_string(bytes) + " bytes"; }

struct Header {
    int32_t magic = 0, version = 0, count = 0;
};

// Whether the file has llm.c's header. A headerless file could begin with the magic only by having
// 55384, 308 as its first tokens; then data.format says what it is.
bool has_header(const std::string& path, const Header& header, TokenFormat format) {
    if (format == TokenFormat::uint16) return false;
    if (format == TokenFormat::automatic && header.magic == kMagicLlama3 && header.version == 7)
        throw Error(path +
                    ": byte 0: an llm.c shard of 32-bit tokens (magic 20240801); expected "
                    "16-bit tokens (magic 20240520, or no header): tokenise again with a "
                    "vocabulary of at most 65536");
    if (header.magic == kMagic) return true;
    if (format == TokenFormat::llmc)
        throw Error(path + ": byte 0: magic " + std::to_string(header.magic) +
                    ", expected 20240520 of an llm.c shard; if the file is headerless uint16, set "
                    "data.format to uint16");
    return false;
}

int64_t checked_llmc_count(const std::string& path, const Header& header, int64_t bytes) {
    const std::string remedy =
        "; fetch or prepare the file again (or, if it is headerless uint16, set data.format to "
        "uint16)";
    if (bytes < kHeaderBytes)
        throw Error(path + ": truncated: " + bytes_text(bytes) + ", expected a header of " +
                    bytes_text(kHeaderBytes) + remedy);
    if (header.version != 1)
        throw Error(path + ": byte 4: version " + std::to_string(header.version) +
                    " of an llm.c shard, expected 1" + remedy);
    if (header.count < 0)
        throw Error(path + ": byte 8: token count " + std::to_string(header.count) +
                    ", expected 0 or more" + remedy);
    const int64_t expected = kHeaderBytes + 2 * int64_t{header.count};
    if (bytes != expected)
        throw Error(path + (bytes < expected ? ": truncated: " : ": too long: ") +
                    bytes_text(bytes) + ", expected " + bytes_text(expected) + " for the " +
                    std::to_string(header.count) + " tokens in its header" + remedy);
    return header.count;
}

}  // namespace

std::vector<std::string> expand_globs(const std::vector<std::string>& patterns) {
    std::vector<std::string> paths;
    for (const std::string& pattern : patterns) {
        // A file whose name happens to have glob characters is meant literally.
        if (access(pattern.c_str(), F_OK) == 0) {
            paths.push_back(pattern);
            continue;
        }
        glob_t found{};
        const int status = glob(pattern.c_str(), 0, nullptr, &found);  // sorted
        for (size_t i = 0; status == 0 && i < found.gl_pathc; ++i)
            paths.emplace_back(found.gl_pathv[i]);
        globfree(&found);
        if (status != 0)
            throw Error("no file matches '" + pattern +
                        "' (data paths start at the working directory); check the path, or "
                        "prepare the data with scripts/prepare_data.py");
    }
    return paths;
}

TokenFile::TokenFile(const std::string& path, TokenFormat format) : path_(path) {
    const FileDescriptor file(path);
    struct stat info {};
    if (fstat(file, &info) != 0) throw Error(path + ": cannot read: " + std::strerror(errno));
    if (!S_ISREG(info.st_mode)) throw Error(path + ": not a regular file; expected a token file");
    const int64_t bytes = info.st_size;
    if (bytes == 0) throw Error(path + ": empty; expected uint16 tokens: prepare the file again");

    Header header;  // stays zero where the file is shorter
    if (pread(file, &header, sizeof header, 0) < 0)
        throw Error(path + ": byte 0: cannot read: " + std::strerror(errno));
    int64_t first_byte = 0;
    if (has_header(path, header, format)) {
        count_ = checked_llmc_count(path, header, bytes);
        first_byte = kHeaderBytes;
    } else {
        if (bytes % 2 != 0)
            throw Error(path + ": odd size of " + bytes_text(bytes) + ": byte " +
                        std::to_string(bytes - 1) +
                        " is half a token; expected uint16 tokens: prepare the file again");
        count_ = bytes / 2;
    }

    void* map = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ, MAP_SHARED, file, 0);
    if (map == MAP_FAILED) throw Error(path + ": cannot map: " + std::strerror(errno));
    map_ = map;
    map_bytes_ = static_cast<size_t>(bytes);
    // Sequences are read in random order: reading ahead would only waste memory and bandwidth.
    madvise(map_, map_bytes_, MADV_RANDOM);
    tokens_ = reinterpret_cast<const uint16_t*>(static_cast<const char*>(map_) + first_byte);
}

TokenFile::~TokenFile() {
    if (map_ != nullptr) munmap(map_, map_bytes_);
}

TokenFile::TokenFile(TokenFile&& other) noexcept
    : path_(std::move(other.path_)),
      map_(std::exchange(other.map_, nullptr)),
      map_bytes_(other.map_bytes_),
      tokens_(other.tokens_),
      count_(other.count_) {}

Dataset::Dataset(const std::vector<std::string>& patterns, TokenFormat format,
                 int64_t sequence_length, int64_t vocab_size)
    : sequence_length_(sequence_length), vocab_size_(vocab_size) {
    assert(sequence_length >= 1);
    for (const std::string& path : expand_globs(patterns)) {
        files_.emplace_back(path, format);
        first_.push_back(sequences_);
        sequences_ += std::max<int64_t>(files_.back().size() - 1, 0) / sequence_length_;
    }
    if (files_.empty()) throw Error("the list of data files is empty; name at least one");
    if (sequences_ == 0)
        throw Error(files_[0].path() +
                    (files_.size() > 1 ? " and the files after it hold " : " holds ") +
                    std::to_string(tokens()) + " tokens and no sequence of " +
                    std::to_string(sequence_length_) +
                    " + 1 tokens; give more data or a smaller model.seq_len");
}

int64_t Dataset::tokens() const {
    int64_t total = 0;
    for (const TokenFile& file : files_) total += file.size();
    return total;
}

void Dataset::check_ids(const TokenFile& file, int64_t start, int64_t count) const {
    const uint16_t* tokens = file.tokens() + start;
    const uint16_t* largest = std::max_element(tokens, tokens + count);
    if (*largest >= vocab_size_)
        throw Error(file.path() + ": token " + std::to_string(start + (largest - tokens)) +
                    " has id " + std::to_string(*largest) + ", expected below model.vocab_size " +
                    std::to_string(vocab_size_) +
                    "; set model.vocab_size to the tokenizer's, or check data.format");
}

void Dataset::copy_sequence(int64_t index, int32_t* inputs, int32_t* targets) const {
    assert(index >= 0 && index < sequences_);
    // The last file that begins at or before index; files without a sequence share the first of
    // the file after them and are skipped by taking the last.
    const auto after = std::upper_bound(first_.begin(), first_.end(), index);
    const size_t number = static_cast<size_t>(after - first_.begin()) - 1;
    const TokenFile& file = files_[number];
    const int64_t start = (index - first_[number]) * sequence_length_;
    const uint16_t* tokens = file.tokens() + start;
    check_ids(file, start, sequence_length_ + 1);
    std::copy(tokens, tokens + sequence_length_, inputs);
    std::copy(tokens + 1, tokens + 1 + sequence_length_, targets);
}

void Dataset::copy_window(int64_t start, int32_t* inputs, int32_t* targets) const {
    assert(start >= 0 && start + sequence_length_ + 1 <= tokens());
    int64_t copied = 0;  // of the T + 1 tokens
    for (const TokenFile& file : files_) {
        if (start >= file.size()) {
            start -= file.size();
            continue;
        }
        const int64_t count = std::min(file.size() - start, sequence_length_ + 1 - copied);
        check_ids(file, start, count);
        for (int64_t i = 0; i < count; ++i, ++copied) {
            const int32_t token = file.tokens()[start + i];
            if (copied < sequence_length_) inputs[copied] = token;
            if (copied > 0) targets[copied - 1] = token;
        }
        if (copied == sequence_length_ + 1) return;
        start = 0;
    }
}

}  // namespace lmo
