#include "llmc/optim/sampling.h"

#include <algorithm>

#include "llmc/core/random.h"

namespace lmo {

namespace {

constexpr uint64_t kStream = 0x6c61796572;  // "layer": apart from the streams of tensors

}  // namespace

bool LayerSampling::chosen(int64_t update, int layer) const {
    if (layer < 0) return true;
    const uint64_t number = static_cast<uint64_t>(update);
    switch (config_.type) {
        case LayerSamplingType::all:
            break;
        case LayerSamplingType::progressive: {
            const double draw = random_uniform(config_.seed, kStream, number);
            return layer >= std::min(layers_ - 1, static_cast<int>(draw * layers_));
        }
        case LayerSamplingType::subset: {
            const uint64_t index =
                number * static_cast<uint64_t>(layers_) + static_cast<uint64_t>(layer);
            return random_uniform(config_.seed, kStream, index) < config_.probability;
        }
        case LayerSamplingType::periodic:
            return (update + layer) % config_.period == 0;
    }
    return true;
}

int LayerSampling::lowest(int64_t update) const {
    int layer = 0;
    while (layer < layers_ && !chosen(update, layer)) ++layer;
    return layer;
}

std::vector<int64_t> LayerSampling::counts(int64_t update) const {
    std::vector<int64_t> counts(static_cast<size_t>(layers_) + 1, 0);
    for (int layer = 0; layer < layers_; ++layer) {
        for (int64_t k = 0; k < update; ++k) {
            counts[static_cast<size_t>(layer)] += chosen(k, layer) ? 1 : 0;
        }
    }
    counts.back() = update;
    return counts;
}

}  // namespace lmo
