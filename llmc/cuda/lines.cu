// Rows and columns of matrices, each by its own norm: LineNormalize, and NorMuon's second moment of
// rows (RowMomentNormalize). Lists of matrices in one launch (tensor_table.cuh).
//
// A warp owns a row: it sums the squares in double, in an order that depends on the length alone
// (sums.cuh), and divides; the second reading comes from the caches. A block owns 32 neighbouring
// columns, 32 threads down each of them. Bytes an element: 8, and 12 for the row moments, whose
// result needs the norms of all rows first. Matrices of few columns and many rows leave a part of
// the device idle in the column kernel, those of few long rows in the row kernel.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/sums.cuh"
#include "llmc/cuda/tensor_table.cuh"

namespace lmo::cuda {

namespace {

constexpr int kRowThreads = 256, kRows = kRowThreads / 32;  // of a block: a warp each
constexpr int kColumns = 32, kThreadsDown = 32;

struct Extents {
    int64_t rows, columns;
};
using MatrixTable = TensorTable<TableEntry<1, Extents>>;  // counts: rows, or columns

MatrixTable::Entry matrix_entry(const Tensor& x, bool by_columns) {
    assert(x.dtype == DType::f32);
    const Extents extents{x.shape.rows(), x.shape.columns()};
    return {{x.data}, by_columns ? extents.columns : extents.rows, extents};
}

// ---- rows ---------------------------------------------------------------------------------------

// The row of this thread's warp.
template <typename Table>
struct WarpRow {
    const typename Table::Entry& entry;
    int64_t row;  // may lie outside

    __device__ explicit WarpRow(const Table& table)
        : WarpRow(table, table.find(static_cast<int>(blockIdx.x))) {}
    __device__ bool outside() const { return row >= entry.count; }
    __device__ int64_t columns() const { return entry.scalars.columns; }
    __device__ float* data() const {
        return static_cast<float*>(entry.data[0]) + row * entry.scalars.columns;
    }

