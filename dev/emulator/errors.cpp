// How mistakes are told: messages with kernel, block and thread, places in the source for machine
// addresses, and signals (a guard page, a division by zero) turned into errors.
#include <dlfcn.h>
#include <signal.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "dev/emulator/scheduler.h"

namespace emulator {

namespace {

// Static, because the stack of a thread that fails is abandoned with all that it owns.
char* next_buffer() {
    constexpr int count = 16;
    static char buffers[count][512];
    static int next = 0;
    return buffers[next++ % count];
}

const char* file_name(const char* path) {
    const char* slash = path ? strrchr(path, '/') : nullptr;
    return slash ? slash + 1 : path ? path : "?";
}

char pending_error[4096];

// A signal's handler goes on in here, on the stack of the thread, which is abandoned anyway.
int caught_signal;
struct sigaction actions_before[NSIG];
const void* caught_address;

[[noreturn]] void fail_by_signal() {
    switch (caught_signal) {
        case SIGFPE:
            fail("integer division by zero or overflow");
        case SIGILL:
            fail("illegal instruction");
        case SIGABRT:
            fail("abort() was called (an assertion?)");
    }
    if (in_stack(*current, caught_address)) fail("the stack of the thread overflowed");
    fail("access to invalid address %p (outside every allocation, released, or of the host)",
         caught_address);
}

void handle_signal(int number, siginfo_t* info, void* context) {
    if (!current) {
        char line[200];
        const int length = snprintf(
            line, sizeof line, "emulator: host code used the invalid address %p\n", info->si_addr);
        if (number == SIGSEGV && write(2, line, length) < 0) _exit(71);
        sigaction(number, &actions_before[number], nullptr);
        return;  // the same happens again, and is handled as without the emulator
    }
    caught_signal = number;
    caught_address = info->si_addr;
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    registers[REG_RSP] = reinterpret_cast<greg_t>(stack_top(*current)) - 8;
    registers[REG_RIP] = reinterpret_cast<greg_t>(fail_by_signal);
}

}  // namespace

const char* text(Site site) {
    char* buffer = next_buffer();
    snprintf(buffer, 512, "%s:%d", file_name(site.file), site.line);
    return buffer;
}

// addr2line knows the lines of inlined functions too: innermost first, up to three.
const char* code_text(const void* code) {
    char* buffer = next_buffer();
    Dl_info info;
    if (!dladdr(code, &info)) return "an unknown place";
    snprintf(buffer, 512, "an unknown line of %s", info.dli_sname ? info.dli_sname : "?");
    const long offset = static_cast<const char*>(code) - static_cast<char*>(info.dli_fbase);
    char command[600];
    snprintf(command, sizeof command, "addr2line -i -s -e '%s' %#lx 2>/dev/null", info.dli_fname,
             offset - 1);  // -1: an address after a call belongs to the next line
    FILE* lines = popen(command, "r");
    if (!lines) return buffer;
    char line[160];
    size_t length = 0;
    for (int depth = 0; depth < 3 && fgets(line, sizeof line, lines); ++depth) {
        line[strcspn(line, "\n")] = 0;
        if (char* note = strstr(line, " (discriminator")) *note = 0;
        if (line[0] == '?') break;
        length += snprintf(buffer + length, 512 - length, depth ? ", called at %s" : "%s", line);
    }
    pclose(lines);
    return buffer;
}

void fail(const char* format, ...) {
    static char message[4096];
    static char whole[8192];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    if (!current) throw Error(std::string("emulator: ") + message);
    snprintf(whole, sizeof whole, "emulator: %s, block (%u, %u, %u), thread (%u, %u, %u): %s",
             block.kernel, block_index.x, block_index.y, block_index.z, thread_index.x,
             thread_index.y, thread_index.z, message);
    abandon_block(whole);
}

void add_pending_error(const char* message) {
    if (pending_error[0]) return;
    snprintf(pending_error, sizeof pending_error, "%s", message);
    static const bool registered = [] {
        return atexit([] {
            if (!pending_error[0]) return;
            fprintf(stderr, "%s\n", pending_error);
            _exit(72);
        });
    }();
    (void)registered;
}

void report_pending_error() {
    if (!pending_error[0]) return;
    const Error error(pending_error);
    pending_error[0] = 0;
    throw error;
}

void install_signal_handlers() {
    static const bool installed = [] {
        static char stack[64 * 1024];
        stack_t alternative{};
        alternative.ss_sp = stack;
        alternative.ss_size = sizeof stack;
        sigaltstack(&alternative, nullptr);
        struct sigaction action {};
        action.sa_sigaction = handle_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int number : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) {
            sigaction(number, &action, &actions_before[number]);
        }
        return true;
    }();
    (void)installed;
}

}  // namespace emulator
