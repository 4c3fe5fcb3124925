// Hopper's copies of tiles between global and shared memory (TMA), and the driver's function that
// describes the matrices in global memory.
//
// Loads arrive when no thread can go on, at once, or at random. In the race build the tile counts
// as written by the thread that issued the load at the moment of arrival, which is ordered before
// those who wait at its barrier. Stores read and write at the wait for them (or before).
#include <algorithm>
#include <cstring>
#include <deque>
#include <vector>

#include "dev/emulator/hopper.h"
#include "dev/emulator/mbarrier.h"

namespace emulator {

namespace {

constexpr int kRowBytes = 128;  // of a tile
constexpr int kTileAlignment = 1024;
constexpr uint64_t kMapMagic = 0x70616d726f736e65;

// What cuTensorMapEncodeTiled leaves in the 128 bytes.
struct Map {
    uint64_t magic;
    char* data;
    int32_t rank, box_rows;
    int64_t columns, rows, matrices;
    int64_t row_stride, matrix_stride;  // bytes
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));

struct Copy {
    Thread* thread;
    Map map;
    TileCoordinates at;
    char* tile;
    Mbarrier* barrier;  // of a load
    int group;          // of a store
    bool landed, waited;
    Site site;

    int bytes() const { return map.box_rows * kRowBytes; }
};

// Of the block that runs; references stay valid until the next one starts.
std::deque<Copy> loads, stores;
std::vector<int> store_groups;  // that each thread has closed

void start_block() {
    loads.clear();
    stores.clear();
    store_groups.assign(block.threads, 0);
}

void end_block() {
    for (const Copy& store : stores) {
        if (store.waited) continue;
        fail("%s: thread %d ended without tma_store_wait_read for its tma_store at %s",
             block.kernel, store.thread->linear, text(store.site));
    }
}

[[maybe_unused]] const bool registered = [] {
    on_every_block(start_block, end_block);
    return true;
}();

const Map& decode(const CUtensorMap* map, const TileCoordinates& at, const char* operation,
                  Site site) {
    const Map& decoded = *reinterpret_cast<const Map*>(map);
    if (decoded.magic != kMapMagic) fail("%s at %s: no tensor map", operation, text(site));
    if (decoded.rank != at.rank) {
        fail("%s at %s: %d coordinates for a tensor map of rank %d", operation, text(site), at.rank,
             decoded.rank);
    }
    return decoded;
}

void check_tile(const void* tile, int bytes, const char* operation, Site site) {
    if (reinterpret_cast<uintptr_t>(tile) % kTileAlignment) {
        fail("%s at %s: the tile is not at a multiple of %d bytes", operation, text(site),
             kTileAlignment);
    }
    if (!in_shared_memory(tile, bytes)) {
        fail("%s at %s: the tile of %d bytes reaches outside the shared memory", operation,
             text(site), bytes);
    }
}

// Calls f(row of the tile, first byte in global memory, first byte in the row, bytes) for what lies
// in the matrix of each row.
template <typename F>
void for_rows_inside(const Copy& copy, F&& f) {
    const Map& map = copy.map;
    const TileCoordinates& at = copy.at;
    if (at.matrix < 0 || at.matrix >= map.matrices) return;
    const int64_t first = std::max(0, -at.column);
    const int64_t last = std::min<int64_t>(kRowBytes / 2, map.columns - at.column);
    if (first >= last) return;
    for (int row = 0; row < map.box_rows; ++row) {
        const int64_t y = int64_t{at.row} + row;
        if (y < 0 || y >= map.rows) continue;
        char* global =
            map.data + at.matrix * map.matrix_stride + y * map.row_stride + (at.column + first) * 2;
        f(row, global, static_cast<int>(first * 2), static_cast<int>((last - first) * 2));
    }
}

// One row of a tile between its place in shared memory and plain order.
void read_row(const char* tile, int row, char* plain) {
    for (int piece = 0; piece < 8; ++piece) {
        memcpy(plain + piece * 16, tile + row * kRowBytes + (piece ^ row % 8) * 16, 16);
    }
}
void write_row(char* tile, int row, const char* plain) {
    for (int piece = 0; piece < 8; ++piece) {
        memcpy(tile + row * kRowBytes + (piece ^ row % 8) * 16, plain + piece * 16, 16);
    }
}

void land_load(Copy& load) {
    const char zeros[kRowBytes] = {};
    for (int row = 0; row < load.map.box_rows; ++row) write_row(load.tile, row, zeros);
    for_rows_inside(load, [&](int row, const char* global, int first, int bytes) {
        char plain[kRowBytes] = {};
        check_access(*load.thread, global, bytes, Access::read, load.site);
        memcpy(plain + first, global, bytes);
        write_row(load.tile, row, plain);
    });
    finish_async_write(*load.thread, load.tile, load.bytes());
    deliver(*load.barrier, *load.thread, load.bytes(), load.site);
}

void land_store(Copy& store) {
    if (store.landed) return;
    store.landed = true;
    for_rows_inside(store, [&](int row, char* global, int first, int bytes) {
        char plain[kRowBytes];
        read_row(store.tile, row, plain);
        check_access(*store.thread, global, bytes, Access::write, store.site);
        memcpy(global, plain + first, bytes);
    });
}

}  // namespace

