// The settings' start values from the environment, and the log of launched kernels.
#include "dev/emulator/settings.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "dev/emulator/scheduler.h"

namespace emulator {

namespace {

[[noreturn]] void refuse(const char* name, const char* value, const char* allowed) {
    fprintf(stderr, "emulator: %s=%s is none of %s\n", name, value, allowed);
    exit(2);
}

Settings from_environment() {
    Settings s;
    if (const char* order = getenv("LMO_EMULATOR_ORDER")) {
        char* end;
        const uint64_t seed = strtoull(order, &end, 10);
        if (!strcmp(order, "asc")) {
            s.order = Order::ascending;
        } else if (!strcmp(order, "desc")) {
            s.order = Order::descending;
        } else if (*order && !*end) {
            s.order = Order::random;
            s.async_copies = Landing::random;
            s.seed = seed;
        } else {
            refuse("LMO_EMULATOR_ORDER", order, "asc, desc, a number");
        }
    }
    if (const char* landing = getenv("LMO_EMULATOR_CP_ASYNC")) {
        if (!strcmp(landing, "late"))
            s.async_copies = Landing::late;
        else if (!strcmp(landing, "early"))
            s.async_copies = Landing::early;
        else if (!strcmp(landing, "random"))
            s.async_copies = Landing::random;
        else
            refuse("LMO_EMULATOR_CP_ASYNC", landing, "late, early, random");
    }
    if (const char* streams = getenv("LMO_EMULATOR_STREAMS")) {
        if (!strcmp(streams, "eager"))
            s.streams = StreamOrder::eager;
        else if (!strcmp(streams, "random"))
            s.streams = StreamOrder::random;
        else if (!strcmp(streams, "first"))
            s.streams = StreamOrder::first;
        else if (!strcmp(streams, "last"))
            s.streams = StreamOrder::last;
        else
            refuse("LMO_EMULATOR_STREAMS", streams, "eager, random, first, last");
    }
    if (const char* capability = getenv("LMO_EMULATOR_CAPABILITY")) {
        char* end;
        const long value = strtol(capability, &end, 10);
        if (!*capability || *end || value < 80 || value > 90) {
            refuse("LMO_EMULATOR_CAPABILITY", capability, "80 to 90");
        }
        s.capability = static_cast<int>(value);
    }
    const char* no_device = getenv("LMO_EMULATOR_NO_DEVICE");
    s.no_device = no_device && !strcmp(no_device, "1");
    if (const char* devices = getenv("LMO_EMULATOR_DEVICES")) {
        char* end;
        const long count = strtol(devices, &end, 10);
        if (!*devices || *end || count < 1 || count > 64) {
            refuse("LMO_EMULATOR_DEVICES", devices, "1 to 64");
        }
        s.devices = static_cast<int>(count);
    }
    return s;
}

// Never destroyed: other objects may launch kernels while the process ends.
std::set<std::string>& kernel_names() {
    static auto* names = new std::set<std::string>;
    return *names;
}

void write_log() {
    const char* path = getenv("LMO_EMULATOR_LOG");
    FILE* file = path ? fopen(path, "a") : nullptr;
    if (!file) return;
    for (const std::string& name : kernel_names()) fprintf(file, "%s\n", name.c_str());
    fclose(file);
}

}  // namespace

Settings& settings() {
    static Settings current_settings = from_environment();
    return current_settings;
}

const std::set<std::string>& launched_kernels() { return kernel_names(); }

void log_kernel(const char* name) {
    static const int registered = atexit(write_log);
    (void)registered;
    kernel_names().insert(name);
}

}  // namespace emulator
