// Atomic functions of CUDA. Only one fiber runs at a time, so a plain read and write is atomic; the
// race build knows them apart from ordinary accesses.
#pragma once

#include <type_traits>

#include "dev/emulator/runtime.h"

namespace emulator {

// Checks the access; other threads may run before it.
void atomic_access(const void* pointer, size_t bytes, Site site);

template <typename T, typename Change>
LMO_NOT_CHECKED T atomic_update(T* pointer, Site site, Change change) {
    atomic_access(pointer, sizeof(T), site);
    const T old = *pointer;
    *pointer = change(old);
    return old;
}

}  // namespace emulator

// The value's type follows from the pointer alone, as with CUDA's overloads.
#define LMO_ATOMIC(name, expression)                                                              \
    template <typename T>                                                                         \
    T name(T* pointer, std::type_identity_t<T> value, LMO_SITE) {                                 \
        return emulator::atomic_update(pointer, site,                                             \
                                       [value](T old) LMO_NOT_CHECKED { return T(expression); }); \
    }
LMO_ATOMIC(atomicAdd, old + value)
LMO_ATOMIC(atomicSub, old - value)
LMO_ATOMIC(atomicMax, old > value ? old : value)
LMO_ATOMIC(atomicMin, old < value ? old : value)
LMO_ATOMIC(atomicAnd, old& value)
LMO_ATOMIC(atomicOr, old | value)
LMO_ATOMIC(atomicXor, old ^ value)
LMO_ATOMIC(atomicExch, (static_cast<void>(old), value))
LMO_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef LMO_ATOMIC

template <typename T>
T atomicCAS(T* pointer, std::type_identity_t<T> compare, std::type_identity_t<T> value, LMO_SITE) {
    return emulator::atomic_update(
        pointer, site, [=](T old) LMO_NOT_CHECKED { return old == compare ? value : old; });
}

// Memory is sequentially consistent here.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
