// The kernels by wgmma with other numbers of stages. The ring needs two: one is filled while the
// other one is read.
#include "dev/bench/symmetric_stages.h"

#include "llmc/cuda/symmetric_narrow.cuh"
#include "llmc/cuda/symmetric_wide.cuh"

namespace lmo::cuda {

namespace {

template <int... Counts>
SymmetricStages narrow_by_stages() {
    return {SymmetricKernel::narrow, kSide,
            narrow::kStages,         2,
            narrow::shared_bytes,    {{Counts, narrow::launch_tiles<fp16, Counts>}...}};
}

template <int... Counts>
SymmetricStages wide_by_stages() {
    return {SymmetricKernel::wide, kSide,
            wide::kStages,         2,
            wide::shared_bytes,    {{Counts, wide::launch_tiles<fp16, Counts>}...}};
}

}  // namespace

std::vector<SymmetricStages> hopper_stages() {
    return {narrow_by_stages<3, 4, 5>(), wide_by_stages<2, 3>()};
}

}  // namespace lmo::cuda
