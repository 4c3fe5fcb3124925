// SIGINT, SIGTERM and SIGHUP ask the training loop to stop after the current update; a second one
// kills. SIGBUS is explained.
#pragma once

namespace lmo {

class StopSignals {
  public:
    StopSignals();   // installs the handlers
    ~StopSignals();  // back to the defaults
    StopSignals(const StopSignals&) = delete;
    StopSignals& operator=(const StopSignals&) = delete;

    int received() const;  // the signal's number, or 0
};

// From here on, a mapped file that shrinks or cannot be read ends the program with a message that
// names it and status 1, instead of the bare signal.
void explain_bus_errors();

}  // namespace lmo
