// Cases of the forward and backward pass, an operation family a function. Letters as in
// llmc/device/backend.h. Bytes count each tensor once for each time that it has to be read or
// written:
//
//   embedding_forward    ids, the distinct rows of the table, out
//   embedding_backward   ids, dout, the distinct rows of dtable twice
//   rmsnorm_forward      x, branch, sum, out          rmsnorm_backward  x, dout, dx twice, dbranch
//   rope                 q and k twice, the table     classifier        logits twice (loss: once)
//   swiglu_forward       gate_up, out                 swiglu_backward   gate_up, dout, dgate_up
//
// FLOPs: a GEMM 2 m n k; causal attention 2 B H T^2 D forward and 5 B H T^2 D backward, half of
// those of the square.
#include <algorithm>
#include <cmath>
#include <set>

#include "llmc/core/random.h"
#include "llmc/train/bench_cases.h"
#include "llmc/train/config.h"

namespace lmo {

namespace {

// Token ids as in text: the k-th frequent one about 1/k times as often as the first.
std::vector<int32_t> token_ids(int64_t count, int64_t vocabulary) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) {
        const double u = random_uniform(2, 0, static_cast<uint64_t>(i));
        const double rank = std::pow(static_cast<double>(vocabulary), u) - 1.0;
        ids.push_back(
            static_cast<int32_t>(std::min<int64_t>(static_cast<int64_t>(rank), vocabulary - 1)));
    }
    return ids;
}

// ---- model --------------------------------------------------------------------------------------

void add_embedding(BenchCases& b) {
    const int64_t N = b.sizes.rows(), C = b.sizes.model.d_model, V = b.sizes.model.vocab_size;
    const std::vector<int32_t> ids = token_ids(N, V);
    const double rows = static_cast<double>(N), width = static_cast<double>(C);
    const double distinct = static_cast<double>(std::set(ids.begin(), ids.end()).size());
    const DType compute = b.compute, residual = b.residual, master = b.master;

    b.memory_bound("embedding_forward", joined(N, C), residual,
                   rows * (4 + width * b.r) + distinct * width * b.c, [=](BenchMemory& memory) {
                       return memory.call(
                           &Backend::embedding_forward,
                           EmbeddingForward{memory.ids(ids), memory.input(compute, {V, C}),
                                            memory.output(residual, {N, C})});
                   });
    b.memory_bound("embedding_backward", joined(N, C), residual,
                   rows * (4 + width * b.r) + distinct * width * 2 * b.m, [=](BenchMemory& memory) {
                       return memory.call(&Backend::embedding_backward,
                                          EmbeddingBackward{memory.ids(ids),
                                                            memory.input(residual, {N, C}),
                                                            memory.zeros(master, {V, C}),
                                                            {}});
                   });
}

void add_rmsnorm(BenchCases& b) {
    const int64_t N = b.sizes.rows(), C = b.sizes.model.d_model;
    const double count = static_cast<double>(N * C), rows = static_cast<double>(N);
    const double gains = static_cast<double>(C);
    const DType compute = b.compute, residual = b.residual, master = b.master;
    const double eps = b.sizes.model.norm_eps;
    const bool copied = compute != residual;  // else the branch's gradient is dx itself

    b.memory_bound(
        "rmsnorm_forward", joined(N, C), compute,
        count * (2 * b.r + 2 * b.c) + rows * b.m + gains * b.c, [=](BenchMemory& memory) {
            return memory.call(
                &Backend::rmsnorm_forward,
                RmsNormForward{memory.input(residual, {N, C}), memory.input(compute, {N, C}),
                               memory.input(compute, {C}), memory.output(residual, {N, C}),
                               memory.output(compute, {N, C}), memory.output(master, {N}), eps});
        });
    b.memory_bound(
        "rmsnorm_backward", joined(N, C), compute,
        count * (3 * b.r + (copied ? 2 : 1) * b.c) + rows * b.m + gains * (b.c + 2 * b.m),
        [=](BenchMemory& memory) {
            return memory.call(&Backend::rmsnorm_backward,
                               RmsNormBackward{memory.input(residual, {N, C}),
                                               memory.input(compute, {C}),
                                               memory.input(master, {N}),
                                               memory.input(compute, {N, C}),
                                               memory.input(residual, {N, C}),
                                               memory.zeros(master, {C}),
                                               copied ? memory.output(compute, {N, C}) : Tensor{},
                                               {}});
        });
}

