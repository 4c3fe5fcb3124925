// Symmetric products on tensor cores by mma.sync and cp.async, for any device from sm_80 on.
//
// A block computes one tile [kSide, kSide] of D, on or below the diagonal, and stores it a second
// time mirrored; on the diagonal the elements below it are stored for those above, so D equals its
// transpose bit by bit even where A B^T is symmetric in exact arithmetic alone. Each warp owns a
// part of the tile. A and B arrive by cp.async in steps of 32 columns, Stages of them under way;
// after the last one the same pipeline brings C's tile, 64 rows a stage, and the result is staged
// in its place, so that all accesses to memory have 16 bytes. The mirror image is made by
// ldmatrix's transposition in the other stages.
//
// Sides up to 256 take tiles of 64: fewer elements are computed that nobody asked for, and more
// blocks share the work. The order of the sums is the same in both.
//
//   kSide   threads   warps' parts   shared memory   blocks an SM   registers sm_80 / sm_90a
//    128      256       64 x 32          64 KB            2                123 / 123
//     64      128       32 x 32          32 KB            4                103 / 108   (4 stages)
//
// Predicted, for 48 matrices of 768 x 768 with k = 768: 21 of 36 tiles are computed, 25.4 of the
// 43.5 GFLOP of a plain product, for which 790 TFLOP/s would need 32 us; mma.sync reaches about
// half of that rate on Hopper. Memory: X once and D once, 113 MB (26 us at 4.3 TB/s), and 33 MB
// more for C where the caches do not have it; tiles are read 396 MB from the caches.
#pragma once

#include "llmc/cuda/symmetric.cuh"
#include "llmc/cuda/tile.cuh"

namespace lmo::cuda::mma {

constexpr int kDepth = 32;  // columns of A and B at a time
constexpr int kStages = 4;  // such steps in memory, as the trainer runs it
constexpr int kPart = 64;   // rows of a result tile in one stage

template <int Side>
constexpr size_t shared_bytes(int stages) {
    return sizeof(uint16_t) * stages * 2 * Side * kDepth;
}

// C's tile in its parts and an empty group of copies behind it are started before the last step;
// the result and its mirror image then need no more.
template <int Side>
constexpr int kLeastStages = Side / kPart + 2;

template <int Side>
struct TileShape {
    static constexpr int kWarpRows = Side / 2, kWarpColumns = 32;
    static constexpr int kWarpsAcross = Side / kWarpColumns;
    static constexpr int kThreads = 32 * 2 * kWarpsAcross;
    static constexpr int kBlocks = 512 / kThreads;    // an SM
    static constexpr int kStage = 2 * Side * kDepth;  // elements
    static constexpr int kParts = Side / kPart;
    static_assert(kPart * Side == kStage && 2 * kParts <= kLeastStages<Side>);
};

template <typename T>
struct Arguments {
    const T *a, *b, *c;  // c is none where beta is 0
    T* d;
    int n, k, triangle;  // triangle: tiles of a matrix
    float alpha, beta, diagonal;
};

// A result tile spread over stages: part p of it in stage (first + p) % Stages.
template <int Side, int Stages, typename T>
struct Staging {
    T* stages;
    int first;

    __device__ T* part(int p) const {
        return stages + (first + p) % Stages * TileShape<Side>::kStage;
    }
    __device__ T* at(int row, int column) const {
        return part(row / kPart) + tile_offset<Side>(row % kPart, column / 8) + column % 8;
    }
};

// The loads of a block: steps of A and B, then C's tile. Addresses advance from step to step, and
// those of C are found when they are needed: all registers are taken.
template <int Side, int Stages, typename T>
class Loads {
  public:
    __device__ Loads(const Arguments<T>& p, int64_t matrix, TilePosition at, T* stages)
        : p_(p), stages_(stages), at_(at), matrix_(matrix) {
        a_ = p.a + (matrix * p.n + at.row * Side) * p.k;
        b_ = p.b + (matrix * p.n + at.column * Side) * p.k;
    }
    __device__ int steps() const { return div_up(p_.k, kDepth); }

    // For each step once, in order.
    __device__ __forceinline__ void start(int step) {
        using Shape = TileShape<Side>;
        T* const stage = stages_ + step % Stages * Shape::kStage;
        const int columns = p_.k - step * kDepth, part = step - steps();
        const int rows = p_.n - at_.row * Side, b_rows = p_.n - at_.column * Side;
        if (part < 0) {
            load_tile<Side, kDepth, Shape::kThreads>(stage, a_, p_.k, rows, columns);
            load_tile<Side, kDepth, Shape::kThreads>(stage + Side * kDepth, b_, p_.k, b_rows,
                                                     columns);
            a_ += kDepth;
            b_ += kDepth;
        } else if (part < Shape::kParts && p_.c != nullptr) {
            const int64_t row = matrix_ * p_.n + at_.row * Side + part * kPart;
            load_tile<kPart, Side, Shape::kThreads>(stage, p_.c + row * p_.n + at_.column * Side,
                                                    p_.n, rows - part * kPart, b_rows);
        }
    }

