// The ends of the spectrum by the power method: a block a matrix, vectors and sums in double.
//
// A = X X^T of the shorter side is never formed: a step is y = X^T v and v = X y, or for the
// smallest value v = l v - X y, with v of length 1. |y| is the estimate, from inside: a Rayleigh
// quotient. A step reads the matrix twice (8 bytes an element), by one multiprocessor.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/sums.cuh"
#include "llmc/cuda/tensor_table.cuh"

namespace lmo::cuda {

namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;

struct RangeOf {
    int64_t rows, columns;  // of x
    double* left;           // [rows] in the workspace
    double* right;          // [columns]
    double* product;        // the shorter side
};
using RangeTable = TensorTable<TableEntry<1, RangeOf>>;

// One matrix, from the whole block.
class PowerMethod {
  public:
    __device__ PowerMethod(const RangeTable::Entry& entry, double* scratch, double* tile)
        : x_(static_cast<const float*>(entry.data[0])),
          at_(entry.scalars),
          tall_(at_.rows > at_.columns),
          v_(tall_ ? at_.right : at_.left),
          image_(tall_ ? at_.left : at_.right),
          size_(tall_ ? at_.columns : at_.rows),
          other_(tall_ ? at_.rows : at_.columns),
          scratch_(scratch),
          tile_(tile) {}

    // The estimate after some steps on shift I + sign A.
    __device__ double search(double shift, double sign, int iterations) {
        __syncthreads();  // the scratch is free
        for (int64_t i = threadIdx.x; i < size_; i += kThreads) v_[i] = start(i);
        double value = look();
        for (int k = 0; k < iterations; ++k) {
            tall_ ? times_transposed(at_.product) : times(at_.product);
            __syncthreads();
            for (int64_t i = threadIdx.x; i < size_; i += kThreads) {
                v_[i] = shift * v_[i] + sign * at_.product[i];
            }
            value = look();
        }
        return value;
    }

  private:
    // Between 1/2 and 3/2, the same everywhere (a Weyl sequence).
    __device__ static double start(int64_t j) {
        const double x = 0.6180339887498949 * static_cast<double>(j);
        return 0.5 + (x - floor(x));
    }

    // The next call needs a barrier before it.
    __device__ double length(const double* values, int64_t count) {
        double squares = 0;
        for (int64_t i = threadIdx.x; i < count; i += kThreads) {
            squares = plus_square(squares, values[i]);
        }
        return sqrt(block_sum<kThreads>(squares, scratch_));
    }

    // With v of length 1, image = X^T v (of the shorter side); its length.
    __device__ double look() {
        const double norm = length(v_, size_);
        for (int64_t i = threadIdx.x; i < size_; i += kThreads) {
            v_[i] = norm > 0 ? v_[i] / norm : 0.0 * norm;  // NaN stays NaN
        }
        __syncthreads();
        tall_ ? times(image_) : times_transposed(image_);
        __syncthreads();
        return length(image_, other_);
    }

    // to [rows] = x right, a warp a row
    __device__ void times(double* to) {
        const int64_t lane = threadIdx.x % 32;
        for (int64_t i = threadIdx.x / 32; i < at_.rows; i += kWarps) {
            const float* row = x_ + i * at_.columns;
            double sum = 0;
#pragma unroll 4
            for (int64_t j = lane; j < at_.columns; j += 32) {
                sum = fma(to_double(row[j]), at_.right[j], sum);
            }
            sum = warp_sum(sum);
            if (lane == 0) to[i] = sum;
        }
    }

    // to [columns] = x^T left, 32 columns at a time: each warp takes every 32nd row
    __device__ void times_transposed(double* to) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        const int warp = static_cast<int>(threadIdx.x / 32);
        for (int64_t first = 0; first < at_.columns; first += 32) {
            const int64_t j = first + lane;
            double sum = 0;
            if (j < at_.columns) {
#pragma unroll 4
                for (int64_t i = warp; i < at_.rows; i += kWarps) {
                    sum = fma(to_double(x_[i * at_.columns + j]), at_.left[i], sum);
                }
            }
            tile_[warp * 32 + lane] = sum;
            __syncthreads();
            if (warp == 0 && j < at_.columns) {
                double total = 0;
                for (int k = 0; k < kWarps; ++k) total += tile_[k * 32 + lane];
                to[j] = total;
            }
            __syncthreads();  // the tile is free again
        }
    }

    const float* x_;
    const RangeOf& at_;
    bool tall_;
    double *v_, *image_;
    int64_t size_, other_;
    double *scratch_, *tile_;
};

__global__ void __launch_bounds__(kThreads)
    singular_range_kernel(const __grid_constant__ RangeTable table, int iterations, bool smallest,
                          double* out) {
    LMO_SHARED(double, scratch, [kWarps]);
    LMO_SHARED(double, tile, [kWarps * 32]);
    wait_for_previous();
    PowerMethod method(table.entries[blockIdx.x], scratch, tile);
    const double high = method.search(0.0, 1.0, iterations);
    double low = smallest ? method.search(high * high, -1.0, iterations) : 0.0;
    if (low > high) low = high;
    if (threadIdx.x != 0) return;
    out[2 * blockIdx.x] = high;
    out[2 * blockIdx.x + 1] = low;
}

}  // namespace

size_t CudaBackend::workspace_bytes(const SingularRange& op) const {
    int64_t values = 0;
    for (const Tensor& x : op.x) {
        const int64_t m = x.shape.rows(), n = x.shape.columns();
        values += m + n + std::min(m, n);
    }
    return static_cast<size_t>(values) * sizeof(double);
}

void CudaBackend::singular_range(const SingularRange& op) {
    assert(op.out.dtype == DType::f64);
    assert(op.out.count() == 2 * static_cast<int64_t>(op.x.size()));
    assert(op.x.empty() || op.workspace.bytes() >= workspace_bytes(op));
    double* free = op.workspace.as<double>();
    const auto take = [&](int64_t count) { return std::exchange(free, free + count); };
    for_each_table<RangeTable>(
        op.x.size(), 1,
        [&](size_t i) -> RangeTable::Entry {
            const Tensor& x = op.x[i];
            assert(x.dtype == DType::f32 && x.count() > 0);
            const int64_t m = x.shape.rows(), n = x.shape.columns();
            double *const left = take(m), *const right = take(n);
            return {{x.data}, 1, {m, n, left, right, take(std::min(m, n))}};
        },
        [&](const RangeTable& table, size_t first) {
            launch(LMO_KERNEL(singular_range_kernel), table.size, kThreads, 0, stream_, table,
                   op.iterations, op.smallest, op.out.as<double>() + 2 * first);
        });
}

}  // namespace lmo::cuda
