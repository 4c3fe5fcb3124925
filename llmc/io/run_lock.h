// One run folder, one training run: the file run.lock in it, held by flock(2) while a run lives.
// The system lets go of it when the process ends, however it ends, so a killed run blocks nobody.
// Commands that only read a run folder need no lock.
#pragma once

#include <string>

namespace lmo {

class RunLock {
  public:
    // Creates the folder where it is absent. Throws UsageError naming the folder, the process that
    // holds it and what to do; Error where the folder cannot be written. A file system that does
    // not know flock is a warning on stderr: then two runs in one folder are not noticed.
    explicit RunLock(const std::string& run_dir);
    ~RunLock();  // removes run.lock, and the folder if this created it and nothing is in it
    RunLock(const RunLock&) = delete;
    RunLock& operator=(const RunLock&) = delete;

  private:
    bool open_and_lock();

    std::string run_dir_, path_;
    bool created_folder_ = false, locked_ = false;
    int file_ = -1;
};

}  // namespace lmo