  private:
    const Arguments<T>& p_;
    const T *a_, *b_;
    T* stages_;
    TilePosition at_;
    int64_t matrix_;
};

// A warp's part of the tile as fragments: 16 x 8 elements each.
template <int Side>
using Sums = float[TileShape<Side>::kWarpRows / 16][TileShape<Side>::kWarpColumns / 8][4];

struct WarpPlace {
    int row, column;  // of its first element in the tile
};

template <int Side>
__device__ __forceinline__ WarpPlace warp_place() {
    using Shape = TileShape<Side>;
    const int warp = threadIdx.x / 32;
    return {warp / Shape::kWarpsAcross * Shape::kWarpRows,
            warp % Shape::kWarpsAcross * Shape::kWarpColumns};
}

template <int Side, typename T>
__device__ __forceinline__ void add_step(Sums<Side>& sums, const T* stage, WarpPlace warp) {
    using Shape = TileShape<Side>;
#pragma unroll
    for (int chunk = 0; chunk < kDepth / 8; chunk += 2) {
        uint32_t a[Shape::kWarpRows / 16][4], b[Shape::kWarpColumns / 16][4];
#pragma unroll
        for (int i = 0; i < Shape::kWarpRows / 16; ++i) {
            load_a<kDepth>(a[i], stage, warp.row + 16 * i, chunk);
        }
#pragma unroll
        for (int j = 0; j < Shape::kWarpColumns / 16; ++j) {
            load_b_rows<kDepth>(b[j], stage + Side * kDepth, warp.column + 16 * j, chunk);
        }
#pragma unroll
        for (int i = 0; i < Shape::kWarpRows / 16; ++i) {
#pragma unroll
            for (int j = 0; j < Shape::kWarpColumns / 16; ++j) {
                mma_m16n8k16<T>(sums[i][2 * j], a[i], b[j][0], b[j][1]);
                mma_m16n8k16<T>(sums[i][2 * j + 1], a[i], b[j][2], b[j][3]);
            }
        }
    }
}

// alpha sums + beta C + diagonal, rounded, in place of C's tile.
template <int Side, int Stages, typename T>
__device__ __forceinline__ void stage_result(const Staging<Side, Stages, T>& tile,
                                             const Sums<Side>& sums, const Arguments<T>& p,
                                             WarpPlace warp, bool on_diagonal) {
    using Shape = TileShape<Side>;
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < Shape::kWarpRows / 16; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = warp.row + 16 * i + 8 * half + lane / 4;
#pragma unroll
            for (int j = 0; j < Shape::kWarpColumns / 8; ++j) {
                const int column = warp.column + 8 * j + lane % 4 * 2;
                T* const place = tile.at(row, column);
                float x[2] = {p.alpha * sums[i][j][2 * half], p.alpha * sums[i][j][2 * half + 1]};
                if (p.c != nullptr) {
                    const Vector<T, 2> c = load<2>(place);
                    x[0] = fmaf(p.beta, to_float(c[0]), x[0]);
                    x[1] = fmaf(p.beta, to_float(c[1]), x[1]);
                }
                if (on_diagonal && row == column) x[0] += p.diagonal;
                if (on_diagonal && row == column + 1) x[1] += p.diagonal;
                store_shared(place, Vector<T, 2>{from_float<T>(x[0]), from_float<T>(x[1])});
            }
        }
    }
}

// What the warp itself has staged, transposed.
template <int Side, int Stages, typename T>
__device__ __forceinline__ void stage_mirror(const Staging<Side, Stages, T>& mirror,
                                             const Staging<Side, Stages, T>& tile, WarpPlace warp) {
    using Shape = TileShape<Side>;
    const int lane = threadIdx.x & 31;
    const T* const part = tile.part(warp.row / kPart);
#pragma unroll
    for (int i = 0; i < Shape::kWarpRows; i += 16) {
#pragma unroll
        for (int j = 0; j < Shape::kWarpColumns; j += 16) {
            // Four blocks of 8 x 8: rows i.. and i + 8.., of columns j.., then of columns j + 8..
            uint32_t blocks[4];
            load_b_columns<Side>(blocks, part, warp.row % kPart + i, (warp.column + j) / 8);
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                Vector<T, 2> pair;
                memcpy(&pair, &blocks[e], sizeof pair);
                store_shared(mirror.at(warp.column + j + 8 * (e / 2) + lane / 4,
                                       warp.row + i + 8 * (e % 2) + lane % 4 * 2),
                             pair);
            }
        }
    }
}

