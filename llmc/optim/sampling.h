// Layer sampling: which layers an update is of, drawn alike on all ranks and after a resume.
#pragma once

#include <cstdint>
#include <vector>

#include "llmc/optim/config.h"

namespace lmo {

class LayerSampling {
  public:
    // `layers`: how many the network has.
    LayerSampling(const LayerSamplingConfig& config, int layers)
        : config_(config), layers_(layers) {}

    bool all() const { return config_.type == LayerSamplingType::all; }
    int layers() const { return layers_; }

    // Whether update number `update` (of those done, from 0) is of `layer`; layer -1 always is.
    bool chosen(int64_t update, int layer) const;
    // The lowest chosen layer: the backward pass need not go below. layers() where none is.
    int lowest(int64_t update) const;
    // How many of the updates before `update` were of each layer; the last entry is layer -1's.
    std::vector<int64_t> counts(int64_t update) const;

  private:
    LayerSamplingConfig config_;
    int layers_;
};

}  // namespace lmo
