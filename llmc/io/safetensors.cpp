#include "llmc/io/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>

#include "llmc/core/error.h"
#include "llmc/core/json.h"

namespace lmo {

namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr uint64_t kLengthBytes = 8;
constexpr const char* kMetadata = "__metadata__";

const char* format_name(DType type) {
    switch (type) {
        case DType::f64:
            return "F64";
        case DType::f32:
            return "F32";
        case DType::f16:
            return "F16";
        case DType::bf16:
            return "BF16";
        case DType::i32:
            return "I32";
        case DType::u16:
            return "U16";
        case DType::i16:
            return "I16";
    }
    return "";
}

bool parse_dtype(const std::string& name, DType* type) {
    for (DType known :
         {DType::f64, DType::f32, DType::f16, DType::bf16, DType::i32, DType::u16, DType::i16}) {
        if (name == format_name(known)) {
            *type = known;
            return true;
        }
    }
    return false;
}

std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text = "[";
    for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + "]";
}

// Elements of a shape times bytes of one; false when an extent is negative or the product
// overflows.
bool byte_count(const std::vector<int64_t>& shape, size_t element, uint64_t* bytes) {
    *bytes = element;
    for (int64_t extent : shape) {
        if (extent < 0) return false;
        if (__builtin_mul_overflow(*bytes, static_cast<uint64_t>(extent), bytes)) return false;
    }
    return true;
}

// ---------------------------------------------------------------------------------- writing

std::string make_header(const std::vector<const TensorSource*>& tensors,
                        const std::map<std::string, std::string>& metadata) {
    ordered_json header = ordered_json::object();
    if (!metadata.empty()) header[kMetadata] = metadata;
    uint64_t begin = 0;
    for (const TensorSource* tensor : tensors) {
        uint64_t bytes = 0;
        [[maybe_unused]] const bool valid =
            byte_count(tensor->shape, size_of(tensor->dtype), &bytes);
        assert(valid && tensor->name != kMetadata && !header.contains(tensor->name));
        header[tensor->name] = {{"dtype", format_name(tensor->dtype)},
                                {"shape", tensor->shape},
                                {"data_offsets", {begin, begin + bytes}}};
        begin += bytes;
    }
    std::string text = header.dump();
    text.resize((text.size() + 7) / 8 * 8, ' ');  // the tensors begin at a multiple of 8 bytes
    return text;
}

// ---------------------------------------------------------------------------------- reading

struct Span {  // of a tensor in the data
    int64_t begin, end;
    std::string tensor;
    bool operator<(const Span& other) const {
        return std::tie(begin, end) < std::tie(other.begin, other.end);
    }
};

struct FileHeader {
    const std::string& path;
    uint64_t data_bytes;

    [[noreturn]] void fail(const std::string& tensor, const std::string& what) const {
        throw Error("'" + path + "': tensor '" + tensor + "': " + what +
                    "; the file is damaged or not safetensors");
    }

    std::vector<int64_t> integers(const std::string& tensor, const json& entry,
                                  const char* key) const {
        const auto found = entry.find(key);
        if (found == entry.end() || !found->is_array()) {
            fail(tensor, std::string("'") + key + "' should be a list of integers");
        }
        std::vector<int64_t> result;
        for (const json& item : *found) {
            // Unsigned covers every non-negative integer; floats and negative numbers are not that.
            if (!item.is_number_unsigned() || item.get<uint64_t>() > uint64_t{INT64_MAX}) {
                fail(tensor, std::string("'") + key + "' holds " + value_text(item) +
                                 ", expected a non-negative integer below 2^63");
            }
            result.push_back(item.get<int64_t>());
        }
        return result;
    }

    // As the format asks: every byte of the data belongs to one tensor.
    void require_covered(std::vector<Span> spans) const {
        std::sort(spans.begin(), spans.end());
        int64_t next = 0;
        for (const Span& span : spans) {
            if (span.begin != next) {
                fail(span.tensor, "its data begin at " + std::to_string(span.begin) +
                                      ", expected " + std::to_string(next) +
                                      ", where those of the tensor before end");
            }
            next = span.end;
        }
        if (static_cast<uint64_t>(next) != data_bytes) {
            throw Error("'" + path + "': the tensors end at byte " + std::to_string(next) +
                        " of the data, but there are " + std::to_string(data_bytes) +
                        "; the file is damaged or not safetensors");
        }
    }
};

}  // namespace

