// The published Newton-Schulz coefficient sets.
#pragma once

#include <string>
#include <vector>

#include "llmc/norm/norm.h"

namespace lmo {

// jordan (Keller Jordan's Muon), you (Jiacheng You), polar-express (arXiv 2505.16932, l = 1e-3,
// safety 1.01), cans (arXiv 2506.10935), cubic (arXiv 2606.00371).
const std::vector<std::string>& newton_schulz_set_names();

// The first `steps` entries of a set, its last entry repeated beyond its end. Throws UsageError for
// an unknown name (names the known ones) or steps < 1.
NewtonSchulzSet newton_schulz_set(const std::string& name, int steps);

}  // namespace lmo
