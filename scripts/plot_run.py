#!/usr/bin/env python3
"""Draws the loss and the learning rate of one or more runs.

    scripts/plot_run.py runs/NAME                      # writes runs/NAME/plot.png
    scripts/plot_run.py runs/A runs/B --out both.png   # two runs over each other

Triangles mark loss spikes, dotted lines updates that were left out because they were not finite.
Reads metrics.jsonl of each run folder, and from run_config.json (where there is one) the run's name
and the target loss of an adaptive warm-up. Needs matplotlib.
"""

import argparse
import json
import math
import os
import sys

TRAIN, VALIDATION, TARGET, MARK = "#4c78a8", "#d62728", "#555555", "#9467bd"
RUN_COLORS = ["#4c78a8", "#e4572e", "#54a24b", "#9467bd", "#c79a00", "#17a2b8", "#8c564b",
              "#e377c2"]
PHASES = {"warmup": "#fde3c4", "constant": "#e6e6e6", "decay": "#d5e6d3"}


class PlotError(Exception):
    """Something the user can mend; printed without a traceback."""


class Run:
    """The curves of one run folder."""

    def __init__(self, folder):
        self.folder = folder
        self.name = os.path.basename(os.path.abspath(folder))
        self.target = None
        self.train, self.val = [], []  # (step, loss, lr, phase), (step, loss)
        self.spikes, self.left_out = [], []  # (step, loss), step
        self._read_metrics(os.path.join(folder, "metrics.jsonl"))
        self._read_config(os.path.join(folder, "run_config.json"))

    def _read_metrics(self, path):
        try:
            with open(path, encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise PlotError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}; "
                            "give the folder of a run (run.dir)") from None
        for number, line in enumerate(lines, 1):
            try:
                self._add(json.loads(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if number == len(lines):
                    break  # the run may be writing it just now
                raise PlotError(f"'{path}' line {number}: not a metrics line ({error!r})") from None
        if not self.train and not self.val:
            raise PlotError(f"'{path}' has no train or val lines yet")

    def _add(self, line):
        if line["type"] == "train":
            self.train.append((int(line["step"]), number_or_nan(line["loss"]),
                               number_or_nan(line["lr"]), line["phase"]))
        elif line["type"] == "val":
            self.val.append((int(line["step"]), number_or_nan(line["loss"])))
        elif line["type"] == "spike":
            self.spikes.append((int(line["step"]), number_or_nan(line["loss"])))
        elif line["type"] == "nonfinite":
            self.left_out.append(int(line["step"]))

    def _read_config(self, path):
        if not os.path.exists(path):
            return
        try:
            with open(path, encoding="utf-8") as file:
                config = json.load(file)
            self.name = (config.get("run") or {}).get("name") or self.name
            warmup = (config.get("schedule") or {}).get("warmup") or {}
            self.target = warmup.get("target_loss")
        except (OSError, ValueError, AttributeError) as error:
            raise PlotError(f"cannot read '{path}': {error}") from None

    def phases(self):
        """[phase, first step, end step] of each stretch of equal phase."""
        spans = []
        for step, _, _, phase in self.train:
            if not spans or spans[-1][0] != phase:
                if spans:
                    spans[-1][2] = step
                spans.append([phase, step, step])
            spans[-1][2] = step + 1
        return spans


def number_or_nan(value):
    """Numbers that were not finite are null in metrics.jsonl; they leave a gap in the curve."""
    return math.nan if value is None else float(value)


def draw_loss(axes, run, color, single):
    label = "train" if single else run.name
    if run.train:
        steps, losses, _, _ = zip(*run.train)
        axes.plot(steps, losses, color=color, linewidth=0.9, alpha=0.9 if single else 0.75,
                  marker="." if len(steps) == 1 else None, label=label)
        label = "validation" if single else None
    if run.val:
        steps, losses = zip(*run.val)
        axes.plot(steps, losses, color=VALIDATION if single else color, linewidth=1.4, marker="o",
                  markersize=4.5, markeredgecolor="white", markeredgewidth=0.6, zorder=3,
                  label=label)
    if run.spikes:
        steps, losses = zip(*run.spikes)
        axes.plot(steps, losses, color=MARK if single else color, linestyle="none", marker="v",
                  markersize=6, zorder=4, label="spike" if single else None)
    for number, step in enumerate(run.left_out):
        axes.axvline(step, color=MARK if single else color, linewidth=0.8, linestyle=":", zorder=1,
                     label="left out (not finite)" if single and number == 0 else None)
    if run.target is not None:
        axes.axhline(run.target, color=TARGET if single else color, linewidth=1, linestyle="--",
                     label=f"target loss {run.target:g}" if single else None)


def draw_phases(figure_axes, run):
    """Shades both panels and returns what the legend needs."""
    from matplotlib.patches import Patch

    seen = {}
    for phase, begin, end in run.phases():
        color = PHASES.get(phase, "#f5f5f5")
        for axes in figure_axes:
            axes.axvspan(begin, end, color=color, alpha=0.6, linewidth=0, zorder=0)
        seen[phase] = Patch(facecolor=color, alpha=0.6, label=phase)
    return list(seen.values())


def style(pyplot):
    """The look of all our plots."""
    pyplot.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
                            "axes.grid": True, "grid.color": "#dddddd", "grid.linewidth": 0.6,
                            "axes.axisbelow": True, "legend.frameon": True,
                            "legend.framealpha": 0.9, "legend.edgecolor": "none"})


