// How gradients and weights travel between ranks while their devices compute: in buckets of
// neighbouring sections of the model (StepSections in model/llama.h). The backward pass completes
// the last sections first, whose sums go while it works on those before; the next forward pass
// reads the first sections while the others are on their way.
#pragma once

#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/backend.h"
#include "llmc/dist/collectives.h"
#include "llmc/model/llama.h"
#include "llmc/train/config.h"

namespace lmo {

struct Overlap {
    // Buckets of at least `bucket_elements`, but for the last one. `pieces` are those of Sharding:
    // none reaches over two sections.
    Overlap(const ParameterList& parameters, int64_t n_layer, const std::vector<Piece>& pieces,
            int64_t bucket_elements);

    std::vector<Bucket> gradients;  // in the order in which they are complete
    std::vector<Bucket> weights;    // in the order in which they are read

    // What ties a training step on `backend` to the buckets.
    StepSections sections(Backend& backend) const;

  private:
    int64_t count_;  // of sections
};

// run.bucket_mb in elements of gradients and master weights.
int64_t bucket_elements(const Config& config, DType master);

}  // namespace lmo