// d: the first element of the matrix. Sides are multiples of 8, so pieces of 8 are in it or not.
template <int Side, int Stages, typename T>
__device__ __forceinline__ void store_result(T* d, int n, TilePosition at,
                                             const Staging<Side, Stages, T>& tile,
                                             const Staging<Side, Stages, T>& mirror) {
    constexpr int kPieces = Side / 8;
    const int first_row = at.row * Side, first_column = at.column * Side;
    for (int i = threadIdx.x; i < Side * kPieces; i += TileShape<Side>::kThreads) {
        const int row = i / kPieces, column = i % kPieces * 8;
        Vector<T, 8> piece = load<8>(tile.at(row, column));
        const Vector<T, 8> mirrored = load<8>(mirror.at(row, column));
        if (at.row == at.column) {
#pragma unroll
            for (int e = 0; e < 8; ++e) piece[e] = column + e <= row ? piece[e] : mirrored[e];
        } else if (first_row + column < n) {
            store(d + int64_t{first_column + row} * n + first_row + column, mirrored);
        }
        if (first_row + row < n && first_column + column < n) {
            store(d + int64_t{first_row + row} * n + first_column + column, piece);
        }
    }
}

// A grid of one row: the tiles of the first matrix, those of the next one, ...
template <int Side, int Stages, typename T>
__global__ void __launch_bounds__(TileShape<Side>::kThreads, TileShape<Side>::kBlocks)
    symmetric_mma_kernel(const Arguments<T> p) {
    using Shape = TileShape<Side>;
    static_assert(Stages >= kLeastStages<Side>);
    LMO_DYNAMIC_SHARED(T, stages);
    const int64_t matrix = blockIdx.x / p.triangle;
    const TilePosition at = lower_tile(blockIdx.x % p.triangle);
    Loads<Side, Stages, T> loads(p, matrix, at, stages);
    const int steps = loads.steps();
    const WarpPlace warp = warp_place<Side>();

    wait_for_previous();
#pragma unroll
    for (int step = 0; step < Stages - 1; ++step) {
        loads.start(step);
        cp_async_commit();
    }
    Sums<Side> sums;
#pragma unroll
    for (auto& fragments : sums) set_zero(fragments);
    for (int step = 0; step < steps; ++step) {
        cp_async_wait<Stages - 2>();
        __syncthreads();  // the step is there, and nobody reads the one before any more
        loads.start(step + Stages - 1);
        cp_async_commit();
        add_step<Side>(sums, stages + step % Stages * Shape::kStage, warp);
    }
    cp_async_wait<1>();  // the last group is empty
    __syncthreads();     // C is there, and all stages are free

    const Staging<Side, Stages, T> tile{stages, steps}, mirror{stages, steps + Shape::kParts};
    stage_result(tile, sums, p, warp, at.row == at.column);
    __syncwarp();  // the lanes' elements for each other
    stage_mirror(mirror, tile, warp);
    __syncthreads();
    store_result(p.d + matrix * p.n * p.n, p.n, at, tile, mirror);
}

// By Stages stages; op.type is that of T.
template <int Side, int Stages, typename T>
void launch_tiles(const SymmetricGemm& op, Stream stream) {
    using Shape = TileShape<Side>;
    const int64_t tiles = div_up<int64_t>(op.n, Side), triangle = tiles * (tiles + 1) / 2;
    const int64_t blocks = triangle * op.batch;
    assert(blocks <= INT32_MAX);
    const Arguments<T> p{static_cast<const T*>(op.a),
                         static_cast<const T*>(op.b),
                         op.beta == 0 ? nullptr : static_cast<const T*>(op.c),
                         static_cast<T*>(op.d),
                         static_cast<int>(op.n),
                         static_cast<int>(op.k),
                         static_cast<int>(triangle),
                         op.alpha,
                         op.beta,
                         op.diagonal};
    allow_shared("symmetric_mma_kernel", symmetric_mma_kernel<Side, Stages, T>,
                 shared_bytes<Side>(Stages));
    launch(LMO_KERNEL(symmetric_mma_kernel<Side, Stages, T>), dim3(static_cast<unsigned>(blocks)),
           Shape::kThreads, shared_bytes<Side>(Stages), stream, p);
}

}  // namespace lmo::cuda::mma
