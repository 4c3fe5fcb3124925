// The safetensors format: 8 bytes little-endian length, a JSON header (name -> dtype, shape,
// offsets), then the raw tensors. Nothing in a header is trusted before it is checked against the
// file's size.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "llmc/core/dtype.h"
#include "llmc/io/files.h"

namespace lmo {

// A tensor to be written: `fetch` fills count * size_of(dtype) bytes when its turn comes, so that
// one tensor at a time is in host memory.
struct TensorSource {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    std::function<void(void*)> fetch;
};

// Writes (and fsyncs) a file; throws Error naming the path and the system's reason. Tensors of wide
// types come first in the file, so that each is aligned to its elements. Transformers asks for the
// metadata {"format": "pt"}.
FileSummary write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors,
                              const std::map<std::string, std::string>& metadata = {});

// A memory-mapped file. Throws Error naming file, tensor and byte for anything malformed. A tensor
// of an element type that we do not have (I64, BOOL, ...) is an Error when it is asked for, not
// before.
class SafetensorsFile {
  public:
    struct Entry {
        DType dtype;
        std::vector<int64_t> shape;
        const unsigned char* data;  // may be unaligned
        size_t bytes;
    };
    explicit SafetensorsFile(const std::string& path);
    ~SafetensorsFile();
    SafetensorsFile(SafetensorsFile&& other) noexcept;
    SafetensorsFile(const SafetensorsFile&) = delete;
    SafetensorsFile& operator=(const SafetensorsFile&) = delete;

    const std::string& path() const { return path_; }
    const std::map<std::string, Entry>& entries() const { return entries_; }
    std::vector<std::string> names() const;            // those of unsupported types too
    const Entry* find(const std::string& name) const;  // nullptr if absent
    // Throws when the tensor is absent or has another shape.
    const Entry& require(const std::string& name, const std::vector<int64_t>& shape) const;
    // Values widened to double, of a tensor that require() takes.
    std::vector<double> read(const std::string& name, const std::vector<int64_t>& shape) const;

  private:
    void map_file();
    void parse_header();

    std::string path_;
    void* map_ = nullptr;
    size_t map_bytes_ = 0;
    std::map<std::string, Entry> entries_;
    std::map<std::string, std::string> unsupported_;  // name -> element type
};

// The weights of a Hugging Face folder: model.safetensors, or the shards that
// model.safetensors.index.json names (plain file names of the same folder).
class WeightFolder {
  public:
    explicit WeightFolder(const std::string& folder);
    bool has(const std::string& name) const;
    std::vector<std::string> names() const;
    void require(const std::string& name, const std::vector<int64_t>& shape) const;
    std::vector<double> read(const std::string& name, const std::vector<int64_t>& shape) const;

  private:
    const SafetensorsFile& file_of(const std::string& name) const;

    std::string folder_;
    std::vector<SafetensorsFile> files_;
    std::map<std::string, int> where_;
};

}  // namespace lmo
