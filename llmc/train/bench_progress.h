// What a bench command shows on stderr while it measures: a line that is redrawn on a terminal,
// else one every few seconds.
#pragma once

#include <unistd.h>

#include <cstdio>
#include <string>

#include "llmc/core/timer.h"
#include "llmc/io/console.h"

namespace lmo {

class BenchProgress {
  public:
    explicit BenchProgress(size_t total) : total_(total), terminal_(isatty(STDERR_FILENO)) {}
    ~BenchProgress() { clear(); }
    BenchProgress(const BenchProgress&) = delete;
    BenchProgress& operator=(const BenchProgress&) = delete;

    void next(const std::string& what, double seconds_left) {
        ++done_;
        if (!terminal_ && shown_ && last_.seconds() < 5) return;
        clear();
        std::fprintf(stderr, "%zu of %zu: %s, about %s left%s", done_, total_, what.c_str(),
                     format_duration(seconds_left).c_str(), terminal_ ? "" : "\n");
        std::fflush(stderr);
        shown_ = true;
        last_.restart();
    }
    void clear() {
        if (terminal_ && shown_) std::fprintf(stderr, "\r\033[K");
    }

  private:
    size_t total_, done_ = 0;
    bool terminal_, shown_ = false;
    Timer last_;
};

}  // namespace lmo
