#include "llmc/io/console.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "llmc/core/text.h"

namespace lmo {

namespace {

constexpr int kColumns = 80;
constexpr int kLinesInAFile = 40;
constexpr double kSecondsInAFile = 2, kSecondsOnATerminal = 1, kSecondsOfAStatus = 0.1;

template <typename... Values>
std::string print_to_string(const char* format, Values... values) {
    char text[256];
    const int length = std::snprintf(text, sizeof text, format, values...);
    return std::string(text, std::min<size_t>(static_cast<size_t>(length), sizeof text - 1));
}

// A number in the given format, or, where that is wider than its column, in few digits.
std::string fit(const char* format, double value, size_t width) {
    const std::string text = print_to_string(format, value);
    return text.size() <= width ? text : print_to_string("%.1e", value);
}

// The column "step/steps" is as wide as its last line needs.
int step_width(int64_t steps) {
    return std::max<int>(9, 2 * static_cast<int>(std::to_string(steps).size()) + 1);
}

int terminal_columns() {
    winsize size{};
    if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return kColumns;
    return std::min<int>(size.ws_col, kColumns);
}

}  // namespace

std::string format_duration(double seconds) {
    if (!std::isfinite(seconds) || seconds < 0 || seconds > 1e9) return "-";
    const long long whole = std::llround(seconds);
    if (whole < 60) return print_to_string("%lld s", whole);
    const long long hours = whole / 3600, minutes = whole / 60 % 60;
    if (hours == 0) return print_to_string("%lld:%02lld", minutes, whole % 60);
    if (hours >= 100) return print_to_string("%lldd %lldh", hours / 24, hours % 24);
    return print_to_string("%lld:%02lld:%02lld", hours, minutes, whole % 60);
}

std::string format_count(double number) {
    if (!std::isfinite(number)) return "-";
    static constexpr const char* kUnits[] = {"", "k", "M", "G", "T"};
    int unit = 0;
    // 999.5 would be rounded to four digits: it belongs to the next unit.
    while (unit < 4 && std::fabs(number) >= 999.5) {
        number /= 1000;
        ++unit;
    }
    const double size = std::fabs(number);
    const int decimals = size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2;
    if (unit == 0 && number == std::floor(number)) return print_to_string("%.0f", number);
    return print_to_string("%.*f%s", decimals, number, kUnits[unit]);
}

std::string format_bytes(double bytes) {
    static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    int unit = 0;
    while (unit < 4 && std::fabs(bytes) >= 1023.95) {
        bytes /= 1024;
        ++unit;
    }
    return print_to_string("%.*f %s", unit == 0 ? 0 : 1, bytes, kUnits[unit]);
}

std::string wrapped_message(const std::string& text) {
    const size_t label = text.find_first_of(" \n", text.find_first_not_of(' '));
    const size_t behind = text.find_first_not_of(' ', label);
    const bool labelled = behind != std::string::npos && behind >= label + 2 && behind <= 16;
    return wrapped(text, kColumns, labelled ? behind : 4);
}

std::string format_header(int64_t steps) {
    return print_to_string("%*s  %8s  %8s  %-8s  %7s  %6s  %5s  %9s", step_width(steps), "step",
                           "loss", "lr", "phase", "|g|", "tok/s", "mfu", "time left");
}

std::string format_progress(const ProgressLine& line) {
    const std::string step = std::to_string(line.step) + "/" + std::to_string(line.steps);
    const std::string mfu = line.mfu ? print_to_string("%.1f%%", 100 * *line.mfu) : "-";
    return print_to_string("%*s  %8s  %8.2e  %-8.8s  %7s  %6s  %5s  %9s", step_width(line.steps),
                           step.c_str(), fit("%.4f", line.loss, 8).c_str(), line.rate,
                           line.phase.c_str(), fit("%.4g", line.gradient_norm, 7).c_str(),
                           format_count(line.tokens_per_second).c_str(), mfu.c_str(),
                           format_duration(line.seconds_left).c_str());
}

std::string format_status(const ProgressLine& line, int columns) {
    const double part =
        line.steps > 0
            ? std::clamp(static_cast<double>(line.step) / static_cast<double>(line.steps), 0.0, 1.0)
            : 1.0;
    const std::string text = print_to_string(
        " %3d%%  %lld/%lld  loss %.4f  %s tok/s  %s left", static_cast<int>(100 * part),
        static_cast<long long>(line.step), static_cast<long long>(line.steps), line.loss,
        format_count(line.tokens_per_second).c_str(), format_duration(line.seconds_left).c_str());
    const int width = std::min(30, columns - static_cast<int>(text.size()) - 2);
    std::string bar;
    if (width >= 5) {
        const int full = static_cast<int>(part * width);
        bar = "[" + std::string(full, '#') + std::string(width - full, '.') + "]";
    }
    return (bar + text).substr(0, static_cast<size_t>(std::max(columns, 0)));
}

Console::Console(int64_t steps, bool silent)
    : terminal_(!silent && ::isatty(STDOUT_FILENO) == 1), silent_(silent), steps_(steps) {}

void Console::header() { print(format_header(steps_)); }

// Which of the parts of the run, each worth a line in a file, a step is in.
int64_t Console::part_of(int64_t step) const {
    if (steps_ <= 0) return step;
    return static_cast<int64_t>(static_cast<double>(step) / static_cast<double>(steps_) *
                                kLinesInAFile);
}

void Console::progress(const ProgressLine& line, bool force) {
    const double now = clock_.seconds(), elapsed = now - last_printed_;
    const bool due = terminal_ ? elapsed >= kSecondsOnATerminal
                               : elapsed >= kSecondsInAFile && part_of(line.step) != last_part_;
    if (terminal_) status_ = format_status(line, terminal_columns() - 1);
    if (force || due) {
        last_printed_ = now;
        last_part_ = part_of(line.step);
        print(format_progress(line));
    }
    if (terminal_ && (!status_shown_ || now - last_drawn_ >= kSecondsOfAStatus)) draw_status();
}

void Console::message(const std::string& text) { print(wrapped_message(printable(text))); }

void Console::text(const std::string& text) { print(printable(text)); }

void Console::warning(const std::string& text) {
    if (silent_) return;
    const bool shown = status_shown_;
    clear_status();
    std::fprintf(stderr, "warning: %s\n", printable(text).c_str());
    if (shown) draw_status();
}

void Console::finish() {
    clear_status();
    status_.clear();
}

void Console::print(const std::string& text) {
    if (silent_) return;
    const bool shown = status_shown_;
    clear_status();
    std::fprintf(stdout, "%s\n", text.c_str());
    std::fflush(stdout);
    if (shown) draw_status();
}

// Blanks instead of an escape sequence: that works on every terminal.
void Console::clear_status() {
    if (!status_shown_) return;
    std::fprintf(stdout, "\r%*s\r", terminal_columns() - 1, "");
    std::fflush(stdout);
    status_shown_ = false;
}

void Console::draw_status() {
    std::fprintf(stdout, "\r%-*s", terminal_columns() - 1, status_.c_str());
    std::fflush(stdout);
    status_shown_ = true;
    last_drawn_ = clock_.seconds();
}

}  // namespace lmo
