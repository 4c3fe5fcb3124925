// Many tensors in one launch.
//
// A table of the tensors travels in the kernel's parameters (CUDA 12.1 allows 32,764 bytes of
// them), so a recorded graph keeps it and no memory is needed. Tensor i occupies the blocks from
// first_block[i] on, a chunk of its elements each; a block finds its tensor by binary search. Lists
// longer than a table take several launches.
//
// update_kernel<Op> is the elementwise family: Op says which lists it reads and writes, what it
// computes once a block in double, and what it does to one element. Each list is read once and
// written once. Where all tensors of an entry allow it, a thread moves neighbours together, 16
// bytes of the widest type; else, and at the ragged end, it moves single elements. The result of an
// element does not depend on which way it went.
#pragma once

#include <algorithm>
#include <climits>
#include <cstddef>
#include <vector>

#include "llmc/cuda/common.cuh"

namespace lmo::cuda {

// ---- the table ----------------------------------------------------------------------------------

constexpr size_t kTableBytes = 16000;

// Corresponding tensors of all lists. Scalars: what differs from tensor to tensor.
template <int Lists, typename ScalarsType>
struct TableEntry {
    using Scalars = ScalarsType;
    void* data[Lists];
    int64_t count;
    Scalars scalars;
};

struct NoScalars {
    bool operator==(const NoScalars&) const = default;
};

template <typename EntryType>
struct TensorTable {
    using Entry = EntryType;
    static constexpr int kCapacity =
        static_cast<int>((kTableBytes - 2 * sizeof(int)) / (sizeof(Entry) + sizeof(int)));

    int size, blocks;
    int first_block[kCapacity];
    Entry entries[kCapacity];

    // The entry of a block: the last one that begins at or before it.
    __device__ __forceinline__ int find(int block) const {
        int low = 0, high = size;
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            (first_block[middle] <= block ? low : high) = middle;
        }
        return low;
    }
};

// Calls launch_table(table, index of its first tensor) for tables that together hold the entries of
// tensors [0, tensors) in order, `chunk` elements a block.
template <typename Table, typename EntryOf, typename LaunchTable>
void for_each_table(size_t tensors, int64_t chunk, EntryOf entry_of, LaunchTable launch_table) {
    Table table{};
    size_t first = 0;
    for (size_t i = 0; i < tensors; ++i) {
        const typename Table::Entry entry = entry_of(i);
        const int64_t blocks = div_up(entry.count, chunk);
        assert(blocks <= INT_MAX);
        if (table.size == Table::kCapacity || table.blocks + blocks > INT_MAX) {
            launch_table(table, first);
            table.size = table.blocks = 0;
            first = i;
        }
        table.first_block[table.size] = table.blocks;
        table.entries[table.size++] = entry;
        table.blocks += static_cast<int>(blocks);
    }
    if (table.size > 0) launch_table(table, first);
}

// ---- elementwise operations ---------------------------------------------------------------------
// An operation is a struct, passed by value, with
//   Lists = TensorLists<Scalars, InOut<float>, In<float>, ...>, one for each list of tensors;
//   Coefficients, what all elements of a tensor need, and
//   coefficients(scalars), which one thread a block calls: double arithmetic belongs there;
//   update(coefficients, T& value of list 0, T& value of list 1, ...) for one element.

template <typename T>
struct In {
    using type = T;
    static constexpr bool reads = true, writes = false;
};
template <typename T>
struct Out {
    using type = T;
    static constexpr bool reads = false, writes = true;
};
template <typename T>
struct InOut {
    using type = T;
    static constexpr bool reads = true, writes = true;
};

struct NoCoefficients {};

constexpr int kUpdateThreads = 256;
constexpr int64_t kUpdateChunk = 8192;  // elements of a block

// N neighbours of list number I.
template <size_t I, typename List, int N>
struct Slot {
    using T = typename List::type;
    Vector<T, N> vector;

    __device__ __forceinline__ void read(void* const* data, int at) {
        if constexpr (List::reads) vector = load<N>(static_cast<const T*>(data[I]) + at);
    }
    __device__ __forceinline__ void write(void* const* data, int at) const {
        if constexpr (List::writes) store<N>(static_cast<T*>(data[I]) + at, vector);
    }
    __device__ __forceinline__ static bool aligned(void* const* data) {
        return reinterpret_cast<uintptr_t>(data[I]) % sizeof(vector) == 0;
    }
};

// N neighbours of all lists.
template <int N, typename Indices, typename... Lists>
struct Slots;
template <int N, size_t... I, typename... Lists>
struct Slots<N, std::index_sequence<I...>, Lists...> : Slot<I, Lists, N>... {
    __device__ __forceinline__ void read(void* const* data, int at) {
        (Slot<I, Lists, N>::read(data, at), ...);
    }
    __device__ __forceinline__ void write(void* const* data, int at) const {
        (Slot<I, Lists, N>::write(data, at), ...);
    }
    template <typename Op>
    __device__ __forceinline__ void update(const typename Op::Coefficients& coefficients) {
#pragma unroll
        for (int k = 0; k < N; ++k) Op::update(coefficients, Slot<I, Lists, N>::vector[k]...);
    }
    __device__ __forceinline__ static bool aligned(void* const* data) {
        return (Slot<I, Lists, N>::aligned(data) && ...);
    }
};

