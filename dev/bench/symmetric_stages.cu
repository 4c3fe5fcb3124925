// The kernel by mma.sync with other tiles and stages.
#include "dev/bench/symmetric_stages.h"

#include "llmc/cuda/symmetric_mma.cuh"

namespace lmo::cuda {

namespace {

template <int Side, int... Counts>
SymmetricStages by_stages() {
    return {SymmetricKernel::mma,
            Side,
            mma::kStages,
            mma::kLeastStages<Side>,
            mma::shared_bytes<Side>,
            {{Counts, mma::launch_tiles<Side, Counts, fp16>}...}};
}

}  // namespace

std::vector<SymmetricStages> mma_stages() {
    return {by_stages<64, 3, 4, 6>(), by_stages<128, 4, 5, 6>()};
}

}  // namespace lmo::cuda
