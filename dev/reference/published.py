"""Golden data for the published behaviours (dev/docs/published.md), from SciPy and NumPy themselves.

Run from the repository root: /usr/bin/python3 dev/reference/published.py
Writes tests/data/published.json (about a minute). Needs NumPy and SciPy; nothing here shares code
with the C++.

quadrature    scipy.integrate.quad of functions made of arithmetic and square roots only, so that
              every machine has the same integrand: value, error, evaluations, status
delta_star    the choice of arXiv 2602.05813's code, with scipy.integrate.quad
adaptive      whole runs of its scheduler: the rate that each update uses
onecycle      PyTorch's OneCycleLR, from its documentation
permutations  numpy.random.default_rng(seed): permutation(count), then integers(length)
bounded       the same generator: integers(bound) one after another
stream        the reader: first token of the sample at each position, over several epochs
"""
import json
import math
import os
import warnings

import numpy as np
from scipy.integrate import quad

KAPPA = {"muon 12": 46848.0, "muon 24": 92928.0, "sign 12": 123568128.0, "sign 24": 208502784.0,
         "norm 12": 61.0, "norm 24": 121.0}


def integrand(family, c, s):
    """Families of test functions with parameters c and s."""
    return {
        "bump": lambda x: 1.0 / (s * s + (x - c) * (x - c)),
        "kink": lambda x: s * math.sqrt(abs(x - c)),
        "root": lambda x: s / math.sqrt(x),
        "near": lambda x: s / math.sqrt(abs(x - c)) if x != c else 0.0,
        "pole": lambda x: s / (x - c) if x != c else 0.0,
        "step": lambda x: s if x < c else -1.0,
        "comb": lambda x: s * abs(x * c * 7.0 - math.floor(x * c * 7.0) - 0.5),
        "cubic": lambda x: s * (x - c) * (x - c) * (x - c),
        "small": lambda x: 1e-7 * s / (1e-4 + (x - c) * (x - c)),
    }[family]


STATUSES = ("", "maximum number of subdiv", "occurrence of roundoff", "Extremely bad integrand",
            "algorithm does not converge", "probably divergent")


def quadrature_row(family, c, s, b, limit):
    value, error, details, *rest = quad(integrand(family, c, s), 0.0, b, full_output=1, limit=limit)
    message = rest[0] if rest else ""
    status = max(i for i, text in enumerate(STATUSES) if text in message)
    return [family, c, s, b, limit, value, error, details["neval"], status]


def quadrature_rows(random):
    rows = []
    for family in ("bump", "kink", "root", "pole", "step", "comb", "cubic", "small", "near"):
        for k in range(12):
            rows.append(quadrature_row(family, float(random.uniform(0, 5)),
                                       float(10 ** random.uniform(-3, 1)),
                                       float(random.uniform(0.1, 8)), [50, 50, 50, 1, 2, 7, 120][k % 7]))
    # The failures that are rare: two of each.
    for status, family in ((2, "comb"), (3, "near"), (4, "bump")):
        found = 0
        while found < 2:
            row = quadrature_row(family, float(random.uniform(0, 5)),
                                 float(10 ** random.uniform(-6, 6)), float(random.uniform(0.1, 8)), 300)
            if row[-1] == status:
                rows.append(row)
                found += 1
    return rows


def curve(lr, div, delta0, star):
    K2 = delta0 * (div - 1) / (lr * (delta0 - star) ** 2)
    return K2 * star ** 2, 1 / lr - 2 * K2 * star, K2


def eta(x, K):
    return x / (K[0] + K[1] * x + K[2] * x ** 2)


def delta_star(lr, div, delta0, kappa, sigma_F=1e-3):
    """The first of 500 candidates with the smallest integral, as quad returns it."""
    best, best_value = None, math.inf
    for star in np.linspace(0.01, delta0 - 0.01, 500):
        K = curve(lr, div, delta0, star)
        peak, start = eta(star, K), eta(delta0, K)
        if abs(peak - lr) > 1e-10 or abs(start - lr / div) > 1e-10:
            continue

        def f(x, K=K, star=star, peak=peak, start=start):
            if x < star:
                target = peak * (1 - np.cos(np.pi * x / star)) / 2
            else:
                target = peak + (start - peak) / (delta0 - star) * (x - star)
            d = x - star
            return np.exp(-(d * d) * (sigma_F * kappa / 2)) * abs(eta(x, K) - target) ** 2

        value = quad(f, 0.0, delta0)[0] / delta0
        if value < best_value:
            best, best_value = float(star), value
    return best


def adaptive_run(lr, div, target, kappa, steps, losses, shape, star=None):
    """Rates of updates 0..steps-1: the first at the peak, each later one set after the update before
    it from that update's loss; the decay replaces the curve for good at the first gap below delta*
    and has advanced twice when it is first used."""
    delta0 = losses[0] - target
    star = star or delta_star(lr, div, delta0, kappa)
    K, floor, rates, switch = curve(lr, div, delta0, star), lr / 1e4, [lr], None
    for i in range(steps - 1):
        delta = max(losses[i] - target, 1e-8)
        if switch is None and delta <= star:
            switch = i
        if switch is None:
            rates.append(min(max(delta / max(K[0] + K[1] * delta + K[2] * delta ** 2, 1e-8), 0), lr))
        else:
            part = (i - switch + 2) / (steps - switch)
            rates.append(anneal(lr, floor, part, shape))
    return star, switch, rates


