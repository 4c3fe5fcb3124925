// TensorBoard's event file: TFRecord framing (length, masked CRC-32C) around Event protobufs, written
// by hand because the few fields of a scalar summary need no library.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>

namespace lmo {

uint32_t crc32c(const void* data, size_t bytes);

class TensorboardWriter {
  public:
    explicit TensorboardWriter(const std::string& folder);  // events.out.tfevents.<time>.<host>
    ~TensorboardWriter();
    TensorboardWriter(const TensorboardWriter&) = delete;
    TensorboardWriter& operator=(const TensorboardWriter&) = delete;
    // false when the disk refused it
    bool scalar(const std::string& tag, int64_t step, double value);
    bool flush();

  private:
    bool record(const std::string& event);
    std::FILE* file_ = nullptr;
};

}  // namespace lmo
