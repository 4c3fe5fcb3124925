#include "llmc/train/signals.h"

#include <unistd.h>

#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>

namespace lmo {

namespace {
// A handler can reach nothing but a static.
volatile std::sig_atomic_t stop_signal = 0;
void on_signal(int number) { stop_signal = number; }

// The signal comes from a read of ours, not from inside the C library, so its functions are safe.
// A line of /proc/self/maps: begin-end permissions offset device inode path.
void on_bus_error(int, siginfo_t* info, void*) {
    const uintptr_t address = reinterpret_cast<uintptr_t>(info->si_addr);
    char name[4096] = "a file in memory";
    if (std::FILE* maps = std::fopen("/proc/self/maps", "r")) {
        char line[4352];
        while (std::fgets(line, sizeof line, maps)) {
            uintptr_t begin = 0, end = 0;
            char path[4096];
            // NOLINTNEXTLINE(cert-err34-c): the numbers are the kernel's
            if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %*s %*s %*s %*s %4095[^\n]", &begin,
                            &end, path) == 3 &&
                begin <= address && address < end) {
                std::snprintf(name, sizeof name, "%s", path);
            }
        }
    }
    std::fprintf(stderr,
                 "train_gpt: %s: became shorter, or its disk failed, while it was being read; "
                 "restore the file and run the same command again\n",
                 name);
    _exit(1);
}
}  // namespace

StopSignals::StopSignals() {
    stop_signal = 0;
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    // The terminal went away; under nohup it is ignored and stays so.
    if (std::signal(SIGHUP, SIG_IGN) != SIG_IGN) sigaction(SIGHUP, &action, nullptr);
}

StopSignals::~StopSignals() {
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
    if (std::signal(SIGHUP, SIG_IGN) != SIG_IGN) std::signal(SIGHUP, SIG_DFL);
}

int StopSignals::received() const { return stop_signal; }

void explain_bus_errors() {
    struct sigaction action {};
    action.sa_sigaction = on_bus_error;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGBUS, &action, nullptr);
}

}  // namespace lmo
