// Where the time of Newton-Schulz goes on a GPU, for llmc/cuda/symmetric_choice.cpp: each kernel of
// each symmetric product beside the library's plain one, and whole iterations in both forms with
// their distance from the polynomial in fp64.
//
//   build/cuda/newton_schulz_bench [--shapes 768x768x48,768x2048x36] [--windows 9] [--errors]
//                                  [--stages 2,3,4,5,6] [--json FILE]
//
// Built by `make build/cuda/newton_schulz_bench`; build/emulated/plain/newton_schulz_bench runs in
// the emulator, whose times mean nothing. Candidates take turns, a window each; a row shows the
// median, and `ratio` is that of the library's plain products over this one's. With --stages the
// symmetric kernels run with those numbers of stages in shared memory and with each size of tile,
// too; a row "narrow 128/4" is one of tiles with 128 rows and 4 stages. They change no bit: that is
// checked.
#include <cuda_runtime_api.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "dev/bench/spectra.h"
#include "dev/bench/symmetric_stages.h"
#include "llmc/core/error.h"
#include "llmc/core/timer.h"
#include "llmc/cuda/check.h"
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/newton_schulz_batch.h"
#include "llmc/cuda/symmetric.h"
#include "llmc/cuda/symmetric_choice.h"
#include "llmc/norm/newton_schulz.h"
#include "llmc/train/bench_optimizer.h"

using namespace lmo;
using namespace lmo::cuda;

namespace {

constexpr double kWindowSeconds = 0.01;
constexpr int kMostCalls = 100;
constexpr int64_t kLargestChecked =
    1024;  // shorter side: the processor's fp64 takes minutes beyond

struct Options {
    std::string shapes =
        "768x768x48,768x2304x12,768x2048x36,1024x1024x48,2048x2048x24,2048x5632x24";
    int windows = 9;
    bool errors = false;
    std::vector<int> stages;
    std::string json;
};

// ---- interleaved timing -------------------------------------------------------------------------

struct Candidate {
    std::string name;
    std::function<void()> call;
    double executed = 0;  // operations
    // Of a symmetric kernel: its name, rows of a tile, stages.
    std::string kernel = {};
    int tile = 0, stages = 0;
    std::vector<double> seconds = {};

    double median() const { return timing_of(seconds).seconds; }
};

double seconds_of(Backend& backend, const std::function<void()>& call, int calls) {
    backend.synchronize();
    const Timer timer;
    for (int i = 0; i < calls; ++i) call();
    backend.synchronize();
    return timer.seconds() / calls;
}

void measure(Backend& backend, std::vector<Candidate>& candidates, int windows) {
    std::vector<int> calls;
    for (Candidate& candidate : candidates) {
        candidate.call();
        const double once = seconds_of(backend, candidate.call, 1);
        calls.push_back(std::clamp(static_cast<int>(kWindowSeconds / once), 1, kMostCalls));
    }
    for (int window = 0; window < windows; ++window) {
        for (size_t i = 0; i < candidates.size(); ++i) {
            candidates[i].seconds.push_back(seconds_of(backend, candidates[i].call, calls[i]));
        }
    }
}

// ---- the benchmark ------------------------------------------------------------------------------

class NewtonSchulzBench {
  public:
    explicit NewtonSchulzBench(const Options& options)
        : options_(options), noise_(backend_), host_(make_cpu_backend(0)) {
        std::fprintf(stderr, "%s\n", backend_.describe().c_str());
        if (backend_.capability() == 90) {
            for (SymmetricStages& of : hopper_stages()) kernels_.push_back(std::move(of));
        }
        if (options.json.empty()) return;
        json_.open(options.json);
        if (!json_) throw Error("cannot write " + options.json);
    }

    void run() {
        std::printf("%-16s %-22s %-12s %9s %8s %8s %6s %9s\n", "shape", "what", "kernel", "ms",
                    "TFLOP/s", "done", "ratio", "error");
        for (const MatrixBatch& batch : parse_shapes(options_.shapes)) {
            for (const bool by_square : {false, true}) products(batch, by_square);
            iterations(batch);
        }
    }

