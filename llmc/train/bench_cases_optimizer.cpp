// Cases of the optimizer, over the whole parameter list in one call as in a training step, and of
// reductions, conversion and clearing. Bytes count each tensor once for each time that it has to be
// read or written:
//
//   momentum  x and m twice           sign, zero            x twice, x
//   adam      x, m and v twice        sum, sum_of_squares   x
//   apply     w twice, x, the copy    convert               both
//   frobenius_normalize               x three times: nothing can be written before all is read
//   fused_update.lion   g, m twice, w twice, the copy; .adamw also v twice, .nsgd g and m once more
//
// FLOPs: a symmetric product those of the half that differs, Newton-Schulz those of plain products
// (llmc/norm/norm.cpp): an implementation that uses symmetry can exceed the ceiling.
#include <algorithm>

#include "llmc/norm/newton_schulz.h"
#include "llmc/train/bench_cases.h"

namespace lmo {

std::vector<MatrixBatch> matrix_batches(const ParameterList& parameters, bool wide) {
    std::vector<MatrixBatch> batches;
    for (const ParameterBlock& block : parameters.blocks(true)) {
        if (block.role != Role::matrix) continue;
        Shape shape = block.shape;
        if (wide && shape[0] > shape[1]) shape = {shape[1], shape[0]};
        const auto same = std::find_if(batches.begin(), batches.end(),
                                       [&](const MatrixBatch& b) { return b.shape == shape; });
        if (same == batches.end()) {
            batches.push_back({shape, 1});
        } else {
            ++same->count;
        }
    }
    return batches;
}

namespace {

// ---- optimizer ----------------------------------------------------------------------------------

std::vector<Shape> parameter_shapes(const BenchSizes& sizes) {
    std::vector<Shape> shapes;
    for (const ParameterBlock& block : llama_parameters(sizes.model).blocks(true)) {
        shapes.push_back(block.shape);
    }
    return shapes;
}

int64_t total_count(const std::vector<Shape>& shapes) {
    int64_t count = 0;
    for (const Shape& shape : shapes) count += shape.count();
    return count;
}

std::string describe(const std::vector<Shape>& shapes) {
    return std::to_string(total_count(shapes)) + " in " + std::to_string(shapes.size());
}

// Lion's momentum: two terms read, two written.
void add_momentum_and_adam(BenchCases& b, const std::vector<Shape>& shapes) {
    const double count = static_cast<double>(total_count(shapes));
    const DType master = b.master;
    b.memory_bound("momentum", describe(shapes), master, count * 4 * b.m, [=](BenchMemory& memory) {
        return memory.call(&Backend::momentum, Momentum{memory.keep(memory.inputs(master, shapes)),
                                                        memory.keep(memory.inputs(master, shapes)),
                                                        memory.scalar(1.0), 0.9, 0.1, 0.99, 0.01});
    });
    b.memory_bound("adam", describe(shapes), master, count * 6 * b.m, [=](BenchMemory& memory) {
        std::vector<Tensor> second;
        for (const Shape& shape : shapes) second.push_back(memory.zeros(master, shape));
        return memory.call(&Backend::adam,
                           Adam{memory.keep(memory.inputs(master, shapes)),
                                memory.keep(memory.inputs(master, shapes)), memory.keep(second),
                                memory.scalar(1.0), memory.scalar(10.0), 0.9, 0.95, 1e-8});
    });
}

void add_directions(BenchCases& b, const std::vector<Shape>& shapes) {
    const double count = static_cast<double>(total_count(shapes));
    const DType master = b.master;
    b.memory_bound("sign", describe(shapes), master, count * 2 * b.m, [=](BenchMemory& memory) {
        return memory.call(&Backend::sign, Sign{memory.keep(memory.inputs(master, shapes))});
    });
    b.memory_bound(
        "frobenius_normalize", describe(shapes), master, count * 3 * b.m, [=](BenchMemory& memory) {
            return memory.call(
                &Backend::frobenius_normalize,
                FrobeniusNormalize{memory.keep(memory.inputs(master, shapes)), 1e-8, {}});
        });
}

void add_apply(BenchCases& b, const std::vector<Shape>& shapes) {
    const bool copied = b.compute != b.master;
    const DType compute = b.compute, master = b.master;
    const double element = 3 * b.m + (copied ? b.c : 0);
    b.memory_bound("apply", describe(shapes), master,
                   static_cast<double>(total_count(shapes)) * element, [=](BenchMemory& memory) {
                       std::vector<Tensor> copies;
                       for (size_t i = 0; copied && i < shapes.size(); ++i) {
                           copies.push_back(memory.output(compute, shapes[i]));
                       }
                       return memory.call(
                           &Backend::apply,
                           Apply{memory.keep(memory.inputs(master, shapes)),
                                 memory.keep(memory.inputs(master, shapes)), memory.keep(copies),
                                 memory.scalar(1e-6), 1.0,
                                 memory.keep(std::vector<double>(shapes.size(), 1.0)),
                                 memory.keep(std::vector<double>(shapes.size(), 0.1))});
                   });
}

// Whole updates in one pass: Lion, AdamW and normalised SGD as the presets have them.
void add_fused_updates(BenchCases& b, const std::vector<Shape>& shapes) {
    const bool copied = b.compute != b.master;
    const DType compute = b.compute, master = b.master;
    const double count = static_cast<double>(total_count(shapes));
    const auto add = [&](const std::string& name, double lists, FusedDirection direction,
                         auto momentum) {
        b.memory_bound("fused_update." + name, describe(shapes), master,
                       count * (lists * b.m + (copied ? b.c : 0)), [=](BenchMemory& memory) {
                           std::vector<Tensor> copies;
                           for (size_t i = 0; copied && i < shapes.size(); ++i) {
                               copies.push_back(memory.output(compute, shapes[i]));
                           }
                           const Apply apply{memory.keep(memory.inputs(master, shapes)),
                                             {},
                                             memory.keep(copies),
                                             memory.scalar(1e-6),
                                             1.0,
                                             memory.keep(std::vector<double>(shapes.size(), 1.0)),
                                             memory.keep(std::vector<double>(shapes.size(), 0.1))};
                           return memory.call(&Backend::fused_update,
                                              FusedUpdate{momentum(memory), direction, apply});
                       });
    };
    const auto momentum = [=](double u_m, double u_g, double m_m, double m_g) {
        return [=](BenchMemory& memory) {
            return Momentum{memory.keep(memory.inputs(master, shapes)),
                            memory.keep(memory.inputs(master, shapes)),
                            memory.scalar(1.0),
                            u_m,
                            u_g,
                            m_m,
                            m_g};
        };
    };
    add("lion", 5, {FusedDirection::Type::sign}, momentum(0.9, 0.1, 0.99, 0.01));
    add("nsgd", 7, {FusedDirection::Type::frobenius, 1e-8}, momentum(0.81, 1.9, 0.9, 1.0));
    add("adamw", 7, {}, [=](BenchMemory& memory) {
        std::vector<Tensor> second;
        for (const Shape& shape : shapes) second.push_back(memory.zeros(master, shape));
        return Adam{memory.keep(memory.inputs(master, shapes)),
                    memory.keep(memory.inputs(master, shapes)),
                    memory.keep(second),
                    memory.scalar(1.0),
                    memory.scalar(10.0),
                    0.9,
                    0.95,
                    1e-8};
    });
}

// ---- matrices -----------------------------------------------------------------------------------

// Those of a model, as many of a shape as are wanted. `wide`: a tall matrix counts as its
// transpose.
std::vector<MatrixBatch> model_batches(const BenchSizes& sizes, bool wide) {
    std::vector<MatrixBatch> batches = matrix_batches(llama_parameters(sizes.model), wide);
    for (MatrixBatch& batch : batches) batch.count = std::min(batch.count, sizes.matrices);
    return batches;
}

void add_newton_schulz(BenchCases& b, const MatrixBatch& batch) {
    const NewtonSchulzSet set = newton_schulz_set("jordan", 5);
    const double flops = make_norm({NormType::spectral, set})->flops(batch.shape);
    const std::vector<Shape> shapes(static_cast<size_t>(batch.count), batch.shape);
    const DType master = b.master, inner = b.sizes.newton_schulz;
    b.compute_bound("newton_schulz", joined(batch.count, batch.shape[0], batch.shape[1]), inner,
                    flops * static_cast<double>(batch.count), [=](BenchMemory& memory) {
                        return memory.call(&Backend::newton_schulz,
                                           NewtonSchulz{memory.keep(memory.inputs(master, shapes)),
                                                        memory.keep(set).steps,
                                                        set.norm_scale,
                                                        set.eps,
                                                        {},
                                                        inner,
                                                        set.form,
                                                        memory.keep(set).restarts});
                    });
}

// A whole update of Muon's matrices: Nesterov's momentum, Newton-Schulz, new weights.
void add_spectral_update(BenchCases& b, const MatrixBatch& batch) {
    const NewtonSchulzSet set = newton_schulz_set("jordan", 5);
    const double flops = make_norm({NormType::spectral, set})->flops(batch.shape);
    const std::vector<Shape> shapes(static_cast<size_t>(batch.count), batch.shape);
    const bool copied = b.compute != b.master;
    const DType compute = b.compute, master = b.master, inner = b.sizes.newton_schulz;
    b.compute_bound("spectral_update", joined(batch.count, batch.shape[0], batch.shape[1]), inner,
                    flops * static_cast<double>(batch.count), [=](BenchMemory& memory) {
                        std::vector<Tensor> copies;
                        for (size_t i = 0; copied && i < shapes.size(); ++i) {
                            copies.push_back(memory.output(compute, shapes[i]));
                        }
                        SpectralUpdate op;
                        op.momentum = {memory.keep(memory.inputs(master, shapes)),
                                       memory.keep(memory.inputs(master, shapes)),
                                       memory.scalar(1.0),
                                       0.9025,
                                       1.95,
                                       0.95,
                                       1.0};
                        const NewtonSchulzSet& kept = memory.keep(set);
                        op.iteration = {op.momentum.x, kept.steps, kept.norm_scale, kept.eps, {},
                                        inner,         kept.form,  kept.restarts};
                        op.iteration.workspace =
                            memory.workspace(memory.backend().workspace_bytes(op.iteration));
                        op.apply = {memory.keep(memory.inputs(master, shapes)),
                                    {},
                                    memory.keep(copies),
                                    memory.scalar(1e-6),
                                    1.0,
                                    memory.keep(std::vector<double>(shapes.size(), 1.0)),
                                    memory.keep(std::vector<double>(shapes.size(), 0.1))};
                        return memory.call(&Backend::spectral_update, op);
                    });
}

// X X^T, as Newton-Schulz takes it.
void add_symmetric_product(BenchCases& b, const MatrixBatch& batch) {
    const int64_t n = batch.count, k = batch.shape[0], l = batch.shape[1];
    const DType compute = b.compute;
    b.compute_bound("symmetric_product", joined(n, k, l), compute,
                    static_cast<double>(n * l) * static_cast<double>(k * (k + 1)),
                    [=](BenchMemory& memory) {
                        return memory.call(&Backend::symmetric_product,
                                           SymmetricProduct{.a = memory.input(compute, {n, k, l}),
                                                            .s = {},
                                                            .c = memory.output(compute, {n, k, k}),
                                                            .workspace = {}});
                    });
}

// ---- reductions and copies ----------------------------------------------------------------------

void add_reductions(BenchCases& b, const std::vector<Shape>& shapes) {
    const int64_t N = b.sizes.rows(), n = static_cast<int64_t>(shapes.size());
    const DType master = b.master;
    b.memory_bound(
        "sum", joined(N), master, static_cast<double>(N) * b.m, [=](BenchMemory& memory) {
            return memory.call(&Backend::sum,
                               Sum{memory.input(master, {N}), memory.output(DType::f64, {1})});
        });
    b.memory_bound("sum_of_squares", describe(shapes), master,
                   static_cast<double>(total_count(shapes)) * b.m, [=](BenchMemory& memory) {
                       return memory.call(&Backend::sum_of_squares,
                                          SumOfSquares{memory.keep(memory.inputs(master, shapes)),
                                                       memory.output(DType::f64, {n}),
                                                       {}});
                   });
    b.memory_bound("clip_factor", joined(n), DType::f64, static_cast<double>(8 * n + 16),
                   [=](BenchMemory& memory) {
                       return memory.call(
                           &Backend::clip_factor,
                           ClipFactor{memory.zeros(DType::f64, {n}), memory.output(DType::f64, {1}),
                                      memory.output(DType::f64, {1}), 1.0});
                   });
}

void add_copies(BenchCases& b, int64_t count) {
    const double elements = static_cast<double>(count);
    const auto convert = [&](const std::string& name, DType from, DType to) {
        b.memory_bound(name, joined(count), to, elements * 6, [=](BenchMemory& memory) -> Call {
            const Tensor input = memory.input(from, {count}), output = memory.output(to, {count});
            return [&backend = memory.backend(), input, output] { backend.copy(output, input); };
        });
    };
    convert("convert_to_bf16", DType::f32, DType::bf16);
    convert("convert_to_fp32", DType::bf16, DType::f32);
    const DType master = b.master;
    b.memory_bound("zero", joined(count), master, elements * b.m, [=](BenchMemory& memory) -> Call {
        const Tensor tensor = memory.output(master, {count});
        return [&backend = memory.backend(), tensor] { backend.zero(tensor); };
    });
}

}  // namespace

void add_optimizer_cases(BenchCases& b) {
    const std::vector<Shape> shapes = parameter_shapes(b.sizes);
    add_reductions(b, shapes);
    add_momentum_and_adam(b, shapes);
    add_directions(b, shapes);
    add_apply(b, shapes);
    add_fused_updates(b, shapes);
    add_split_cases(b, shapes);
    add_copies(b, total_count(shapes));
    for (const MatrixBatch& batch : model_batches(b.sizes, true)) add_symmetric_product(b, batch);
    for (const MatrixBatch& batch : model_batches(b.sizes, false)) {
        add_newton_schulz(b, batch);
        add_spectral_update(b, batch);
    }
}

}  // namespace lmo
