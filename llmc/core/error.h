// Errors that a user can act on. Programmer errors are asserts; everything else that can go wrong
// is one of these, thrown where it is noticed and printed once by main() with its exit status.
#pragma once

#include <stdexcept>
#include <string>

namespace lmo {

// Exit statuses of train_gpt (the contract with shell scripts).
enum class ExitStatus : int { finished = 0, runtime_error = 1, usage_error = 2, stopped = 3 };

// A failure while running: a file that cannot be read, memory that ran out, a loss that is not
// finite. The message names the file or the tensor, what was expected, and what to do. What it
// quotes may come from a hostile file: control characters and invalid UTF-8 become \xNN, a very long
// message is cut.
class Error : public std::runtime_error {
  public:
    explicit Error(const std::string& message, ExitStatus status = ExitStatus::runtime_error)
        : std::runtime_error(fit_to_print(message)), status_(status) {}
    ExitStatus status() const { return status_; }

  private:
    static std::string fit_to_print(const std::string& message);

    ExitStatus status_;
};

// A mistake in the command line, the configuration or a preset: names file, key, value and what was
// expected.
class UsageError : public Error {
  public:
    explicit UsageError(const std::string& message) : Error(message, ExitStatus::usage_error) {}
};

}  // namespace lmo
