// Matrix products of tensors by cuBLASLt, and what it leaves to us: exact symmetry and empty sums.
//
// SymmetricProduct computes all of C = alpha A A^T + beta S and then copies the lower triangle over
// the upper one, because the library may add the two in different orders. The copy reads and writes
// half of C: bytes of a matrix / 2 each way, m^2 against the product's m^2 k.
#include <algorithm>

#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/tensor_table.cuh"

namespace lmo::cuda {

namespace {

struct Extents {
    int64_t batch, m, n, k;
};

Extents extents(const Gemm& op) {
    [[maybe_unused]] const Shape& b = op.b.shape;  // read by the checks only
    const Shape &a = op.a.shape, &c = op.c.shape;
    const int rank = c.rank();
    assert((rank == 2 || rank == 3) && a.rank() == rank && b.rank() == rank);
    const Extents e{rank == 3 ? c[0] : 1, c[rank - 2], c[rank - 1],
                    a[rank - (op.transpose_a ? 2 : 1)]};
    assert(rank == 2 || (a[0] == e.batch && b[0] == e.batch));
    assert(a[rank - (op.transpose_a ? 1 : 2)] == e.m);
    assert(b[rank - (op.transpose_b ? 2 : 1)] == e.n);
    assert(b[rank - (op.transpose_b ? 1 : 2)] == e.k);
    assert(op.a.dtype == op.b.dtype);
    assert(op.c.dtype == op.a.dtype || op.c.dtype == DType::f32);
    return e;
}

// ---- empty sums ---------------------------------------------------------------------------------

template <typename T>
struct Scale {
    using Lists = TensorLists<NoScalars, InOut<T>>;
    struct Coefficients {
        float beta;
    };
    float beta;

    __device__ Coefficients coefficients(const NoScalars&) const { return {beta}; }
    __device__ static void update(const Coefficients& with, T& c) {
        c = from_float<T>(with.beta * to_float(c));
    }
};

// c = beta * c; beta is not 0.
void scale(const Tensor& c, double beta, Stream stream) {
    for_compute_type(c.dtype, [&](auto type) {
        using Update = Scale<typename decltype(type)::type>;
        launch_update(LMO_KERNEL(update_kernel<Update>), stream, Update{static_cast<float>(beta)},
                      1, [&](size_t) -> typename Update::Lists::Entry {
                          return {{c.data}, c.count(), {}};
                      });
    });
}

// ---- exact symmetry -----------------------------------------------------------------------------

constexpr int kTile = 32;     // a block mirrors a tile of kTile x kTile
constexpr int kTileRows = 8;  // threads: kTile x kTileRows

// Row and column of entry `index` of a lower triangle that is stored row by row.
__device__ __forceinline__ int2 place_in_triangle(int64_t index) {
    int64_t row = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(index) + 1.0) - 1.0) / 2.0);
    while (row * (row + 1) / 2 > index) --row;
    while ((row + 1) * (row + 2) / 2 <= index) ++row;
    return {static_cast<int>(row), static_cast<int>(index - row * (row + 1) / 2)};
}

// c[j, i] = c[i, j] for j < i, in each [m, m] matrix. Bits are moved, so Word is a type of equal
// size. A block reads a tile on or below the diagonal; of a tile on it, elements below the diagonal
// are read only and those above are written only.
template <typename Word>
__global__ void __launch_bounds__(kTile* kTileRows)
    mirror_kernel(Word* c, int64_t m, int64_t tiles_of_matrix) {
    LMO_SHARED(Word, tile, [kTile][kTile + 1]);
    const int64_t matrix = int64_t{blockIdx.x} / tiles_of_matrix;
    const int2 place = place_in_triangle(int64_t{blockIdx.x} % tiles_of_matrix);
    const int64_t row = int64_t{place.x} * kTile, column = int64_t{place.y} * kTile;
    const int x = static_cast<int>(threadIdx.x);
    c += matrix * m * m;
    wait_for_previous();
    for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kTileRows) {
        const int64_t i = row + y, j = column + x;
        if (i < m && j < i) tile[y][x] = c[i * m + j];
    }
    __syncthreads();
    for (int y = static_cast<int>(threadIdx.y); y < kTile; y += kTileRows) {
        const int64_t i = row + x, j = column + y;
        if (i < m && j < i) c[j * m + i] = tile[x][y];
    }
}

