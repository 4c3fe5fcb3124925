// TensorBoard's event file: TFRecord framing (length, masked CRC-32C) around Event protobufs,
// written by hand because the few fields of two kinds of summary need no library.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace lmo {

uint32_t crc32c(const void* data, size_t bytes);

class TensorboardWriter {
  public:
    // Begins a new file, events.out.tfevents.<time>.<host>.<process>.<n>, whose time is later than
    // that of every file in the folder. With `first_step` > 0 (a resumed run) it tells TensorBoard
    // to forget what earlier files say of that step and later ones.
    explicit TensorboardWriter(const std::string& folder, int64_t first_step = 0);
    ~TensorboardWriter();
    TensorboardWriter(const TensorboardWriter&) = delete;
    TensorboardWriter& operator=(const TensorboardWriter&) = delete;
    const std::string& path() const { return path_; }
    // All return false when the disk refused it.
    bool scalar(const std::string& tag, int64_t step, double value);
    // How often which values occur, in 30 buckets of equal width. The values are finite, one at
    // least.
    bool histogram(const std::string& tag, int64_t step, const std::vector<double>& values);
    bool flush();

  private:
    bool record(const std::string& event);
    std::string path_;
    std::FILE* file_ = nullptr;
};

}  // namespace lmo
