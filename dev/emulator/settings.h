// What the emulator may vary without changing the meaning of a correct program, and what it has
// seen. The environment sets the start values (README.md); tests change them through settings().
#pragma once

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>

namespace emulator {

enum class Order { ascending, descending, random };     // of blocks and of threads that can run
enum class Landing { late, early, random };             // when asynchronous copies arrive
enum class StreamOrder { eager, random, first, last };  // which stream's work runs next
enum class Blocks { all, first_and_last };              // which blocks of a grid run

struct Settings {
    Order order = Order::ascending;  // LMO_EMULATOR_ORDER = asc | desc | SEED
    uint64_t seed = 1;
    Landing async_copies = Landing::late;  // LMO_EMULATOR_CP_ASYNC = late | early | random
    StreamOrder streams =
        StreamOrder::eager;  // LMO_EMULATOR_STREAMS = eager | random | first | last
    // Large allocations are never filled, so that tensors of a production model can be addressed
    // where only few of their pages are used.
    Blocks blocks = Blocks::all;
    // warp_sum and warp_max as five real shuffles in place of one collective.
    bool real_shuffles = false;
    size_t device_bytes = size_t{16} << 30;  // what the device has
    int capability = 90;                     // LMO_EMULATOR_CAPABILITY, ten times the compute capability
    bool no_device = false;                  // LMO_EMULATOR_NO_DEVICE = 1
    int devices = 1;  // LMO_EMULATOR_DEVICES = how many a process sees; it may use one of them
};

Settings& settings();

// Restores the settings at the end of a scope.
class SettingsGuard {
  public:
    SettingsGuard() : saved_(settings()) {}
    ~SettingsGuard() { settings() = saved_; }
    SettingsGuard(const SettingsGuard&) = delete;
    SettingsGuard& operator=(const SettingsGuard&) = delete;

  private:
    Settings saved_;
};

// The names given to launch() so far. With LMO_EMULATOR_LOG=FILE they are appended to FILE when the
// process ends, one a line.
const std::set<std::string>& launched_kernels();

// Device memory that is allocated now: "3 allocations, 1234 bytes", or "" where there is none.
std::string live_allocations();

}  // namespace emulator
