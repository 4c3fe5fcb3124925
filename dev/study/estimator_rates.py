#!/usr/bin/env python3
"""How fast the gradient falls under four gradient estimators with schedules that know no constant of the problem.

    dev/study/estimator_rates.py run       about a minute of one core; writes dev/results/estimator_rates.json
    dev/study/estimator_rates.py report    tables and picture of dev/docs/estimator_rates.md from that file

Normalised steps x+ = x - g0 (k+1)^-p m/||m|| along an average m with the share eta_k = (k+1)^-q of the new estimate:

  Polyak     p = 3/4, q = 1/2   the gradient itself
  IGT        p = 5/7, q = 4/7   at the extrapolated point x + (1-eta)/eta (x - x_before)
  STORM      p = 2/3, q = 2/3   plus (1-eta)/eta times the difference of the sample's gradients at x and x_before
  Hessian    p = 2/3, q = 2/3   plus (1-eta)/eta times a Hessian-vector product of another sample at a random point of
                                the last step, by central differences; clipped: both parts (arXiv 2510.10690)

The papers (arXiv 2410.16871, 2511.14501) bound the mean gradient norm of the first K updates by K^-1/4, K^-2/7, K^-1/3
and K^-1/3 up to logarithms, for noise of finite variance. Problems, in 20 dimensions and with 32 seeds:

  quadratic  eigenvalues from 0.1 to 1; a sample's Hessian is off by noise too
  logistic   regression on one of 2000 samples with heavy-tailed features, a nonconvex regulariser

each with added noise that is normal, or Student's t of 3 degrees of freedom (heavy tails, finite variance), or of 1.5
(infinite variance, moments below 1.5: the average's noise then falls as eta^(1 - 1/1.5) only).

Slopes are least squares of the logarithm of the mean over seeds against log k, over the last two decades; their
errors are jackknife over seeds. They hold for these problems; bounds are of the worst problem.
"""
import argparse
import json
import pathlib
import sys
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / 'scripts'), str(ROOT / 'dev' / 'study')]
from plot_run import RUN_COLORS, load_pyplot, save_figure, style  # noqa: E402
from study_report import fill, markdown  # noqa: E402

RESULTS = ROOT / 'dev' / 'results' / 'estimator_rates.json'
PAGE = ROOT / 'dev' / 'docs' / 'estimator_rates.md'
PICTURE = ROOT / 'dev' / 'docs' / 'figures' / 'estimator_rates.png'
SEEDS, DIMENSIONS, STEPS, POINTS = 32, 20, 30000, 400
NOISES = {'normal': 'normal', 't3': "Student's t, 3 degrees", 't1.5': "Student's t, 1.5 degrees"}
# name: p, q, exponent of the bound
ESTIMATORS = {'Polyak': (3 / 4, 1 / 2, 1 / 4), 'IGT': (5 / 7, 4 / 7, 2 / 7), 'STORM': (2 / 3, 2 / 3, 1 / 3),
              'Hessian': (2 / 3, 2 / 3, 1 / 3), 'Hessian, clipped': (2 / 3, 2 / 3, 1 / 3)}
CLIP, DIFFERENCE = 2.0, 0.1


def added_noise(rng, kind):
    """Of expected squared norm 1 where there is one."""
    shape = (SEEDS, DIMENSIONS)
    if kind == 'normal':
        return rng.standard_normal(shape) / DIMENSIONS**0.5
    degrees = float(kind[1:])
    scale = (degrees / (degrees - 2)) ** -0.5 if degrees > 2 else 0.5
    return scale * rng.standard_t(degrees, shape) / DIMENSIONS**0.5


class Quadratic:
    def __init__(self, rng, noise):
        self.noise, self.rng = noise, rng
        self.h = np.geomspace(0.1, 1, DIMENSIONS)
        self.start = np.tile(3 * rng.standard_normal(DIMENSIONS) / DIMENSIONS**0.5, (SEEDS, 1))
        self.centre = rng.standard_normal(DIMENSIONS) / DIMENSIONS**0.5

    def draw(self):
        return 0.3 * self.rng.standard_normal((SEEDS, DIMENSIONS)), added_noise(self.rng, self.noise)

    def gradient(self, x, sample):
        error, noise = sample
        return self.h * x + error * (x - self.centre) + noise

    def exact(self, x):
        return self.h * x


