#!/usr/bin/env python3
"""Draws one or more runs: loss, learning rate, gap, gradient norm, speed, and how far updates moved the weights.

    scripts/plot_run.py runs/NAME                      # writes runs/NAME/plot.png
    scripts/plot_run.py runs/A runs/B --out both.png   # two runs over each other

Triangles mark loss spikes, dotted lines updates that were left out because they were not finite. The
gap is the loss above the target of an adaptive warm-up; a dashed line is delta_star, where the rate peaks.
Reads metrics.jsonl of each run folder, and from run_config.json (where there is one) the run's name
and the target loss. Needs matplotlib.
"""

import argparse
import math
import os
import statistics
import sys

from run_folder import Run, RunError, name_apart, number_or_nan

TRAIN, VALIDATION, TARGET, MARK = "#4c78a8", "#d62728", "#555555", "#9467bd"
RUN_COLORS = ["#4c78a8", "#e4572e", "#54a24b", "#9467bd", "#c79a00", "#17a2b8", "#8c564b",
              "#e377c2"]
PHASES = {"warmup": "#fde3c4", "constant": "#e6e6e6", "decay": "#d5e6d3"}


class PlotError(RunError):
    """A picture that cannot be made."""


def load_pyplot():
    """matplotlib.pyplot with the look of all our plots."""
    try:
        import matplotlib
    except ImportError as error:
        raise PlotError(f"matplotlib is needed ({error}): install python3-matplotlib, or "
                        "pip install matplotlib") from None
    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    style(pyplot)
    return pyplot


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


def color_of(index, runs):
    return TRAIN if len(runs) == 1 else RUN_COLORS[index % len(RUN_COLORS)]


# ---- panels: each draws one run into axes -------------------------------------------------------------


def draw_loss(axes, run, color, single):
    label = "train" if single else run.name
    if run.train:
        steps, losses = run.curve("loss")
        axes.plot(steps, losses, color=color, linewidth=0.9, alpha=0.9 if single else 0.75,
                  marker="." if len(steps) == 1 else None, label=label)
        label = "validation" if single else None
    if run.val:
        axes.plot(*loss_points(run.val), color=VALIDATION if single else color, linewidth=1.4,
                  marker="o", markersize=4.5, markeredgecolor="white", markeredgewidth=0.6, zorder=3,
                  label=label)
    if run.spikes:
        axes.plot(*loss_points(run.spikes), color=MARK if single else color, linestyle="none",
                  marker="v", markersize=6, zorder=4, label="spike" if single else None)
    for number, line in enumerate(run.left_out):
        axes.axvline(line["step"], color=MARK if single else color, linewidth=0.8, linestyle=":",
                     zorder=1, label="left out (not finite)" if single and number == 0 else None)
    if run.target is not None:
        axes.axhline(run.target, color=TARGET if single else color, linewidth=1, linestyle="--",
                     label=f"target loss {run.target:g}" if single else None)


def loss_points(lines):
    return [line["step"] for line in lines], [number_or_nan(line["loss"]) for line in lines]


def draw_gap(axes, run, color, single):
    axes.plot(*run.curve("delta"), color=color, linewidth=0.9, label="gap" if single else None)
    if run.delta_star is not None:
        label = rf"$\Delta^*$ = {run.delta_star:.3g}: the rate peaks" if single else None
        axes.axhline(run.delta_star, color=VALIDATION if single else color, linewidth=1.1,
                     linestyle="--", label=label)


def draw_curve(key):
    def draw_one(axes, run, color, single):
        steps, values = run.curve(key)
        axes.plot(steps, values, color=color, linewidth=1.4 if key == "lr" else 0.8,
                  marker="." if len(steps) == 1 else None)
        if key == "grad_norm" and single and run.get("optimizer.clip_norm"):
            bound = run.get("optimizer.clip_norm")
            axes.axhline(bound, color=TARGET, linewidth=1, linestyle="--", label=f"clipped at {bound:g}")
    return draw_one


def draw_update_norms(axes, run, color, single):
    """Of one run by part of the model, of several their attention."""
    parts = run.update_norms()
    for number, part in enumerate(parts if single else [part for part in parts if part == "attention"]):
        steps, values = parts[part]
        axes.plot(steps, values, color=RUN_COLORS[number] if single else color, linewidth=0.9,
                  marker="." if len(steps) == 1 else None, label=part if single else None)


def draw_phases(axes, run):
    """Shades a panel and returns what the legend needs."""
    from matplotlib.patches import Patch

    seen = {}
    for phase, begin, end in run.phases():
        color = PHASES.get(phase, "#f5f5f5")
        axes.axvspan(begin, end, color=color, alpha=0.6, linewidth=0, zorder=0)
        seen[phase] = Patch(facecolor=color, alpha=0.6, label=phase)
    return list(seen.values())


# ---- the look of a panel ------------------------------------------------------------------------------