  private:
    // X X^T, or b R + c R R + a I of its result.
    void products(const MatrixBatch& batch, bool by_square) {
        const BatchShape shape(batch.shape);
        const int64_t n = shape.shorter, k = by_square ? n : shape.longer, count = batch.count;
        Arena arena(backend_);
        const DType type = DType::f16;
        const Tensor a = arena.take("a", type, {count, n, k});
        const Tensor d = arena.take("d", type, {count, n, n});
        const size_t blas_bytes = Blas::workspace_bytes(n, k, count);
        const Tensor workspace =
            arena.take("blas", DType::u16, {static_cast<int64_t>(blas_bytes / 2 + 1)});
        const Tensor single = arena.take("noise", DType::f32, {n, k});
        noise_.fill(single);
        for (int64_t i = 0; i < count; ++i) {
            backend_.copy(a.slice(i * n * k, {n, k}), single);
        }
        SymmetricGemm op{type, n, k, count, a.data, a.data, by_square ? a.data : nullptr, d.data};
        op.alpha = 1.0f / static_cast<float>(k);
        if (by_square) op.beta = op.diagonal = 1.0f;
        std::vector<Candidate> candidates;
        candidates.push_back({"cublasLt", [&] { library(op, workspace.data); },
                              executed_flops(SymmetricKernel::blas, n, k, count)});
        for (const SymmetricStages& of : kernels_) {
            if (of.tile != symmetric_tile(of.kernel, n)) continue;
            const std::string name = name_of(of.kernel);
            candidates.push_back(
                {name, [&, kernel = of.kernel] { symmetric_gemm(kernel, op, backend_.stream()); },
                 executed_flops(of.kernel, n, k, count), name, of.tile, of.usual});
        }
        const std::string what = by_square ? "c r r + b r + a I" : "x x^T";
        add_stages(candidates, op, d, batch, what);
        measure(backend_, candidates, options_.windows);
        const double dense = 2.0 * static_cast<double>(n * n * k * count);
        for (const Candidate& candidate : candidates) {
            report(batch, what, candidate, candidates[0], dense, -1);
        }
    }

    // The kernels of --stages; what cannot be is a row that says why.
    void add_stages(std::vector<Candidate>& candidates, const SymmetricGemm& op, const Tensor& d,
                    const MatrixBatch& batch, const std::string& what) {
        if (options_.stages.empty()) return;
        for (const SymmetricStages& of : kernels_) {
            std::vector<uint16_t> usual;  // result
            for (const auto& [count, run] : of.compiled) {
                if (count == of.usual) usual = result_of(run, op, d);
            }
            for (const int stages : options_.stages) {
                // The trainer's own has a row already.
                if (stages == of.usual && of.tile == symmetric_tile(of.kernel, op.n)) continue;
                const std::string name = std::string(name_of(of.kernel)) + " " +
                                         std::to_string(of.tile) + "/" + std::to_string(stages);
                const std::string why = missing(of, stages);
                if (!why.empty()) {
                    leave_out(batch, what, name, of, stages, why);
                    continue;
                }
                for (const auto& [count, run] : of.compiled) {
                    if (count != stages) continue;
                    if (result_of(run, op, d) != usual) {
                        throw Error(name + ": another result than with " +
                                    std::to_string(of.usual) + " stages");
                    }
                    candidates.push_back(
                        {name, [this, run = run, &op] { run(op, backend_.stream()); },
                         flops_of(of, op.n, op.k, op.batch), name_of(of.kernel), of.tile, stages});
                }
            }
        }
    }

    // Of the first matrix; NaN before.
    std::vector<uint16_t> result_of(void (*run)(const SymmetricGemm&, Stream),
                                    const SymmetricGemm& op, const Tensor& d) {
        const Tensor first = d.slice(0, {op.n, op.n});
        std::vector<uint16_t> bits(static_cast<size_t>(first.count()), 0xffff);
        backend_.copy_in(first, bits.data());
        run(op, backend_.stream());
        backend_.copy_out(bits.data(), first);
        return bits;
    }

