#include "llmc/train/measure.h"

#include <algorithm>
#include <limits>

#include "llmc/core/random.h"
#include "llmc/core/timer.h"

namespace lmo {

namespace {

constexpr int64_t kMostOperations = 4096;  // in one graph
constexpr int64_t kPoolLength = int64_t{1} << 20;

double launch(Backend& backend, Graph& graph) {
    const Timer timer;
    graph.launch();
    backend.synchronize();
    return timer.seconds();
}

// Every call, `rounds` times in turn.
std::unique_ptr<Graph> record(Backend& backend, const std::vector<Call>& calls, int64_t rounds) {
    return backend.capture([&calls, rounds] {
        for (int64_t round = 0; round < rounds; ++round) {
            for (const Call& call : calls) call();
        }
    });
}

double median(const std::vector<double>& sorted) {
    const size_t middle = sorted.size() / 2;
    return sorted.size() % 2 ? sorted[middle] : 0.5 * (sorted[middle - 1] + sorted[middle]);
}

double time_of_one(Backend& backend, const Call& call) {
    call();
    backend.synchronize();
    const Timer timer;
    call();
    backend.synchronize();
    return timer.seconds();
}

}  // namespace

Timing measure(Backend& backend, const std::vector<Call>& calls, const TimingLimits& limits) {
    const Timer total;
    for (const Call& call : calls) call();
    backend.synchronize();

    const int64_t count = static_cast<int64_t>(calls.size());
    const int64_t most_rounds = std::max<int64_t>(1, kMostOperations / count);
    int64_t rounds = 1;
    std::unique_ptr<Graph> graph = record(backend, calls, rounds);
    double first = launch(backend, *graph);
    while (first < limits.window && rounds < most_rounds) {
        const double factor = 1.2 * limits.window / std::max(first, 1e-7);
        const double wanted = std::max(2.0, factor) * static_cast<double>(rounds);
        rounds = static_cast<int64_t>(std::min(wanted, static_cast<double>(most_rounds)));
        graph = record(backend, calls, rounds);
        launch(backend, *graph);  // the first launch of a graph also uploads it
        first = launch(backend, *graph);
    }

    const double operations = static_cast<double>(rounds * count);
    std::vector<double> windows{first / operations};
    while (static_cast<int>(windows.size()) < limits.windows) {
        const double allowed = windows.size() < 3 ? 3 * limits.total : limits.total;
        if (total.seconds() > allowed) break;
        windows.push_back(launch(backend, *graph) / operations);
    }
    std::sort(windows.begin(), windows.end());
    return {median(windows), windows.front(), windows.back()};
}

Noise::Noise(Backend& backend) : backend_(backend), arena_(backend) {
    std::vector<float> values(kPoolLength);
    for (size_t i = 0; i < values.size(); ++i) {
        const uint64_t bits = random_bits(1, 0, i) >> 40;  // 24 of them
        values[i] = (static_cast<float>(bits) + 0.5f) * 0x1p-23f - 1.0f;
    }
    noise_ = arena_.take("noise", DType::f32, {kPoolLength});
    backend_.copy_in(noise_, values.data());
    std::fill(values.begin(), values.end(), std::numeric_limits<float>::quiet_NaN());
    poison_ = arena_.take("noise", DType::f32, {kPoolLength});
    backend_.copy_in(poison_, values.data());
}

void Noise::repeat(const Tensor& to, const Tensor& pool) const {
    const int64_t total = to.count();
    for (int64_t begin = 0; begin < total; begin += pool.count()) {
        const int64_t count = std::min(pool.count(), total - begin);
        backend_.copy(to.slice(begin, {count}), pool.slice(0, {count}));
    }
}

Ceiling copy_ceiling(Backend& backend, const Noise& noise) {
    constexpr int64_t kLargest = int64_t{1} << 30;
    int64_t bytes = int64_t{1} << 28;
    for (;;) {
        Arena arena(backend);
        const Tensor from = arena.take("measurement", DType::f32, {bytes / 4});
        const Tensor to = arena.take("measurement", DType::f32, {bytes / 4});
        noise.fill(from);
        noise.poison(to);
        const Call call = [&] { backend.copy(to, from); };
        const double room = backend.free_bytes() / 4;
        if (bytes >= kLargest || static_cast<double>(bytes) > room ||
            time_of_one(backend, call) > 1e-3) {
            return {std::to_string(bytes) + " bytes", measure(backend, {call}),
                    2.0 * static_cast<double>(bytes), 0.0};
        }
        bytes *= 4;
    }
}

Ceiling gemm_ceiling(Backend& backend, const Noise& noise, DType compute) {
    constexpr int64_t kLargest = 8192;
    for (int64_t size = 256;; size *= 2) {
        Arena arena(backend);
        const auto matrix = [&] { return arena.take("measurement", compute, {size, size}); };
        Gemm gemm{
            .a = matrix(), .b = matrix(), .c = matrix(), .transpose_b = true, .workspace = {}};
        arena.reserve_workspace(backend.workspace_bytes(gemm));
        gemm.workspace = arena.workspace();
        noise.fill(gemm.a);
        noise.fill(gemm.b);
        noise.poison(gemm.c);
        const Call call = [&] { backend.gemm(gemm); };
        // The next size needs four times the memory.
        const double room = backend.free_bytes() / 8;
        if (size >= kLargest || static_cast<double>(arena.total()) > room ||
            time_of_one(backend, call) > 15e-3) {
            const double side = static_cast<double>(size);
            const std::string text = std::to_string(size);
            return {text + "x" + text + "x" + text + " nt",
                    measure(backend, {call}, {.window = 0.02, .windows = 5, .total = 0.2}), 0.0,
                    2.0 * side * side * side};
        }
    }
}

double measure_peak_flops(Backend& backend, DType compute) {
    const Noise noise(backend);
    return gemm_ceiling(backend, noise, compute).rate();
}

}  // namespace lmo
