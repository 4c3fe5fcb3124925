// Newton-Schulz orthogonalisation of many matrices of one shape at once: a batch of products a
// step.
//
// X = x / (||x||_F * norm_scale + eps) with its shorter side first (newton_schulz_batch.h), then
// for each step (a, b, c)
//   standard  R = X X^T,  M = a I + b R + c R R,  X' = M X
//   gram      R = X X^T once,  M as above,  Q' = M Q,  R' = M R M;  X = Q X at the end and before
//             steps `restarts`, where R is made anew
// R, M and Q are polynomials of one symmetric matrix, so they commute and their products are
// symmetric: half of each is computed (symmetric.h). With sides s <= l, in units of s^2 l and s^3
// operations of such halves: a standard step takes 3 and 1, the gram form 3 at the start and for
// each restart, and 4 a step less a few. It is the form of Dao-AILab's gram-newton-schulz, except
// that there a I stays outside of M; in fp16 the two are about equally far from the polynomial.
//
// Matrices inside are of type `inner`; products are accumulated in fp32. fp16 has three bits more
// than bf16 for the same time, and its range is ample: ||X||_F is at most 1 at the start, singular
// values stay below about 1.3 with the published coefficients, so entries of R stay below 2, and Q
// is bounded by the product of the a's between restarts, below 100. The norm is a sum in double.
//
// Long lists are cut into chunks that depend on their length and on the shape alone.
//
// Traffic besides the products, bytes an element (fp16): 4 for the norm, 4 + 2 to bring X in, 2 + 4
// to write it back. A whole update reads gradient and momentum for the norm (8), reads them again,
// writes the momentum and X (14), and reads X, reads and writes the weight and writes its copy (12
// with bf16): 34, where one operation after another takes 46.
#include <algorithm>
#include <array>
#include <utility>

#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/direction_sums.h"
#include "llmc/cuda/newton_schulz_batch.h"
#include "llmc/cuda/symmetric.h"
#include "llmc/cuda/symmetric_choice.h"
#include "llmc/device/sublists.h"

namespace lmo::cuda {

namespace {

constexpr int64_t kChunkBytes = int64_t{256} << 20;  // of a batch in the workspace, at most

// The gram form pays from this ratio of the sides on, and for sides whose products are more than
// launches (FLOPs: gpu.md 3.2).
constexpr double kGramRatio = 1.5;
constexpr int64_t kGramSide = 256;

NewtonSchulzForm form_of(const NewtonSchulz& op, const BatchShape& shape) {
    if (op.form != NewtonSchulzForm::automatic) return op.form;
    const bool pays =
        op.inner == DType::f16 && shape.shorter >= kGramSide &&
        static_cast<double>(shape.longer) >= kGramRatio * static_cast<double>(shape.shorter);
    return pays ? NewtonSchulzForm::gram : NewtonSchulzForm::standard;
}

int64_t squares_of(NewtonSchulzForm form) { return form == NewtonSchulzForm::gram ? 4 : 2; }

// Where everything is in the workspace, as offsets in bytes.
struct Plan {
    BatchShape shape;
    NewtonSchulzForm form;
    int64_t batch = 0;  // matrices of a chunk, at most
    size_t sums = 0, norm = 0, blas = 0, x[2] = {}, squares[4] = {}, bytes = 0;
    size_t norm_bytes = 0;
};

Plan plan_of(const CudaBackend& backend, const NewtonSchulz& op) {
    const BatchShape s(op.x[0].shape);
    Plan plan{s, form_of(op, s)};
    const int64_t matrices = static_cast<int64_t>(op.x.size());
    const int64_t element = static_cast<int64_t>(size_of(op.inner));
    const int64_t x_bytes = s.elements() * element, square_bytes = s.shorter * s.shorter * element;
    const int64_t each = 2 * x_bytes + squares_of(plan.form) * square_bytes;
    const int64_t largest = std::clamp<int64_t>(kChunkBytes / each, 1, kBatchMatrices);
    const int64_t chunks = (matrices + largest - 1) / largest;
    plan.batch = (matrices + chunks - 1) / chunks;  // chunks of about equal size
    const auto take = [&](int64_t bytes) {
        return std::exchange(plan.bytes,
                             plan.bytes + static_cast<size_t>((bytes + 255) / 256 * 256));
    };
    plan.sums = take(matrices * 8);
    plan.norm_bytes = backend.workspace_bytes(SumOfSquares{op.x, {}, {}});
    plan.norm = take(static_cast<int64_t>(plan.norm_bytes));
    plan.blas = take(static_cast<int64_t>(Blas::workspace_bytes(s.shorter, s.longer, plan.batch)));
    for (size_t& x : plan.x) x = take(plan.batch * x_bytes);
    for (int64_t i = 0; i < squares_of(plan.form); ++i) {
        plan.squares[i] = take(plan.batch * square_bytes);
    }
    return plan;
}

double* doubles(void* memory) { return static_cast<double*>(memory); }

// ---- products of a batch ------------------------------------------------------------------------

// Side by side, one for each matrix of the chunk.
struct Wide {  // [shorter, longer]
    void* data;
};
struct Square {  // [shorter, shorter], symmetric
    void* data;
};

class DeviceProducts {
  public:
    DeviceProducts(const BatchShape& shape, DType type, int64_t batch, SymmetricKernel kernel,
                   Blas& blas, void* workspace, Stream stream)
        : shape_(shape),
          type_(type),
          batch_(batch),
          kernel_(kernel),
          blas_(blas),
          workspace_(workspace),
          stream_(stream) {}

