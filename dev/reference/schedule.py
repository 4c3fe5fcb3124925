"""NumPy reference of the learning-rate schedules: the rows that tests/unit/test_schedule*.cpp pin.

    python3 dev/reference/schedule.py

The peak of the adaptive warm-up is computed here by another route than in llmc/schedule/warmup.cpp:
NumPy's own Gauss-Legendre nodes (other panels and orders), the rate as the plain quotient
delta / (K0 + K1 delta + K2 delta^2), absolute rates instead of rates in units of lr; and once more
by the trapezoidal rule on a dense grid. The script fails where the two disagree (about a minute).
"""
import numpy as np

SIGMA_F = 1e-3
CANDIDATES = 500


def coefficients(lr, div, delta0, delta_star):
    """K0, K1, K2 from rate(delta*) = lr, rate'(delta*) = 0, rate(delta0) = lr/div: a linear system,
    because each condition is one on K: K(d*) = d*/lr, K'(d*) = 1/lr, K(d0) = d0 div/lr."""
    matrix = np.array([[1.0, delta_star, delta_star**2],
                       [0.0, 1.0, 2.0 * delta_star],
                       [1.0, delta0, delta0**2]])
    return np.linalg.solve(matrix, np.array([delta_star / lr, 1.0 / lr, delta0 * div / lr]))


def rate(delta, K):
    return delta / (K[0] + K[1] * delta + K[2] * delta**2)


def squared_distance(x, lr, div, delta0, delta_star, K, kappa, below):
    if below:
        target = lr * (1.0 - np.cos(np.pi * x / delta_star)) / 2.0
    else:
        target = lr + (lr / div - lr) * (x - delta_star) / (delta0 - delta_star)
    weight = np.exp(-SIGMA_F * kappa / 2.0 * (x - delta_star) ** 2)
    return weight * (rate(x, K) - target) ** 2


def gauss_legendre(f, a, b, panels=24, order=48):
    nodes, weights = np.polynomial.legendre.leggauss(order)
    edges = np.linspace(a, b, panels + 1)
    half = np.diff(edges)[:, None] / 2.0
    return np.sum(half * weights * f(edges[:-1, None] + half * (1.0 + nodes)))


def trapezoid(f, a, b, points=20001):
    x = np.linspace(a, b, points)
    return np.trapz(f(x), x)


def objective_values(lr, div, delta0, kappa, integrate=gauss_legendre):
    """The candidates and their objectives, in units of lr^2."""
    reach = 12.0 / np.sqrt(SIGMA_F * kappa)
    candidates, values = np.linspace(0.01, delta0 - 0.01, CANDIDATES), []
    for candidate in candidates:
        K = coefficients(lr, div, delta0, candidate)
        low, high = max(0.0, candidate - reach), min(delta0, candidate + reach)
        sides = [(low, candidate, True), (candidate, high, False)]
        values.append(sum(
            integrate(lambda x, below=below: squared_distance(x, lr, div, delta0, candidate, K,
                                                              kappa, below), a, b)
            for a, b, below in sides) / delta0 / lr**2)
    return candidates, np.array(values)


def exact_delta_star(lr, div, delta0, kappa, integrate=gauss_legendre):
    candidates, values = objective_values(lr, div, delta0, kappa, integrate)
    return candidates[np.argmin(values)]


def minima(values):
    """Places of the local minima, ends included."""
    padded = np.concatenate([[np.inf], values, [np.inf]])
    return np.flatnonzero((padded[1:-1] < padded[:-2]) & (padded[1:-1] <= padded[2:]))


def unweighted_part(div):
    """The minimiser of the objective without its weight, delta0 = lr = 1: by ever finer scans, on
    panels that shrink towards the peak."""
    panels = np.concatenate([[0.0], np.geomspace(1e-7, 1.0, 60)])
    nodes, weights = np.polynomial.legendre.leggauss(48)

    def objective(star):
        K, total = coefficients(1.0, div, 1.0, star), 0.0
        for edges, below in [((star - star * panels)[::-1], True), (star + (1.0 - star) * panels, False)]:
            half = np.diff(edges)[:, None] / 2.0
            x = edges[:-1, None] + half * (1.0 + nodes)
            total += np.sum(half * weights * squared_distance(x, 1.0, div, 1.0, star, K, 0.0, below))
        return total

    low, high = 1e-3, 0.9
    for _ in range(12):
        stars = np.linspace(low, high, 41)
        best = int(np.argmin([objective(star) for star in stars]))
        low, high = stars[max(best - 1, 0)], stars[min(best + 1, 40)]
    return (low + high) / 2.0


