// Barriers and warp functions of CUDA as templates on the emulator's collectives.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "dev/emulator/runtime.h"

namespace emulator {

inline bool in_mask(uint32_t mask, int lane) { return mask >> lane & 1; }

// ---- shuffles -----------------------------------------------------------------------------------

template <typename T>
struct ShuffleInput {
    T value;
    int source;
};

template <typename T>
LMO_NOT_CHECKED void shuffle_lanes(Warp& warp, uint32_t mask, const void*) {
    for (int lane = 0; lane < 32; ++lane) {
        if (!in_mask(mask, lane)) continue;
        const int source = lane_in<ShuffleInput<T>>(warp, lane).source;
        if (!in_mask(mask, source)) {
            fail("shuffle at %s: lane %d reads lane %d, which is not in the mask %08x",
                 text(warp.lanes[lane]->site), lane, source, mask);
        }
        memcpy(warp.lanes[lane]->out, &lane_in<ShuffleInput<T>>(warp, source).value, sizeof(T));
    }
}

template <typename T>
T shuffle(const char* operation, uint32_t mask, T value, int source, Site site) {
    static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
    const ShuffleInput<T> in{value, source};
    T out;
    warp_collective(operation, mask, &in, &out, shuffle_lanes<T>, nullptr, site);
    return out;
}

// First lane of the segment of `width` lanes that this lane is in.
int segment_start(int width);
int own_lane();

// ---- reductions ---------------------------------------------------------------------------------

struct Add {
    template <typename T>
    LMO_NOT_CHECKED T operator()(T a, T b) const {
        return a + b;
    }
};
struct Max {
    template <typename T>
    LMO_NOT_CHECKED T operator()(T a, T b) const {
        if constexpr (std::is_floating_point_v<T>)
            return std::fmax(a, b);
        else
            return a > b ? a : b;
    }
};
struct Min {
    template <typename T>
    LMO_NOT_CHECKED T operator()(T a, T b) const {
        if constexpr (std::is_floating_point_v<T>)
            return std::fmin(a, b);
        else
            return a < b ? a : b;
    }
};
struct And {
    template <typename T>
    LMO_NOT_CHECKED T operator()(T a, T b) const {
        return a & b;
    }
};
struct Or {
    template <typename T>
    LMO_NOT_CHECKED T operator()(T a, T b) const {
        return a | b;
    }
};
struct Xor {
    template <typename T>
    LMO_NOT_CHECKED T operator()(T a, T b) const {
        return a ^ b;
    }
};

// The result of five xor-shuffles with steps 16, 8, 4, 2, 1, bit for bit.
template <typename T, typename Combine>
LMO_NOT_CHECKED void butterfly_lanes(Warp& warp, uint32_t, const void*) {
    T values[32], next[32];
    for (int lane = 0; lane < 32; ++lane) values[lane] = lane_in<T>(warp, lane);
    for (int step = 16; step > 0; step /= 2) {
        for (int lane = 0; lane < 32; ++lane) {
            next[lane] = Combine()(values[lane], values[lane ^ step]);
        }
        for (int lane = 0; lane < 32; ++lane) values[lane] = next[lane];
    }
    for (int lane = 0; lane < 32; ++lane) lane_out<T>(warp, lane) = values[lane];
}

// Integers of the lanes in the mask, where the order does not matter.
template <typename T, typename Combine>
LMO_NOT_CHECKED void reduce_lanes(Warp& warp, uint32_t mask, const void*) {
    T result{};
    bool first = true;
    for (int lane = 0; lane < 32; ++lane) {
        if (!in_mask(mask, lane)) continue;
        const T value = lane_in<T>(warp, lane);
        result = first ? value : Combine()(result, value);
        first = false;
    }
    for (int lane = 0; lane < 32; ++lane) {
        if (in_mask(mask, lane)) lane_out<T>(warp, lane) = result;
    }
}

template <typename Combine, typename T>
T reduce(const char* operation, uint32_t mask, T value, Site site) {
    static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
    T out;
    warp_collective(operation, mask, &value, &out, reduce_lanes<T, Combine>, nullptr, site);
    return out;
}

bool real_shuffles();

template <typename Combine, typename T>
T butterfly(const char* operation, T value, Site site) {
    constexpr uint32_t all = 0xffffffffu;
    if (real_shuffles()) {
        for (int step = 16; step > 0; step /= 2) {
            value = Combine()(value, shuffle(operation, all, value, own_lane() ^ step, site));
        }
        return value;
    }
    T out;
    warp_collective(operation, all, &value, &out, butterfly_lanes<T, Combine>, nullptr, site);
    return out;
}

// Over all 32 lanes, for all of them.
template <typename T>
T warp_sum(T value, LMO_SITE) {
    return butterfly<Add>("warp_sum", value, site);
}
template <typename T>
T warp_max(T value, LMO_SITE) {
    return butterfly<Max>("warp_max", value, site);
}

uint32_t ballot(const char* operation, uint32_t mask, bool predicate, Site site);

}  // namespace emulator

