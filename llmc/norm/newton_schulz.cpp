// Coefficients (a, b, c) of the odd polynomials p(s) = a s + b s^3 + c s^5 whose composition sends
// the singular values of a matrix, scaled into (0, 1], near 1.
//
//   jordan         one polynomial of the steepest rise at 0: ends in [0.68, 1.13]
//   you            five polynomials fitted in sequence: ends in [0.978, 1.032] from 0.01 on
//   polar-express  minimax optimal in sequence on [1e-3, 1] (arXiv 2505.16932)
//   cans           Chebyshev-type minimax (arXiv 2506.10935)
//   cubic          no fifth power: one matrix product fewer a step (arXiv 2606.00371)
#include "llmc/norm/newton_schulz.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "llmc/core/error.h"

namespace lmo {

namespace {

struct PublishedSet {
    std::string name;
    std::vector<NewtonSchulzStep> steps;
    // polar-express: the input is divided by `safety` once more and all polynomials but the last of
    // the list are stretched by it, so that rounding cannot push a singular value out of the
    // interval on which they are bounded.
    double safety = 1.0;
};

const std::vector<PublishedSet>& published_sets() {
    static const std::vector<PublishedSet> sets = {
        {"jordan", {{3.4445, -4.7750, 2.0315}}},
        {"you",
         {{4.0848, -6.8946, 2.9270},
          {3.9505, -6.3029, 2.6377},
          {3.7418, -5.5913, 2.3037},
          {2.8769, -3.1427, 1.2046},
          {2.8366, -3.0525, 1.2012}}},
        {"polar-express",
         {{8.28721201814563, -23.595886519098837, 17.300387312530933},
          {4.107059111542203, -2.9478499167379106, 0.5448431082926601},
          {3.9486908534822946, -2.908902115962949, 0.5518191394370137},
          {3.3184196573706015, -2.488488024314874, 0.51004894012372},
          {2.300652019954817, -1.6689039845747493, 0.4188073119525673},
          {1.891301407787398, -1.2679958271945868, 0.37680408948524835},
          {1.8750014808534479, -1.2500016453999487, 0.3750001645474248},
          {1.875, -1.25, 0.375}},
         1.01},
        {"cans",
         {{8.4703, -25.1081, 18.6293},
          {4.1828, -3.1087, 0.5806},
          {3.9619, -2.9541, 0.5630},
          {3.2866, -2.4647, 0.5074},
          {2.2737, -1.6447, 0.4162}}},
        {"cubic",
         {{3.3656576, -3.3420992, 0.0},
          {2.5744352, -1.4957376, 0.0},
          {2.5368962, -1.4312570, 0.0},
          {2.4418906, -1.2764040, 0.0},
          {2.2230472, -0.9630650, 0.0}}},
    };
    return sets;
}

}  // namespace

const std::vector<std::string>& newton_schulz_set_names() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> result;
        for (const PublishedSet& set : published_sets()) result.push_back(set.name);
        return result;
    }();
    return names;
}

NewtonSchulzSet newton_schulz_set(const std::string& name, int steps) {
    const std::vector<PublishedSet>& sets = published_sets();
    const auto set = std::find_if(sets.begin(), sets.end(),
                                  [&](const PublishedSet& s) { return s.name == name; });
    if (set == sets.end()) {
        std::string known;
        for (const std::string& other : newton_schulz_set_names()) {
            known += (known.empty() ? "" : ", ") + other;
        }
        throw UsageError("Newton-Schulz coefficients \"" + name +
                         "\": unknown set, expected one of " + known);
    }
    if (steps < 1) {
        throw UsageError("Newton-Schulz steps " + std::to_string(steps) + ": expected at least 1");
    }
    NewtonSchulzSet result;
    result.norm_scale = set->safety;
    const int last = static_cast<int>(set->steps.size()) - 1;
    for (int i = 0; i < steps; ++i) {
        NewtonSchulzStep step = set->steps[std::min(i, last)];
        if (i < last) {
            step.a /= set->safety;
            step.b /= std::pow(set->safety, 3);
            step.c /= std::pow(set->safety, 5);
        }
        result.steps.push_back(step);
    }
    result.restarts = gram_restarts(result.steps);
    return result;
}

double gram_condition(const std::vector<NewtonSchulzStep>& steps,
                      const std::vector<int>& restarts) {
    constexpr int kPoints = 10000;
    constexpr double kRounding = -4e-4;
    std::vector<double> x(kPoints), r(kPoints), q(kPoints);
    for (int i = 0; i < kPoints; ++i) x[i] = std::pow(10.0, -10.0 * i / (kPoints - 1));
    double worst = 1.0;
    for (size_t step = 0; step < steps.size(); ++step) {
        const auto& [a, b, c] = steps[step];
        const bool restart =
            std::find(restarts.begin(), restarts.end(), static_cast<int>(step)) != restarts.end();
        double lowest = std::numeric_limits<double>::infinity(), highest = 0.0;
        for (size_t i = 0; i < x.size(); ++i) {
            if (step == 0 || restart) {
                if (restart) x[i] *= q[i];
                r[i] = x[i] * x[i] + kRounding;
                q[i] = 1.0;
            }
            const double z = a + r[i] * (b + r[i] * c);
            q[i] *= z;
            r[i] *= z * z;
            lowest = std::min(lowest, std::fabs(q[i]));
            highest = std::max(highest, std::fabs(q[i]));
        }
        const double condition = highest / lowest;
        worst = condition > worst || std::isnan(condition) ? condition : worst;
    }
    return worst;
}

std::vector<int> gram_restarts(const std::vector<NewtonSchulzStep>& steps) {
    constexpr double kCondition = 100.0;
    constexpr int kSearched = 10;  // steps: beyond, there are too many choices
    const int count = static_cast<int>(steps.size());
    std::vector<int> best, chosen;
    double lowest = gram_condition(steps, best);
    // All ascending choices of `left` more steps from `from` on.
    const std::function<void(int, int)> search = [&](int from, int left) {
        if (left == 0) {
            const double condition = gram_condition(steps, chosen);
            if (!(condition < lowest)) return;
            lowest = condition;
            best = chosen;
            return;
        }
        for (int step = from; step + left <= count; ++step) {
            chosen.push_back(step);
            search(step + 1, left - 1);
            chosen.pop_back();
        }
    };
    if (count <= kSearched) {
        for (int restarts = 1; restarts <= 3 && !(lowest <= kCondition); ++restarts) {
            search(1, restarts);
        }
    }
    if (lowest <= kCondition) return best;
    best.clear();
    for (int step = 2; step < count; step += 2) best.push_back(step);
    return best;
}

}  // namespace lmo