class Logistic:
    def __init__(self, rng, noise, samples=2000):
        self.noise, self.rng = noise, rng
        self.a = rng.standard_t(3, (samples, DIMENSIONS)) / 3**0.5
        truth = rng.standard_normal(DIMENSIONS) / DIMENSIONS**0.5
        self.y = np.where(self.a @ truth + rng.logistic(size=samples) > 0, 1.0, -1.0)
        self.start = np.tile(3 * rng.standard_normal(DIMENSIONS) / DIMENSIONS**0.5, (SEEDS, 1))

    def draw(self):
        return self.rng.integers(len(self.y), size=SEEDS), added_noise(self.rng, self.noise)

    @staticmethod
    def regulariser(x):
        """Of 0.1 sum x^2 / (1 + x^2)."""
        return 0.2 * x / (1 + x * x) ** 2

    def gradient(self, x, sample):
        index, noise = sample
        a, y = self.a[index], self.y[index]
        return (-y / (1 + np.exp(y * (a * x).sum(1))))[:, None] * a + self.regulariser(x) + noise

    def exact(self, x):
        margin = self.y * (x @ self.a.T)
        return (-self.y / (1 + np.exp(margin))) @ self.a / len(self.y) + self.regulariser(x)


PROBLEMS = {'quadratic': Quadratic, 'logistic': Logistic}


def length(v):
    return np.sqrt((v * v).sum(1, keepdims=True))


def clip(v, limit):
    return v * np.minimum(1, limit / np.maximum(length(v), 1e-300))


def estimate(name, problem, rng, x, d, ratio):
    """The estimate at x after the step d; ratio = (1-eta)/eta."""
    sample = problem.draw()
    if name == 'Polyak':
        return problem.gradient(x, sample)
    if name == 'IGT':
        return problem.gradient(x + ratio * d, sample)
    g = problem.gradient(x, sample)
    if name == 'STORM':
        return g + ratio * (g - problem.gradient(x - d, sample))
    other, middle = problem.draw(), x - rng.random((SEEDS, 1)) * d
    product = (problem.gradient(middle + DIFFERENCE * d, other) -
               problem.gradient(middle - DIFFERENCE * d, other)) / (2 * DIFFERENCE)
    if name == 'Hessian':
        return g + ratio * product
    size = np.maximum(length(d), 1e-300)
    return clip(g, CLIP) + ratio * size * clip(product / size, CLIP)


def run(problem_name, noise, name, g0=1.0):
    """Gradient norms [points, seeds], and where."""
    rng = np.random.default_rng([len(problem_name), len(noise), len(name), 2511])
    problem = PROBLEMS[problem_name](np.random.default_rng(7), noise)
    problem.rng = rng
    p, q, _ = ESTIMATORS[name]
    where = np.unique(np.geomspace(1, STEPS, POINTS).astype(int))
    x, d, m, norms, shown = problem.start, np.zeros_like(problem.start), 0.0, [], set(where.tolist())
    for k in range(STEPS + 1):
        if k in shown:
            norms.append(length(problem.exact(x))[:, 0])
        eta = (k + 1) ** -q
        g = problem.gradient(x, problem.draw()) if k == 0 else estimate(name, problem, rng, x, d, (1 - eta) / eta)
        m = (1 - eta) * m + eta * g
        d = -g0 * (k + 1) ** -p * m / np.maximum(length(m), 1e-300)
        x = x + d
    return where, np.array(norms)


def slope(where, values):
    late = where >= STEPS / 100
    return np.polyfit(np.log(where[late]), np.log(values[late]), 1)[0]


def jackknife(where, norms):
    """Slope of the mean over seeds, and its standard error."""
    total, n = norms.sum(1), norms.shape[1]
    left_out = [slope(where, (total - norms[:, i]) / (n - 1)) for i in range(n)]
    return slope(where, total / n), float(np.std(left_out)) * (n - 1) ** 0.5


def running_mean(where, norms):
    """Over all updates so far, by the trapezoidal rule between the points."""
    parts = np.diff(where)[:, None] * (norms[1:] + norms[:-1]) / 2
    return np.vstack((norms[:1], norms[:1] + np.cumsum(parts, axis=0))) / where[:, None]


