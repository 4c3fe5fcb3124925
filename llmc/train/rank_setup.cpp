#include "llmc/train/rank_setup.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "llmc/core/error.h"
#include "llmc/core/json.h"
#include "llmc/train/device.h"

namespace lmo {

namespace {

// The cores that a rank may use, and on which machine.
struct Cores {
    uint64_t machine;
    cpu_set_t set;
};

Cores own_cores() {
    Cores cores{};
    char host[256] = "";
    ::gethostname(host, sizeof host - 1);
    cores.machine = fingerprint(std::string(host));
    if (::sched_getaffinity(0, sizeof cores.set, &cores.set) != 0) CPU_ZERO(&cores.set);
    return cores;
}

bool shared(const Cores& one, const Cores& other) {
    cpu_set_t both;
    CPU_AND(&both, &one.set, &other.set);
    return one.machine == other.machine && CPU_COUNT(&both) > 0;
}

int threads_of_a_rank(Ranks& ranks) {
    const Cores mine = own_cores();
    int sharing = 0;
    for (const Cores& other : ranks.gather(mine, "cores")) sharing += shared(mine, other);
    const int threads = std::max(1, CPU_COUNT(&mine.set) / std::max(1, sharing));
    const std::vector<int> all = ranks.gather(threads, "threads");
    return *std::min_element(all.begin(), all.end());
}

// Ranks that share a machine's GPUs. Containers on one machine have names of their own.
uint64_t machine() {
    char host[256] = "", boot[64] = "";
    ::gethostname(host, sizeof host - 1);
    const std::unique_ptr<FILE, int (*)(FILE*)> file(
        std::fopen("/proc/sys/kernel/random/boot_id", "r"), &std::fclose);
    if (file) boot[std::fread(boot, 1, sizeof boot - 1, file.get())] = '\0';
    return fingerprint(std::string(host) + boot);
}

LocalRank local_rank(Ranks& ranks) {
    const std::vector<uint64_t> all = ranks.gather(machine(), "machines");
    const auto own = all.begin() + ranks.rank();
    return {static_cast<int>(std::count(all.begin(), own, *own)),
            static_cast<int>(std::count(all.begin(), all.end(), *own))};
}

// Two ranks on one GPU would wait for each other for ever. On one machine they have the same one
// only where they see no other.
void require_own_devices(const Backend& backend, Ranks& ranks) {
    struct Device {
        uint64_t machine, id;
    };
    const std::string id = backend.device_id();
    const std::vector<Device> all = ranks.gather(Device{machine(), fingerprint(id)}, "devices");
    if (id.empty()) return;
    for (size_t second = 0; second < all.size(); ++second) {
        for (size_t first = 0; first < second; ++first) {
            if (all[first].id != all[second].id) continue;
            const bool together = all[first].machine == all[second].machine;
            const std::string both =
                "ranks " + std::to_string(first) + " and " + std::to_string(second);
            const std::string text =
                together ? both +
                               " are on one machine and see 1 GPU, the same: every rank needs "
                               "one of its own; start at most 1 there"
                         : both +
                               " have the same GPU: every rank needs one of its own; show no "
                               "two containers the same ones";
            throw RanksFailed(text +
                                  ", look at CUDA_VISIBLE_DEVICES, or compute on the CPU "
                                  "(--device cpu)",
                              ExitStatus::usage_error,
                              0);  // every rank knows
        }
    }
}

}  // namespace

void require_same_on_all(const Config& config, Ranks& ranks) {
    if (ranks.size() == 1) return;
    const std::string first = ranks.broadcast(config.resolved.dump(), "configuration");
    const auto differences = config_differences(
        parse_json<nlohmann::ordered_json>(first, "the configuration of rank 0"), config.resolved);
    if (!differences.empty()) {
        std::string text = "the configuration differs from that of rank 0 (its value first):";
        for (const std::string& difference : differences) text += "\n  " + difference;
        throw UsageError(text + "\nstart all ranks with the same configuration");
    }
    ranks.barrier("configuration");
}

namespace {

std::unique_ptr<Backend> make_own_backend(const Config& config, Ranks& ranks) {
    if (ranks.size() == 1) return make_backend(config.run.device, config.run.threads);
    const int threads = config.run.threads > 0 ? config.run.threads : threads_of_a_rank(ranks);
    std::unique_ptr<Backend> backend = make_backend(config.run.device, threads, local_rank(ranks));
    const std::string own = backend->describe();
    const std::string first = ranks.broadcast(own, "device of rank 0");
    ranks.require_equal(fingerprint(own), "device",
                        "computes on another device than rank 0 (" + first +
                            "), so their weights would drift apart; set run.threads, and use "
                            "machines with the same processor features");
    require_own_devices(*backend, ranks);
    return backend;
}

}  // namespace

std::unique_ptr<Backend> make_rank_backend(const Config& config, Ranks& ranks) {
    std::unique_ptr<Backend> backend = make_own_backend(config, ranks);
    set_launches(config, *backend);
    return backend;
}

uint64_t fingerprint(const void* data, size_t bytes, uint64_t start) {
    uint64_t hash = start;
    for (size_t i = 0; i < bytes; ++i) {
        hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3ull;
    }
    return hash;
}

uint64_t fingerprint(const std::string& text) { return fingerprint(text.data(), text.size()); }

uint64_t fingerprint(const std::vector<double>& values, uint64_t start) {
    uint64_t hash = start;
    for (double value : values) {
        if (std::isnan(value)) value = std::numeric_limits<double>::quiet_NaN();
        hash = fingerprint(&value, sizeof value, hash);
    }
    return hash;
}

}  // namespace lmo
