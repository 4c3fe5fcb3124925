// The embedding table: rows by id, and the gradient of that.
//
// Forward: out[i] = table[ids[i]], N rows of C; read and written once.
//
// Backward: dtable[v] += dout[i] over the i with ids[i] = v, in order of i and without atomics, so
// that the result is exactly that of the plain loop. The pairs (id, i) are sorted by id on the
// device by a stable radix sort, least significant digit first (Knuth, The Art of Computer
// Programming 3, section 5.2.5), in as many passes of 8 bits as the vocabulary needs; a pass is
// three small kernels:
//   counts of each digit in each tile  ->  their prefix sums over the tiles, a warp a digit
//   ->  each entry to the place of its digit, its tile and its rank in the tile.
// Equal ids are neighbours then. A block takes 32 sorted entries and 32 columns; of the runs of
// equal ids that start among its entries, a warp adds a short one and all warps load a long one, 64
// rows at a time, for the first warp to add. Memory traffic: dout once, each row of dtable whose id
// occurs read and written once; the sort moves 24 bytes an id and pass.
#include "llmc/cuda/common.cuh"
#include "llmc/cuda/cuda_backend.h"

namespace lmo::cuda {

namespace {

// ---- forward ------------------------------------------------------------------------------------

// `columns` counts vectors of W.
template <typename T, typename R, int W>
__global__ void embedding_forward_kernel(const int32_t* ids, const T* table, R* out, int64_t rows,
                                         int64_t columns, uint32_t across) {
    const TilePlace at = tile_place(across);
    wait_for_previous();
    if (at.row >= rows || at.column >= columns) return;
    const Vector<T, W> from = load<W>(table + (ids[at.row] * columns + at.column) * W);
    Vector<R, W> to;
#pragma unroll
    for (int i = 0; i < W; ++i) to[i] = from_float<R>(to_float(from[i]));
    store(out + (at.row * columns + at.column) * W, to);
}

template <typename T, typename R, int W>
void look_up(const EmbeddingForward& op, Stream stream) {
    const int64_t rows = op.ids.count(), columns = op.table.shape[1] / W;
    const Tiles tiles = tiles_of(rows, columns);
    launch(LMO_KERNEL(embedding_forward_kernel<T, R, W>), tiles.grid, tiles.block, 0, stream,
           op.ids.as<int32_t>(), op.table.as<T>(), op.out.as<R>(), rows, columns, tiles.across);
}

// ---- sort ---------------------------------------------------------------------------------------

constexpr int kDigits = 256;  // also the threads of a block
constexpr int kWarps = kDigits / 32;
constexpr int kRounds = 4;  // entries of a thread
constexpr int kTile = kDigits * kRounds;

// An id above, its position below; before the first pass they are not written down yet.
struct Entries {
    const int32_t* ids;  // null after the first pass
    const uint64_t* sorted;

    __device__ uint64_t operator[](int64_t i) const {
        return ids ? uint64_t{static_cast<uint32_t>(ids[i])} << 32 | static_cast<uint64_t>(i)
                   : sorted[i];
    }
};

__device__ __forceinline__ int digit_of(uint64_t entry, int shift) {
    return static_cast<int>(entry >> (32 + shift)) & (kDigits - 1);
}

// counts[digit][tile]
__global__ void __launch_bounds__(kDigits)
    count_digits_kernel(Entries entries, int64_t count, int shift, int32_t* counts) {
    LMO_SHARED(int32_t, sums, [kDigits]);
    wait_for_previous();
    sums[threadIdx.x] = 0;
    __syncthreads();
    const int64_t begin = int64_t{blockIdx.x} * kTile;
    for (int round = 0; round < kRounds; ++round) {
        const int64_t i = begin + round * kDigits + threadIdx.x;
        if (i < count) atomicAdd(&sums[digit_of(entries[i], shift)], 1);
    }
    __syncthreads();
    counts[int64_t{threadIdx.x} * gridDim.x + blockIdx.x] = sums[threadIdx.x];
}

// Sum over this lane and those below.
__device__ __forceinline__ int32_t prefix_sum(int32_t value) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        const int32_t below = __shfl_up_sync(0xffffffffu, value, step);
        if (lane >= step) value += below;
    }
    return value;
}