def log_scale(axes):
    """Over a few powers of ten, those alone would label the axis once or not at all."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 300 * low:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 30 * low else (1, 3)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def rates_differ_widely(runs):
    """A linear axis would press the smaller of two peaks flat."""
    peaks = [max((rate for rate in run.curve("lr")[1] if rate > 0), default=0) for run in runs]
    peaks = [peak for peak in peaks if peak > 0]
    return len(peaks) > 1 and max(peaks) > 10 * min(peaks)


def finish_rate(axes, runs):
    if rates_differ_widely(runs):
        log_scale(axes)
    else:
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)


def finish_norm(axes, runs):
    """The first norms are often far above the later ones, and some spike."""
    values = [value for run in runs for value in run.curve("grad_norm")[1] if value > 0]
    if values and max(values) > 10 * statistics.median(values):
        log_scale(axes)


def finish_speed(axes, runs):
    """From 0, and without the slow first updates or the fast moments of an idle machine."""
    values = sorted(value for run in runs for value in run.curve("tokens_per_s")[1]
                    if not math.isnan(value))
    axes.set_ylim(0, 1.25 * values[int(0.99 * (len(values) - 1))] if values else None)


def finish_update_norms(axes, runs):
    log_scale(axes)
    if len(runs) > 1:
        axes.set_ylabel("relative update\n(attention)")


class Panel:
    """What one panel shows: `key` is the number of train lines that it needs, where no `present` says what else."""

    def __init__(self, key, title, draw_run, finish=None, present=None, legend=("upper right", 1)):
        self.key, self.title, self.draw_run, self.finish, self.present = key, title, draw_run, finish, present
        self.legend = legend  # place, columns

    def has(self, runs):
        """Loss and rate are always there."""
        present = self.present or (lambda run: run.curve(self.key)[0])
        return self.key in ("loss", "lr") or any(map(present, runs))

    def draw(self, axes, runs):
        """Returns the patches of the phases that were shaded."""
        single, patches = len(runs) == 1, []
        for index, run in enumerate(runs):
            self.draw_run(axes, run, color_of(index, runs), single)
        if single:
            patches = draw_phases(axes, runs[0])
        axes.set_ylabel(self.title)
        if self.finish:
            self.finish(axes, runs)
        if axes.get_legend_handles_labels()[0]:
            place, columns = self.legend
            axes.legend(loc=place, ncol=columns, columnspacing=1, fontsize=None if self.key == "loss" else 8)
        last = max(run.updates for run in runs)
        axes.set_xlim(-0.01 * (last + 1), 1.01 * (last + 1))
        return patches


PANELS = {panel.key: panel for panel in (
    Panel("loss", "loss", draw_loss),
    Panel("lr", "learning rate", draw_curve("lr"), finish_rate),
    Panel("delta", "gap", draw_gap),
    Panel("grad_norm", "gradient norm", draw_curve("grad_norm"), finish_norm),
    Panel("tokens_per_s", "tokens/s", draw_curve("tokens_per_s"), finish_speed),
    Panel("update_norms", "relative update", draw_update_norms, finish_update_norms, Run.update_norms,
          ("lower left", 5)))}


# ---- the picture --------------------------------------------------------------------------------------


def make_axes(pyplot, runs):
    """{key: axes}: loss and rate at the left, what else there is at the right."""
    right = [key for key in ("delta", "grad_norm", "tokens_per_s", "update_norms") if PANELS[key].has(runs)]
    figure = pyplot.figure(figsize=(13, 6.2) if right else (8.5, 6.2), constrained_layout=True)
    columns = figure.add_gridspec(1, 2 if right else 1, width_ratios=[1.45, 1][:2 if right else 1])
    left = columns[0].subgridspec(2, 1, height_ratios=[2.2, 1])
    axes = {"loss": figure.add_subplot(left[0])}
    axes["lr"] = figure.add_subplot(left[1], sharex=axes["loss"])
    if right:
        rows = columns[1].subgridspec(len(right), 1)
        axes.update({key: figure.add_subplot(row, sharex=axes["loss"]) for key, row in zip(right, rows)})
    for key, panel in axes.items():
        last = key in ("lr", right[-1] if right else "")
        panel.tick_params(labelbottom=last)
        if last:
            panel.set_xlabel("update")
    return figure, axes


def draw(runs, path):
    pyplot = load_pyplot()
    figure, axes = make_axes(pyplot, runs)
    patches = [PANELS[key].draw(panel, runs) for key, panel in axes.items()][0]
    if patches:
        # Beside the curve, which fills the panel.
        axes["lr"].legend(handles=patches, loc="upper center", bbox_to_anchor=(0.5, 1.2),
                          ncol=len(patches), fontsize=9)
    if len(runs) == 1:
        axes["loss"].set_title(runs[0].name, fontweight="bold")
    else:
        axes["loss"].set_title("thin: train, dots: validation, dashed: target loss, triangles: spikes, "
                               "dotted: left out", fontsize=9, color="#555555", loc="right")
    save_figure(pyplot, figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="run folder with metrics.jsonl")
    parser.add_argument("--out", metavar="FILE.png", help="default: plot.png in the first RUN_DIR")
    arguments = parser.parse_args()
    path = arguments.out or os.path.join(arguments.runs[0], "plot.png")
    try:
        draw(name_apart([Run(folder) for folder in arguments.runs]), path)
    except RunError as error:
        print(f"plot_run.py: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