FileSummary write_safetensors(const std::string& path, const std::vector<TensorSource>& tensors,
                              const std::map<std::string, std::string>& metadata) {
    // Wide types first: then every tensor is aligned to its element, which PyTorch relies on.
    std::vector<const TensorSource*> order;
    for (const TensorSource& tensor : tensors) order.push_back(&tensor);
    std::stable_sort(order.begin(), order.end(), [](const TensorSource* a, const TensorSource* b) {
        return size_of(a->dtype) > size_of(b->dtype);
    });
    const std::string header = make_header(order, metadata);

    FileWriter file(path);
    unsigned char length[kLengthBytes];
    for (size_t i = 0; i < kLengthBytes; ++i) {
        length[i] = static_cast<unsigned char>(uint64_t{header.size()} >> (8 * i));
    }
    file.write(length, sizeof length);
    file.write(header);

    std::vector<uint64_t> sizes(order.size());
    uint64_t largest = 0;
    for (size_t i = 0; i < order.size(); ++i) {
        byte_count(order[i]->shape, size_of(order[i]->dtype), &sizes[i]);
        largest = std::max(largest, sizes[i]);
    }
    const std::unique_ptr<unsigned char[]> buffer(new unsigned char[largest]);
    for (size_t i = 0; i < order.size(); ++i) {
        if (sizes[i] == 0) continue;
        order[i]->fetch(buffer.get());
        file.write(buffer.get(), sizes[i]);
    }
    return file.close();
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
    map_file();
    try {
        parse_header();
    } catch (...) {
        ::munmap(map_, map_bytes_);
        throw;
    }
}

void SafetensorsFile::map_file() {
    const int file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO blocks
    if (file < 0) throw Error("cannot open '" + path_ + "': " + std::strerror(errno));
    struct stat info {};
    const bool known = ::fstat(file, &info) == 0;
    int code = errno;
    std::string problem;
    if (!known) {
        problem = std::strerror(code);
    } else if (!S_ISREG(info.st_mode)) {
        problem = "it is not a regular file";
    } else if (info.st_size < static_cast<off_t>(kLengthBytes)) {
        problem =
            "it has " + std::to_string(info.st_size) + " bytes, a safetensors file has at least 8";
    } else {
        map_bytes_ = static_cast<size_t>(info.st_size);
        map_ = ::mmap(nullptr, map_bytes_, PROT_READ, MAP_PRIVATE, file, 0);
        code = errno;
        if (map_ == MAP_FAILED) problem = std::strerror(code);
    }
    ::close(file);
    if (!problem.empty()) throw Error("cannot read '" + path_ + "': " + problem);
}

void SafetensorsFile::parse_header() {
    const unsigned char* bytes = static_cast<const unsigned char*>(map_);
    uint64_t length = 0;
    for (size_t i = 0; i < kLengthBytes; ++i) length |= uint64_t{bytes[i]} << (8 * i);
    if (length > map_bytes_ - kLengthBytes || length > kMaxJsonBytes) {
        throw Error("'" + path_ + "': byte 0 claims a header of " + std::to_string(length) +
                    " bytes, the file has " + std::to_string(map_bytes_) +
                    "; it is truncated or not safetensors");
    }
    const unsigned char* text = bytes + kLengthBytes;
    const json header =
        parse_json<json>(std::string(reinterpret_cast<const char*>(text), length),
                         "'" + path_ + "': the header (from byte 8) is not valid JSON");
    if (!header.is_object()) {
        throw Error("'" + path_ + "': the header (from byte 8) is not a JSON object");
    }

    const FileHeader file{path_, map_bytes_ - kLengthBytes - length};
    std::vector<Span> spans;
    for (const auto& [name, entry] : header.items()) {
        if (name == kMetadata) continue;
        if (!entry.is_object()) file.fail(name, "its entry is not a JSON object");
        const auto dtype = entry.find("dtype");
        if (dtype == entry.end() || !dtype->is_string()) {
            file.fail(name, "'dtype' should be a string");
        }
        const std::vector<int64_t> shape = file.integers(name, entry, "shape");
        const std::vector<int64_t> offsets = file.integers(name, entry, "data_offsets");
        if (offsets.size() != 2 || offsets[0] > offsets[1] ||
            static_cast<uint64_t>(offsets[1]) > file.data_bytes) {
            file.fail(name, "data_offsets " + shape_text(offsets) + " do not lie in the " +
                                std::to_string(file.data_bytes) + " bytes of data from byte " +
                                std::to_string(kLengthBytes + length) + " on");
        }
        spans.push_back({offsets[0], offsets[1], name});
        DType type;
        if (!parse_dtype(dtype->get<std::string>(), &type)) {
            unsupported_[name] = dtype->get<std::string>();
            continue;
        }
        uint64_t expected = 0;
        const size_t stored = static_cast<size_t>(offsets[1] - offsets[0]);
        if (!byte_count(shape, size_of(type), &expected) || expected != stored) {
            file.fail(name, "shape " + shape_text(shape) + " of " + dtype->get<std::string>() +
                                " does not fit the " + std::to_string(stored) +
                                " bytes that data_offsets " + shape_text(offsets) + " give it");
        }
        entries_[name] = {type, shape, text + length + offsets[0], stored};
    }
    file.require_covered(std::move(spans));
}

