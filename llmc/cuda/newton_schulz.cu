// Newton-Schulz orthogonalisation of many matrices of one shape at once: a batch of products a
// step.
//
// X = x / (||x||_F * norm_scale + eps), then for each step (a, b, c), where x has no more rows than
// columns,
//   A = X X^T,  B = b A + c A A,  X' = B X + a X,
// and A = X^T X, X' = X B + a X where it has more: the same function, without a transposition.
//
// The sums with A and X are the beta of the products, so a step is three of them (two where c is 0)
// and nothing else: with sides s <= l, 4 s^2 l + 2 s^3 operations in tensor cores. A and B are
// symmetric up to rounding, so they may be read by rows or by columns, whichever is contiguous.
//
// X, X', A and B are of type `inner`; products are accumulated in fp32. fp16 has three bits more
// than bf16 for the same time, and its range is ample: ||X||_F is at most 1 at the start, singular
// values stay below about 1.3 with the published coefficients, so entries of A stay below 2 and
// those of B below (|b| + 2 |c|) times that. The norm is a sum in double, and elements are scaled
// in double, so no fp32 input can overflow or vanish on the way.
//
// The batch lies in the workspace with its sides rounded up to multiples of 8 and zeros there,
// which stay zero: rows start at multiples of 16 bytes whatever the shape. Long lists are cut into
// chunks that depend on their length and on the shape alone.
//
// Traffic besides the products, bytes an element: 4 for the norm, 4 + 2 to bring X in, 2 + 4 to
// write it back (fp16).
#include <algorithm>
#include <utility>

#include "llmc/cuda/common.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

constexpr int64_t kMultiple = 8;                     // sides inside are multiples of this
constexpr int64_t kChunkBytes = int64_t{256} << 20;  // of a batch in the workspace, at most
constexpr int64_t kChunkMatrices = 256;              // their addresses are kernel parameters

// ---- plan ---------------------------------------------------------------------------------------

int64_t round_up(int64_t value, int64_t multiple) { return div_up(value, multiple) * multiple; }

// The sides of x, and of X as it lies in the workspace.
struct Sides {
    int64_t rows, columns;
    int64_t padded_rows, padded_columns;

    explicit Sides(const Shape& shape)
        : rows(shape[0]),
          columns(shape[1]),
          padded_rows(round_up(rows, kMultiple)),
          padded_columns(round_up(columns, kMultiple)) {}
    bool tall() const { return rows > columns; }
    int64_t shorter() const { return std::min(padded_rows, padded_columns); }
};

// Where everything is in the workspace, as offsets in bytes.
struct Plan {
    explicit Plan(const Shape& shape) : sides(shape) {}

    Sides sides;
    int64_t batch = 0;  // matrices of a chunk, at most
    size_t squares = 0, norm = 0, blas = 0, x[2] = {}, a = 0, b = 0, bytes = 0;
    size_t norm_bytes = 0;
};

Plan plan_of(const CudaBackend& backend, const NewtonSchulz& op) {
    Plan plan(op.x[0].shape);
    const Sides& s = plan.sides;
    const int64_t matrices = static_cast<int64_t>(op.x.size());
    const int64_t element = static_cast<int64_t>(size_of(op.inner));
    const int64_t x_bytes = s.padded_rows * s.padded_columns * element;
    const int64_t a_bytes = s.shorter() * s.shorter() * element;
    const int64_t fit = kChunkBytes / (2 * (x_bytes + a_bytes));
    const int64_t largest = std::clamp<int64_t>(fit, 1, kChunkMatrices);
    plan.batch = div_up(matrices, div_up(matrices, largest));  // chunks of about equal size
    const auto take = [&](int64_t bytes) {
        return std::exchange(plan.bytes, plan.bytes + static_cast<size_t>(round_up(bytes, 256)));
    };
    plan.squares = take(matrices * 8);
    plan.norm_bytes = backend.workspace_bytes(SumOfSquares{op.x, {}, {}});
    plan.norm = take(static_cast<int64_t>(plan.norm_bytes));
    plan.blas = take(
        static_cast<int64_t>(Blas::workspace_bytes(s.padded_rows, s.padded_columns, plan.batch)));
    for (size_t& x : plan.x) x = take(plan.batch * x_bytes);
    plan.a = take(plan.batch * a_bytes);
    plan.b = take(plan.batch * a_bytes);
    return plan;
}

// ---- kernels ------------------------------------------------------------------------------------
// blockIdx.y is the matrix of the chunk. A thread moves 8 neighbours of a row of X at a time.

constexpr int kThreads = 256;

struct Matrices {
    float* data[kChunkMatrices];
};

template <typename T>
__device__ __forceinline__ void store_eight(T* to, const float (&values)[8]) {
    constexpr int N = kWidth<T>;
#pragma unroll
    for (int part = 0; part < 8; part += N) {
        Vector<T, N> vector;
#pragma unroll
        for (int k = 0; k < N; ++k) vector[k] = from_float<T>(values[part + k]);
        store(to + part, vector);
    }
}