  private:
    __device__ WarpRow(const Table& table, int index)
        : entry(table.entries[index]),
          row(int64_t{static_cast<int>(blockIdx.x) - table.first_block[index]} * kRows +
              threadIdx.x / 32) {}
};

__device__ __forceinline__ double warp_squares(const float* row, int64_t columns) {
    return warp_sum(thread_sum<32>(row, columns, static_cast<int>(threadIdx.x % 32), plus_square));
}

// f(x) in place of each x of a warp's row.
template <typename F>
__device__ __forceinline__ void change_row(float* row, int64_t columns, F f) {
    constexpr int N = kWidth<float>;
    const bool aligned = reinterpret_cast<uintptr_t>(row) % 16 == 0;
    const int lane = static_cast<int>(threadIdx.x % 32);
    const int64_t together = aligned ? columns / N * N : 0;
    for (int64_t j = lane * N; j < together; j += 32 * N) {
        Vector<float, N> values = load<N>(row + j);
#pragma unroll
        for (int k = 0; k < N; ++k) values[k] = f(values[k]);
        store(row + j, values);
    }
    for (int64_t j = together + lane; j < columns; j += 32) row[j] = f(row[j]);
}

__global__ void __launch_bounds__(kRowThreads)
    normalize_rows_kernel(const __grid_constant__ MatrixTable table, double eps) {
    wait_for_previous();
    const WarpRow<MatrixTable> at(table);
    if (at.outside()) return;
    const double squares = warp_squares(at.data(), at.columns());
    const float divisor = static_cast<float>(sqrt(squares) + eps);
    change_row(at.data(), at.columns(), [&](float x) { return x / divisor; });
}

// ---- columns ------------------------------------------------------------------------------------

__global__ void __launch_bounds__(kColumns* kThreadsDown)
    normalize_columns_kernel(const __grid_constant__ MatrixTable table, double eps) {
    LMO_SHARED(double, sums, [kThreadsDown][kColumns]);
    wait_for_previous();
    const int block = static_cast<int>(blockIdx.x), index = table.find(block);
    const auto& entry = table.entries[index];
    const int64_t rows = entry.scalars.rows, columns = entry.scalars.columns;
    const int64_t column = int64_t{block - table.first_block[index]} * kColumns + threadIdx.x;
    float* const x = static_cast<float*>(entry.data[0]) + column;
    const bool inside = column < columns;
    double sum = 0;
    if (inside) {
#pragma unroll 4
        for (int64_t i = threadIdx.y; i < rows; i += kThreadsDown) {
            sum = plus_square(sum, to_double(x[i * columns]));
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (!inside) return;
    double squares = 0;
    for (int i = 0; i < kThreadsDown; ++i) squares += sums[i][threadIdx.x];
    const float divisor = static_cast<float>(sqrt(squares) + eps);
#pragma unroll 4
    for (int64_t i = threadIdx.y; i < rows; i += kThreadsDown) {
        x[i * columns] = x[i * columns] / divisor;
    }
}

// ---- second moments of rows ---------------------------------------------------------------------

struct MomentExtents {
    int64_t columns;
    double* squares;   // [rows] in the workspace
    double* restored;  // in the workspace: what brings ||y|| back to ||x||
};
using MomentTable = TensorTable<TableEntry<2, MomentExtents>>;  // x, second; counts: rows

__device__ __forceinline__ double divisor_of(float second, double eps) {
    return sqrt(to_double(second)) + eps;
}

// squares[row], and the new second moment.
__global__ void __launch_bounds__(kRowThreads)
    row_moments_kernel(const __grid_constant__ MomentTable table, double beta2) {
    wait_for_previous();
    const WarpRow<MomentTable> at(table);
    if (at.outside()) return;
    const double squares = warp_squares(at.data(), at.columns());
    if (threadIdx.x % 32 != 0) return;
    at.entry.scalars.squares[at.row] = squares;
    float& second = static_cast<float*>(at.entry.data[1])[at.row];
    const double mean = squares / static_cast<double>(at.columns());
    second = static_cast<float>(fma(beta2, to_double(second), (1.0 - beta2) * mean));
}

// restored = ||x|| / (||y|| + eps) of each tensor, from the sums of its rows; a block a tensor.
__global__ void __launch_bounds__(kRowThreads)
    restore_norm_kernel(const __grid_constant__ MomentTable table, double eps) {
    LMO_SHARED(double, scratch, [2][kRowThreads / 32]);
    wait_for_previous();
    const MomentTable::Entry& entry = table.entries[blockIdx.x];
    const float* second = static_cast<const float*>(entry.data[1]);
    double before = 0, after = 0;
    for (int64_t i = threadIdx.x; i < entry.count; i += kRowThreads) {
        const double squares = entry.scalars.squares[i], divisor = divisor_of(second[i], eps);
        before += squares;
        after += squares / (divisor * divisor);
    }
    before = block_sum<kRowThreads>(before, scratch[0]);
    after = block_sum<kRowThreads>(after, scratch[1]);
    if (threadIdx.x == 0) *entry.scalars.restored = sqrt(before) / (sqrt(after) + eps);
}

__global__ void __launch_bounds__(kRowThreads)
    scale_rows_kernel(const __grid_constant__ MomentTable table, double eps) {
    wait_for_previous();
    const WarpRow<MomentTable> at(table);
    if (at.outside()) return;
    const float second = static_cast<const float*>(at.entry.data[1])[at.row];
    const float factor = static_cast<float>(*at.entry.scalars.restored / divisor_of(second, eps));
    change_row(at.data(), at.columns(), [&](float x) { return factor * x; });
}

}  // namespace

void CudaBackend::line_normalize(const LineNormalize& op) {
    for_each_table<MatrixTable>(
        op.x.size(), op.columns ? kColumns : kRows,
        [&](size_t i) { return matrix_entry(op.x[i], op.columns); },
        [&](const MatrixTable& table, size_t) {
            const dim3 grid(static_cast<unsigned>(table.blocks));
            if (op.columns) {
                launch(LMO_KERNEL(normalize_columns_kernel), grid, dim3(kColumns, kThreadsDown), 0,
                       stream_, table, op.eps);
            } else {
                launch(LMO_KERNEL(normalize_rows_kernel), grid, kRowThreads, 0, stream_, table,
                       op.eps);
            }
        });
}

// A double a row, then one a tensor.
size_t CudaBackend::workspace_bytes(const RowMomentNormalize& op) const {
    int64_t values = static_cast<int64_t>(op.x.size());
    for (const Tensor& x : op.x) values += x.shape.rows();
    return static_cast<size_t>(values) * sizeof(double);
}

void CudaBackend::row_moment_normalize(const RowMomentNormalize& op) {
    assert(op.second.size() == op.x.size());
    assert(op.x.empty() || op.workspace.bytes() >= workspace_bytes(op));
    double* free = op.workspace.as<double>();
    for_each_table<MomentTable>(
        op.x.size(), kRows,
        [&](size_t i) -> MomentTable::Entry {
            const Tensor &x = op.x[i], &second = op.second[i];
            const int64_t rows = x.shape.rows();
            assert(x.dtype == DType::f32 && second.dtype == DType::f32);
            assert(second.count() == rows);
            double* const squares = std::exchange(free, free + rows);
            double* const restored = free++;
            return {{x.data, second.data}, rows, {x.shape.columns(), squares, restored}};
        },
        [&](const MomentTable& table, size_t) {
            launch(LMO_KERNEL(row_moments_kernel), table.blocks, kRowThreads, 0, stream_, table,
                   op.beta2);
            launch(LMO_KERNEL(restore_norm_kernel), table.size, kRowThreads, 0, stream_, table,
                   op.eps);
            launch(LMO_KERNEL(scale_rows_kernel), table.blocks, kRowThreads, 0, stream_, table,
                   op.eps);
        });
}

}  // namespace lmo::cuda