// Each warp turns the counts of one digit into the sums over the tiles before, and their total.
__global__ void __launch_bounds__(kDigits)
    sum_over_tiles_kernel(int32_t* counts, int64_t tiles, int32_t* totals) {
    wait_for_previous();
    const int digit = blockIdx.x * kWarps + threadIdx.x / 32, lane = threadIdx.x % 32;
    int32_t* row = counts + digit * tiles;
    int32_t before = 0;
    for (int64_t first = 0; first < tiles; first += 32) {
        const bool inside = first + lane < tiles;
        const int32_t own = inside ? row[first + lane] : 0;
        const int32_t sum = prefix_sum(own);
        if (inside) row[first + lane] = before + sum - own;
        before += __shfl_sync(0xffffffffu, sum, 31);
    }
    if (lane == 0) totals[digit] = before;
}

// The place of the first entry of digit threadIdx.x in the tile of this block. All threads.
__device__ int32_t place_of_digit(const int32_t* counts, const int32_t* totals) {
    LMO_SHARED(int32_t, warp_totals, [kWarps]);
    const int32_t own = totals[threadIdx.x], sum = prefix_sum(own);
    if (threadIdx.x % 32 == 31) warp_totals[threadIdx.x / 32] = sum;
    __syncthreads();
    int32_t place = sum - own;
    for (int warp = 0; warp < static_cast<int>(threadIdx.x / 32); ++warp) {
        place += warp_totals[warp];
    }
    return place + counts[int64_t{threadIdx.x} * gridDim.x + blockIdx.x];
}

// The lanes that take part and have the same digit.
__device__ __forceinline__ uint32_t lanes_with(int digit, bool takes_part) {
    uint32_t peers = __ballot_sync(0xffffffffu, takes_part);
#pragma unroll
    for (int bit = 1; bit < kDigits; bit *= 2) {
        const uint32_t ones = __ballot_sync(0xffffffffu, (digit & bit) != 0);
        peers &= (digit & bit) != 0 ? ones : ~ones;
    }
    return peers;
}

// Moves the entries of a tile; those with equal digits stay in order. A warp takes kRounds * 32
// neighbours, 32 in a round.
__global__ void __launch_bounds__(kDigits)
    scatter_kernel(Entries entries, int64_t count, int shift, const int32_t* counts,
                   const int32_t* totals, uint64_t* to) {
    LMO_SHARED(int32_t, places, [kWarps][kDigits]);  // first counts, then places
    wait_for_previous();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int w = 0; w < kWarps; ++w) places[w][threadIdx.x] = 0;
    int32_t place = place_of_digit(counts, totals);  // with a barrier inside

    const int64_t begin = int64_t{blockIdx.x} * kTile + warp * (kRounds * 32) + lane;
    uint64_t mine[kRounds];
    int32_t rank[kRounds];  // among the entries of this warp with the same digit
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        const bool inside = begin + round * 32 < count;
        mine[round] = inside ? entries[begin + round * 32] : 0;
        const int digit = digit_of(mine[round], shift);
        const uint32_t peers = lanes_with(digit, inside);
        const int32_t earlier = places[warp][digit];
        rank[round] = earlier + __popc(peers & ((1u << lane) - 1));
        __syncwarp();  // all have read before the first of the peers writes
        if (inside && rank[round] == earlier) places[warp][digit] = earlier + __popc(peers);
        __syncwarp();
    }
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) {
        const int32_t in_warp = places[w][threadIdx.x];
        places[w][threadIdx.x] = place;
        place += in_warp;
    }
    __syncthreads();
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
        if (begin + round * 32 >= count) break;
        to[places[warp][digit_of(mine[round], shift)] + rank[round]] = mine[round];
    }
}

// ---- sums ---------------------------------------------------------------------------------------

constexpr int kLongRun = 32;               // longer ones are added by the whole block
constexpr int kWarpRows = 8;               // rows that a warp has under way
constexpr int kBlockRows = 8 * kWarpRows;  // of a long run
constexpr int kSumThreads = 256;

