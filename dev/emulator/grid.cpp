// Launches: what a device would refuse, and the blocks of a grid one after another.
#include <algorithm>
#include <numeric>
#include <vector>

#include "dev/emulator/memory.h"
#include "dev/emulator/race_checker.h"
#include "dev/emulator/scheduler.h"

namespace emulator {

uint3 block_index{};
dim3 block_size{};
dim3 grid_size{};

namespace {

// Longer orders are not shuffled: the list alone would take too much memory.
constexpr int64_t kMaxShuffled = int64_t{1} << 24;

struct Hooks {
    std::vector<void (*)()> at_start, at_end;
};
Hooks& hooks() {
    static auto* all = new Hooks;
    return *all;
}

uint64_t launches = 0;

void run_block(const Launch& launch, int64_t linear) {
    const int64_t x = launch.grid.x, y = launch.grid.y;
    block_index =
        make_uint3(static_cast<unsigned>(linear % x), static_cast<unsigned>(linear / x % y),
                   static_cast<unsigned>(linear / x / y));
    ++block.run;
    block.epoch = 0;
    seed_random(settings().seed * 0x2545F4914F6CDD1Dull + launches * 1000003 +
                static_cast<uint64_t>(linear));
    start_shared_memory(launch.shared_bytes);
    start_block_check(linear);
    for (auto* hook : hooks().at_start) hook();
    run_threads(launch);
    for (auto* hook : hooks().at_end) hook();
    end_shared_memory();
}

std::vector<uint32_t> shuffled(int64_t count) {
    std::vector<uint32_t> order(count);
    std::iota(order.begin(), order.end(), 0u);
    seed_random(settings().seed + launches);
    for (int64_t i = count - 1; i > 0; --i) {
        std::swap(order[i], order[random_number() % static_cast<uint64_t>(i + 1)]);
    }
    return order;
}

[[noreturn]] void refuse(const Launch& launch, const std::string& why) {
    throw Error(std::string("emulator: launch of ") + launch.name + ": " + why);
}

}  // namespace

void on_every_block(void (*at_start)(), void (*at_end)()) {
    if (at_start) hooks().at_start.push_back(at_start);
    if (at_end) hooks().at_end.push_back(at_end);
}

bool is_dependent(const char* name, const cudaLaunchConfig_t& config) {
    const auto refuse = [&](const std::string& why) {
        throw Error(std::string("emulator: launch of ") + name + ": " + why);
    };
    if (config.numAttrs > 0 && !config.attrs)
        refuse("attributes are announced, and none are there");
    bool dependent = false, found = false;
    for (unsigned i = 0; i < config.numAttrs; ++i) {
        const cudaLaunchAttribute& attribute = config.attrs[i];
        if (attribute.id != cudaLaunchAttributeProgrammaticStreamSerialization) {
            refuse("the emulator does not know launch attribute " +
                   std::to_string(static_cast<int>(attribute.id)));
        }
        const int value = attribute.val.programmaticStreamSerializationAllowed;
        if (found) refuse("programmatic stream serialization is asked for twice");
        if (value != 0 && value != 1) {
            refuse("programmatic stream serialization is " + std::to_string(value) +
                   ", expected 0 or 1");
        }
        if (value == 1 && settings().capability < 90) {
            refuse(
                "programmatic stream serialization needs compute capability 9.0, this device has " +
                std::to_string(settings().capability / 10) + "." +
                std::to_string(settings().capability % 10));
        }
        found = true;
        dependent = value == 1;
    }
    return dependent;
}

void check_launch(const Launch& launch) {
    log_kernel(launch.name);
    const dim3 g = launch.grid, b = launch.block;
    const uint64_t threads = uint64_t{b.x} * b.y * b.z;
    if (g.x == 0 || g.y == 0 || g.z == 0) refuse(launch, "the grid is empty");
    if (g.x > 0x7fffffffu || g.y > 65535 || g.z > 65535) {
        refuse(launch, "a grid of (" + std::to_string(g.x) + ", " + std::to_string(g.y) + ", " +
                           std::to_string(g.z) + ") exceeds (2147483647, 65535, 65535)");
    }
    if (threads == 0) refuse(launch, "the block is empty");
    if (threads > kMaxThreads || b.x > 1024 || b.y > 1024 || b.z > 64) {
        refuse(launch, "a block of (" + std::to_string(b.x) + ", " + std::to_string(b.y) + ", " +
                           std::to_string(b.z) + ") exceeds 1024 threads or (1024, 1024, 64)");
    }
    const size_t most = max_dynamic_shared(launch.function);
    if (launch.shared_bytes > most) {
        refuse(launch, std::to_string(launch.shared_bytes) +
                           " bytes of dynamic shared memory, allowed are " + std::to_string(most) +
                           " (cudaFuncSetAttribute)");
    }
}

void run_grid(const Launch& launch) {
    install_signal_handlers();
    ++launches;
    grid_size = launch.grid;
    block_size = launch.block;
    block.kernel = launch.name;
    block.function = launch.function;
    block.threads = static_cast<int>(launch.block.x * launch.block.y * launch.block.z);
    block.dynamic_shared_bytes = launch.shared_bytes;
    block.dependent = launch.dependent;
    start_launch_check();
    const int64_t count = int64_t{launch.grid.x} * launch.grid.y * launch.grid.z;
    const Order order = settings().order;
    if (settings().blocks == Blocks::first_and_last) {
        run_block(launch, order == Order::descending ? count - 1 : 0);
        if (count > 1) run_block(launch, order == Order::descending ? 0 : count - 1);
    } else if (order == Order::random && count <= kMaxShuffled) {
        for (uint32_t linear : shuffled(count)) run_block(launch, linear);
    } else {
        for (int64_t i = 0; i < count; ++i) {
            run_block(launch, order == Order::descending ? count - 1 - i : i);
        }
    }
}

}  // namespace emulator
