#include "llmc/train/device.h"

#include <algorithm>

#include "llmc/core/error.h"
#include "llmc/core/timer.h"
#include "llmc/device/arena.h"

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
    for (int run = 0; run < 3 || (total.seconds() < 0.2 && run < 100); ++run) {
        Timer timer;
        backend.gemm(gemm);
        backend.synchronize();
        fastest = std::min(fastest, timer.seconds());
    }
    return 2.0 * kSize * kSize * kSize / fastest;
}

}  // namespace lmo