// The sorted entries, and what a lane adds: its column of rows of dout.
template <typename R>
struct Rows {
    const uint64_t* entries;
    int64_t count;
    const R* dout;
    int64_t columns, column;

    __device__ bool inside() const { return column < columns; }
    // Whether entry i exists and has the id of entry `first`.
    __device__ bool same(int64_t first, int64_t i) const {
        return i < count && entries[i] >> 32 == entries[first] >> 32;
    }
    __device__ bool starts_run(int64_t i) const { return i < count && (i == 0 || !same(i, i - 1)); }
    // How many of the 32 entries from `begin` on are in the run of entry `first`. All lanes.
    __device__ int in_run(int64_t first, int64_t begin) const {
        return __popc(__ballot_sync(0xffffffffu, same(first, begin + threadIdx.x % 32)));
    }
    __device__ float value(int64_t i) const {
        return to_float(dout[static_cast<uint32_t>(entries[i]) * columns + column]);
    }
    __device__ float* target(float* dtable, int64_t i) const {
        return dtable + static_cast<int64_t>(entries[i] >> 32) * columns + column;
    }
};

// A warp adds a run of at most kLongRun rows.
template <typename R>
__device__ void add_short_run(const Rows<R>& rows, int64_t first, float* dtable) {
    const int length = rows.in_run(first, first);
    if (!rows.inside()) return;
    float* to = rows.target(dtable, first);
    float sum = *to;
    for (int begin = 0; begin < length; begin += kWarpRows) {
        float values[kWarpRows];
#pragma unroll
        for (int i = 0; i < kWarpRows; ++i) {
            if (begin + i < length) values[i] = rows.value(first + begin + i);
        }
#pragma unroll
        for (int i = 0; i < kWarpRows; ++i) {
            if (begin + i < length) sum += values[i];
        }
    }
    *to = sum;
}

// All warps load the next kBlockRows rows of a long run while the first one adds the last ones.
template <typename R>
__device__ void add_long_run(const Rows<R>& rows, int64_t first, float* dtable,
                             float (*tile)[kBlockRows][32]) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const bool adds = warp == 0 && rows.inside();
    float sum = adds ? *rows.target(dtable, first) : 0.0f;
    int64_t begin = first;
    int loaded = 0, turn = 0;  // rows in the tile that is being added
    while (true) {
        const int length = rows.in_run(first, begin) + rows.in_run(first, begin + 32);
        float values[kWarpRows] = {};
#pragma unroll
        for (int i = 0; i < kWarpRows; ++i) {
            const int row = warp * kWarpRows + i;
            if (row < length && rows.inside()) values[i] = rows.value(begin + row);
        }
        if (adds) {
            for (int row = 0; row < loaded; ++row) sum += tile[1 - turn][row][lane];
        }
        if (length == 0) break;
#pragma unroll
        for (int i = 0; i < kWarpRows; ++i) tile[turn][warp * kWarpRows + i][lane] = values[i];
        __syncthreads();
        begin += length;
        loaded = length;
        turn = 1 - turn;
    }
    if (adds) *rows.target(dtable, first) = sum;
}

// A block takes the runs that start among 32 sorted entries, and 32 columns.
template <typename R>
__global__ void __launch_bounds__(kSumThreads, 5)
    add_runs_kernel(const uint64_t* entries, int64_t count, const R* dout, float* dtable,
                    int64_t columns, uint32_t across) {
    LMO_SHARED(float, tile, [2][kBlockRows][32]);
    wait_for_previous();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64_t begin = int64_t{blockIdx.x / across} * 32;
    const Rows<R> rows{entries, count, dout, columns, int64_t{blockIdx.x % across} * 32 + lane};
    const bool starts = rows.starts_run(begin + lane);
    const bool is_long = starts && rows.same(begin + lane, begin + lane + kLongRun);
    const uint32_t long_run = __ballot_sync(0xffffffffu, is_long);
    uint32_t short_runs = __ballot_sync(0xffffffffu, starts && !is_long);
    for (int i = 0; short_runs != 0; ++i, short_runs &= short_runs - 1) {
        if (i % (kSumThreads / 32) == warp) {
            add_short_run(rows, begin + __ffs(short_runs) - 1, dtable);
        }
    }
    // No second one starts among so few entries.
    if (long_run != 0) add_long_run(rows, begin + __ffs(long_run) - 1, dtable, tile);
}