    // to = scale x x^T + diagonal I
    void gram(Square to, Wide x, double scale = 1, double diagonal = 0) const {
        symmetric(to, scale, x.data, x.data, shape_.longer, 0, {}, diagonal);
    }
    // to = left right
    void multiply(Square to, Square left, Square right) const {
        symmetric(to, 1, left.data, right.data, shape_.shorter, 0, {}, 0);
    }
    // to = a I + b r + c r r
    void polynomial(Square to, const NewtonSchulzStep& step, Square r) const {
        if (step.c != 0) {
            symmetric(to, step.c, r.data, r.data, shape_.shorter, step.b, r, step.a);
        } else {
            affine(to.data, r.data, type_, batch_, shape_.shorter, step.b, step.a, stream_);
        }
    }
    // to = left right
    void multiply(Wide to, Square left, Wide right) const {
        blas_.run(plain(to.data, left.data, right.data, shape_.longer, shape_.shorter), workspace_,
                  stream_);
    }

  private:
    // to [shorter, n] = a [shorter, k] b [k, n]
    Product plain(void* to, const void* a, const void* b, int64_t n, int64_t k) const {
        Product p;
        p.type = p.type_out = type_;
        p.m = shape_.shorter;
        p.n = n;
        p.k = k;
        p.batch = batch_;
        p.a = a;
        p.b = b;
        p.d = to;
        p.lda = k;
        p.ldb = p.ldc = p.ldd = n;
        p.stride_a = p.m * k;
        p.stride_b = k * n;
        p.stride_c = p.stride_d = p.m * n;
        return p;
    }

    // to = alpha left right^T + beta add + diagonal I, with left, right [shorter, k]
    void symmetric(Square to, double alpha, const void* left, const void* right, int64_t k,
                   double beta, Square add, double diagonal) const {
        const int64_t n = shape_.shorter;
        if (kernel_ != SymmetricKernel::blas) {
            const SymmetricGemm op{type_,
                                   n,
                                   k,
                                   batch_,
                                   left,
                                   right,
                                   add.data,
                                   to.data,
                                   static_cast<float>(alpha),
                                   static_cast<float>(beta),
                                   static_cast<float>(diagonal)};
            return symmetric_gemm(kernel_, op, stream_);
        }
        Product p = plain(to.data, left, right, n, k);
        p.transpose_b = true;
        p.ldb = k;
        p.alpha = static_cast<float>(alpha);
        p.beta = static_cast<float>(beta);
        p.c = add.data;
        blas_.run(p, workspace_, stream_);
        if (diagonal != 0) affine(to.data, to.data, type_, batch_, n, 1, diagonal, stream_);
    }

