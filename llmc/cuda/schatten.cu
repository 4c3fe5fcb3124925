// Steepest directions of Schatten norms by one-sided Jacobi rotations (Hestenes 1958; Golub & Van
// Loan, Matrix Computations, 8.6).
//
// X is the matrix, or its transpose where it is tall: `rows` rows, no more than columns. Rotations
// of pairs of rows make all of them orthogonal: with R their product, R X has the rows s_i v_i^T,
// and the direction is R^T diag(c) (R X), c_i = (s_i / ||s||_q)^(q-1) / s_i.
//
// A block owns a matrix. A sweep rotates each pair of rows once, in rounds of disjoint pairs (a
// tournament: the last player stays, the others move on), a warp a pair; warps go on to the next
// round together, so the order is one and the result the same in each launch. The sweeps end when
// one found all pairs orthogonal to 4 units in the last place, after some 6 to 10. Sums are in
// double. Elements are rotated as a + s (b - t a), t = tan of half the angle (Rutishauser 1966):
// the rounding is that of the change alone, so lengths do not drift over thousands of rotations.
//
// X is scaled by a power of two, which rounds nothing, so that neither squares overflow nor small
// matrices vanish. A sweep is 8 rows^2 (rows + columns) operations and reads rows^2 (2 columns +
// rows) elements from the caches, by one multiprocessor a matrix: meant for research, where lists
// have about as many matrices as the device has multiprocessors. The last product runs on all of
// them. The workspace holds X and R of all matrices.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/sums.cuh"
#include "llmc/cuda/tensor_table.cuh"

namespace lmo::cuda {

namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;
constexpr int kSweeps = 30;                                // at most
constexpr double kOrthogonal = 4 * 1.1920928955078125e-7;  // largest cosine that counts as none

// ---- where things are ---------------------------------------------------------------------------

// The sides of X, and where its parts lie in the workspace of a matrix.
struct Work {
    int64_t rows, columns;
    int64_t x_stride, r_stride;  // elements from row to row; multiples of 4
    bool transposed;

    // Singular values, X, R, factors of the rows.
    int64_t bytes() const {
        const int64_t end = x_offset() * 4 + (rows * (x_stride + r_stride) + rows) * 4;
        return div_up<int64_t>(end, 256) * 256;
    }
    __host__ __device__ int64_t x_offset() const { return div_up<int64_t>(rows * 8, 256) * 64; }
    // Place of element (i, j) of X in the tensor.
    __device__ int64_t in_tensor(int64_t i, int64_t j) const {
        return transposed ? j * rows + i : i * columns + j;
    }
    __device__ double* singular(void* work) const { return static_cast<double*>(work); }
    __device__ float* x(void* work) const { return static_cast<float*>(work) + x_offset(); }
    __device__ float* r(void* work) const { return x(work) + rows * x_stride; }
    __device__ float* factors(void* work) const { return r(work) + rows * r_stride; }
};

Work work_of(const Tensor& x) {
    assert(x.shape.rank() <= 2);
    const int64_t m = x.shape.rows(), n = x.shape.columns();
    const int64_t rows = std::min(m, n), columns = std::max(m, n);
    return {rows, columns, div_up<int64_t>(columns, 4) * 4, div_up<int64_t>(rows, 4) * 4, m > n};
}

using WorkTable = TensorTable<TableEntry<2, Work>>;  // tensor, workspace

// ---- rotations ----------------------------------------------------------------------------------

struct Rotation {
    float sine, tangent;  // of the angle, of half of it
};

// x, y = the pair rotated; `count` is a multiple of 4. A lane has the elements that it read for the
// sums.
__device__ __forceinline__ void rotate(float* x, float* y, int64_t count, Rotation by) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int64_t j = lane * 4; j < count; j += 128) {
        Vector<float, 4> a = load<4>(x + j), b = load<4>(y + j);
#pragma unroll
        for (int k = 0; k < 4; ++k) {
            const float old = a[k];
            a[k] = fmaf(-by.sine, fmaf(by.tangent, old, b[k]), old);
            b[k] = fmaf(by.sine, fmaf(-by.tangent, b[k], old), b[k]);
        }
        store(x + j, a);
        store(y + j, b);
    }
}

