#include "llmc/train/rank_setup.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
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

std::unique_ptr<Backend> make_rank_backend(const Config& config, Ranks& ranks) {
    if (ranks.size() == 1) return make_backend(config.run.device, config.run.threads);
    const int threads = config.run.threads > 0 ? config.run.threads : threads_of_a_rank(ranks);
    std::unique_ptr<Backend> backend = make_backend(config.run.device, threads, ranks.size());
    const std::string own = backend->describe();
    const std::string first = ranks.broadcast(own, "device of rank 0");
    ranks.require_equal(fingerprint(own), "device",
                        "computes on another device than rank 0 (" + first +
                            "), so their weights would drift apart; set run.threads, and use "
                            "machines with the same processor features");
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
