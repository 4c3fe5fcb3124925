// Parameter groups of the optimizer: from JSON (a configuration or a preset) to
// llmc/optim/config.h.
#pragma once

#include <string>
#include <vector>

#include "llmc/optim/config.h"
#include "llmc/train/json_merge.h"

namespace lmo {

struct OptimizerGroups {
    std::vector<GroupConfig> groups;
    Json resolved;  // every key of every group
};

// What a preset says beside its groups (optimizer.sampling, optimizer.qk_clip) is put into a
// configuration that names it and does not say otherwise.
void add_preset_settings(Json& given, const Provenance& origin);

// The groups of a resolved configuration: optimizer.groups, else those of optimizer.preset.
OptimizerGroups optimizer_groups(const Json& resolved, const Provenance& origin);

// The whole of OptimizerConfig but its groups' stages; sets optimizer.groups of `resolved`.
OptimizerConfig read_optimizer(Json& resolved, const Provenance& origin);

}  // namespace lmo