// Makes a warp's pair of rows orthogonal; says whether it had to.
__device__ __forceinline__ bool orthogonalise(const Work& w, float* x, float* r, int64_t p,
                                              int64_t q) {
    float *const a = x + p * w.x_stride, *const b = x + q * w.x_stride;
    const int lane = static_cast<int>(threadIdx.x % 32);
    const double aa = warp_sum(thread_sum<32>(a, w.x_stride, lane, plus_square));
    const double bb = warp_sum(thread_sum<32>(b, w.x_stride, lane, plus_square));
    const double ab = warp_sum(thread_dot<32>(a, b, w.x_stride, lane));
    if (!(fabs(ab) > kOrthogonal * sqrt(aa * bb))) return false;
    const double tau = (bb - aa) / (2 * ab);
    const double tangent = (tau >= 0 ? 1.0 : -1.0) / (fabs(tau) + sqrt(1 + tau * tau));
    const double cosine = 1 / sqrt(1 + tangent * tangent), sine = cosine * tangent;
    const Rotation by{static_cast<float>(sine), static_cast<float>(sine / (1 + cosine))};
    rotate(a, b, w.x_stride, by);
    rotate(r + p * w.r_stride, r + q * w.r_stride, w.r_stride, by);
    return true;
}

// The pair of rows number `pair` of a round, of `players` (even) in all.
struct Pair {
    int64_t p, q;

    __device__ Pair(int64_t players, int64_t round, int64_t pair) {
        const int64_t ring = players - 1;
        p = pair == 0 ? ring : (round + pair) % ring;
        q = (round - pair + ring) % ring;
        if (p > q) {
            const int64_t larger = p;
            p = q;
            q = larger;
        }
    }
};

// Rotates until all rows of x are orthogonal.
__device__ void orthogonalise_all(const Work& w, float* x, float* r) {
    const int64_t players = w.rows + w.rows % 2;  // one may have no partner
    bool changed = players > 1;
    for (int sweep = 0; changed && sweep < kSweeps; ++sweep) {
        changed = false;
        for (int64_t round = 0; round < players - 1; ++round) {
            for (int64_t i = threadIdx.x / 32; i < players / 2; i += kWarps) {
                const Pair pair(players, round, i);
                if (pair.q < w.rows) changed |= orthogonalise(w, x, r, pair.p, pair.q);
            }
            if (round + 2 < players) __syncthreads();
        }
        changed = __syncthreads_or(changed);
    }
}

// ---- a matrix -----------------------------------------------------------------------------------

// The exponent of the power of two just below the largest element; its size goes to `top`.
__device__ int largest_exponent(const float* x, int64_t count, float* scratch, float& top) {
    float high = 0;
    for (int64_t i = threadIdx.x; i < count; i += kThreads) high = fmaxf(high, fabsf(x[i]));
    top = block_max<kThreads>(high, scratch);
    return top > 0 && isfinite(top) ? ilogbf(top) : 0;
}

// X, scaled, with zeros behind its rows; R = I.
__device__ void bring_in(const Work& w, const float* tensor, int exponent, float* x, float* r) {
    for (int64_t i = threadIdx.x / 32; i < w.rows; i += kWarps) {
        for (int64_t j = threadIdx.x % 32; j < w.x_stride; j += 32) {
            const bool inside = j < w.columns;
            x[i * w.x_stride + j] = inside ? ldexpf(tensor[w.in_tensor(i, j)], -exponent) : 0.0f;
        }
        for (int64_t j = threadIdx.x % 32; j < w.r_stride; j += 32) {
            r[i * w.r_stride + j] = i == j ? 1.0f : 0.0f;
        }
    }
}

// One thread's work: factors[i] from the singular values. `power` is q - 1, `share` the part of
// the largest value below which others count as zero.
__device__ void find_factors(const double* s, int64_t count, double p, double share,
                             float* factors) {
    const double power = isinf(p) ? 0.0 : 1.0 / (p - 1.0);
    int64_t first = 0;
    double all = 0;
    for (int64_t i = 0; i < count; ++i) {
        all += s[i];
        if (s[i] > s[first]) first = i;
    }
    const double top = s[first];
    double sum = 0;
    for (int64_t i = 0; p > 1 && i < count; ++i) {
        if (s[i] > share * top) sum += pow(s[i] / top, power + 1.0);
    }
    const double norm = top * pow(sum, 1.0 / (power + 1.0));
    for (int64_t i = 0; i < count; ++i) {
        const bool counts = p > 1 ? s[i] > share * top : i == first && top > 0;
        double factor = 0;
        if (counts) factor = p > 1 ? pow(s[i] / norm, power) / s[i] : 1.0 / s[i];
        factors[i] = static_cast<float>(isfinite(all) ? factor : all - all);
    }
}

__global__ void __launch_bounds__(kThreads)
    jacobi_kernel(const __grid_constant__ WorkTable table, double p) {
    LMO_SHARED(float, scratch, [kWarps]);
    wait_for_previous();
    const WorkTable::Entry& entry = table.entries[blockIdx.x];
    const Work& w = entry.scalars;
    const float* const tensor = static_cast<const float*>(entry.data[0]);
    double* const singular = w.singular(entry.data[1]);
    float *const x = w.x(entry.data[1]), *const r = w.r(entry.data[1]);
    float top;
    const int exponent = largest_exponent(tensor, w.rows * w.columns, scratch, top);
    bring_in(w, tensor, exponent, x, r);
    __syncthreads();
    orthogonalise_all(w, x, r);
    for (int64_t i = threadIdx.x / 32; i < w.rows; i += kWarps) {
        const int lane = static_cast<int>(threadIdx.x % 32);
        const float* const row = x + i * w.x_stride;
        const double squares = warp_sum(thread_sum<32>(row, w.x_stride, lane, plus_square));
        if (lane == 0) singular[i] = sqrt(squares);
    }
    __syncthreads();
    const double share = static_cast<double>(w.columns) * 1.1920928955078125e-7;
    if (threadIdx.x == 0) find_factors(singular, w.rows, p, share, w.factors(entry.data[1]));
}

