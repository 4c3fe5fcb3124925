// A library for LD_PRELOAD that makes system calls on files of one folder fail, short or slow, and
// sets the clock back. What it does comes from the environment:
//   FAULT_FOLDER=DIR    the folder, absolute and without links; calls elsewhere are left alone
//   FAULT_CALL=NAME     only this call (write, open, ...); without it all of them
//   FAULT_AT=N          the N-th of these calls (from 1) fails ...
//   FAULT_COUNT=K       ... and those after it, K in all; 0: all that follow (default 1)
//   FAULT_ERRNO=E       with this error number
//   FAULT_ROOM=BYTES    a disk of this size: a write that passes it is cut short, the next one
//                       fails with ENOSPC; what is removed gives nothing back
//   FAULT_SLEEP_US=T    each of these calls takes so long (a slow disk)
//   FAULT_CLOCK_BACK=S  each look at the wall clock finds it S seconds earlier than the last one did
//   FAULT_LOG=FILE      appends "N NAME PATH" for each call that counts; where one failed, "!" too
//   FAULT_KILL_AT=N     kill -9 before the N-th call
// Only calls by name are seen: those that the C library makes itself (in stdio) are not.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

namespace {

template <typename Function>
Function* next(const char* name) {
    return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

long number(const char* name, long otherwise) {
    const char* text = std::getenv(name);
    return text ? std::atol(text) : otherwise;
}

// Read once; atomics count, since threads of the program may call.
struct Plan {
    std::string folder = std::getenv("FAULT_FOLDER") ? std::getenv("FAULT_FOLDER") : "";
    std::string call = std::getenv("FAULT_CALL") ? std::getenv("FAULT_CALL") : "";
    long at = number("FAULT_AT", 0), count = number("FAULT_COUNT", 1);
    int code = static_cast<int>(number("FAULT_ERRNO", EIO));
    long room = number("FAULT_ROOM", -1), sleep = number("FAULT_SLEEP_US", 0);
    long clock_back = number("FAULT_CLOCK_BACK", 0), kill_at = number("FAULT_KILL_AT", 0);
    int log = -1;
    std::atomic<long> calls{0}, written{0}, looks{0};

    Plan() {
        if (const char* path = std::getenv("FAULT_LOG")) {
            log = next<int(const char*, int, ...)>("open")(
                path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        }
    }

    bool inside(const std::string& path) const {
        return !folder.empty() && path.compare(0, folder.size(), folder) == 0 &&
               (path.size() == folder.size() || path[folder.size()] == '/');
    }

    // Counts a call; true: it is to fail, with errno set.
    bool fails(const char* name, const std::string& path) {
        if (!inside(path) || (!call.empty() && call != name)) return false;
        const long n = ++calls;
        if (sleep > 0) ::usleep(static_cast<useconds_t>(sleep));
        if (kill_at == n) ::raise(SIGKILL);
        const bool hit = at > 0 && n >= at && (count == 0 || n < at + count);
        if (log >= 0) {
            const std::string line =
                std::to_string(n) + (hit ? "! " : " ") + name + " " + path + "\n";
            static auto real = next<ssize_t(int, const void*, size_t)>("write");
            if (real(log, line.data(), line.size()) < 0) std::abort();
        }
        if (hit) errno = code;
        return hit;
    }

    // How many of `bytes` the disk takes; -1: none, with errno set.
    ssize_t take(const std::string& path, size_t bytes) {
        if (room < 0 || !inside(path)) return static_cast<ssize_t>(bytes);
        const long left = room - written.load();
        if (left <= 0 && bytes > 0) {
            errno = ENOSPC;
            return -1;
        }
        const long taken = std::min<long>(left, static_cast<long>(bytes));
        written += taken;
        return taken;
    }
};

Plan& plan() {
    static Plan* only = new Plan;  // lives longer than every other static object
    return *only;
}

std::string path_at(int folder, const char* path) {
    if (path[0] == '/') return path;
    char base[PATH_MAX] = "";
    ssize_t length = -1;
    if (folder == AT_FDCWD) {
        if (::getcwd(base, sizeof base)) length = static_cast<ssize_t>(std::strlen(base));
    } else {
        char link[64];
        std::snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        length = ::readlink(link, base, sizeof base);
    }
    return std::string(base, length > 0 ? static_cast<size_t>(length) : 0) +
           (path[0] ? std::string("/") + path : "");
}

std::string path_of(int file) { return path_at(file, ""); }

int open_any(const char* real_name, const char* name, int folder, const char* path, int flags,
             mode_t mode) {
    if (plan().fails(name, path_at(folder, path))) return -1;
    return next<int(int, const char*, int, ...)>(real_name)(folder, path, flags, mode);
}

mode_t mode_of(int flags, va_list list) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

}  // namespace

extern "C" {

int open(const char* path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = mode_of(flags, list);
    va_end(list);
    return open_any("openat", "open", AT_FDCWD, path, flags, mode);
}
int open64(const char* path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = mode_of(flags, list);
    va_end(list);
    return open_any("openat64", "open", AT_FDCWD, path, flags, mode);
}
int openat(int folder, const char* path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = mode_of(flags, list);
    va_end(list);
    return open_any("openat", "open", folder, path, flags, mode);
}
int openat64(int folder, const char* path, int flags, ...) {
    va_list list;
    va_start(list, flags);
    const mode_t mode = mode_of(flags, list);
    va_end(list);
    return open_any("openat64", "open", folder, path, flags, mode);
}

FILE* fopen(const char* path, const char* mode) {
    if (plan().fails("fopen", path_at(AT_FDCWD, path))) return nullptr;
    return next<FILE*(const char*, const char*)>("fopen")(path, mode);
}
FILE* fopen64(const char* path, const char* mode) {
    if (plan().fails("fopen", path_at(AT_FDCWD, path))) return nullptr;
    return next<FILE*(const char*, const char*)>("fopen64")(path, mode);
}

ssize_t write(int file, const void* data, size_t bytes) {
    const std::string path = path_of(file);
    if (plan().fails("write", path)) return -1;
    const ssize_t taken = plan().take(path, bytes);
    if (taken < 0) return -1;
    return next<ssize_t(int, const void*, size_t)>("write")(file, data,
                                                             static_cast<size_t>(taken));
}
ssize_t pwrite(int file, const void* data, size_t bytes, off_t offset) {
    const std::string path = path_of(file);
    if (plan().fails("pwrite", path)) return -1;
    const ssize_t taken = plan().take(path, bytes);
    if (taken < 0) return -1;
    return next<ssize_t(int, const void*, size_t, off_t)>("pwrite")(
        file, data, static_cast<size_t>(taken), offset);
}
ssize_t read(int file, void* data, size_t bytes) {
    if (plan().fails("read", path_of(file))) return -1;
    return next<ssize_t(int, void*, size_t)>("read")(file, data, bytes);
}

int fsync(int file) {
    if (plan().fails("fsync", path_of(file))) return -1;
    return next<int(int)>("fsync")(file);
}
int ftruncate(int file, off_t length) {
    if (plan().fails("ftruncate", path_of(file))) return -1;
    return next<int(int, off_t)>("ftruncate")(file, length);
}
int flock(int file, int operation) {
    if (plan().fails("flock", path_of(file))) return -1;
    return next<int(int, int)>("flock")(file, operation);
}

int rename(const char* from, const char* to) {
    if (plan().fails("rename", path_at(AT_FDCWD, from))) return -1;
    return next<int(const char*, const char*)>("rename")(from, to);
}
int mkdir(const char* path, mode_t mode) {
    if (plan().fails("mkdir", path_at(AT_FDCWD, path))) return -1;
    return next<int(const char*, mode_t)>("mkdir")(path, mode);
}
int unlink(const char* path) {
    if (plan().fails("unlink", path_at(AT_FDCWD, path))) return -1;
    return next<int(const char*)>("unlink")(path);
}
int unlinkat(int folder, const char* path, int flags) {
    if (plan().fails("unlink", path_at(folder, path))) return -1;
    return next<int(int, const char*, int)>("unlinkat")(folder, path, flags);
}
int remove(const char* path) {
    if (plan().fails("remove", path_at(AT_FDCWD, path))) return -1;
    return next<int(const char*)>("remove")(path);
}

int clock_gettime(clockid_t clock, timespec* time) {
    const int result = next<int(clockid_t, timespec*)>("clock_gettime")(clock, time);
    if (clock == CLOCK_REALTIME && plan().clock_back != 0) {
        time->tv_sec -= plan().clock_back * ++plan().looks;
    }
    return result;
}

}  // extern "C"
