// train_gpt bench kernels: how fast every operation of the backend border is on this device, beside
// what the device can do at most: the rates of a large copy and of a large matrix product, measured
// first in the same run.
//
// Operations bound by memory take turns on several sets of tensors, so that they find nothing in
// the caches. A failed measurement is a line of its own; the others go on.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <map>

#include "llmc/io/files.h"
#include "llmc/train/bench_cases.h"
#include "llmc/train/bench_progress.h"
#include "llmc/train/commands.h"
#include "llmc/train/device.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

constexpr double kRotatedBytes = 192 << 20;  // beyond the caches of today's devices, thrice
constexpr double kMostSets = 16;

// ---- what to measure ----------------------------------------------------------------------------

DType compute_type(const BenchKernelsOptions& options, const Backend& backend) {
    if (options.precision == "bf16") return DType::bf16;
    if (options.precision == "fp32") return DType::f32;
    return backend.preferred_compute();
}

BenchSizes choose_sizes(const BenchKernelsOptions& options, const LlamaConfig& model,
                        const Backend& backend, DType compute, double flops) {
    const bool gpu = flops > kGpuFlops;
    const int64_t tokens = options.tokens > 0 ? options.tokens : gpu ? 131072 : 2048;
    BenchSizes sizes{model, {compute, DType::f32, DType::f32}, backend.preferred_newton_schulz()};
    sizes.library_attention =
        compute == DType::bf16 && backend.missing_attention_library().empty();
    sizes.positions = std::min(model.seq_len, tokens);
    sizes.sequences = tokens / sizes.positions;
    sizes.chunk_rows = std::clamp<int64_t>(sizes.rows() / 8, 1, 8192);
    sizes.matrices = gpu ? std::numeric_limits<int64_t>::max() : 2;
    return sizes;
}

std::vector<BenchCase> choose_cases(const BenchSizes& sizes, const std::string& only) {
    std::vector<BenchCase> cases;
    std::string names;
    for (const BenchCase& one : bench_cases(sizes)) {
        if (one.name.find(only) != std::string::npos) cases.push_back(one);
        if (names.find(" " + one.name + ",") == std::string::npos) names += " " + one.name + ",";
    }
    if (cases.empty()) {
        names.pop_back();
        throw UsageError("--only " + only + ": no such operation; there are" + names);
    }
    return cases;
}

// ---- measuring ----------------------------------------------------------------------------------

Timing measure_case(Backend& backend, const Noise& noise, const BenchCase& one,
                    TimingLimits limits) {
    const Timer setup;
    const double wanted = one.bytes > 0 ? std::ceil(kRotatedBytes / one.bytes) : 1.0;
    const int64_t sets = static_cast<int64_t>(std::min(wanted, kMostSets));
    std::vector<std::unique_ptr<BenchMemory>> memories;
    std::vector<Call> calls;
    for (int64_t i = 0; i < sets; ++i) {
        memories.push_back(std::make_unique<BenchMemory>(backend, noise));
        calls.push_back(one.make(*memories.back()));
    }
    backend.synchronize();
    limits.total = std::max(0.0, limits.total - setup.seconds());
    const Timing timing = measure(backend, calls, limits);
    for (const auto& memory : memories) memory->check();
    return timing;
}

// ---- report -------------------------------------------------------------------------------------

struct Row {
    std::string what, shape, dtype;
    Timing timing;
    double bytes, flops, share;
    std::string error;
};

double rate(const Row& row) { return (row.bytes > 0 ? row.bytes : row.flops) / row.timing.seconds; }

void print_line(const Row& row, const std::string& device) {
    ordered_json line{{"what", row.what}, {"shape", row.shape}, {"dtype", row.dtype}};
    if (row.error.empty()) {
        line["ms"] = row.timing.seconds * 1e3;
        line["ms_min"] = row.timing.fastest * 1e3;
        line["ms_max"] = row.timing.slowest * 1e3;
        if (row.bytes > 0) {
            line["bytes"] = row.bytes;
            line["gbs"] = rate(row) * 1e-9;
        } else {
            line["flops"] = row.flops;
            line["tflops"] = rate(row) * 1e-12;
        }
        line["ceiling_share"] = row.share;
    } else {
        line["error"] = row.error;
    }
    line["device"] = device;
    std::printf("%s\n", line.dump().c_str());
    flush_output();
}

void print_table_head(const std::string& device) {
    std::printf("%s\n\n%-22s %-24s %4s %9s %8s %8s %6s\n", device.c_str(), "operation", "shape", "",
                "ms", "GB/s", "TFLOP/s", "share");
}

