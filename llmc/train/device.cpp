#include "llmc/train/device.h"

#include <algorithm>
#include <fstream>
#include <limits>

#include "llmc/core/error.h"
#include "llmc/core/timer.h"
#include "llmc/device/arena.h"
#include "llmc/io/console.h"
#include "llmc/optim/optimizer.h"
#include "llmc/train/weights.h"

namespace lmo {

std::unique_ptr<Backend> make_backend(const std::string& device, int threads) {
    if (device == "cuda") {
        throw UsageError("device \"cuda\": this build has no CUDA backend; use auto or cpu");
    }
    if (device != "auto" && device != "cpu") {
        throw UsageError("device \"" + device + "\" is unknown; expected auto, cpu or cuda");
    }
    return make_cpu_backend(threads);
}

ModelPrecision choose_precision(const Config& config, const Backend& backend) {
    DType compute = backend.preferred_compute();
    if (config.compute == ComputeChoice::fp64) compute = DType::f64;
    if (config.compute == ComputeChoice::fp32) compute = DType::f32;
    if (config.compute == ComputeChoice::bf16) compute = DType::bf16;
    if (compute == DType::f64) return {DType::f64, DType::f64, DType::f64};
    return {compute, config.residual, DType::f32};
}

namespace {

// What the machine has free, the limit of a container included; infinite where it does not say.
double free_memory() {
    double kibibytes = 0, limit = 0;
    std::ifstream info("/proc/meminfo"), container("/sys/fs/cgroup/memory.max");
    std::string key, rest;
    double value;
    while (info >> key >> value && std::getline(info, rest)) {
        if (key == "MemAvailable:" || key == "SwapFree:") kibibytes += value;
    }
    double free = kibibytes > 0 ? 1024 * kibibytes : std::numeric_limits<double>::infinity();
    if (container >> limit) free = std::min(free, limit);  // "max" is no number
    return free;
}

void require_free(double bytes) {
    const double free = free_memory();
    if (bytes <= free) return;
    throw Error("out of memory: the model needs " + format_bytes(bytes) + ", " +
                format_bytes(free) + " are free; use a smaller model, batch or sequence length");
}

// Weights, and of each layer what attention and SwiGLU put out: less than is needed. In double, as
// absurd sizes are beyond integers.
double least_bytes(const LlamaConfig& c, const ModelPrecision& precision, int64_t batch) {
    const double layers = static_cast<double>(c.n_layer), width = static_cast<double>(c.d_model),
                 hidden = static_cast<double>(c.d_ff);
    const double weights =
        layers * width * (2 * width + 3 * hidden) + static_cast<double>(c.vocab_size) * width;
    const double activations =
        static_cast<double>(batch) * static_cast<double>(c.seq_len) * (width + hidden);
    return (weights + activations) * static_cast<double>(size_of(precision.compute));
}

}  // namespace

void require_memory(Backend& backend, const LlamaConfig& config, const ModelPrecision& precision,
                    int64_t batch, const OptimizerConfig* optimizer) {
    require_free(least_bytes(config, precision, batch));
    const bool training = optimizer != nullptr;
    const ParameterList parameters = llama_parameters(config);
    Arena plan;
    const Llama model(backend, plan, config, parameters, precision, batch, training);
    const Weights weights(backend, plan, parameters, precision, training);
    if (training) {
        plan.take("gradients", precision.master, {parameters.buffer_length()});
        const Optimizer counted(backend, plan, *optimizer, parameters, precision.master);
        plan.workspace();
    }
    require_free(static_cast<double>(plan.total()));
}

double measure_peak_flops(Backend& backend, DType compute) {
    constexpr int64_t kSize = 1024;
    Arena arena(backend);
    Gemm gemm;
    gemm.a = arena.take("measurement", compute, {kSize, kSize});
    gemm.b = arena.take("measurement", compute, {kSize, kSize});
    gemm.c = arena.take("measurement", compute, {kSize, kSize});
    gemm.transpose_b = true;
    arena.reserve_workspace(backend.workspace_bytes(gemm));
    gemm.workspace = arena.workspace();
    backend.zero(gemm.a);
    backend.zero(gemm.b);
    double fastest = 1e30;
    Timer total;
    for (int run = 0; run == 0 || (total.seconds() < 0.2 && run < 100); ++run) {
        Timer timer;
        backend.gemm(gemm);
        backend.synchronize();
        fastest = std::min(fastest, timer.seconds());
    }
    return 2.0 * kSize * kSize * kSize / fastest;
}

}  // namespace lmo