void add_rope(BenchCases& b) {
    const LlamaConfig& model = b.sizes.model;
    const int64_t B = b.sizes.sequences, T = b.sizes.positions, D = model.head_size();
    const int64_t heads = model.n_head + model.n_kv_head, width = model.qkv_size();
    const DType compute = b.compute, master = b.master;
    const int H = static_cast<int>(model.n_head), K = static_cast<int>(model.n_kv_head);
    b.memory_bound(
        "rope", joined(B, T, width), compute,
        static_cast<double>(B * T * heads * D) * 2 * b.c + static_cast<double>(T * D) * b.m,
        [=](BenchMemory& memory) {
            std::vector<float> table;
            for (int64_t i = 0; i < T * (D / 2); ++i) {
                table.push_back(std::cos(static_cast<float>(i)));
                table.push_back(std::sin(static_cast<float>(i)));
            }
            const Tensor angles = memory.input(master, {T, D / 2, 2});
            memory.backend().copy_in(angles, table.data());
            return memory.call(&Backend::rope,
                               Rope{memory.input(compute, {B, T, width}), angles, H, K});
        });
}

void add_swiglu(BenchCases& b) {
    const int64_t N = b.sizes.rows(), F = b.sizes.model.d_ff;
    const double count = static_cast<double>(N * F);
    const DType compute = b.compute;
    b.memory_bound(
        "swiglu_forward", joined(N, F), compute, count * 3 * b.c, [=](BenchMemory& memory) {
            return memory.call(
                &Backend::swiglu_forward,
                SwigluForward{memory.input(compute, {N, 2 * F}), memory.output(compute, {N, F})});
        });
    b.memory_bound(
        "swiglu_backward", joined(N, F), compute, count * 5 * b.c, [=](BenchMemory& memory) {
            return memory.call(
                &Backend::swiglu_backward,
                SwigluBackward{memory.input(compute, {N, 2 * F}), memory.input(compute, {N, F}),
                               memory.output(compute, {N, 2 * F})});
        });
}

// At every call but the first the logits are what the call before made of them: gradients.
void add_classifier(BenchCases& b) {
    const int64_t N = b.sizes.chunk_rows, V = b.sizes.model.vocab_size;
    const DType compute = b.compute, master = b.master;
    for (const double scale : {0.0, 1.0}) {
        const bool gradient = scale != 0.0;
        b.memory_bound(gradient ? "classifier" : "classifier_loss", joined(N, V), compute,
                       static_cast<double>(N * V) * (gradient ? 2 : 1) * b.c +
                           static_cast<double>(N) * (4 + b.m),
                       [=](BenchMemory& memory) {
                           return memory.call(&Backend::classifier,
                                              Classifier{memory.input(compute, {N, V}),
                                                         memory.ids(token_ids(N, V)),
                                                         memory.output(master, {N}), scale});
                       });
    }
}

// ---- dense --------------------------------------------------------------------------------------

struct AttentionShape {
    int64_t B, T, H, K, D;
    bool operator==(const AttentionShape&) const = default;
};

// Forward and backward; `library`: by cuDNN.
void add_attention(BenchCases& b, const AttentionShape& s, bool library) {
    const DType compute = b.compute, master = b.master;
    const double square = static_cast<double>(s.B * s.H * s.T) * static_cast<double>(s.T * s.D);
    const std::string shape = joined(s.B, s.H, s.T, s.D), by = library ? ".cudnn" : "";
    const auto forward = [=](BenchMemory& memory) {
        return AttentionForward{memory.input(compute, {s.B, s.T, (s.H + 2 * s.K) * s.D}),
                                memory.output(compute, {s.B, s.T, s.H * s.D}),
                                memory.output(master, {s.B, s.H, s.T}),
                                static_cast<int>(s.H),
                                static_cast<int>(s.K),
                                {},
                                {},
                                library};
    };
    b.compute_bound("attention_forward" + by, shape, compute, 2 * square, [=](BenchMemory& memory) {
        return memory.call(&Backend::attention_forward, forward(memory));
    });
    b.compute_bound(
        "attention_backward" + by, shape, compute, 5 * square, [=](BenchMemory& memory) {
            const AttentionForward f = forward(memory);
            memory.call(&Backend::attention_forward, f)();  // out and lse have to fit q, k, v
            const AttentionBackward backward{f.qkv,
                                             f.out,
                                             f.lse,
                                             memory.input(compute, f.out.shape),
                                             memory.output(compute, f.qkv.shape),
                                             f.heads,
                                             f.kv_heads,
                                             {},
                                             library};
            return memory.call(&Backend::attention_backward, backward);
        });
}

void add_attention_one(BenchCases& b, const AttentionShape& s) {
    const DType compute = b.compute;
    const double kept = static_cast<double>((2 * s.T * s.K + 2 * s.H) * s.D);
    b.memory_bound(
        "attention_one", joined(s.H, s.T, s.D), compute, kept * b.c, [=](BenchMemory& memory) {
            return memory.call(&Backend::attention_one,
                               AttentionOne{memory.input(compute, {1, s.T, (s.H + 2 * s.K) * s.D}),
                                            memory.output(compute, {s.H * s.D}),
                                            static_cast<int>(s.H),
                                            static_cast<int>(s.K),
                                            {}});
        });
}