    void leave_out(const MatrixBatch& batch, const std::string& what, const std::string& name,
                   const SymmetricStages& of, int stages, const std::string& why) {
        const std::string shape = joined(batch.count, batch.shape[0], batch.shape[1]);
        std::printf("%-16s %-22s %-12s left out: %s\n", shape.c_str(), what.c_str(), name.c_str(),
                    why.c_str());
        if (!json_.is_open()) return;
        json_ << nlohmann::ordered_json{{"what", what},
                                        {"shape", shape},
                                        {"kernel", name_of(of.kernel)},
                                        {"tile", of.tile},
                                        {"stages", stages},
                                        {"left_out", why}}
                     .dump()
              << std::endl;
    }

    // The plain product, without a diagonal.
    void library(const SymmetricGemm& op, void* workspace) {
        Product p;
        p.type = p.type_out = op.type;
        p.m = p.n = op.n;
        p.k = op.k;
        p.batch = op.batch;
        p.a = op.a;
        p.b = op.b;
        p.c = op.c;
        p.d = op.d;
        p.lda = p.ldb = op.k;
        p.ldc = p.ldd = op.n;
        p.stride_a = p.stride_b = op.n * op.k;
        p.stride_c = p.stride_d = op.n * op.n;
        p.transpose_b = true;
        p.alpha = op.alpha;
        p.beta = op.beta;
        blas_.run(p, workspace, backend_.stream());
    }

    struct Variant {
        const char* name;
        NewtonSchulzForm form;
        DType inner;
        std::optional<SymmetricKernel> kernel = {};  // none: as the table says
    };

    void iterations(const MatrixBatch& batch) {
        constexpr Variant kVariants[] = {
            {"cublasLt", NewtonSchulzForm::standard, DType::f16, SymmetricKernel::blas},
            {"fp16", NewtonSchulzForm::standard, DType::f16},
            {"bf16", NewtonSchulzForm::standard, DType::bf16},
            {"gram fp16", NewtonSchulzForm::gram, DType::f16}};
        for (const std::string set_name : {"you", "jordan", "polar-express"}) {
            const NewtonSchulzSet set = newton_schulz_set(set_name, 5);
            Arena arena(backend_);
            std::vector<Tensor> x;
            for (int i = 0; i < batch.count; ++i) {
                x.push_back(arena.take("x", DType::f32, batch.shape));
            }
            std::vector<NewtonSchulz> ops;
            for (const Variant& variant : kVariants) {
                ops.push_back({x,
                               set.steps,
                               set.norm_scale,
                               set.eps,
                               {},
                               variant.inner,
                               variant.form,
                               set.restarts});
                arena.reserve_workspace(backend_.workspace_bytes(ops.back()));
            }
            std::vector<Candidate> candidates;
            for (size_t i = 0; i < ops.size(); ++i) {
                ops[i].workspace = arena.workspace();
                candidates.push_back({kVariants[i].name,
                                      [this, op = ops[i], kernel = kVariants[i].kernel] {
                                          backend_.force_symmetric_kernel(kernel);
                                          backend_.newton_schulz(op);
                                          backend_.force_symmetric_kernel({});
                                      },
                                      executed(ops[i], kVariants[i])});
            }
            for (const Tensor& each : x) noise_.fill(each);
            measure(backend_, candidates, options_.windows);
            const double dense = make_norm({NormType::spectral, set})->flops(batch.shape) *
                                 static_cast<double>(batch.count);
            for (size_t i = 0; i < ops.size(); ++i) {
                const bool checked =
                    options_.errors && BatchShape(batch.shape).shorter <= kLargestChecked;
                backend_.force_symmetric_kernel(kVariants[i].kernel);
                const double error = checked ? worst_error(ops[i], batch.shape) : -1;
                backend_.force_symmetric_kernel({});
                report(batch, "5 steps of " + set_name, candidates[i], candidates[0], dense, error);
            }
        }
    }

    double executed(const NewtonSchulz& op, const Variant& variant) {
        backend_.force_symmetric_kernel(variant.kernel);
        const double flops = backend_.executed_flops(op);
        backend_.force_symmetric_kernel({});
        return flops;
    }

