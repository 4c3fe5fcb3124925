// Pieces of the command line that several subcommands use.
#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>
#include <vector>

#include "llmc/core/text.h"

namespace lmo {

// Checks of an option's text. Those of CLI11 let NaN through and print limits of 300 digits.
inline CLI::Validator integer_in(int64_t low, int64_t high) {
    const std::string range = std::to_string(low) + " to " + std::to_string(high);
    return CLI::Validator(
        [=](const std::string& text) {
            errno = 0;
            char* end = nullptr;
            const long long value = std::strtoll(text.c_str(), &end, 10);
            const bool good = !text.empty() && *end == '\0' && errno == 0;
            return good && value >= low && value <= high
                       ? std::string()
                       : "expected an integer from " + range + ", not '" + text + "'";
        },
        "[" + range + "]");
}

inline CLI::Validator number_in(double low, double high) {
    std::ostringstream range;
    range << low << " to " << high;
    return CLI::Validator(
        [=, range = range.str()](const std::string& text) {
            char* end = nullptr;
            const double value = std::strtod(text.c_str(), &end);
            return !text.empty() && *end == '\0' && value >= low && value <= high
                       ? std::string()
                       : "expected a number from " + range + ", not '" + text + "'";
        },
        "[" + range.str() + "]");
}

// Help within 80 columns. A command in the examples that is longer goes on before one of its
// options.
class HelpFormatter : public CLI::Formatter {
  public:
    std::string make_description(const CLI::App* app) const override {
        return wrapped(CLI::Formatter::make_description(app), kColumns, 0);
    }
    std::string make_subcommand(const CLI::App* command) const override {
        std::ostringstream out;
        CLI::detail::format_help(out, command->get_name(),
                                 wrapped(command->get_description(), right(), 0), column_width_);
        return out.str();
    }
    std::string make_option_desc(const CLI::Option* option) const override {
        return wrapped(option->get_description(), right(), 0);
    }
    std::string make_footer(const CLI::App* app) const override {
        std::istringstream lines(CLI::Formatter::make_footer(app));
        std::string result;
        for (std::string line; std::getline(lines, line);) {
            const bool command = line.rfind("  train_gpt", 0) == 0;
            result += (command ? continued(line) : wrapped(line, kColumns, 0)) + "\n";
        }
        return result;
    }

  private:
    static constexpr size_t kColumns = 80;
    size_t right() const { return kColumns - column_width_; }

    static std::string continued(const std::string& line) {
        std::string result;
        size_t column = 0;
        for (size_t at = 0; at < line.size();) {
            const size_t end = std::min(line.find(" --", at + 1), line.size());
            if (column > 0 && column + (end - at) > kColumns - 2) {
                result += " \\\n     ";
                column = 5;
            }
            result += line.substr(at, end - at);
            column += end - at;
            at = end;
        }
        return result;
    }
};

// Options that commands reading a configuration share.
struct ConfigOptions {
    std::string file;
    std::vector<std::string> overrides;

    void add_to(CLI::App* command) {
        command->add_option("--config", file, "JSON configuration")->required();
        command
            ->add_option("--set", overrides,
                         "key.path=value: overrides one key; may be given several times")
            ->expected(1)
            ->take_all();
    }
};

// Whether the first argument names no subcommand; then says so. CLI11 would say that one is
// missing.
inline bool is_unknown_command(CLI::App& app, int argc, char** argv) {
    const std::string name = argc > 1 ? argv[1] : "-";
    const auto same = [&](const CLI::App* command) { return command->get_name() == name; };
    if (name.rfind('-', 0) == 0 || !app.get_subcommands(same).empty()) return false;
    std::fprintf(stderr, "train_gpt: unknown command \"%s\"; train_gpt --help lists them\n",
                 printable(name).c_str());
    return true;
}

// For commands without a configuration file.
inline void add_device(CLI::App* command, std::string& device, int& threads) {
    command->add_option("--device", device, "auto, cpu or cuda")->capture_default_str();
    command->add_option("--threads", threads, "CPU threads (default: all cores)")
        ->check(integer_in(1, 4096));
}

}  // namespace lmo