    const BatchShape& shape_;
    DType type_;
    int64_t batch_;
    SymmetricKernel kernel_;
    Blas& blas_;
    void* workspace_;
    Stream stream_;
};

// In their place: counts their operations for one matrix.
class CountedProducts {
  public:
    CountedProducts(const BatchShape& shape, SymmetricKernel kernel)
        : shape_(shape), kernel_(kernel) {}

    void gram(Square, Wide, double = 1, double = 0) { symmetric(shape_.longer); }
    void multiply(Square, Square, Square) { symmetric(shape_.shorter); }
    void polynomial(Square, const NewtonSchulzStep& step, Square) {
        if (step.c != 0) symmetric(shape_.shorter);
    }
    void multiply(Wide, Square, Wide) {
        flops += 2.0 * static_cast<double>(shape_.shorter * shape_.shorter) *
                 static_cast<double>(shape_.longer);
    }

    double flops = 0;

  private:
    void symmetric(int64_t k) { flops += lmo::cuda::executed_flops(kernel_, shape_.shorter, k, 1); }

    const BatchShape& shape_;
    SymmetricKernel kernel_;
};

// ---- the two forms ------------------------------------------------------------------------------
// Both return where the result is: in x or in other.

template <typename Products>
Wide standard_form(Products& products, std::span<const NewtonSchulzStep> steps, Wide x, Wide other,
                   Square r, Square m) {
    for (const NewtonSchulzStep& step : steps) {
        if (step.c == 0) {
            products.gram(m, x, step.b, step.a);
        } else {
            products.gram(r, x);
            products.polynomial(m, step, r);
        }
        products.multiply(other, m, x);
        std::swap(x, other);
    }
    return x;
}

template <typename Products>
Wide gram_form(Products& products, std::span<const NewtonSchulzStep> steps,
               std::span<const int> restarts, Wide x, Wide other,
               const std::array<Square, 4>& squares) {
    Square r = squares[0], m = squares[1], q = squares[2], spare = squares[3];
    bool fresh = true;  // q is the identity
    const auto absorb = [&] {
        if (fresh) return;
        products.multiply(other, q, x);
        std::swap(x, other);
        fresh = true;
    };
    const auto restarts_at = [&](size_t step) {
        return std::find(restarts.begin(), restarts.end(), static_cast<int>(step)) !=
               restarts.end();
    };
    for (size_t i = 0; i < steps.size(); ++i) {
        if (restarts_at(i)) absorb();
        if (fresh) products.gram(r, x);
        products.polynomial(m, steps[i], r);
        if (i + 1 < steps.size() && !restarts_at(i + 1)) {  // r is wanted again
            products.multiply(spare, r, m);
            products.multiply(r, m, spare);
        }
        if (fresh) {
            std::swap(q, m);
        } else {
            products.multiply(spare, m, q);
            std::swap(q, spare);
        }
        fresh = false;
    }
    absorb();
    return x;
}

template <typename Products>
Wide iterate(Products& products, const NewtonSchulz& op, NewtonSchulzForm form, Wide x, Wide other,
             const std::array<Square, 4>& squares) {
    return form == NewtonSchulzForm::gram
               ? gram_form(products, op.steps, op.restarts, x, other, squares)
               : standard_form(products, op.steps, x, other, squares[0], squares[1]);
}

// Runs the iteration for the operation's matrices, a chunk at a time. bring_in(first, count,
// normalisation, batch) and write_back(first, count, batch) move matrices [first, first + count).
template <typename BringIn, typename WriteBack>
void run_chunks(const NewtonSchulz& op, const Plan& plan, SymmetricKernel kernel, Blas& blas,
                Stream stream, const BringIn& bring_in, const WriteBack& write_back) {
    const size_t matrices = op.x.size(), most = static_cast<size_t>(plan.batch);
    char* memory = op.workspace.as<char>();
    const auto square = [&](int i) { return Square{memory + plan.squares[i]}; };
    const Wide x{memory + plan.x[0]}, other{memory + plan.x[1]};
    const double* sums = doubles(memory + plan.sums);
    for (size_t first = 0; first < matrices; first += most) {
        const size_t count = std::min(most, matrices - first);
        bring_in(first, count, Normalisation{sums + first, op.norm_scale, op.eps}, x.data);
        DeviceProducts products(plan.shape, op.inner, static_cast<int64_t>(count), kernel, blas,
                                memory + plan.blas, stream);
        const Wide result = iterate(products, op, plan.form, x, other,
                                    {square(0), square(1), square(2), square(3)});
        write_back(first, count, result.data);
    }
}

}  // namespace

double CudaBackend::executed_flops(const NewtonSchulz& op) const {
    if (op.x.empty() || op.x[0].count() == 0) return 0;
    const BatchShape shape(op.x[0].shape);
    CountedProducts products(shape, symmetric_kernel(op.inner, shape.shorter));
    iterate(products, op, form_of(op, shape), {}, {}, {});
    return products.flops * static_cast<double>(op.x.size());
}

size_t CudaBackend::workspace_bytes(const NewtonSchulz& op) const {
    if (op.x.empty() || op.x[0].count() == 0) return 0;
    return plan_of(*this, op).bytes;
}

void CudaBackend::newton_schulz(const NewtonSchulz& op) {
    if (op.x.empty() || op.x[0].count() == 0) return;
    const Plan plan = plan_of(*this, op);
    assert(op.workspace.bytes() >= plan.bytes);
    char* memory = op.workspace.as<char>();
    sum_of_squares({op.x,
                    {memory + plan.sums, DType::f64, {static_cast<int64_t>(op.x.size())}},
                    {memory + plan.norm, DType::f64, {static_cast<int64_t>(plan.norm_bytes / 8)}}});
    run_chunks(
        op, plan, symmetric_kernel(op.inner, plan.shape.shorter), *blas_, stream_,
        [&](size_t first, size_t count, const Normalisation& normalisation, void* batch) {
            bring_in(op.x.subspan(first, count), plan.shape, normalisation, op.inner, batch,
                     stream_);
        },
        [&](size_t first, size_t count, const void* batch) {
            write_back(op.x.subspan(first, count), plan.shape, op.inner, batch, stream_);
        });
}

void CudaBackend::spectral_update(const SpectralUpdate& op) {
    NewtonSchulz iteration = op.iteration;
    iteration.x = op.momentum.x;
    if (iteration.x.empty() || iteration.x[0].count() == 0) return;
    const Plan plan = plan_of(*this, iteration);
    assert(iteration.workspace.bytes() >= plan.bytes && op.apply.x.empty());
    char* memory = iteration.workspace.as<char>();
    sum_directions(op.momentum, doubles(memory + plan.sums), doubles(memory + plan.norm), stream_);
    run_chunks(
        iteration, plan, symmetric_kernel(iteration.inner, plan.shape.shorter), *blas_, stream_,
        [&](size_t first, size_t count, const Normalisation& normalisation, void* batch) {
            bring_in(some_of(op.momentum, first, count), plan.shape, normalisation, iteration.inner,
                     batch, stream_);
        },
        [&](size_t first, size_t count, const void* batch) {
            write_back(some_of(op.apply, first, count), plan.shape, iteration.inner, batch,
                       stream_);
        });
}

}  // namespace lmo::cuda
