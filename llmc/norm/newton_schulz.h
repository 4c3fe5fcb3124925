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

// The steps before which the gram form of the iteration starts anew (NewtonSchulz::restarts): the
// fewest that keep the condition of its factor Q, the worst of all steps, below 100, and of those
// the ones that keep it lowest. The condition is that on singular values from 1e-10 to 1 whose
// squares rounding has moved by -4e-4, as in the tuner of Dao-AILab's gram-newton-schulz. Searches
// up to 3 restarts of up to 10 steps, else takes one every 2 steps.
std::vector<int> gram_restarts(const std::vector<NewtonSchulzStep>& steps);

// That condition.
double gram_condition(const std::vector<NewtonSchulzStep>& steps, const std::vector<int>& restarts);

}  // namespace lmo
