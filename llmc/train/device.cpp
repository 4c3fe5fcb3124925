#include "llmc/train/device.h"

#include <algorithm>
#include <cstdio>

#include "llmc/core/error.h"
#include "llmc/io/console.h"
#include "llmc/optim/optimizer.h"
#include "llmc/train/validation.h"
#include "llmc/train/weights.h"

namespace lmo {

// Present where the CUDA backend is linked in: the build decides, not a macro.
// NOLINTNEXTLINE(readability-redundant-declaration): only this declaration is weak
std::unique_ptr<Backend> make_cuda_backend(const LocalRank& rank) __attribute__((weak));

std::unique_ptr<Backend> make_backend(const std::string& device, int threads,
                                      const LocalRank& rank) {
    if (device != "auto" && device != "cpu" && device != "cuda") {
        throw UsageError("device \"" + device + "\" is unknown; expected auto, cpu or cuda");
    }
    if (device == "cuda") {
        if (make_cuda_backend) return make_cuda_backend(rank);
        throw UsageError(
            "device \"cuda\": this build has no CUDA backend; use auto or cpu, or install a CUDA "
            "toolkit and run make again");
    }
    if (device == "auto" && make_cuda_backend) {
        try {
            return make_cuda_backend(rank);
        } catch (const UsageError&) {
            throw;  // there are GPUs, and not enough: the ranks before this one have taken them
        } catch (const Error& error) {
            std::fprintf(stderr, "%s: using the CPU\n", error.what());
        }
    }
    return make_cpu_backend(threads);
}

void set_launches(const Config& config, Backend& backend) {
    if (backend.set_dependent_launch(config.run.dependent_launch)) return;
    throw UsageError(
        "run.dependent_launch = true needs a GPU of compute capability 9.0, this is " +
        backend.describe() + "; expected false");
}

namespace {

// Types inside of Newton-Schulz that the device does not have.
void require_newton_schulz(const OptimizerConfig& config, const Backend& backend) {
    const auto require = [&](const NormConfig& norm, const std::string& path) {
        const std::optional<DType>& inner = norm.newton_schulz.inner;
        if (norm.type != NormType::spectral || !inner) return;
        require_newton_schulz(
            backend, *inner,
            path + "norm.inner = \"" + (*inner == DType::f16 ? "fp16" : "bf16") + "\"");
    };
    for (size_t i = 0; i < config.groups.size(); ++i) {
        const GroupConfig& group = config.groups[i];
        const std::string path = "optimizer.groups[" + std::to_string(i) + "].";
        require(group.norm, path);
        if (group.alternate) require(group.alternate->norm, path + "alternate.");
    }
}

}  // namespace

void require_newton_schulz(const Backend& backend, DType inner, const std::string& where) {
    if (backend.has_newton_schulz(inner)) return;
    const bool bf16 = backend.has_newton_schulz(DType::bf16);
    throw UsageError(where + ": this processor has no matrix products in " +
                     (inner == DType::f16 ? "fp16" : "bf16 (AVX512-BF16)") + "; expected auto" +
                     (bf16 ? ", bf16" : "") + " or fp32, or --device cuda");
}

ModelPrecision choose_precision(const Config& config, const Backend& backend) {
    require_newton_schulz(config.optimizer, backend);
    DType compute = backend.preferred_compute();
    if (config.compute == ComputeChoice::fp64) compute = DType::f64;
    if (config.compute == ComputeChoice::fp32) compute = DType::f32;
    if (config.compute == ComputeChoice::bf16) compute = DType::bf16;
    if (compute == DType::f64) {
        if (!backend.has_fp64()) {
            throw UsageError(
                "precision.compute \"fp64\" is for tests on the CPU; use --device cpu, "
                "or bf16 or fp32");
        }
        return {DType::f64, DType::f64, DType::f64};
    }
    if (config.split_master && compute != DType::bf16) {
        throw UsageError(
            "precision.master = \"split\" is a form of bf16 weights, and this device computes in " +
            to_string(compute) + "; expected \"fp32\", or precision.compute = \"bf16\"");
    }
    return {compute, config.residual, DType::f32, config.split_master};
}

void require_attention(const LlamaConfig& config, const ModelPrecision& precision,
                       const Backend& backend) {
    if (!config.library_attention) return;
    const std::string missing = backend.missing_attention_library();
    if (!missing.empty()) {
        throw UsageError("model.attention = \"cudnn\": " + missing + "; expected \"own\"");
    }
    if (precision.compute != DType::bf16) {
        throw UsageError("model.attention = \"cudnn\" computes in bf16 alone, not in " +
                         to_string(precision.compute) +
                         "; expected \"own\", or precision.compute = \"bf16\"");
    }
}

namespace {

void require_free(const Backend& backend, double bytes) {
    const double free = backend.free_bytes();
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

constexpr double kMostBytes = 0x1p60;  // counts of bytes stay exact

}  // namespace

void plan_memory(Backend& backend, Arena& plan, const LlamaConfig& config,
                 const ModelPrecision& precision, int64_t batch, const TakeMemory& update) {
    const double least = least_bytes(config, precision, batch);
    if (least > kMostBytes) {
        throw Error("the model needs at least " + format_bytes(least) +
                    ", which no machine has; use a smaller model, batch or sequence length");
    }
    const bool training = static_cast<bool>(update);
    const ParameterList parameters = llama_parameters(config);
    const BatchTensors tensors(plan, batch, config.seq_len);
    const Llama model(backend, plan, config, parameters, precision, batch, training);
    const Weights weights(backend, plan, parameters, precision, training);
    if (training) {
        plan.take("gradients", precision.master, {parameters.buffer_length()});
        update(plan);
    }
    plan.workspace();
}

void require_memory(Backend& backend, const LlamaConfig& config, const ModelPrecision& precision,
                    int64_t batch, const TakeMemory& update) {
    require_free(backend, least_bytes(config, precision, batch));
    Arena plan;
    plan_memory(backend, plan, config, precision, batch, update);
    require_free(backend, static_cast<double>(plan.total()));
}

}  // namespace lmo
