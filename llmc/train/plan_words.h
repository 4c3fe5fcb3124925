// What an optimizer does, for people: the lines of `train_gpt plan`.
#pragma once

#include <string>
#include <vector>

#include "llmc/train/config.h"

namespace lmo {

// Clipping, sampling of layers and QK-clip where they are on, then every group with its stages:
// momentum, norm, radius, post, step, decay, alternate, lr_scale. Stages that do nothing are left
// out, but for momentum and norm.
std::vector<std::string> optimizer_in_words(const Config& config);

}  // namespace lmo
