#!/usr/bin/env python3
"""Draws the objective of the adaptive warm-up's peak, and what is chosen by it.

    scripts/plot_objective.py --out dev/docs/figures/objective.png

Left: J over the candidates for delta_star, for three kappas that differ little; dots are the choices
of `exact`, rings its other minima. Right: the choice against kappa. All numbers are those of
`train_gpt schedule --json`: the objective knows sigma_F and kappa by their product only, so one model and
a changed sigma_F stand for every kappa. dev/docs/objective.md explains the figure. Needs matplotlib.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

from plot_run import RUN_COLORS, PlotError, save_figure, style

KAPPAS = (15872, 22016, 46848)
SIGMA_F = 1e-3
MODEL = {"n_layer": 2, "n_head": 2, "d_model": 128, "d_ff": 256, "vocab_size": 256, "seq_len": 64}
UNWEIGHTED_COLOR = "#333333"


class Program:
    """train_gpt schedule with one model and one pair of losses."""

    def __init__(self, path, loss0, target, div):
        self.path, self.loss0 = path, loss0
        self.warmup = {"type": "adaptive", "target_loss": target, "div": div}
        self.delta0 = loss0 - target
        self.kappa = self._ask({})["kappa"]

    def choose(self, kappa, delta_star="exact"):
        """The report for a model of this kappa."""
        return self._ask({"delta_star": delta_star, "sigma_F": SIGMA_F * kappa / self.kappa})

    def _ask(self, changes):
        config = {"model": MODEL, "optimizer": {"preset": "muon", "lr": 2e-3},
                  "schedule": {"warmup": {**self.warmup, **changes}}}
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "config.json")
                with open(path, "w", encoding="utf-8") as file:
                    json.dump(config, file)
                result = subprocess.run([self.path, "schedule", "--json", "--loss0", repr(self.loss0),
                                         "--config", path], capture_output=True, text=True, check=True)
        except OSError as error:
            raise PlotError(f"cannot run '{self.path}': {error.strerror}; build it with make, or give "
                            "--program") from None
        except subprocess.CalledProcessError as error:
            raise PlotError(f"{self.path} schedule: {error.stderr.strip()}") from None
        return json.loads(result.stdout)


def draw_objective(axes, program):
    for color, kappa in zip(RUN_COLORS, KAPPAS):
        report = program.choose(kappa)
        objective = report["objective"]
        axes.plot(objective["delta_star"], objective["J"], color=color, linewidth=1.6,
                  label=rf"$\kappa$ = {kappa:,}: $\Delta^*$ = {report['delta_star']:.2f}")
        for minimum in report["minima"]:
            chosen = minimum["delta_star"] == report["delta_star"]
            axes.plot(minimum["delta_star"], minimum["J"], marker="o", color=color, linestyle="none",
                      markersize=9 if chosen else 5, markerfacecolor=color if chosen else "white")
    axes.set_yscale("log")
    axes.set_ylim(top=4 * max(line.get_ydata()[0] for line in axes.lines))  # room for the legend
    axes.set_xlim(0, 0.6 * program.delta0)
    axes.set_xlabel(r"candidate $\Delta^*$")
    axes.set_ylabel("objective J")
    axes.legend(fontsize=9, loc="upper left", title="ring: a second minimum", title_fontsize=8)


def draw_choice(axes, program, points):
    kappas = [10 ** (2 + 7 * i / (points - 1)) for i in range(points)]
    choices = [program.choose(kappa)["delta_star"] / program.delta0 for kappa in kappas]
    begin = 0  # the line is broken where the choice jumps
    for i in range(1, points + 1):
        if i == points or choices[i] - choices[i - 1] > 0.1:
            axes.plot(kappas[begin:i], choices[begin:i], color=RUN_COLORS[0], linewidth=1.8,
                      label="exact" if begin == 0 else None)
            if i < points:
                axes.plot(kappas[i - 1:i + 1], choices[i - 1:i + 1], color=RUN_COLORS[0], linewidth=1,
                          linestyle=":")
            begin = i
    part = program.choose(1.0, "unweighted")["delta_star"] / program.delta0
    axes.axhline(part, color=UNWEIGHTED_COLOR, linewidth=1.4, linestyle="--",
                 label=f"unweighted: {part:.3f}")
    for color, kappa in zip(RUN_COLORS, KAPPAS):
        axes.plot(kappa, program.choose(kappa)["delta_star"] / program.delta0, marker="o", markersize=8,
                  color=color, linestyle="none")
    axes.set_xscale("log")
    axes.set_xlim(kappas[0], kappas[-1])
    axes.set_ylim(0, 1.2 * max(choices))
    axes.set_xlabel(r"$\kappa$")
    axes.set_ylabel(r"chosen $\Delta^*$ / $\Delta_0$")
    axes.legend(fontsize=9, loc="upper left")
    scale = SIGMA_F * program.delta0 ** 2
    top = axes.secondary_xaxis("top", functions=(lambda x: x * scale, lambda x: x / scale))
    top.set_xlabel(r"$\sigma_F\,\kappa\,\Delta_0^2$")


def draw(program, points, path):
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    style(pyplot)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.5, 4.4), constrained_layout=True)
    draw_objective(left, program)
    draw_choice(right, program, points)
    warmup = program.warmup
    figure.suptitle(f"first loss {program.loss0:g}, target loss {warmup['target_loss']:g}, "
                    f"div {warmup['div']:g}", fontsize=10)
    save_figure(pyplot, figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", metavar="FILE.png", default="objective.png", help="default: %(default)s")
    parser.add_argument("--program", metavar="FILE", default="build/train_gpt", help="default: %(default)s")
    parser.add_argument("--loss0", type=float, default=10.4, help="first loss; default: %(default)s")
    parser.add_argument("--target-loss", type=float, default=3.0, help="default: %(default)s")
    parser.add_argument("--div", type=float, default=50.0, help="default: %(default)s")
    parser.add_argument("--points", type=int, default=120, help="kappas at the right; default: %(default)s")
    arguments = parser.parse_args()
    try:
        if arguments.points < 2 or not math.isfinite(arguments.loss0):
            raise PlotError("--points must be at least 2 and --loss0 a finite number")
        program = Program(arguments.program, arguments.loss0, arguments.target_loss, arguments.div)
        draw(program, arguments.points, arguments.out)
    except PlotError as error:
        print(f"plot_objective.py: {error}", file=sys.stderr)
        return 1
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