void print_table_row(const Row& row) {
    const std::string name = row.what.substr(row.what.rfind("kernel.", 0) == 0 ? 7 : 0);
    std::printf("%-22s %-24s %4s ", name.c_str(), row.shape.c_str(), row.dtype.c_str());
    if (row.error.empty()) {
        char text[32];
        std::snprintf(text, sizeof text, row.bytes > 0 ? "%.4g" : "%.3g",
                      rate(row) * (row.bytes > 0 ? 1e-9 : 1e-12));
        std::printf("%9.4g %8s %8s %4.0f %%\n", row.timing.seconds * 1e3, row.bytes > 0 ? text : "",
                    row.bytes > 0 ? "" : text, 100 * row.share);
    } else {
        std::printf("failed: %s\n", row.error.c_str());
    }
    flush_output();
}

// ---- the run ------------------------------------------------------------------------------------

class KernelBench {
  public:
    KernelBench(const BenchKernelsOptions& options, Backend& backend)
        : options_(options), backend_(backend), noise_(backend), device_(backend.describe()) {}

    void run() {
        const LlamaConfig model = bench_model(options_.config);
        const DType compute = compute_type(options_, backend_);
        const auto sizes = [&](double flops) {
            return choose_sizes(options_, model, backend_, compute, flops);
        };
        choose_cases(sizes(0.0),
                     options_.only);  // a wrong name is said before anything is measured
        copy_rate_ = add_ceiling("ceiling.copy", copy_ceiling(backend_, noise_), DType::f32);
        measure_all(choose_cases(sizes(gemm_rate(compute)), options_.only));
        const auto failed = std::count_if(rows_.begin(), rows_.end(),
                                          [](const Row& row) { return !row.error.empty(); });
        if (failed > 0) {
            throw Error(std::to_string(failed) + " of " + std::to_string(rows_.size()) +
                        " measurements failed");
        }
    }

  private:
    void add(Row row) {
        if (options_.json) {
            print_line(row, device_);
        } else {
            if (rows_.empty()) print_table_head(device_);
            print_table_row(row);
        }
        rows_.push_back(std::move(row));
    }

    double add_ceiling(const std::string& what, const Ceiling& c, DType dtype) {
        const double share = c.timing.fastest / c.timing.seconds;
        add({what, c.shape, to_string(dtype), c.timing, c.bytes, c.flops, share, ""});
        return c.rate();
    }

    // Measured when it is first asked for. Of fp16 tensor cores it is the same as of bf16.
    double gemm_rate(DType dtype) {
        if (dtype == DType::f16) dtype = DType::bf16;
        const auto known = gemm_rates_.find(dtype);
        if (known != gemm_rates_.end()) return known->second;
        const Ceiling gemm = gemm_ceiling(backend_, noise_, dtype);
        return gemm_rates_[dtype] = add_ceiling("ceiling.gemm", gemm, dtype);
    }

    void measure_all(const std::vector<BenchCase>& cases) {
        BenchProgress progress(cases.size());
        const double start = clock_.seconds();
        for (size_t i = 0; i < cases.size(); ++i) {
            const double done = static_cast<double>(i);
            const double remaining = static_cast<double>(cases.size()) - done;
            const double passed = clock_.seconds();
            const double left = std::max(options_.seconds - passed, 0.0);
            const double estimate = i == 0 ? 0.0 : (passed - start) / done * remaining;
            if (cases[i].bytes == 0) gemm_rate(cases[i].dtype);  // its row comes first
            progress.next(cases[i].name + " " + cases[i].shape, std::max(left, estimate));
            const double share = left / remaining;
            const TimingLimits limits{.window = std::clamp(share / 10, 1e-3, 0.04), .total = share};
            Row row = measure_one(cases[i], limits);
            progress.clear();
            add(std::move(row));
        }
    }

    Row measure_one(const BenchCase& one, const TimingLimits& limits) {
        Row row{
            "kernel." + one.name, one.shape, to_string(one.dtype), {}, one.bytes, one.flops, 0, ""};
        try {
            const double ceiling = one.bytes > 0 ? copy_rate_ : gemm_rate(one.dtype);
            row.timing = measure_case(backend_, noise_, one, limits);
            row.share = rate(row) / ceiling;
        } catch (const Error& error) {
            row.error = error.what();
        }
        return row;
    }

    const BenchKernelsOptions& options_;
    Backend& backend_;
    const Timer clock_;
    const Noise noise_;
    const std::string device_;
    double copy_rate_ = 0;
    std::map<DType, double> gemm_rates_;
    std::vector<Row> rows_;
};

}  // namespace

void run_bench_kernels(const BenchKernelsOptions& options) {
    const std::unique_ptr<Backend> backend = make_backend(options.device, options.threads);
    KernelBench(options, *backend).run();
}

}  // namespace lmo