template <typename T>
__device__ __forceinline__ void load_eight(const T* from, float (&values)[8]) {
    constexpr int N = kWidth<T>;
#pragma unroll
    for (int part = 0; part < 8; part += N) {
        const Vector<T, N> vector = load<N>(from + part);
#pragma unroll
        for (int k = 0; k < N; ++k) values[part + k] = to_float(vector[k]);
    }
}

// What one thread of a block computes for all: double arithmetic is slow on many devices.
struct Normalisation {
    const double* squares;  // of the chunk's matrices
    double norm_scale, eps;

    __device__ double factor() const {
        return 1.0 / (sqrt(squares[blockIdx.y]) * norm_scale + eps);
    }
};

__device__ __forceinline__ void scale_eight(double factor, float (&values)[8]) {
#pragma unroll
    for (int k = 0; k < 8; ++k) values[k] = static_cast<float>(factor * values[k]);
}

// Where a thread's eight neighbours are in X: a grid of one row of blocks, a thread for each eight.
struct Place {
    int64_t i, j;  // i may lie outside
};
__device__ __forceinline__ Place place_of(const Sides& sides) {
    const uint32_t across = static_cast<uint32_t>(sides.padded_columns / 8);
    const uint32_t index = blockIdx.x * kThreads + threadIdx.x;
    return {index / across, int64_t{index % across} * 8};
}

// All eight lie inside of x, and one access may move four of them.
__device__ __forceinline__ bool together(const Sides& sides, int64_t j, const float* x) {
    return j + 8 <= sides.columns && reinterpret_cast<uintptr_t>(x) % 16 == 0;
}

// to = X of each matrix, normalised, with zeros in the padding.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    import_kernel(const __grid_constant__ Matrices matrices, const Sides sides,
                  const Normalisation normalisation, T* to) {
    LMO_SHARED(double, factor, [1]);
    if (threadIdx.x == 0) factor[0] = normalisation.factor();
    __syncthreads();
    const auto [i, j] = place_of(sides);
    if (i >= sides.padded_rows) return;
    const float* from = matrices.data[blockIdx.y] + i * sides.columns + j;
    float values[8] = {};
    if (i < sides.rows && together(sides, j, from)) {
        load_eight(from, values);
    } else if (i < sides.rows) {
#pragma unroll
        for (int k = 0; k < 8; ++k) values[k] = j + k < sides.columns ? from[k] : 0.0f;
    }
    scale_eight(factor[0], values);
    store_eight(to + (blockIdx.y * sides.padded_rows + i) * sides.padded_columns + j, values);
}

// Each matrix = X.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    export_kernel(const __grid_constant__ Matrices matrices, const Sides sides, const T* from) {
    const auto [i, j] = place_of(sides);
    if (i >= sides.rows) return;
    float values[8];
    load_eight(from + (blockIdx.y * sides.padded_rows + i) * sides.padded_columns + j, values);
    float* to = matrices.data[blockIdx.y] + i * sides.columns + j;
    if (together(sides, j, to)) {
        store_eight(to, values);
        return;
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
        if (j + k < sides.columns) to[k] = values[k];
    }
}

// ---- a chunk ------------------------------------------------------------------------------------

template <typename F>
void for_inner_type(DType type, F&& f) {
    assert(type == DType::f16 || type == DType::bf16 || type == DType::f32);
    if (type == DType::f16) return f(Type<fp16>());
    if (type == DType::bf16) return f(Type<bf16>());
    f(Type<float>());
}

// Some of the operation's matrices, from number `first` on.
class Chunk {
  public:
    Chunk(const Plan& plan, const NewtonSchulz& op, int64_t first, Blas& blas, cudaStream_t stream)
        : plan_(plan), op_(op), first_(first), blas_(blas), stream_(stream) {
        batch_ = std::min(plan.batch, static_cast<int64_t>(op.x.size()) - first);
        for (int64_t i = 0; i < batch_; ++i) {
            const Tensor& x = op.x[static_cast<size_t>(first + i)];
            assert(x.dtype == DType::f32 && x.shape == op.x[0].shape);
            matrices_.data[i] = x.as<float>();
        }
        x_ = at(plan.x[0]);
        next_ = at(plan.x[1]);
    }

    void bring_in() {
        const Normalisation normalisation{static_cast<double*>(at(plan_.squares)) + first_,
                                          op_.norm_scale, op_.eps};
        for_inner_type(op_.inner, [&](auto type) {
            using T = typename decltype(type)::type;
            launch(LMO_KERNEL(import_kernel<T>), grid(), kThreads, 0, stream_, matrices_,
                   plan_.sides, normalisation, static_cast<T*>(x_));
        });
    }