void mirror(const Tensor& c, int64_t batch, int64_t m, Stream stream) {
    const int64_t tiles = div_up<int64_t>(m, kTile), tiles_of_matrix = tiles * (tiles + 1) / 2;
    assert(batch * tiles_of_matrix <= INT32_MAX);
    const dim3 grid(static_cast<unsigned>(batch * tiles_of_matrix)), block(kTile, kTileRows);
    if (size_of(c.dtype) == 2) {
        launch(LMO_KERNEL(mirror_kernel<uint16_t>), grid, block, 0, stream, c.as<uint16_t>(), m,
               tiles_of_matrix);
    } else {
        launch(LMO_KERNEL(mirror_kernel<uint32_t>), grid, block, 0, stream, c.as<uint32_t>(), m,
               tiles_of_matrix);
    }
}

// ---- products -----------------------------------------------------------------------------------

Gemm as_gemm(const SymmetricProduct& op) {
    return {op.a, op.a, op.c, false, true, op.alpha, op.beta, op.workspace};
}

// D is the operation's C, and C its addend.
Product product_of(const Gemm& op) {
    const Extents e = extents(op);
    Product product;
    product.type = op.a.dtype;
    product.type_out = op.c.dtype;
    product.m = e.m;
    product.n = e.n;
    product.k = e.k;
    product.batch = e.batch;
    product.a = op.a.data;
    product.b = op.b.data;
    assert(op.addend.empty() ||
           (op.addend.dtype == op.c.dtype && op.addend.shape == op.c.shape));
    product.c = op.addend.empty() ? op.c.data : op.addend.data;
    product.d = op.c.data;
    product.lda = op.transpose_a ? e.m : e.k;
    product.ldb = op.transpose_b ? e.k : e.n;
    product.ldc = product.ldd = e.n;
    product.stride_a = e.m * e.k;
    product.stride_b = e.k * e.n;
    product.stride_c = product.stride_d = e.m * e.n;
    product.transpose_a = op.transpose_a;
    product.transpose_b = op.transpose_b;
    product.alpha = static_cast<float>(op.alpha);
    product.beta = static_cast<float>(op.beta);
    return product;
}

}  // namespace

size_t CudaBackend::workspace_bytes(const Gemm& op) const {
    const Extents e = extents(op);
    return Blas::workspace_bytes(e.m, e.n, e.batch);
}

size_t CudaBackend::workspace_bytes(const SymmetricProduct& op) const {
    return workspace_bytes(as_gemm(op));
}

// The library refuses empty sums.
void CudaBackend::gemm(const Gemm& op) {
    if (op.c.count() == 0) return;
    const Product product = product_of(op);
    if (product.k > 0) {
        assert(op.workspace.bytes() >= workspace_bytes(op));
        blas_->run(product, op.workspace.data, stream_);
    } else if (op.beta == 0) {
        zero(op.c);
    } else {
        if (!op.addend.empty()) copy(op.c, op.addend);
        if (op.beta != 1) scale(op.c, op.beta, stream_);
    }
}

void CudaBackend::symmetric_product(const SymmetricProduct& op) {
    if (op.c.count() == 0) return;
    Product product = product_of(as_gemm(op));
    assert(op.beta == 0 || (op.s.dtype == op.c.dtype && op.s.shape == op.c.shape));
    if (product.k == 0) {
        if (op.beta != 0) copy(op.c, op.s);
        gemm(as_gemm(op));
    } else {
        assert(op.workspace.bytes() >= workspace_bytes(op));
        product.c = op.s.data;  // not read where beta is 0
        blas_->run(product, op.workspace.data, stream_);
    }
    mirror(op.c, product.batch, product.m, stream_);
}

}  // namespace lmo::cuda