SafetensorsFile::~SafetensorsFile() {
    if (map_) ::munmap(map_, map_bytes_);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      map_(std::exchange(other.map_, nullptr)),
      map_bytes_(std::exchange(other.map_bytes_, 0)),
      entries_(std::move(other.entries_)),
      unsupported_(std::move(other.unsupported_)) {}

const SafetensorsFile::Entry* SafetensorsFile::find(const std::string& name) const {
    const auto found = entries_.find(name);
    if (found != entries_.end()) return &found->second;
    const auto other = unsupported_.find(name);
    if (other != unsupported_.end()) {
        throw Error("'" + path_ + "': tensor '" + name + "' has element type " + other->second +
                    "; F64, F32, F16, BF16, I32 and U16 can be read");
    }
    return nullptr;
}

std::vector<std::string> SafetensorsFile::names() const {
    std::vector<std::string> result;
    for (const auto& item : entries_) result.push_back(item.first);
    for (const auto& item : unsupported_) result.push_back(item.first);
    std::sort(result.begin(), result.end());
    return result;
}

namespace {

// The data may lie at any byte, so every element is copied out.
template <typename T, typename Widen>
void widen(const unsigned char* data, std::vector<double>* values, Widen convert) {
    for (size_t i = 0; i < values->size(); ++i) {
        T element;
        std::memcpy(&element, data + i * sizeof(T), sizeof(T));
        (*values)[i] = static_cast<double>(convert(element));
    }
}

}  // namespace

const SafetensorsFile::Entry& SafetensorsFile::require(const std::string& name,
                                                       const std::vector<int64_t>& shape) const {
    const Entry* entry = find(name);
    if (!entry) throw Error("'" + path_ + "': there is no tensor '" + name + "'");
    if (entry->shape != shape) {
        throw Error("'" + path_ + "': tensor '" + name + "' has shape " + shape_text(entry->shape) +
                    ", expected " + shape_text(shape) +
                    "; does the model configuration belong to this file?");
    }
    return *entry;
}

std::vector<double> SafetensorsFile::read(const std::string& name,
                                          const std::vector<int64_t>& shape) const {
    const Entry* entry = &require(name, shape);
    std::vector<double> values(entry->bytes / size_of(entry->dtype));
    const auto same = [](auto element) { return element; };
    switch (entry->dtype) {
        case DType::f64:
            widen<double>(entry->data, &values, same);
            break;
        case DType::f32:
            widen<float>(entry->data, &values, same);
            break;
        case DType::f16:
            widen<uint16_t>(entry->data, &values, f16_to_float);
            break;
        case DType::bf16:
            widen<uint16_t>(entry->data, &values, bf16_to_float);
            break;
        case DType::i32:
            widen<int32_t>(entry->data, &values, same);
            break;
        case DType::u16:
            widen<uint16_t>(entry->data, &values, same);
            break;
        case DType::i16:
            widen<int16_t>(entry->data, &values, same);
            break;
    }
    return values;
}

}  // namespace lmo