// The model's own, and heads of 64 and 128 side by side in its width.
void add_attentions(BenchCases& b) {
    const LlamaConfig& model = b.sizes.model;
    const int64_t N = b.sizes.rows();
    std::vector<AttentionShape> shapes{
        {b.sizes.sequences, b.sizes.positions, model.n_head, model.n_kv_head, model.head_size()}};
    for (const auto& [D, longest] : {std::pair{64, 2048}, std::pair{128, 4096}}) {
        for (int64_t T = 512; T <= std::min<int64_t>(longest, N); T *= 2) {
            const int64_t H = std::max<int64_t>(1, model.d_model / D);
            const AttentionShape shape{N / T, T, H, H, D};
            if (shape != shapes[0]) shapes.push_back(shape);
        }
    }
    for (const AttentionShape& shape : shapes) {
        add_attention(b, shape, false);
        add_attention_one(b, shape);
        if (b.sizes.library_attention) add_attention(b, shape, true);
    }
}

// y [N, out] = x [N, in] w^T, dx = dy w, and dw += dy^T x in master type.
void add_linear(BenchCases& b, const std::string& name, int64_t N, int64_t in, int64_t out) {
    const DType compute = b.compute, master = b.master;
    const double flops =
        2.0 * static_cast<double>(N) * static_cast<double>(in) * static_cast<double>(out);
    b.compute_bound("gemm." + name + ".forward", joined(N, out, in) + " nt", compute, flops,
                    [=](BenchMemory& memory) {
                        return memory.call(&Backend::gemm,
                                           Gemm{.a = memory.input(compute, {N, in}),
                                                .b = memory.input(compute, {out, in}),
                                                .c = memory.output(compute, {N, out}),
                                                .transpose_b = true,
                                                .workspace = {}});
                    });
    b.compute_bound("gemm." + name + ".dgrad", joined(N, in, out) + " nn", compute, flops,
                    [=](BenchMemory& memory) {
                        return memory.call(&Backend::gemm,
                                           Gemm{.a = memory.input(compute, {N, out}),
                                                .b = memory.input(compute, {out, in}),
                                                .c = memory.output(compute, {N, in}),
                                                .workspace = {}});
                    });
    b.compute_bound("gemm." + name + ".wgrad", joined(out, in, N) + " tn", compute, flops,
                    [=](BenchMemory& memory) {
                        return memory.call(&Backend::gemm,
                                           Gemm{.a = memory.input(compute, {N, out}),
                                                .b = memory.input(compute, {N, in}),
                                                .c = memory.zeros(master, {out, in}),
                                                .transpose_a = true,
                                                .beta = 1.0,
                                                .workspace = {}});
                    });
}

void add_linears(BenchCases& b) {
    const LlamaConfig& model = b.sizes.model;
    const int64_t N = b.sizes.rows(), C = model.d_model, F = model.d_ff;
    add_linear(b, "qkv", N, C, model.qkv_size());
    add_linear(b, "o", N, C, C);
    add_linear(b, "gate_up", N, C, 2 * F);
    add_linear(b, "down", N, F, C);
    add_linear(b, "head", b.sizes.chunk_rows, C, model.vocab_size);
}

}  // namespace

void add_model_cases(BenchCases& b) {
    add_embedding(b);
    add_rmsnorm(b);
    add_rope(b);
    add_swiglu(b);
    add_classifier(b);
    add_attentions(b);
    add_linears(b);
}

BenchCases::BenchCases(const BenchSizes& s)
    : sizes(s),
      compute(s.precision.compute),
      residual(s.precision.residual),
      master(s.precision.master),
      c(static_cast<double>(size_of(compute))),
      r(static_cast<double>(size_of(residual))),
      m(static_cast<double>(size_of(master))) {}

LlamaConfig bench_model(const std::string& config) {
    if (!config.empty()) return load_config(config, {}, ConfigUse::model).model;
    LlamaConfig model;  // configs/model/llama-124m.json
    model.n_layer = model.n_head = model.n_kv_head = 12;
    model.d_model = 768;
    model.d_ff = 2048;
    model.vocab_size = 50304;
    model.seq_len = 512;
    return model;
}

std::vector<BenchCase> bench_cases(const BenchSizes& sizes) {
    BenchCases cases(sizes);
    add_model_cases(cases);
    add_optimizer_cases(cases);
    add_lmo_cases(cases);
    return cases.list;
}

}  // namespace lmo
