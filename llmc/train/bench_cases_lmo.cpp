// Cases of the other norms and step rules. Bytes count each tensor once for each time that it has
// to be read or written:
//
//   line_normalize        x twice: a line at a time     row_moment_normalize  x three times
//   dot_products          both                          singular_range        x at each product
//   head_maxima           the maxima of rows            qk_clip               q, k twice; copies
//
// Jacobi rotations are for research: schatten_direction is measured on 128 x 128 matrices, and its
// FLOPs are those of the singular value decomposition that Golub & Van Loan (Matrix Computations,
// 8.6) count, 6 m n^2 + 20 n^3. With p = 2 the singular values stay as they are, and with a largest
// score just above its limit the weights of qk_clip, however often they are measured.
#include <algorithm>

#include "llmc/train/bench_cases.h"

namespace lmo {

namespace {

struct Matrices {
    std::vector<Shape> shapes;  // of the hidden matrices
    double elements = 0, rows = 0;
    std::string text;

    explicit Matrices(const BenchSizes& sizes) {
        for (const ParameterBlock& block : llama_parameters(sizes.model).blocks(true)) {
            if (block.role != Role::matrix) continue;
            shapes.push_back(block.shape);
            elements += static_cast<double>(block.shape.count());
            rows += static_cast<double>(block.shape.rows());
        }
        text =
            std::to_string(static_cast<int64_t>(elements)) + " in " + std::to_string(shapes.size());
    }
};

void add_lines(BenchCases& b, const Matrices& of) {
    const DType master = b.master;
    for (const bool columns : {false, true}) {
        b.memory_bound(
            std::string("line_normalize.") + (columns ? "columns" : "rows"), of.text, master,
            of.elements * 2 * b.m, [=](BenchMemory& memory) {
                return memory.call(
                    &Backend::line_normalize,
                    LineNormalize{memory.keep(memory.inputs(master, of.shapes)), columns, 1e-8});
            });
    }
    b.memory_bound("row_moment_normalize", of.text, master, (of.elements * 3 + of.rows * 2) * b.m,
                   [=](BenchMemory& memory) {
                       std::vector<Tensor> second;
                       for (const Shape& shape : of.shapes) {
                           second.push_back(memory.zeros(master, {shape.rows()}));
                       }
                       return memory.call(
                           &Backend::row_moment_normalize,
                           RowMomentNormalize{memory.keep(memory.inputs(master, of.shapes)),
                                              memory.keep(second),
                                              0.95,
                                              1e-8,
                                              {}});
                   });
}

void add_steps(BenchCases& b, const Matrices& of) {
    const DType master = b.master;
    const int64_t n = static_cast<int64_t>(of.shapes.size());
    b.memory_bound("dot_products", of.text, master, of.elements * 2 * b.m,
                   [=](BenchMemory& memory) {
                       return memory.call(&Backend::dot_products,
                                          DotProducts{memory.keep(memory.inputs(master, of.shapes)),
                                                      memory.keep(memory.inputs(master, of.shapes)),
                                                      memory.output(DType::f64, {n}),
                                                      {}});
                   });
    b.memory_bound("step_sizes", joined(n), DType::f64, static_cast<double>(16 * n),
                   [=](BenchMemory& memory) {
                       const std::vector<double> ones(of.shapes.size(), 1.0);
                       StepSizes op{};
                       op.rule = StepRule::gluon;
                       op.radius = op.l0 = op.l1 = memory.keep(ones);
                       op.dot = memory.zeros(DType::f64, {n});
                       op.out = memory.output(DType::f64, {n});
                       return memory.call(&Backend::step_sizes, op);
                   });
}

void add_singular(BenchCases& b, const Matrices& of) {
    const DType master = b.master;
    const int64_t n = static_cast<int64_t>(of.shapes.size());
    const int iterations = 4;
    b.memory_bound("singular_range", of.text, master, of.elements * (2 * iterations + 1) * b.m,
                   [=](BenchMemory& memory) {
                       return memory.call(
                           &Backend::singular_range,
                           SingularRange{memory.keep(memory.inputs(master, of.shapes)),
                                         iterations,
                                         false,
                                         memory.output(DType::f64, {n, 2}),
                                         {}});
                   });
    const int64_t side = std::min<int64_t>(128, b.sizes.model.d_model);
    const int64_t count = std::min<int64_t>(b.sizes.matrices, 64);
    const std::vector<Shape> squares(static_cast<size_t>(count), Shape{side, side});
    b.compute_bound("schatten_direction", joined(count, side, side), master,
                    static_cast<double>(count * 26 * side * side * side), [=](BenchMemory& memory) {
                        return memory.call(
                            &Backend::schatten_direction,
                            SchattenDirection{memory.keep(memory.inputs(master, squares)), 2, {}});
                    });
}

void add_qk_clip(BenchCases& b) {
    const LlamaConfig& model = b.sizes.model;
    const DType compute = b.compute, master = b.master;
    const int64_t H = model.n_head, K = model.n_kv_head, D = model.head_size(), C = model.d_model;
    const Shape rows{b.sizes.sequences, H, b.sizes.positions};
    b.memory_bound("head_maxima", joined(rows[0], rows[1], rows[2]), master,
                   static_cast<double>(rows.count()) * b.m, [=](BenchMemory& memory) {
                       return memory.call(
                           &Backend::head_maxima,
                           HeadMaxima{memory.input(master, rows), memory.zeros(master, {H})});
                   });
    const bool copied = compute != master;
    const double element = 2 * b.m + (copied ? b.c : 0);
    b.memory_bound("qk_clip", joined((H + K) * D, C), master,
                   static_cast<double>((H + K) * D * C) * element, [=](BenchMemory& memory) {
                       QkClip op{};
                       op.q = memory.input(master, {H * D, C});
                       op.k = memory.input(master, {K * D, C});
                       if (copied) {
                           op.q_copy = memory.output(compute, {H * D, C});
                           op.k_copy = memory.output(compute, {K * D, C});
                       }
                       op.maxima = memory.zeros(DType::f32, {H});
                       const std::vector<float> above(static_cast<size_t>(H), 1.0000001f);
                       memory.backend().copy_in(op.maxima, above.data());
                       op.heads = static_cast<int>(H);
                       op.kv_heads = static_cast<int>(K);
                       op.limit = 1.0;
                       return memory.call(&Backend::qk_clip, op);
                   });
}

}  // namespace

void add_lmo_cases(BenchCases& b) {
    const Matrices matrices(b.sizes);
    add_lines(b, matrices);
    add_steps(b, matrices);
    add_singular(b, matrices);
    add_qk_clip(b);
}

}  // namespace lmo