    // ||out - polynomial||_F / ||polynomial||_F of the first matrix, the polynomial in fp64; the
    // worse of the two spectra.
    double worst_error(NewtonSchulz op, const Shape& shape) {
        double worst = 0;
        const size_t count = static_cast<size_t>(shape.count());
        for (const Spectrum spectrum : {Spectrum::normal, Spectrum::decaying}) {
            const std::vector<float> input = matrix_of(shape, spectrum);
            backend_.copy_in(op.x[0], input.data());
            NewtonSchulz one = op;
            one.x = op.x.subspan(0, 1);
            backend_.newton_schulz(one);
            std::vector<float> out(count);
            backend_.copy_out(out.data(), op.x[0]);
            const std::vector<double> exact = polynomial(op, shape, input);
            double difference = 0, size = 0;
            for (size_t i = 0; i < count; ++i) {
                difference += (out[i] - exact[i]) * (out[i] - exact[i]);
                size += exact[i] * exact[i];
            }
            worst = std::max(worst, std::sqrt(difference / size));
        }
        return worst;
    }

    std::vector<double> polynomial(NewtonSchulz op, const Shape& shape,
                                   const std::vector<float>& input) {
        Arena arena(*host_);
        const Tensor x = arena.take("x", DType::f64, shape);
        const std::vector<double> wide(input.begin(), input.end());
        host_->copy_in(x, wide.data());
        op.x = {&x, 1};
        op.inner = DType::f32;
        op.form = NewtonSchulzForm::standard;
        arena.reserve_workspace(host_->workspace_bytes(op));
        op.workspace = arena.workspace();
        host_->newton_schulz(op);
        std::vector<double> exact(wide.size());
        host_->copy_out(exact.data(), x);
        return exact;
    }

    void report(const MatrixBatch& batch, const std::string& what, const Candidate& candidate,
                const Candidate& first, double dense, double error) {
        const std::string shape = joined(batch.count, batch.shape[0], batch.shape[1]);
        const Timing timing = timing_of(candidate.seconds);
        const double ratio = first.median() / timing.seconds;
        std::printf("%-16s %-22s %-12s %9.4f %8.1f %8.1f %6.2f", shape.c_str(), what.c_str(),
                    candidate.name.c_str(), timing.seconds * 1e3, dense / timing.seconds * 1e-12,
                    candidate.executed / timing.seconds * 1e-12, ratio);
        error < 0 ? std::printf("\n") : std::printf(" %9.1e\n", error);
        std::fflush(stdout);
        if (!json_.is_open()) return;
        nlohmann::ordered_json line{
            {"what", what},
            {"shape", shape},
            {"kernel", candidate.kernel.empty() ? candidate.name : candidate.kernel},
            {"tile", candidate.tile ? nlohmann::ordered_json(candidate.tile) : nullptr},
            {"stages", candidate.stages ? nlohmann::ordered_json(candidate.stages) : nullptr},
            {"ms", timing.seconds * 1e3},
            {"ms_min", timing.fastest * 1e3},
            {"ms_max", timing.slowest * 1e3},
            {"flops", dense},
            {"flops_executed", candidate.executed},
            {"ratio", ratio},
            {"device", backend_.describe()}};
        if (error >= 0) line["error"] = error;
        json_ << line.dump() << std::endl;
    }

    const Options& options_;
    CudaBackend backend_;
    Blas blas_;
    Noise noise_;
    std::unique_ptr<Backend> host_;
    std::vector<SymmetricStages> kernels_ = mma_stages();  // that this device has
    std::ofstream json_;
};

}  // namespace

int main(int argc, char** argv) {
    Options options;
    CLI::App app("Newton-Schulz on a GPU: kernels, forms, distance from the polynomial");
    app.add_option("--shapes", options.shapes, "ROWSxCOLUMNSxCOUNT, by commas");
    app.add_option("--windows", options.windows, "of each candidate")->check(CLI::Range(1, 1000));
    app.add_flag("--errors", options.errors,
                 "the distance from the polynomial, too, for sides up to 1024");
    app.add_option("--stages", options.stages,
                   "numbers of stages, by commas: sweep kernels and tiles")
        ->delimiter(',')
        ->check(CLI::Range(2, 8));
    app.add_option("--json", options.json, "a line for each row");
    CLI11_PARSE(app, argc, argv);
    try {
        NewtonSchulzBench(options).run();
    } catch (const std::exception& error) {
        std::fprintf(stderr, "newton_schulz_bench: %s\n", error.what());
        return 1;
    }
    return 0;
}
