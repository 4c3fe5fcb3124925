// Numerical integration as QUADPACK does it (Piessens, de Doncker-Kapenga, Ueberhuber, Kahaner:
// QUADPACK, Springer 1983), which scipy.integrate.quad calls. Results are meant to be QUADPACK's
// own bit by bit, errors and failures included: the published choice of delta_star depends on them.
// For an accurate integral of a smooth function use something else.
#pragma once

#include <functional>

namespace lmo {

using Integrand = std::function<double(double)>;

// Values of QUADPACK's ier for a finite interval; whatever it is, `value` is QUADPACK's result.
enum class QuadratureStatus {
    converged = 0,
    limit_reached = 1,   // of subdivisions
    roundoff = 2,        // prevents the tolerance
    bad_point = 3,       // the integrand behaves badly somewhere
    no_convergence = 4,  // of the extrapolation
    probably_divergent = 5,
};

struct QuadratureResult {
    double value = 0, error = 0;
    int evaluations = 0;
    QuadratureStatus status = QuadratureStatus::converged;
};

// One 21-point Gauss-Kronrod panel (QK21).
QuadratureResult gauss_kronrod_21(const Integrand& f, double a, double b);

// QAGS: adaptive bisection with 21-point Gauss-Kronrod panels, sped up by the epsilon algorithm.
// The tolerances and the limit of subdivisions are those of scipy.integrate.quad.
QuadratureResult qags(const Integrand& f, double a, double b, double absolute = 1.49e-8,
                      double relative = 1.49e-8, int limit = 50);

}  // namespace lmo
