#!/usr/bin/env python3
"""Draws the smoothness that a run measured against the gap to the target loss.

    train_gpt smoothness --run runs/NAME --out runs/NAME/fit.json
    scripts/plot_smoothness.py runs/NAME --fit runs/NAME/fit.json    # writes runs/NAME/smoothness.png

Left, in the form of arXiv 2602.05813: K of each measurement against the gap, coloured by the update, with
the fitted curve. Right: K along the run, and what another batch alone would have made of it (the noise
floor). Below: the five matrices with the largest median K. Needs matplotlib.
"""

import argparse
import json
import os
import statistics
import sys

from plot_run import RUN_COLORS, PlotError, save_figure, style

K_COLOR, NOISE_COLOR, FIT_COLOR = "#4c78a8", "#b9b9b9", "#d62728"
LARGEST = 5


def read_measurements(folder):
    """The smoothness lines of a run that have a quotient."""
    path = os.path.join(folder, "metrics.jsonl")
    try:
        with open(path, encoding="utf-8") as file:
            lines = [json.loads(line) for line in file if line.endswith("\n")]
        found = [line for line in lines if line["type"] == "smoothness" and line["ratio"] is not None]
    except OSError as error:
        raise PlotError(f"cannot read '{path}': {error.strerror}; give the folder of a run") from None
    except (ValueError, KeyError, TypeError) as error:
        raise PlotError(f"'{path}': not a file of metrics ({error!r})") from None
    if not found:
        raise PlotError(f"'{path}' holds no measurement: train with --set smoothness.every=K")
    return found


def read_fit(path):
    """The fit of the whole network in a file of `train_gpt smoothness --out`."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)["fits"][0]
    except OSError as error:
        raise PlotError(f"cannot read '{path}': {error.strerror}") from None
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PlotError(f"'{path}': not a file of `train_gpt smoothness --out` ({error!r})") from None


def layer_ratios(lines):
    """{matrix: [(update, K)]}."""
    ratios = {}
    for line in lines:
        for name, layer in line["layers"].items():
            if layer["weight_change"] and layer["gradient_change"] is not None:
                ratio = layer["gradient_change"] / layer["weight_change"]
                ratios.setdefault(name, []).append((line["step"], ratio))
    return ratios


def draw_against_gap(figure, axes, lines, fit):
    gaps, ratios = [line["delta"] for line in lines], [line["ratio"] for line in lines]
    dots = axes.scatter(gaps, ratios, c=[line["step"] for line in lines], s=14, cmap="viridis",
                        edgecolors="none")
    figure.colorbar(dots, ax=axes, label="update", pad=0.02)
    if fit:
        low, high = min(gaps), max(gaps)
        grid = [max(low, 1e-9) + (high - max(low, 1e-9)) * i / 200 for i in range(201)]
        curve = [fit["K0"] + fit["K1"] * gap + fit["K_rho"] * gap ** fit["rho"] for gap in grid]
        axes.plot(grid, curve, color=FIT_COLOR, linewidth=1.8,
                  label=rf"$K_0 + K_1\Delta + K_\rho\Delta^\rho$, $\rho$ = {fit['rho']:.3g}, "
                        rf"$R^2$ = {fit['r2']:.3f}")
        if fit["delta_star"] is not None and low <= fit["delta_star"] <= high:
            axes.axvline(fit["delta_star"], color=FIT_COLOR, linewidth=1, linestyle=":",
                         label=rf"peak of the rate, $\Delta$ = {fit['delta_star']:.3g}")
        axes.legend(fontsize=8)
    axes.set_xlabel(f"gap: loss above the target of {lines[0]['target_loss']:g}")
    axes.set_ylabel("K: gradient change / weight change")
    axes.set_ylim(0, 1.1 * max(ratios))


def draw_along_run(axes, lines):
    steps = [line["step"] for line in lines]
    axes.plot(steps, [line["ratio"] for line in lines], color=K_COLOR, linewidth=1.2, marker=".",
              label="K, same batch")
    axes.plot(steps, [line["noise"] for line in lines], color=NOISE_COLOR, linewidth=1.2, marker=".",
              label="noise floor: another batch alone")
    axes.set_yscale("log")
    axes.set_xlabel("update")
    axes.legend(fontsize=8)


def draw_layers(axes, lines):
    ratios = layer_ratios(lines)
    median = {name: statistics.median(value for _, value in points) for name, points in ratios.items()}
    for index, name in enumerate(sorted(median, key=median.get, reverse=True)[:LARGEST]):
        steps, values = zip(*ratios[name])
        axes.plot(steps, values, color=RUN_COLORS[index], linewidth=1, marker=".", markersize=3,
                  label=name.removeprefix("model.").removesuffix(".weight"))
    axes.set_yscale("log")
    axes.set_xlabel("update")
    axes.set_ylabel("K of single matrices")
    axes.legend(fontsize=7)


def draw(name, lines, fit, path):
    import matplotlib

    matplotlib.use("Agg")  # no display needed
    from matplotlib import pyplot

    style(pyplot)
    figure, axes = pyplot.subplot_mosaic([["gap", "run"], ["layers", "layers"]], figsize=(11, 7.5),
                                         constrained_layout=True)
    figure.suptitle(name, fontweight="bold")
    draw_against_gap(figure, axes["gap"], lines, fit)
    draw_along_run(axes["run"], lines)
    draw_layers(axes["layers"], lines)
    save_figure(pyplot, figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run", metavar="RUN_DIR", help="run folder, trained with smoothness.every")
    parser.add_argument("--fit", metavar="FILE.json", help="of `train_gpt smoothness --out`")
    parser.add_argument("--out", metavar="FILE.png", help="default: smoothness.png in RUN_DIR")
    arguments = parser.parse_args()
    try:
        lines = read_measurements(arguments.run)
        path = arguments.out or os.path.join(arguments.run, "smoothness.png")
        draw(os.path.basename(os.path.abspath(arguments.run)), lines,
             read_fit(arguments.fit) if arguments.fit else None, path)
    except PlotError as error:
        print(f"plot_smoothness.py: {error}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