def measure():
    rows, start = [], time.process_time()
    cases = [(problem, noise, name, 1.0) for problem in PROBLEMS for noise in NOISES for name in ESTIMATORS]
    cases += [('quadratic', 't3', name, g0) for g0 in (0.3, 3.0) for name in ESTIMATORS if 'clipped' not in name]
    for problem, noise, name, g0 in cases:
        where, norms = run(problem, noise, name, g0)
        last, error = jackknife(where, norms)
        mean, mean_error = jackknife(where, running_mean(where, norms))
        every = slice(None, None, 8)
        rows.append({'problem': problem, 'noise': noise, 'estimator': name, 'g0': g0, 'bound': -ESTIMATORS[name][2],
                     'slope': round(last, 4), 'error': round(error, 4), 'slope_of_mean': round(mean, 4),
                     'error_of_mean': round(mean_error, 4), 'last': float(f'{norms[-20:].mean():.4g}'),
                     'k': where[every].tolist(),
                     'norm': [float(f'{value:.4g}') for value in norms.mean(1)[every]]})
        print(f'{problem:9} {noise:6} {name:16} g0 {g0:<4g} {last:.3f} +- {error:.3f}   mean {mean:.3f} +- '
              f'{mean_error:.3f}   (bound {-ESTIMATORS[name][2]:.3f})  last {norms[-20:].mean():.3g}', flush=True)
    print(f'{time.process_time() - start:.0f} s of processor time')
    return {'seeds': SEEDS, 'dimensions': DIMENSIONS, 'steps': STEPS, 'rows': rows}


# ---- report ------------------------------------------------------------------------------------------


def of(results, problem, noise, g0=1.0):
    return [row for row in results['rows'] if (row['problem'], row['noise'], row['g0']) == (problem, noise, g0)]


def number(row, what):
    value, error = row['slope' + what], row['error' + what]
    return f'{value:.3f} ± {error:.3f}'


def table(results):
    cases = [(problem, noise) for problem in PROBLEMS for noise in NOISES]
    lines = []
    for problem, noise in cases:
        lines += [[f'{problem}, {NOISES[noise]}', row['estimator'], f'{row["bound"]:.3f}', number(row, ''),
                   number(row, '_of_mean'), f'{row["last"]:.3g}'] for row in of(results, problem, noise)]
    return markdown(['problem, noise', 'estimator', 'bound', 'slope', 'slope of the mean so far', 'last norm'], lines)


def scales_table(results):
    scales = sorted({row['g0'] for row in results['rows']})
    rows = {(row['estimator'], g0): row for g0 in scales for row in of(results, 'quadratic', 't3', g0)}
    names = [name for name in ESTIMATORS if (name, scales[0]) in rows]
    return markdown(['estimator', *(f'slope, g0 = {g0:g}' for g0 in scales), *(f'last norm, {g0:g}' for g0 in scales)],
                    [[name, *(number(rows[name, g0], '') for g0 in scales),
                      *(f'{rows[name, g0]["last"]:.3g}' for g0 in scales)] for name in names])


def tables(results):
    return {'slopes': table(results), 'scales': scales_table(results)}


def draw(results, path):
    pyplot = load_pyplot()
    style(pyplot)
    figure, axes = pyplot.subplots(len(PROBLEMS), len(NOISES), figsize=(10.5, 6), sharex=True, sharey='row',
                                   constrained_layout=True)
    for line, problem in zip(axes, PROBLEMS):
        for axis, noise in zip(line, NOISES):
            axis.set_title(f'{problem}, {NOISES[noise]}', fontweight='bold', fontsize=9)
            for color, row in zip(RUN_COLORS, of(results, problem, noise)):
                axis.loglog(row['k'], row['norm'], color=color, linewidth=1.2,
                            label=f'{row["estimator"]}: {row["slope"]:.2f}')
            k = np.array([results['steps'] / 100, results['steps']])
            for bound, dots in ((1 / 4, ':'), (1 / 3, '--')):
                least = min(row['last'] for row in of(results, problem, noise))
                axis.loglog(k, 0.6 * least * (k / k[1]) ** -bound, color='black', linestyle=dots, linewidth=1,
                            label=f'slope -1/{1 / bound:.0f}')
            axis.legend(fontsize=6.5)
        line[0].set_ylabel('mean gradient norm')
    for axis in axes[-1]:
        axis.set_xlabel('update')
    save_figure(pyplot, figure, path)


def report():
    results = json.loads(RESULTS.read_text())
    PAGE.write_text(fill(PAGE.read_text(), tables(results)))
    draw(results, PICTURE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('what', choices=['run', 'report'])
    if parser.parse_args().what == 'run':
        RESULTS.write_text(json.dumps(measure()) + '\n')
    else:
        report()
    return 0


if __name__ == '__main__':
    sys.exit(main())