template <typename Scalars, typename... Lists>
struct TensorLists {
    static constexpr int kLists = sizeof...(Lists);
    static constexpr int kWidth =
        static_cast<int>(16 / std::max({sizeof(typename Lists::type)...}));  // neighbours
    // Loads of a thread that wait for memory together.
    static constexpr int kInFlight = (int{Lists::reads} + ...) == 1 ? 4 : 2;
    using Entry = TableEntry<kLists, Scalars>;
    using Table = TensorTable<Entry>;
    template <int N>
    using Values = Slots<N, std::index_sequence_for<Lists...>, Lists...>;

    // data: where element `begin` of each list is.
    __device__ __forceinline__ static void go_to(int64_t begin, const Entry& entry, void** data) {
        constexpr size_t sizes[] = {sizeof(typename Lists::type)...};
#pragma unroll
        for (int l = 0; l < kLists; ++l) {
            data[l] = static_cast<char*>(entry.data[l]) + begin * static_cast<int64_t>(sizes[l]);
        }
    }

    // Whether `next` goes on where `entry` ends, in all lists alike: then they may be one.
    static bool continues(const Entry& entry, const Entry& next) {
        constexpr size_t sizes[] = {sizeof(typename Lists::type)...};
        for (int l = 0; l < kLists; ++l) {
            const size_t bytes = static_cast<size_t>(entry.count) * sizes[l];
            if (static_cast<char*>(entry.data[l]) + bytes != next.data[l]) return false;
        }
        return entry.scalars == next.scalars;
    }
};

// Elements [begin, end) of a chunk, whose number is a multiple of N.
template <int N, typename Op>
__device__ __forceinline__ void update_range(const typename Op::Coefficients& coefficients,
                                             void* const* data, int begin, int end) {
    constexpr int kInFlight = Op::Lists::kInFlight;
    constexpr int kStride = kUpdateThreads * N;
#pragma unroll 1
    for (int at = begin + static_cast<int>(threadIdx.x) * N; at < end; at += kStride * kInFlight) {
        typename Op::Lists::template Values<N> values[kInFlight];
#pragma unroll
        for (int v = 0; v < kInFlight; ++v) {
            if (at + v * kStride < end) values[v].read(data, at + v * kStride);
        }
#pragma unroll
        for (int v = 0; v < kInFlight; ++v) {
            if (at + v * kStride >= end) break;
            values[v].template update<Op>(coefficients);
            values[v].write(data, at + v * kStride);
        }
    }
}

template <typename Op>
__global__ void __launch_bounds__(kUpdateThreads)
    update_kernel(const Op op, const __grid_constant__ typename Op::Lists::Table table) {
    using Lists = typename Op::Lists;
    const int index = table.find(static_cast<int>(blockIdx.x));
    const typename Lists::Entry& entry = table.entries[index];
    wait_for_previous();
    typename Op::Coefficients coefficients;
    if constexpr (!std::is_empty_v<typename Op::Coefficients>) {
        LMO_SHARED(typename Op::Coefficients, shared, [1]);
        if (threadIdx.x == 0) shared[0] = op.coefficients(entry.scalars);
        __syncthreads();
        coefficients = shared[0];
    }
    const int64_t chunk = static_cast<int>(blockIdx.x) - table.first_block[index];
    const int64_t begin = chunk * kUpdateChunk, rest = entry.count - begin;
    const int count = static_cast<int>(rest < kUpdateChunk ? rest : kUpdateChunk);
    void* data[Lists::kLists];
    Lists::go_to(begin, entry, data);
    constexpr int N = Lists::kWidth;
    const int together = Lists::template Values<N>::aligned(data) ? count / N * N : 0;
    update_range<N, Op>(coefficients, data, 0, together);
    update_range<1, Op>(coefficients, data, together, count);
}

// Launches LMO_KERNEL(update_kernel<Op>) over `tensors` tensors; entry_of(i) describes one. Tensors
// side by side in memory become one entry, empty ones none.
template <typename Op, typename EntryOf>
void launch_update(const char* name, void (*kernel)(Op, typename Op::Lists::Table),
                   Stream stream, const Op& op, size_t tensors, EntryOf entry_of) {
    using Table = typename Op::Lists::Table;
    static_assert(sizeof(Op) + sizeof(Table) <= 32764, "more than a kernel's parameters may hold");
    std::vector<typename Table::Entry> entries;
    for (size_t i = 0; i < tensors; ++i) {
        const typename Table::Entry entry = entry_of(i);
        if (entry.count == 0) continue;
        if (!entries.empty() && Op::Lists::continues(entries.back(), entry)) {
            entries.back().count += entry.count;
        } else {
            entries.push_back(entry);
        }
    }
    for_each_table<Table>(
        entries.size(), kUpdateChunk, [&](size_t i) { return entries[i]; },
        [&](const Table& table, size_t) {
            launch(name, kernel, dim3(static_cast<unsigned>(table.blocks)), dim3(kUpdateThreads), 0,
                   stream, op, table);
        });
}

}  // namespace lmo::cuda
