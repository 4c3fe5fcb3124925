// The objective that delta_star "exact" of the adaptive warm-up minimises, and its minima
// (dev/docs/objective.md).
#pragma once

#include <cstddef>
#include <vector>

namespace lmo {

// J at the 500 candidates: equally spaced in [0.01, delta0 - 0.01], ascending.
struct PeakObjective {
    std::vector<double> delta_star, J;

    size_t chosen() const;               // place of the first smallest J
    std::vector<size_t> minima() const;  // places of all local minima, ends included, ascending
};

// sharpness = sigma_F kappa. Throws Error when delta0 <= 0.02.
PeakObjective peak_objective(double delta0, double div, double sharpness);

}  // namespace lmo