// ---- CUDA's names -------------------------------------------------------------------------------

inline void __syncthreads(LMO_SITE) { emulator::barrier("__syncthreads", false, site); }
inline int __syncthreads_count(int predicate, LMO_SITE) {
    return emulator::barrier("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, LMO_SITE) {
    return emulator::barrier("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, LMO_SITE) {
    return emulator::barrier("__syncthreads_and", predicate == 0, site) == 0;
}
inline void __syncwarp(uint32_t mask = 0xffffffffu, LMO_SITE) { emulator::sync_warp(mask, site); }

template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, LMO_SITE) {
    const int from = emulator::segment_start(width) + (source & (width - 1));
    return emulator::shuffle("__shfl_sync", mask, value, from, site);
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32, LMO_SITE) {
    const int lane = emulator::own_lane(), from = lane ^ lane_mask;
    const bool inside = from < emulator::segment_start(width) + width;
    return emulator::shuffle("__shfl_xor_sync", mask, value, inside ? from : lane, site);
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, LMO_SITE) {
    const int lane = emulator::own_lane(), from = lane + static_cast<int>(delta);
    const bool inside = from < emulator::segment_start(width) + width;
    return emulator::shuffle("__shfl_down_sync", mask, value, inside ? from : lane, site);
}
template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, LMO_SITE) {
    const int lane = emulator::own_lane(), from = lane - static_cast<int>(delta);
    const bool inside = from >= emulator::segment_start(width);
    return emulator::shuffle("__shfl_up_sync", mask, value, inside ? from : lane, site);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, LMO_SITE) {
    return emulator::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(uint32_t mask, int predicate, LMO_SITE) {
    return emulator::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, LMO_SITE) {
    return emulator::ballot("__all_sync", mask, predicate != 0, site) == mask;
}

template <typename T>
T __reduce_add_sync(uint32_t mask, T value, LMO_SITE) {
    return emulator::reduce<emulator::Add>("__reduce_add_sync", mask, value, site);
}
template <typename T>
T __reduce_max_sync(uint32_t mask, T value, LMO_SITE) {
    return emulator::reduce<emulator::Max>("__reduce_max_sync", mask, value, site);
}
template <typename T>
T __reduce_min_sync(uint32_t mask, T value, LMO_SITE) {
    return emulator::reduce<emulator::Min>("__reduce_min_sync", mask, value, site);
}
inline uint32_t __reduce_and_sync(uint32_t mask, uint32_t value, LMO_SITE) {
    return emulator::reduce<emulator::And>("__reduce_and_sync", mask, value, site);
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t value, LMO_SITE) {
    return emulator::reduce<emulator::Or>("__reduce_or_sync", mask, value, site);
}
inline uint32_t __reduce_xor_sync(uint32_t mask, uint32_t value, LMO_SITE) {
    return emulator::reduce<emulator::Xor>("__reduce_xor_sync", mask, value, site);
}
