// Inside the emulator: what the opaque structures of cublasLt hold.
#pragma once

#include <cublasLt.h>

#include <cstring>

struct cublasLtContext {
    uint64_t magic;
};

namespace emulator::cublaslt {

inline constexpr cublasStatus_t kSuccess = CUBLAS_STATUS_SUCCESS;
inline constexpr cublasStatus_t kInvalid = CUBLAS_STATUS_INVALID_VALUE;
inline constexpr cublasStatus_t kNotSupported = CUBLAS_STATUS_NOT_SUPPORTED;
struct Description {
    static constexpr uint64_t kMagic = 0x6d75746c616d;
    uint64_t magic;
    int32_t compute, scale, pointer_mode;
    int32_t transpose_a, transpose_b;
    uint32_t epilogue;
};

struct Layout {
    static constexpr uint64_t kMagic = 0x74756f79616c;
    uint64_t magic;
    uint64_t rows, columns;
    int64_t leading, batch_stride;
    uint32_t type;
    int32_t order, batch;
};

struct Preference {
    static constexpr uint64_t kMagic = 0x666572706c;
    uint64_t magic;
    uint64_t workspace_bytes;
    uint32_t reductions;
    uint32_t align[4];  // of A, B, C, D
};

struct Algorithm {
    static constexpr uint64_t kMagic = 0x6f676c61;
    uint64_t magic;
    uint64_t problem;  // hash of what it was found for
    uint64_t workspace_bytes;
    int32_t parts;
    uint32_t reduction;
    uint32_t align[4];
};

template <typename T, typename Opaque>
T* open(Opaque* opaque) {
    static_assert(sizeof(T) <= sizeof(Opaque));
    T* object = reinterpret_cast<T*>(opaque);
    return object && object->magic == T::kMagic ? object : nullptr;
}
template <typename T, typename Opaque>
const T* open(const Opaque* opaque) {
    return open<T>(const_cast<Opaque*>(opaque));
}

// An empty T in the opaque structure.
template <typename T, typename Opaque>
T& make(Opaque* opaque) {
    memset(opaque, 0, sizeof *opaque);
    T& object = *reinterpret_cast<T*>(opaque);
    object.magic = T::kMagic;
    return object;
}

inline bool is_open(cublasLtHandle_t handle) {
    return handle && handle->magic == Description::kMagic;
}

}  // namespace emulator::cublaslt
