// Small file helpers that say what went wrong: every failure is an Error naming the path, what was
// tried and the system's reason.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lmo {

// Throws an Error where standard output cannot take what was printed (a full disk, a closed pipe).
void flush_output();

// Error names path and reason; one is that the file has more than `most` bytes.
std::string read_file(const std::string& path, size_t most = SIZE_MAX);
void write_file_atomically(const std::string& path,
                           const std::string& text);  // temp, fsync, rename
std::string temporary_name(const std::string& path);  // that it uses on the way
void make_folders(const std::string& path);           // durable, with all that lead to it
void sync_folder(const std::string& path);  // makes renames and new names in it durable

// A name that stays inside its folder: not empty, no '/', not "." or "..".
bool is_plain_file_name(const std::string& name);

// Size and checksum of a file's bytes; `xxh128sum` prints the same 32 hexadecimal digits.
struct FileSummary {
    int64_t bytes = 0;
    std::string xxh3_128;
};
FileSummary summarize_file(const std::string& path);

// Checksum of the given parts of a file, one after another; `bytes` is the size of the whole file.
// Throws Error where a part reaches past the end.
struct FilePart {
    int64_t offset, bytes;
};
FileSummary summarize_parts(const std::string& path, const std::vector<FilePart>& parts);

// Writes a file front to back and takes its checksum on the way, so that a large file is not read
// again for it. The file is complete and on disk when close() returns.
class FileWriter {
  public:
    explicit FileWriter(const std::string& path);  // creates or truncates
    ~FileWriter();
    FileWriter(const FileWriter&) = delete;
    FileWriter& operator=(const FileWriter&) = delete;

    void write(const void* data, size_t bytes);
    void write(const std::string& text) { write(text.data(), text.size()); }
    FileSummary close();  // fsync, close

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lmo
