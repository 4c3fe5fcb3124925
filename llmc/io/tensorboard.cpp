#include "llmc/io/tensorboard.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "llmc/core/error.h"

namespace lmo {

namespace {

// CRC-32C (Castagnoli), reflected: one table entry a byte value.
constexpr std::array<uint32_t, 256> make_crc_table() {
    std::array<uint32_t, 256> table{};
    for (uint32_t value = 0; value < 256; ++value) {
        uint32_t crc = value;
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0x82f63b78u : 0);
        table[value] = crc;
    }
    return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

// TFRecord stores checksums rotated and shifted, since data may itself hold checksums.
uint32_t masked_crc(const std::string& bytes) {
    const uint32_t crc = crc32c(bytes.data(), bytes.size());
    return ((crc >> 15) | (crc << 17)) + 0xa282ead8u;
}

// Little-endian bytes of a number.
template <typename T>
std::string fixed(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);  // x86-64 and ARM64 are little-endian
    std::string bytes;
    for (size_t i = 0; i < sizeof(T); ++i) bytes += static_cast<char>(bits >> (8 * i));
    return bytes;
}

// The protobuf wire format: a field is its number and wire type (0 varint, 1 eight bytes, 2 counted
// bytes, 5 four bytes), then the value.
std::string varint(uint64_t value) {
    std::string bytes;
    for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7f) | 0x80);
    return bytes + static_cast<char>(value);
}
std::string tag(int number, unsigned wire_type) {
    return varint(static_cast<uint64_t>(number) << 3 | wire_type);
}
std::string varint_field(int number, uint64_t value) { return tag(number, 0) + varint(value); }
std::string double_field(int number, double value) { return tag(number, 1) + fixed(value); }
std::string bytes_field(int number, const std::string& value) {
    return tag(number, 2) + varint(value.size()) + value;
}
std::string float_field(int number, float value) { return tag(number, 5) + fixed(value); }

double wall_time() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch())
        .count();
}

// Event: 1 wall_time (double), 2 step, 3 file_version, 5 summary, 7 session_log.
std::string event_at(int64_t step) {
    return double_field(1, wall_time()) + varint_field(2, static_cast<uint64_t>(step));
}

// HistogramProto: 1 min, 2 max, 3 num, 4 sum, 5 sum_squares, all double; 6 bucket_limit (upper
// ends, rising) and 7 bucket (counts), packed doubles. Readers take min and max for the ends of
// the first and the last bucket.
std::string histogram_proto(const std::vector<double>& values) {
    constexpr size_t kBuckets = 30;
    const auto [least, most] = std::minmax_element(values.begin(), values.end());
    const double width = (*most - *least) / kBuckets;
    std::vector<double> limits;
    for (size_t i = 1; i < kBuckets && width > 0.0; ++i) {
        limits.push_back(*least + static_cast<double>(i) * width);
    }
    limits.push_back(*most);
    std::vector<double> counts(limits.size(), 0.0);
    double sum = 0.0, squares = 0.0;
    for (const double value : values) {
        const auto bucket = std::lower_bound(limits.begin(), limits.end() - 1, value);
        ++counts[static_cast<size_t>(bucket - limits.begin())];
        sum += value;
        squares += value * value;
    }
    std::string packed_limits, packed_counts;
    for (const double limit : limits) packed_limits += fixed(limit);
    for (const double count : counts) packed_counts += fixed(count);
    return double_field(1, *least) + double_field(2, *most) +
           double_field(3, static_cast<double>(values.size())) + double_field(4, sum) +
           double_field(5, squares) + bytes_field(6, packed_limits) + bytes_field(7, packed_counts);
}

}  // namespace

uint32_t crc32c(const void* data, size_t bytes) {
    const unsigned char* next = static_cast<const unsigned char*>(data);
    uint32_t crc = ~0u;
    for (size_t i = 0; i < bytes; ++i) crc = (crc >> 8) ^ kCrcTable[(crc ^ next[i]) & 0xff];
    return ~crc;
}

namespace {

// The time that names a new file: not before that of any file there, whatever the clock says,
// since TensorBoard reads the files of a folder by the order of their names.
int64_t time_of_name(const std::string& folder) {
    int64_t time = static_cast<int64_t>(wall_time());
    std::error_code code;
    std::filesystem::directory_iterator entry(folder, code), end;
    for (; !code && entry != end; entry.increment(code)) {
        long long other = 0;
        const std::string name = entry->path().filename().string();
        // NOLINTNEXTLINE(cert-err34-c): the C library gives its largest number, which is refused
        if (std::sscanf(name.c_str(), "events.out.tfevents.%lld.", &other) == 1 &&
            other < 100'000'000'000) {
            time = std::max<int64_t>(time, other + 1);
        }
    }
    if (code) throw Error("cannot list '" + folder + "': " + code.message());
    return time;
}

}  // namespace

TensorboardWriter::TensorboardWriter(const std::string& folder, int64_t first_step) {
    char host[256] = "localhost";
    ::gethostname(host, sizeof host - 1);
    const std::string base = folder + "/events.out.tfevents." +
                             std::to_string(time_of_name(folder)) + "." + host + "." +
                             std::to_string(::getpid()) + ".";
    for (int n = 0; !file_; ++n) {
        path_ = base + std::to_string(n);
        file_ = std::fopen(path_.c_str(), "wbx");
        if (!file_ && errno != EEXIST) {
            throw Error("cannot create '" + path_ + "': " + std::strerror(errno));
        }
    }
    bool written = record(double_field(1, wall_time()) + bytes_field(3, "brain.Event:2"));
    // SessionLog: 1 status, START = 1.
    if (first_step > 0) {
        written &= record(event_at(first_step) + bytes_field(7, varint_field(1, 1)));
    }
    if (!written || !flush()) {
        const std::string reason = std::strerror(errno);
        std::fclose(file_);
        throw Error("cannot write '" + path_ + "': " + reason);
    }
}

TensorboardWriter::~TensorboardWriter() { std::fclose(file_); }

bool TensorboardWriter::scalar(const std::string& tag, int64_t step, double value) {
    // Summary: 1 value (repeated). Value: 1 tag, 2 simple_value (float).
    const std::string item = bytes_field(1, tag) + float_field(2, static_cast<float>(value));
    return record(event_at(step) + bytes_field(5, bytes_field(1, item)));
}

bool TensorboardWriter::histogram(const std::string& tag, int64_t step,
                                  const std::vector<double>& values) {
    // Summary as above. Value: 1 tag, 5 histo.
    const std::string item = bytes_field(1, tag) + bytes_field(5, histogram_proto(values));
    return record(event_at(step) + bytes_field(5, bytes_field(1, item)));
}

bool TensorboardWriter::flush() { return std::fflush(file_) == 0; }

bool TensorboardWriter::record(const std::string& event) {
    const std::string length = fixed(uint64_t{event.size()});
    const std::string bytes = length + fixed(masked_crc(length)) + event + fixed(masked_crc(event));
    return std::fwrite(bytes.data(), 1, bytes.size(), file_) == bytes.size();
}

}  // namespace lmo
