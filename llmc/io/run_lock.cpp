#include "llmc/io/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "llmc/core/error.h"
#include "llmc/io/files.h"

namespace lmo {

namespace {

// What run.lock says of its holder: for people; the lock itself is the system's.
std::string holder_text() {
    char host[256] = "unknown host";
    ::gethostname(host, sizeof host - 1);
    return "process " + std::to_string(::getpid()) + " on " + host;
}

std::string read_holder(int file) {
    char text[300];
    const ssize_t got = ::pread(file, text, sizeof text, 0);
    // Empty in the instant between locking and writing, and on a full disk.
    return got > 0 ? std::string(text, static_cast<size_t>(got)) : "a process not known by number";
}

bool same_file(int file, const std::string& path) {
    struct stat open {}, named {};
    return ::fstat(file, &open) == 0 && ::stat(path.c_str(), &named) == 0 &&
           open.st_dev == named.st_dev && open.st_ino == named.st_ino;
}

}  // namespace

RunLock::RunLock(const std::string& run_dir) : run_dir_(run_dir), path_(run_dir + "/run.lock") {
    // Another run may end and remove the file, and an empty folder, between our steps.
    for (int tries = 1; !open_and_lock(); ++tries) {
        if (tries == 100) {
            throw Error("'" + path_ + "' disappears while it is being locked; is another program " +
                        "removing files there?");
        }
    }
    // The lock holds without its text, too: on a full disk the holder has no number.
    const std::string text = holder_text();
    [[maybe_unused]] const bool written =
        locked_ && ::ftruncate(file_, 0) == 0 &&
        ::pwrite(file_, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size());
}

// False: begin again.
bool RunLock::open_and_lock() {
    std::error_code ignored;
    if (!std::filesystem::exists(run_dir_, ignored)) {
        make_folders(run_dir_);
        created_folder_ = true;
    }
    file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (file_ < 0) {
        if (errno == ENOENT) return false;
        throw Error("cannot create '" + path_ + "': " + std::strerror(errno) +
                    "; training needs a run folder that it can write: choose another run.dir");
    }
    int result;
    do {
        result = ::flock(file_, LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    const int code = errno;
    if (result == 0) {
        locked_ = same_file(file_, path_);
    } else if (code == EWOULDBLOCK) {
        const std::string holder = read_holder(file_);
        ::close(file_);
        throw UsageError("run folder '" + run_dir_ + "' is in use: " + holder +
                         " is training in it; wait for that run or stop it, or choose another "
                         "run.dir");
    } else {
        std::fprintf(stderr,
                     "warning: '%s': this file system cannot lock files (%s); take care that no "
                     "second run uses the folder\n",
                     path_.c_str(), std::strerror(code));
        return true;
    }
    if (!locked_) ::close(file_);
    return locked_;
}

RunLock::~RunLock() {
    if (locked_) ::unlink(path_.c_str());  // while it is held: nobody else's
    ::close(file_);
    if (created_folder_) ::rmdir(run_dir_.c_str());  // fails where anything is in it
}

}  // namespace lmo