    void step(const NewtonSchulzStep& step) {
        const Sides& sides = plan_.sides;
        const Batch x{x_, sides.padded_rows, sides.padded_columns};
        const Batch next{next_, x.rows, x.columns};
        const Batch a{at(plan_.a), sides.shorter(), sides.shorter()};
        const Batch b{at(plan_.b), a.rows, a.columns};
        const bool cubic = step.c == 0;  // then B is b A
        multiply(a, 1, sides.tall() ? x.transpose() : x, sides.tall() ? x : x.transpose(), 0, a);
        if (!cubic) multiply(b, step.c, a, a.transpose(), step.b, a);
        const Batch& mixed = cubic ? a : b;
        const double alpha = cubic ? step.b : 1;
        multiply(next, alpha, sides.tall() ? x : mixed, sides.tall() ? mixed.transpose() : x,
                 step.a, x);
        std::swap(x_, next_);
    }

    void write_back() {
        for_inner_type(op_.inner, [&](auto type) {
            using T = typename decltype(type)::type;
            launch(LMO_KERNEL(export_kernel<T>), grid(), kThreads, 0, stream_, matrices_,
                   plan_.sides, static_cast<T*>(x_));
        });
    }

  private:
    // One matrix of this shape for each matrix of the chunk; `transposed`: as a factor, its
    // transpose.
    struct Batch {
        void* data;
        int64_t rows, columns;
        bool transposed = false;

        Batch transpose() const { return {data, rows, columns, !transposed}; }
        int64_t stride() const { return rows * columns; }
    };

    // to = alpha * left right + beta * add
    void multiply(Batch to, double alpha, Batch left, Batch right, double beta, Batch add) {
        Product p;
        p.type = p.type_out = op_.inner;
        p.m = to.rows;
        p.n = to.columns;
        p.k = left.transposed ? left.rows : left.columns;
        p.batch = batch_;
        p.a = left.data;
        p.b = right.data;
        p.c = add.data;
        p.d = to.data;
        p.lda = left.columns;
        p.ldb = right.columns;
        p.ldc = add.columns;
        p.ldd = to.columns;
        p.stride_a = left.stride();
        p.stride_b = right.stride();
        p.stride_c = add.stride();
        p.stride_d = to.stride();
        p.transpose_a = left.transposed;
        p.transpose_b = right.transposed;
        p.alpha = static_cast<float>(alpha);
        p.beta = static_cast<float>(beta);
        blas_.run(p, at(plan_.blas), stream_);
    }

    void* at(size_t offset) const { return op_.workspace.as<char>() + offset; }

    // A thread for each eight neighbours of X, a row of blocks for each matrix.
    dim3 grid() const {
        const int64_t eights = plan_.sides.padded_rows * plan_.sides.padded_columns / 8;
        assert(eights <= INT32_MAX);
        return dim3(static_cast<unsigned>(div_up<int64_t>(eights, kThreads)),
                    static_cast<unsigned>(batch_));
    }

    const Plan& plan_;
    const NewtonSchulz& op_;
    int64_t first_, batch_;
    Blas& blas_;
    cudaStream_t stream_;
    Matrices matrices_{};
    void *x_, *next_;
};

}  // namespace

size_t CudaBackend::workspace_bytes(const NewtonSchulz& op) const {
    if (op.x.empty() || op.x[0].count() == 0) return 0;
    return plan_of(*this, op).bytes;
}

double CudaBackend::executed_flops(const NewtonSchulz& op) const {
    if (op.x.empty() || op.x[0].count() == 0) return 0;
    const Sides sides(op.x[0].shape);
    const double s = static_cast<double>(sides.shorter());
    const double l = static_cast<double>(std::max(sides.padded_rows, sides.padded_columns));
    double flops = 0;
    for (const NewtonSchulzStep& step : op.steps)
        flops += s * s * (4 * l + (step.c == 0 ? 0 : 2 * s));
    return flops * static_cast<double>(op.x.size());
}

void CudaBackend::newton_schulz(const NewtonSchulz& op) {
    if (op.x.empty() || op.x[0].count() == 0) return;
    const Plan plan = plan_of(*this, op);
    assert(op.workspace.bytes() >= plan.bytes);
    const int64_t matrices = static_cast<int64_t>(op.x.size());
    char* memory = op.workspace.as<char>();
    sum_of_squares({op.x,
                    {memory + plan.squares, DType::f64, {matrices}},
                    {memory + plan.norm, DType::f64, {static_cast<int64_t>(plan.norm_bytes / 8)}}});
    for (int64_t first = 0; first < matrices; first += plan.batch) {
        Chunk chunk(plan, op, first, *blas_, stream_);
        chunk.bring_in();
        for (const NewtonSchulzStep& step : op.steps) chunk.step(step);
        chunk.write_back();
    }
}

}  // namespace lmo::cuda
