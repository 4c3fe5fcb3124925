// The functions that code compiled with -fsanitize=thread calls for its memory accesses. The real
// library is not linked: these feed the emulator's own checker.
#ifdef LMO_EMULATOR_RACE

#include <cstdint>
#include <cstring>

#include "dev/emulator/race_checker.h"

using emulator::Access;
using emulator::check_code_access;

#define HERE __builtin_return_address(0)

#define ACCESSES(bytes)                                                                           \
    void __tsan_read##bytes(void* p) { check_code_access(p, bytes, Access::read, true, HERE); }   \
    void __tsan_write##bytes(void* p) { check_code_access(p, bytes, Access::write, true, HERE); } \
    void __tsan_unaligned_read##bytes(void* p) {                                                  \
        check_code_access(p, bytes, Access::read, false, HERE);                                   \
    }                                                                                             \
    void __tsan_unaligned_write##bytes(void* p) {                                                 \
        check_code_access(p, bytes, Access::write, false, HERE);                                  \
    }                                                                                             \
    void __tsan_volatile_read##bytes(void* p) {                                                   \
        check_code_access(p, bytes, Access::read, true, HERE);                                    \
    }                                                                                             \
    void __tsan_volatile_write##bytes(void* p) {                                                  \
        check_code_access(p, bytes, Access::write, true, HERE);                                   \
    }                                                                                             \
    void __tsan_unaligned_volatile_read##bytes(void* p) {                                         \
        check_code_access(p, bytes, Access::read, false, HERE);                                   \
    }                                                                                             \
    void __tsan_unaligned_volatile_write##bytes(void* p) {                                        \
        check_code_access(p, bytes, Access::write, false, HERE);                                  \
    }

// Atomics of host code (reference counts); kernels use the functions of atomics.h.
#define ATOMICS(bits, T)                                                                          \
    T __tsan_atomic##bits##_load(const volatile T* p, int) {                                      \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                              \
    }                                                                                             \
    void __tsan_atomic##bits##_store(volatile T* p, T value, int) {                               \
        __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                             \
    }                                                                                             \
    T __tsan_atomic##bits##_exchange(volatile T* p, T value, int) {                               \
        return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);                                   \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_add(volatile T* p, T value, int) {                              \
        return __atomic_fetch_add(p, value, __ATOMIC_SEQ_CST);                                    \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_sub(volatile T* p, T value, int) {                              \
        return __atomic_fetch_sub(p, value, __ATOMIC_SEQ_CST);                                    \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_and(volatile T* p, T value, int) {                              \
        return __atomic_fetch_and(p, value, __ATOMIC_SEQ_CST);                                    \
    }                                                                                             \
    T __tsan_atomic##bits##_fetch_or(volatile T* p, T value, int) {                               \
        return __atomic_fetch_or(p, value, __ATOMIC_SEQ_CST);                                     \
    }                                                                                             \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile T* p, T* old, T value, int, int) { \
        return __atomic_compare_exchange_n(p, old, value, false, __ATOMIC_SEQ_CST,                \
                                           __ATOMIC_SEQ_CST);                                     \
    }                                                                                             \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile T* p, T* old, T value, int, int) {   \
        return __atomic_compare_exchange_n(p, old, value, false, __ATOMIC_SEQ_CST,                \
                                           __ATOMIC_SEQ_CST);                                     \
    }

extern "C" {

ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

void __tsan_read_range(void* p, size_t bytes) {
    check_code_access(p, bytes, Access::read, false, HERE);
}
void __tsan_write_range(void* p, size_t bytes) {
    check_code_access(p, bytes, Access::write, false, HERE);
}

ATOMICS(8, uint8_t)
ATOMICS(16, uint16_t)
ATOMICS(32, uint32_t)
ATOMICS(64, uint64_t)
void __tsan_atomic_thread_fence(int) {}
void __tsan_atomic_signal_fence(int) {}

// clang calls these in place of the library's.
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
    if (bytes > 0) check_code_access(from, bytes, Access::read, false, HERE);
    if (bytes > 0) check_code_access(to, bytes, Access::write, false, HERE);
    return memcpy(to, from, bytes);
}
void* __tsan_memmove(void* to, const void* from, size_t bytes) {
    if (bytes > 0) check_code_access(from, bytes, Access::read, false, HERE);
    if (bytes > 0) check_code_access(to, bytes, Access::write, false, HERE);
    return memmove(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
    if (bytes > 0) check_code_access(to, bytes, Access::write, false, HERE);
    return memset(to, value, bytes);
}

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit(void*) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}

}  // extern "C"

#endif
