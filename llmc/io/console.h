// What a person sees while training: aligned lines within 80 columns, and on a terminal a status
// line below them with progress, speed and time left.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "llmc/core/timer.h"

namespace lmo {

std::string format_duration(double seconds);  // "48 s", "12:05", "3:07:15", "37d 22h"
std::string format_count(double number);      // "987", "12.3k", "124M"
std::string format_bytes(double bytes);       // "12.3 MiB"

// In lines of at most 80 columns; what does not fit goes on below, behind the label of a text like
// "memory     165.7 MiB".
std::string wrapped_message(const std::string& text);

struct ProgressLine {
    int64_t step = 0, steps = 0;
    double loss = 0, rate = 0, gradient_norm = 0, tokens_per_second = 0;
    std::optional<double> mfu;  // a fraction of 1
    std::string phase;
    double seconds_left = 0;
};

std::string format_header(int64_t steps);
std::string format_progress(const ProgressLine& line);
std::string format_status(const ProgressLine& line, int columns);  // with a bar; fits `columns`

class Console {
  public:
    // `silent`: says nothing, as one of several ranks does for all.
    explicit Console(int64_t steps, bool silent = false);
    ~Console() { finish(); }
    Console(const Console&) = delete;
    Console& operator=(const Console&) = delete;

    void header();
    // Prints a line when one is due: on a terminal at most about one a second (the status line is
    // redrawn in between); in a pipe or file about 40 lines a run and never more than one in 2 s.
    // `force` prints it anyway.
    void progress(const ProgressLine& line, bool force = false);
    // On lines of its own (wrapped_message) above the status line; warnings go to stderr, as one
    // line. Both made printable().
    void message(const std::string& text);
    void text(const std::string& text);  // as it is, but printable()
    void warning(const std::string& text);
    void finish();  // clears the status line

  private:
    int64_t part_of(int64_t step) const;
    void print(const std::string& text);
    void clear_status();
    void draw_status();

    bool terminal_, silent_;
    int64_t steps_;
    Timer clock_;
    double last_printed_ = -1e9, last_drawn_ = -1e9;
    int64_t last_part_ = -1;  // of the 40 parts of a run, the one that the last line was in
    std::string status_;      // what the status line says; empty: none
    bool status_shown_ = false;
};

}  // namespace lmo
