// SIGINT and SIGTERM ask the training loop to stop after the current update; a second one kills.
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

}  // namespace lmo