def anneal(start, end, part, shape):
    if shape == "linear":
        return (end - start) * part + start
    return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)


def onecycle(lr, div, final_div, steps, warmup, shape):
    first, last = lr / div, lr / div / final_div
    top = (warmup / steps) * steps - 1
    rates = []
    for s in range(steps):
        if s <= top:
            rates.append(anneal(first, lr, s / top, shape))
        else:
            rates.append(anneal(lr, last, (s - top) / (steps - 1 - top), shape))
    return rates


def random_setting(random, n):
    name = list(KAPPA)[n % len(KAPPA)]
    lr = float(random.choice([1e-3, 2e-3, 3e-3, 1e-2, 3e-4]))
    div = float(random.choice([100, 2, 5, 20]))
    target = float(random.choice([3.2, 3.5, 3.51, 4.2, 2.0, 0.0]))
    loss0 = float(np.float32(random.uniform(10.7, 11.2)))
    return lr, div, target, KAPPA[name], loss0


def adaptive_rows(random):
    rows = []
    for n in range(12):
        lr, div, target, kappa, loss0 = random_setting(random, n)
        steps = int(random.integers(12, 40))
        end = target + (0.2 if n % 4 else 3.0)  # some runs never reach delta*
        fall = np.exp(-np.arange(steps) * random.uniform(0.05, 0.6))
        losses = end + (loss0 - end) * fall + 0.05 * random.standard_normal(steps)
        losses[0] = loss0
        losses = [float(np.float32(x)) for x in losses]
        shape = "linear" if n % 5 == 4 else "cosine"
        star, switch, rates = adaptive_run(lr, div, target, kappa, steps, losses, shape)
        rows.append({"lr": lr, "div": div, "target": target, "kappa": kappa, "shape": shape,
                     "losses": losses, "delta_star": star, "switch": switch, "rates": rates})
    return rows


def stream_row(tokens, length, batch, seed, count):
    starts, epoch, order, at = [], -1, [], 0
    while len(starts) < count:
        if at + batch > len(order):  # the rest fills no batch
            epoch, at = epoch + 1, 0
            random = np.random.default_rng(seed + epoch)
            order = random.permutation((tokens - length - 1) // length - 1)
            offset = int(random.integers(length))
        starts += [int(k) * length + offset for k in order[at:at + batch]]
        at += batch
    return {"tokens": tokens, "length": length, "batch": batch, "seed": seed,
            "starts": starts[:count]}


def permutation_row(seed, count, length):
    random = np.random.default_rng(seed)
    order = random.permutation(count)
    check = 0
    for i, x in enumerate(order.tolist()):
        check = (check + (i + 1) * x) % 2 ** 64
    return {"seed": seed, "count": count, "first": order[:6].tolist(), "check": check,
            "length": length, "offset": int(random.integers(length))}


def bounded_row(seed, bounds):
    random = np.random.default_rng(seed)
    return {"seed": seed, "bounds": bounds,
            "draws": [int(random.integers(b, dtype=np.uint64)) for b in bounds]}


def main():
    warnings.simplefilter("ignore")
    random = np.random.default_rng(20260205)
    data = {"quadrature": quadrature_rows(random)}
    settings = [random_setting(random, n) for n in range(36)]
    data["delta_star"] = [[lr, div, loss0 - target, kappa,
                           delta_star(lr, div, loss0 - target, kappa)]
                          for lr, div, target, kappa, loss0 in settings]
    data["adaptive"] = adaptive_rows(random)
    data["onecycle"] = [dict(zip(("lr", "div", "final_div", "steps", "warmup", "shape"), row),
                             rates=onecycle(*row))
                        for row in [(1e-3, 100.0, 1e4, 20, 5, "cosine"),
                                    (3e-3, 100.0, 1e4, 100, 7, "cosine"),
                                    (1e-2, 5.0, 1e4, 29, 28, "cosine"),
                                    (1e-2, 2.0, 1e3, 49, 2, "linear"),
                                    (1e-3, 100.0, 1e4, 17, 0, "cosine"),
                                    (1e-3, 30.0, 1e4, 6, 6, "linear")]]
    data["permutations"] = [permutation_row(*row) for row in
                            [(1337, 1, 16), (1337, 2, 512), (1338, 3, 1), (0, 10, 1024),
                             (42, 1000, 512), (2 ** 32 - 1, 4097, 7), (2 ** 32, 65537, 512),
                             (2 ** 63 + 11, 30000, 2 ** 31 + 5), (7, 200001, 512)]]
    data["bounded"] = [bounded_row(seed, [5, 1, 2 ** 32, 512, 2 ** 32 - 1, 2 ** 32 + 1, 3, 2 ** 63,
                                          3 * 2 ** 30, 2, 3 * 2 ** 62, 2 ** 40, 1000, 17])
                       for seed in (0, 1337, 99991)]
    data["stream"] = [stream_row(200, 7, 4, 1337, 120), stream_row(5000, 16, 8, 3, 700),
                      stream_row(60, 1, 5, 0, 200)]
    path = os.path.join("tests", "data", "published.json")
    with open(path, "w") as file:
        parts = [json.dumps(key) + ": [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
                 for key, rows in data.items()]
        file.write("{" + ",\n".join(parts) + "}\n")
    print(path, os.path.getsize(path), "bytes; switches",
          [row["switch"] for row in data["adaptive"]], "statuses",
          sorted({row[-1] for row in data["quadrature"]}))


if __name__ == "__main__":
    main()
