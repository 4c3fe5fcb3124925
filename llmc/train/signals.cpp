#include "llmc/train/signals.h"

#include <csignal>

namespace lmo {

namespace {
// A handler can reach nothing but a static.
volatile std::sig_atomic_t stop_signal = 0;
void on_signal(int number) { stop_signal = number; }
}  // namespace

StopSignals::StopSignals() {
    stop_signal = 0;
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = static_cast<int>(SA_RESETHAND) | SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

StopSignals::~StopSignals() {
    std::signal(SIGINT, SIG_DFL);
    std::signal(SIGTERM, SIG_DFL);
}

int StopSignals::received() const { return stop_signal; }

}  // namespace lmo