// ---- workspace ----------------------------------------------------------------------------------

struct Workspace {
    int64_t tiles;
    uint64_t* entries[2];  // passes write the one, then the other
    int32_t *counts, *totals;
    size_t bytes;
};

Workspace divide(int64_t count, void* memory) {
    Workspace w{};
    w.tiles = div_up<int64_t>(count, kTile);
    w.entries[0] = static_cast<uint64_t*>(memory);
    w.entries[1] = w.entries[0] + count;
    w.counts = reinterpret_cast<int32_t*>(w.entries[1] + count);
    w.totals = w.counts + kDigits * w.tiles;
    w.bytes = static_cast<size_t>(2 * count) * sizeof(uint64_t) +
              static_cast<size_t>(kDigits * (w.tiles + 1)) * sizeof(int32_t);
    return w;
}

}  // namespace

void CudaBackend::embedding_forward(const EmbeddingForward& op) {
    assert(op.out.count() == op.ids.count() * op.table.shape[1] && op.ids.dtype == DType::i32);
    for_compute_type(op.table.dtype, [&](auto table_type) {
        for_compute_type(op.out.dtype, [&](auto out_type) {
            using T = typename decltype(table_type)::type;
            using R = typename decltype(out_type)::type;
            using Wide = std::conditional_t<(sizeof(T) > sizeof(R)), T, R>;
            if (rows_aligned<Wide>(op.table.shape[1], op.table.data, op.out.data)) {
                look_up<T, R, kWidth<Wide>>(op, stream_);
            } else {
                look_up<T, R, 1>(op, stream_);
            }
        });
    });
}

size_t CudaBackend::workspace_bytes(const EmbeddingBackward& op) const {
    return divide(op.ids.count(), nullptr).bytes;
}

void CudaBackend::embedding_backward(const EmbeddingBackward& op) {
    const int64_t count = op.ids.count(), columns = op.dtable.shape[1];
    assert(op.ids.dtype == DType::i32 && count <= INT32_MAX && op.dout.count() == count * columns);
    assert(op.dtable.dtype == DType::f32 && op.dtable.shape[0] <= INT32_MAX);
    if (count == 0) return;
    const Workspace w = divide(count, op.workspace.data);
    assert(w.bytes <= op.workspace.bytes());

    const dim3 grid(static_cast<uint32_t>(w.tiles));
    Entries entries{op.ids.as<int32_t>(), nullptr};
    int pass = 0;
    do {
        uint64_t* to = w.entries[pass % 2];
        launch(LMO_KERNEL(count_digits_kernel), grid, kDigits, 0, stream_, entries, count, 8 * pass,
               w.counts);
        launch(LMO_KERNEL(sum_over_tiles_kernel), kDigits / kWarps, kDigits, 0, stream_, w.counts,
               w.tiles, w.totals);
        launch(LMO_KERNEL(scatter_kernel), grid, kDigits, 0, stream_, entries, count, 8 * pass,
               w.counts, w.totals, to);
        entries = {nullptr, to};
        ++pass;
    } while ((op.dtable.shape[0] - 1) >> (8 * pass) != 0);

    for_compute_type(op.dout.dtype, [&](auto type) {
        using R = typename decltype(type)::type;
        const int64_t across = div_up<int64_t>(columns, 32);
        const int64_t blocks = div_up<int64_t>(count, 32) * across;
        assert(blocks <= INT32_MAX);
        launch(LMO_KERNEL(add_runs_kernel<R>), dim3(static_cast<uint32_t>(blocks)), kSumThreads, 0,
               stream_, entries.sorted, count, op.dout.as<R>(), op.dtable.as<float>(), columns,
               across);
    });
}

}  // namespace lmo::cuda