void load_tile(void* tile, const CUtensorMap* map, TileCoordinates at, uint64_t* memory,
               Site site) {
    Mbarrier& barrier = find_mbarrier(memory, "tma_load", site);
    const Map& decoded = decode(map, at, "tma_load", site);
    loads.push_back(
        {current, decoded, at, static_cast<char*>(tile), &barrier, 0, false, false, site});
    Copy& load = loads.back();
    check_tile(tile, load.bytes(), "tma_load", site);
    check_access(*current, memory, sizeof *memory, Access::read, site);
    check_no_product_reads(tile, load.bytes(), site);
    begin_async_write(*current, tile, load.bytes(), site);
    expect_delivery(barrier, load.bytes());
    if (lands_early()) {
        land_load(load);
    } else {
        add_async_work([&load] { land_load(load); });
    }
}

void store_tile(const CUtensorMap* map, TileCoordinates at, const void* tile, Site site) {
    const Map& decoded = decode(map, at, "tma_store", site);
    const int linear = current->linear;
    stores.push_back({current, decoded, at, static_cast<char*>(const_cast<void*>(tile)), nullptr,
                      store_groups[linear], false, false, site});
    Copy& store = stores.back();
    check_tile(tile, store.bytes(), "tma_store", site);
    check_access(*current, tile, store.bytes(), Access::read, site);
    if (lands_early()) {
        land_store(store);
    } else {
        add_async_work([&store] { land_store(store); });
    }
}

void tma_store_commit() { ++store_groups[current->linear]; }

void wait_for_stores(int pending, Site site) {
    const int groups = store_groups[current->linear] - pending;
    for (Copy& store : stores) {
        if (store.thread != current || store.waited || store.group >= groups) continue;
        land_store(store);
        store.waited = true;
        // The tile was being read up to now.
        check_access(*current, store.tile, store.bytes(), Access::read, site);
    }
}

}  // namespace emulator

// ---- the driver's functions --------------------------------------------------------------------

namespace {

// As the driver's header states it, and refusing what is not emulated.
CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* data,
                      const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box,
                      const cuuint32_t* steps, CUtensorMapInterleave interleave,
                      CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                      CUtensorMapFloatOOBfill fill) {
    if (rank < 1 || rank > 5) return CUDA_ERROR_INVALID_VALUE;
    const bool two_bytes = type == CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 ||
                           type == CU_TENSOR_MAP_DATA_TYPE_FLOAT16 ||
                           type == CU_TENSOR_MAP_DATA_TYPE_UINT16;
    if (!two_bytes || rank < 2 || rank > 3 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
        swizzle != CU_TENSOR_MAP_SWIZZLE_128B || fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    if (reinterpret_cast<uintptr_t>(map) % 64 || reinterpret_cast<uintptr_t>(data) % 16 || !data) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    for (cuuint32_t i = 0; i < rank; ++i) {
        if (sizes[i] == 0 || sizes[i] > uint64_t{1} << 32) return CUDA_ERROR_INVALID_VALUE;
        if (box[i] == 0 || box[i] > 256 || steps[i] == 0 || steps[i] > 8) {
            return CUDA_ERROR_INVALID_VALUE;
        }
        if (steps[i] != 1) return CUDA_ERROR_NOT_SUPPORTED;
    }
    for (cuuint32_t i = 0; i + 1 < rank; ++i) {
        const uint64_t least = i == 0 ? sizes[0] * 2 : sizes[i];
        if (strides[i] % 16 || strides[i] >= uint64_t{1} << 40 || strides[i] < least) {
            return CUDA_ERROR_INVALID_VALUE;
        }
    }
    if (box[0] * 2 % 16 || box[0] * 2 > emulator::kRowBytes) return CUDA_ERROR_INVALID_VALUE;
    if (box[0] * 2 != emulator::kRowBytes || (rank == 3 && box[2] != 1)) {
        return CUDA_ERROR_NOT_SUPPORTED;
    }
    emulator::Map encoded{};
    encoded.magic = emulator::kMapMagic;
    encoded.data = static_cast<char*>(data);
    encoded.rank = static_cast<int32_t>(rank);
    encoded.box_rows = static_cast<int32_t>(box[1]);
    encoded.columns = static_cast<int64_t>(sizes[0]);
    encoded.rows = static_cast<int64_t>(sizes[1]);
    encoded.matrices = rank == 3 ? static_cast<int64_t>(sizes[2]) : 1;
    encoded.row_stride = static_cast<int64_t>(strides[0]);
    encoded.matrix_stride = rank == 3 ? static_cast<int64_t>(strides[1]) : 0;
    memset(map, 0, sizeof *map);
    memcpy(map, &encoded, sizeof encoded);
    return CUDA_SUCCESS;
}

}  // namespace

extern "C" cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                                        unsigned, unsigned long long,
                                                        cudaDriverEntryPointQueryResult* result) {
    const bool known = strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
    *function = known ? reinterpret_cast<void*>(encode_tiled) : nullptr;
    if (result) *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}
