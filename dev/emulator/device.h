// The CUDA dialect of llmc/cuda/common.cuh for a C++ compiler: the toolkit's real headers for types
// and host functions, and the device language as ordinary C++ on the emulator.
#pragma once

#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>
// These work on the host as they are, with arithmetic and conversions.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "dev/emulator/runtime.h"

#undef __global__
#undef __device__
#undef __host__
#undef __shared__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
// The toolkit's headers make __shared__ nothing, which would give every thread a variable of its
// own.
#define __shared__ ERROR_use_LMO_SHARED_or_LMO_DYNAMIC_SHARED
#define __activemask() ERROR_activemask_has_no_portable_meaning

#define threadIdx (static_cast<const uint3&>(::emulator::thread_index))
#define blockIdx (static_cast<const uint3&>(::emulator::block_index))
#define blockDim (static_cast<const dim3&>(::emulator::block_size))
#define gridDim (static_cast<const dim3&>(::emulator::grid_size))
static constexpr int warpSize = 32;

// The key is a variable of its own for each instance of a template.
#define LMO_SHARED(type, name, dims)                                                        \
    typedef type name##_shared_type dims;                                                   \
    static char name##_shared_key;                                                          \
    name##_shared_type& name = *static_cast<name##_shared_type*>(::emulator::static_shared( \
        &name##_shared_key, sizeof(name##_shared_type), alignof(name##_shared_type), #name))
#define LMO_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::emulator::dynamic_shared())

namespace emulator {

// Fails where a wide access is misaligned.
void check_alignment(const void* pointer, size_t bytes);
// Fail where the address is not of this kind of memory.
void check_global(const void* pointer);
void check_shared(const void* pointer);

}  // namespace emulator

#include "dev/emulator/atomics.h"
#include "dev/emulator/collectives.h"
#include "dev/emulator/intrinsics.h"
