// Whether llmc/cuda/nccl_api.h says what nccl.h says, where that header exists: compared by the
// compiler, so that there is nothing to run.
#include "llmc/cuda/nccl_api.h"

#if __has_include(<nccl.h>)
#include <nccl.h>

#include <cstddef>
#include <type_traits>

namespace {

namespace ours = lmo::cuda::nccl;

// The type by its way of being passed: enumerations as int, pointers to structs as void*.
struct Id {};
template <typename T, typename = void>
struct Plain {
    using Type = T;
};
template <typename T>
struct Plain<T, std::enable_if_t<std::is_enum_v<T>>> {
    using Type = int;
    static_assert(sizeof(T) == sizeof(int));
};
template <>
struct Plain<ncclUniqueId> {
    using Type = Id;
};
template <>
struct Plain<ours::UniqueId> {
    using Type = Id;
};
template <typename T>
struct Plain<T*> {
    using Type = std::conditional_t<std::is_class_v<T>, void*, typename Plain<T>::Type*>;
};
template <typename R, typename... A>
struct Plain<R(A...)> {
    using Type = typename Plain<R>::Type(typename Plain<A>::Type...);
};

template <typename Ours, typename Theirs>
constexpr bool same(Theirs*) {
    return std::is_same_v<typename Plain<Ours>::Type, typename Plain<Theirs>::Type>;
}

static_assert(NCCL_MAJOR == 2, "NCCL 3 is not known here");
static_assert(sizeof(ncclUniqueId) == sizeof(ours::UniqueId));
static_assert(static_cast<int>(ncclSuccess) == ours::kSuccess);
static_assert(static_cast<int>(ncclUnhandledCudaError) == ours::kUnhandledCudaError);
static_assert(static_cast<int>(ncclSystemError) == ours::kSystemError);
static_assert(static_cast<int>(ncclInternalError) == ours::kInternalError);
static_assert(static_cast<int>(ncclInvalidArgument) == ours::kInvalidArgument);
static_assert(static_cast<int>(ncclInvalidUsage) == ours::kInvalidUsage);
static_assert(static_cast<int>(ncclRemoteError) == ours::kRemoteError);
static_assert(static_cast<int>(ncclInProgress) == ours::kInProgress);
static_assert(static_cast<int>(ncclUint8) == ours::kUint8);
static_assert(static_cast<int>(ncclFloat32) == ours::kFloat32);
static_assert(static_cast<int>(ncclFloat64) == ours::kFloat64);
static_assert(static_cast<int>(ncclSum) == ours::kSum);

static_assert(offsetof(ncclConfig_t, size) == offsetof(ours::Config, size));
static_assert(offsetof(ncclConfig_t, magic) == offsetof(ours::Config, magic));
static_assert(offsetof(ncclConfig_t, version) == offsetof(ours::Config, version));
static_assert(offsetof(ncclConfig_t, blocking) == offsetof(ours::Config, blocking));
constexpr ncclConfig_t kTheirs = NCCL_CONFIG_INITIALIZER;
static_assert(kTheirs.magic == ours::Config().magic);
static_assert(NCCL_CONFIG_UNDEF_INT == ours::Config().blocking);
static_assert(NCCL_VERSION(2, 14, 0) == ours::Config().version);

static_assert(same<ours::GetVersion>(ncclGetVersion));
static_assert(same<ours::GetUniqueId>(ncclGetUniqueId));
static_assert(same<ours::CommInitRankConfig>(ncclCommInitRankConfig));
static_assert(same<ours::CommAbort>(ncclCommAbort));
static_assert(same<ours::CommGetAsyncError>(ncclCommGetAsyncError));
static_assert(same<ours::GetErrorString>(ncclGetErrorString));
static_assert(same<ours::GetLastError>(ncclGetLastError));
static_assert(same<ours::GroupStart>(ncclGroupStart));
static_assert(same<ours::GroupEnd>(ncclGroupEnd));
static_assert(same<ours::AllReduce>(ncclAllReduce));
static_assert(same<ours::Reduce>(ncclReduce));
static_assert(same<ours::Broadcast>(ncclBroadcast));

}  // namespace
#endif