def save_figure(pyplot, figure, path):
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlotError(f"cannot write '{path}': {reason}") from None
    finally:
        pyplot.close(figure)


def rates_differ_widely(runs):
    """A linear axis would press the smaller of two peaks flat."""
    peaks = [max((rate for _, _, rate, _ in run.train if rate > 0), default=0) for run in runs]
    peaks = [peak for peak in peaks if peak > 0]
    return len(peaks) > 1 and max(peaks) > 10 * min(peaks)


def draw(runs, path):
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    style(pyplot)
    figure, (loss, rate) = pyplot.subplots(2, 1, sharex=True, figsize=(8.5, 6.2),
                                           gridspec_kw={"height_ratios": [2.2, 1]},
                                           constrained_layout=True)
    single = len(runs) == 1
    for index, run in enumerate(runs):
        color = TRAIN if single else RUN_COLORS[index % len(RUN_COLORS)]
        draw_loss(loss, run, color, single)
        if run.train:
            steps, _, rates, _ = zip(*run.train)
            rate.plot(steps, rates, color=color, linewidth=1.4,
                      marker="." if len(steps) == 1 else None)
    if single:
        patches = draw_phases((loss, rate), runs[0])
        if patches:
            # Beside the curve, which fills the panel.
            rate.legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 1.2),
                        ncol=len(patches), fontsize=9)
        loss.set_title(runs[0].name, fontweight="bold")
    else:
        loss.set_title("thin: train, dots: validation, dashed: target loss, triangles: spikes, "
                       "dotted: left out", fontsize=9,
                       color="#555555", loc="right")
    loss.legend(loc="upper right")
    loss.set_ylabel("loss")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("update")
    if rates_differ_widely(runs):
        rate.set_yscale("log")
    else:
        rate.set_ylim(bottom=0)
        rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    last = max(max([step for step, *_ in run.train + run.val]) for run in runs)
    rate.set_xlim(-0.01 * (last + 1), 1.01 * (last + 1))
    save_figure(pyplot, figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run folder with metrics.jsonl")
    parser.add_argument("--out", metavar="FILE.png", help="default: plot.png in the first RUN_DIR")
    arguments = parser.parse_args()
    try:
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise PlotError(f"matplotlib is needed ({error}): install python3-matplotlib, or "
                            "pip install matplotlib") from None
        runs = [Run(folder) for folder in arguments.runs]
        names = [run.name for run in runs]
        for run in runs:
            if names.count(run.name) > 1:
                run.name = run.folder
        path = arguments.out or os.path.join(arguments.runs[0], "plot.png")
        draw(runs, path)
    except PlotError as error:
        print(f"plot_run.py: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