def fixed_schedule(lr, div, final_div, steps, warmup):
    """Half-cosine warm-up and cosine decay."""
    rates, anchor, floor = [], warmup - 1, lr / final_div
    for s in range(steps):
        if s <= anchor:
            rates.append(lr / div + (lr - lr / div) * (1 - np.cos(np.pi * s / anchor)) / 2)
        else:
            part = (s - anchor) / (steps - 1 - anchor)
            rates.append(floor + (lr - floor) * (1 + np.cos(np.pi * part)) / 2)
    return rates


MUON, MUON_24, SIGN, NORM, NORM_24 = 46848, 92928, 123568128, 61, 121
ROWS = [  # name, lr, div, first loss, target loss, kappa
    ("muon 12", 1e-3, 100, 10.95, 3.2, MUON),
    ("muon 12", 2e-3, 100, 10.95, 3.2, MUON),
    ("muon 24", 1e-3, 100, 10.95, 3.2, MUON_24),
    ("sign 12", 1e-3, 100, 10.95, 3.5, SIGN),
    ("norm 12", 1e-2, 2, 10.95, 4.2, NORM),
    ("norm 12", 1e-2, 5, 10.95, 4.3, NORM),
    ("norm 24", 1e-2, 2, 10.95, 4.2, NORM_24),
    ("muon 12", 1e-3, 100, 11.0, 3.2, MUON),
    ("sign 12", 1e-3, 100, 11.0, 3.2, SIGN),
    ("norm 12", 1e-3, 100, 11.0, 3.2, NORM),
    ("kappa 15872", 2e-3, 50, 10.4, 3.0, 15872),
    ("kappa 22016", 2e-3, 50, 10.4, 3.0, 22016),
    ("kappa 46848", 2e-3, 50, 10.4, 3.0, 46848),
]


def main():
    print("name            lr   div  loss0  target      kappa   delta_star  K0, K1, K2")
    for name, lr, div, loss0, target, kappa in ROWS:
        delta0 = loss0 - target
        star = exact_delta_star(lr, div, delta0, kappa)
        assert star == exact_delta_star(lr, div, delta0, kappa, trapezoid), name
        K = coefficients(lr, div, delta0, star)
        print(f"{name:12s} {lr:5g} {div:5g} {loss0:6g} {target:7g} {kappa:10d} {star:12.8f}  "
              + ", ".join(f"{k:.8g}" for k in K))

    print("minima of the objective, div 50, gap 7.4: delta_star: J")
    for kappa in (15872, 22016, 46848):
        candidates, values = objective_values(1.0, 50, 10.4 - 3.0, kappa)
        print(f"  kappa {kappa}:",
              ", ".join(f"{candidates[i]:.8f}: {values[i]:.8e}" for i in minima(values)))
    print("unweighted, delta_star / delta0:",
          ", ".join(f"div {div:g}: {unweighted_part(div):.8f}"
                    for div in (1.5, 2, 5, 50, 100, 1000, 1e4)))

    losses = [10.85, 10.88, 10.91, 10.94, 10.95, 10.97, 10.98, 11.00, 11.03, 11.06, 11.09]
    stars = [exact_delta_star(1e-3, 100, loss - 3.2, MUON) for loss in losses]
    print("muon 12, first losses", ", ".join(f"{x:g}" for x in losses))
    print("  delta_star", ", ".join(f"{x:.3f}" for x in stars))

    for title, lr, div, delta0, star, target, gaps in [
        ("muon", 1e-3, 100, 7.75, 2.48855711, 3.2, [11.2, 10.95, 10, 9, 8, 7, 6.5, 6]),
        ("sign", 1e-3, 100, 7.45, 0.38224449, 3.5, [10, 9, 8, 7, 6, 5, 4.5, 4.2]),
        ("norm", 1e-2, 2, 6.75, 3.43569138, 4.2, [11.2, 10, 9, 8]),
    ]:
        K = coefficients(lr, div, delta0, star)
        print(f"rates, {title}:", ", ".join(f"{x:g}: {rate(x - target, K):.6g}" for x in gaps))

    print("cosine warm-up of 5 and cosine decay, 20 updates:")
    print(" ", ", ".join(f"{x:.9g}" for x in fixed_schedule(1e-3, 100, 1e6, 20, 5)))


if __name__ == "__main__":
    main()