// ---- the product --------------------------------------------------------------------------------

constexpr int kTile = 64, kDepth = 16, kProductThreads = 256;

using Four = Vector<float, 4>;

// kDepth rows of 64 columns of a matrix that has `rows` rows and `stride` (a multiple of 4)
// columns: element (k, j) times factors[k], zeros outside.
__device__ __forceinline__ void load_rows(Four (&tile)[kDepth][kTile / 4], const float* from,
                                          int64_t rows, int64_t stride, int64_t row, int64_t column,
                                          const float* factors) {
    const int64_t i = row + threadIdx.x / 16, j = column + threadIdx.x % 16 * 4;
    Four values{};
    if (i < rows && j < stride) {
        values = load<4>(from + i * stride + j);
        const float factor = factors ? factors[i] : 1.0f;
#pragma unroll
        for (int k = 0; k < 4; ++k) values[k] *= factor;
    }
    store_shared(&tile[threadIdx.x / 16][threadIdx.x % 16][0], values);
}

// tensor = R^T diag(factors) X, a block a tile of 64 x 64: a thread 4 x 4.
__global__ void __launch_bounds__(kProductThreads)
    schatten_product_kernel(const __grid_constant__ WorkTable table) {
    LMO_SHARED(Four, r_tile, [kDepth][kTile / 4]);
    LMO_SHARED(Four, x_tile, [kDepth][kTile / 4]);
    wait_for_previous();
    const int block = static_cast<int>(blockIdx.x), index = table.find(block);
    const WorkTable::Entry& entry = table.entries[index];
    const Work& w = entry.scalars;
    void* const work = entry.data[1];
    const int64_t tile = block - table.first_block[index];
    const int64_t across = div_up<int64_t>(w.columns, kTile);
    const int64_t i0 = tile / across * kTile, j0 = tile % across * kTile;
    const unsigned y = threadIdx.x / 16, z = threadIdx.x % 16;
    float acc[4][4] = {};
    for (int64_t k0 = 0; k0 < w.rows; k0 += kDepth) {
        if (k0 > 0) __syncthreads();  // nobody reads the tiles any more
        load_rows(r_tile, w.r(work), w.rows, w.r_stride, k0, i0, nullptr);
        load_rows(x_tile, w.x(work), w.rows, w.x_stride, k0, j0, w.factors(work));
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kDepth; ++k) {
            const Four a = load<4>(&r_tile[k][y][0]), b = load<4>(&x_tile[k][z][0]);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
#pragma unroll
                for (int j = 0; j < 4; ++j) acc[i][j] = fmaf(a[i], b[j], acc[i][j]);
            }
        }
    }
    float* const tensor = static_cast<float*>(entry.data[0]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            const int64_t row = i0 + 4 * y + i, column = j0 + 4 * z + j;
            if (row < w.rows && column < w.columns) tensor[w.in_tensor(row, column)] = acc[i][j];
        }
    }
}

}  // namespace

size_t CudaBackend::workspace_bytes(const SchattenDirection& op) const {
    int64_t bytes = 0;
    for (const Tensor& x : op.x) bytes += work_of(x).bytes();
    return static_cast<size_t>(bytes);
}

void CudaBackend::schatten_direction(const SchattenDirection& op) {
    assert(op.p >= 1.0);
    assert(op.x.empty() || op.workspace.bytes() >= workspace_bytes(op));
    char* free = op.workspace.as<char>();
    for_each_table<WorkTable>(
        op.x.size(), 1,
        [&](size_t i) -> WorkTable::Entry {
            assert(op.x[i].dtype == DType::f32);
            const Work work = work_of(op.x[i]);
            const int64_t tiles =
                div_up<int64_t>(work.rows, kTile) * div_up<int64_t>(work.columns, kTile);
            return {{op.x[i].data, std::exchange(free, free + work.bytes())}, tiles, work};
        },
        [&](const WorkTable& table, size_t) {
            launch(LMO_KERNEL(jacobi_kernel), table.size, kThreads, 0, stream_, table, op.p);
            launch(LMO_KERNEL(schatten_product_kernel), table.blocks, kProductThreads, 0, stream_,
                   table);
        });
}

}  // namespace lmo::cuda
