#include "llmc/io/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "llmc/core/error.h"

namespace lmo {

namespace {

[[noreturn]] void fail(const std::string& action, const std::string& path, int code) {
    std::string hint;
    if (code == ENOSPC || code == EDQUOT) hint = "; free some space or choose another folder";
    if (code == EFBIG) hint = "; see the file size limit (ulimit -f)";
    throw Error("cannot " + action + " '" + path + "': " + std::strerror(code) + hint);
}

// XXH3 of a stream of bytes.
class Checksum {
  public:
    Checksum() : state_(XXH3_createState()) {
        if (!state_) throw std::bad_alloc();
        XXH3_128bits_reset(state_.get());
    }
    void update(const void* data, size_t bytes) { XXH3_128bits_update(state_.get(), data, bytes); }
    std::string hex() const {
        XXH128_canonical_t canonical;
        XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(state_.get()));
        std::string text;
        char digits[3];
        for (unsigned char byte : canonical.digest) {
            std::snprintf(digits, sizeof digits, "%02x", byte);
            text += digits;
        }
        return text;
    }

  private:
    struct Free {
        void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
    };
    std::unique_ptr<XXH3_state_t, Free> state_;
};

struct Descriptor {
    int number = -1;
    ~Descriptor() {
        if (number >= 0) ::close(number);
    }
};

// Calls `use(data, bytes)` for the pieces of a file, in order.
template <typename Use>
void read_pieces(const std::string& path, Use use) {
    Descriptor file;
    file.number = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file.number < 0) fail("open", path, errno);
    std::vector<char> piece(1 << 16);
    for (;;) {
        const ssize_t got = ::read(file.number, piece.data(), piece.size());
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) fail("read", path, errno);
        if (got == 0) return;
        use(piece.data(), static_cast<size_t>(got));
    }
}

std::string parent_of(const std::string& path) {
    const std::string parent = std::filesystem::path(path).parent_path().string();
    return parent.empty() ? "." : parent;
}

}  // namespace

void flush_output() {
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) fail("write", "standard output", errno);
}

std::string read_file(const std::string& path, size_t most) {
    std::string text;
    read_pieces(path, [&](const char* data, size_t bytes) {
        if (bytes > most - text.size()) {
            throw Error("cannot read '" + path + "': it has more than " + std::to_string(most) +
                        " bytes; is it the right file?");
        }
        text.append(data, bytes);
    });
    return text;
}

FileSummary summarize_file(const std::string& path) {
    FileSummary summary;
    Checksum checksum;
    read_pieces(path, [&](const char* data, size_t bytes) {
        checksum.update(data, bytes);
        summary.bytes += static_cast<int64_t>(bytes);
    });
    summary.xxh3_128 = checksum.hex();
    return summary;
}

FileSummary summarize_parts(const std::string& path, const std::vector<FilePart>& parts) {
    Descriptor file;
    file.number = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file.number < 0) fail("open", path, errno);
    struct stat info {};
    if (::fstat(file.number, &info) != 0) fail("examine", path, errno);
    Checksum checksum;
    std::vector<char> piece;
    for (const FilePart& part : parts) {
        piece.resize(static_cast<size_t>(part.bytes));
        for (int64_t done = 0; done < part.bytes;) {
            const ssize_t got = ::pread(file.number, piece.data() + done,
                                        static_cast<size_t>(part.bytes - done), part.offset + done);
            if (got < 0 && errno == EINTR) continue;
            if (got < 0) fail("read", path, errno);
            if (got == 0) throw Error("'" + path + "' became shorter while it was being read");
            done += got;
        }
        checksum.update(piece.data(), piece.size());
    }
    return {info.st_size, checksum.hex()};
}

void make_folders(const std::string& path) {
    std::error_code code;
    std::vector<std::string> missing;
    for (std::string at = path; !std::filesystem::exists(at, code); at = parent_of(at)) {
        missing.push_back(at);
        if (code) break;  // the next call says what is wrong
    }
    std::filesystem::create_directories(path, code);
    if (code) fail("create the folder", path, code.value());
    for (const std::string& made : missing) sync_folder(parent_of(made));
}

void sync_folder(const std::string& path) {
    Descriptor folder;
    folder.number = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder.number < 0 && errno == EACCES) return;  // may be entered, not read: nor synced
    if (folder.number < 0) fail("open the folder", path, errno);
    // Some network file systems do not know fsync of a folder: there it is already durable.
    if (::fsync(folder.number) != 0 && errno != EINVAL && errno != ENOTSUP) {
        fail("sync the folder", path, errno);
    }
}

bool is_plain_file_name(const std::string& name) {
    return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
           name.find('\0') == std::string::npos;
}

std::string temporary_name(const std::string& path) { return path + ".tmp"; }

void write_file_atomically(const std::string& path, const std::string& text) {
    const std::string temporary = temporary_name(path);
    ::unlink(temporary.c_str());  // a left-over, or a link to elsewhere that somebody put there
    try {
        FileWriter file(temporary);
        file.write(text);
        file.close();
        if (std::rename(temporary.c_str(), path.c_str()) != 0) fail("write", path, errno);
    } catch (...) {
        ::unlink(temporary.c_str());
        throw;
    }
    sync_folder(parent_of(path));
}

struct FileWriter::Impl {
    std::string path;
    Descriptor file;
    Checksum checksum;
    int64_t bytes = 0;
};

FileWriter::FileWriter(const std::string& path) : impl_(std::make_unique<Impl>()) {
    impl_->path = path;
    impl_->file.number = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (impl_->file.number < 0) fail("create", path, errno);
}

FileWriter::~FileWriter() = default;

void FileWriter::write(const void* data, size_t bytes) {
    impl_->checksum.update(data, bytes);
    impl_->bytes += static_cast<int64_t>(bytes);
    const char* next = static_cast<const char*>(data);
    while (bytes > 0) {  // the system may take less than it is given
        const ssize_t taken =
            ::write(impl_->file.number, next, std::min<size_t>(bytes, size_t{1} << 30));
        if (taken < 0 && errno == EINTR) continue;
        if (taken < 0) fail("write", impl_->path, errno);
        if (taken == 0) fail("write", impl_->path, ENOSPC);
        next += taken;
        bytes -= static_cast<size_t>(taken);
    }
}

FileSummary FileWriter::close() {
    if (::fsync(impl_->file.number) != 0 && errno != EINVAL) fail("sync", impl_->path, errno);
    const int number = impl_->file.number;
    impl_->file.number = -1;
    if (::close(number) != 0) fail("close", impl_->path, errno);
    return {impl_->bytes, impl_->checksum.hex()};
}

}  // namespace lmo
