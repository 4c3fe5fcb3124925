#!/usr/bin/env python3
"""Puts runs side by side: one line a run, and how its configuration differs from that of the first.

    scripts/compare_runs.py runs/A runs/B [runs/C ...]
    scripts/compare_runs.py runs/* --plot both.png     # loss over tokens and over time
    scripts/compare_runs.py runs/A runs/B --diff       # all keys that differ

Time is that of the updates, of all starts of a run together. "-" where a run does not tell; a run that
has not ended is marked with *. --plot needs matplotlib.
"""
import argparse
import json
import math
import sys

from plot_run import color_of, load_pyplot, save_figure
from run_folder import Run, RunError, clock, counted, differences, in_bytes, name_apart, number_or_nan


def figures(run):
    """What a table says of a run; None where it does not tell."""
    losses = [number_or_nan(line["loss"]) for line in run.val]
    finite = [loss for loss in losses if not math.isnan(loss)]
    summary, seconds = run.last("summary"), run.seconds()
    trained = seconds[-1][1] if seconds else None
    tokens = run.tokens_of(run.updates)
    return {"name": run.name, "finished": run.finished, "steps": run.updates, "tokens": tokens,
            "val_loss": losses[-1] if losses else None, "best_val_loss": min(finite, default=None),
            "tokens_per_s": run.tokens_of(seconds[-1][0]) / trained if trained and tokens else None,
            "seconds": trained, "memory_bytes": summary.get("memory_bytes"),
            "optimizer": run.get("optimizer.preset") or ("groups" if run.get("optimizer.groups") else None),
            "lr": run.get("optimizer.lr")}


def shown(value, form):
    return "-" if value is None else form(value)


def first_difference(first, run):
    if first.config is None or run.config is None:
        return "no configuration to compare"
    found = differences(first, run)
    if not found:
        return "same configuration"
    key, old, new = found[0]
    more = f" (+{len(found) - 1} more)" if len(found) > 1 else ""
    return f"{key} {short(old)} -> {short(new)}{more}"


def short(value):
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 32 else text[:29] + "..."


HEADINGS = ("run", "preset", "lr", "steps", "tokens", "loss", "best", "tok/s", "time", "memory")


def table(runs):
    """A row a run; below it the first key that differs from the first run."""
    rows = [HEADINGS]
    for run in runs:
        of = figures(run)
        rows.append((run.name, shown(of["optimizer"], str), shown(of["lr"], "{:g}".format),
                     f"{of['steps']}{'' if run.finished else '*'}", shown(of["tokens"], counted),
                     shown(of["val_loss"], "{:.4f}".format), shown(of["best_val_loss"], "{:.4f}".format),
                     shown(of["tokens_per_s"], counted), shown(of["seconds"], clock),
                     shown(of["memory_bytes"], in_bytes)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    lines = ["  ".join(cell.ljust(width) if column < 2 else cell.rjust(width)
                       for column, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows]
    for number, run in reversed(list(enumerate(runs[1:], 2))):
        lines.insert(number + 1, f"    {first_difference(runs[0], run)}")
    return "\n".join(lines)


def all_differences(runs):
    """Every key that differs from the first run, by run."""
    lines = []
    for run in runs[1:]:
        lines.append(f"\n{runs[0].name} -> {run.name}")
        lines += [f"  {key}: {json.dumps(old)} -> {json.dumps(new)}" for key, old, new in differences(runs[0], run)]
    return "\n".join(lines)


def curves(run):
    """{"tokens" or "hours": (train points, validation points)}; validation between two times is put in between."""
    seconds = dict(run.seconds())
    found = {}
    for name, place in (("tokens", run.tokens_of), ("hours", lambda updates: at(seconds, updates))):
        train = [(place(line["step"] + 1), number_or_nan(line["loss"])) for line in run.train]
        val = [(place(line["step"]), number_or_nan(line["loss"])) for line in run.val]
        found[name] = [[point for point in points if point[0] is not None] for points in (train, val)]
    return found


def at(seconds, updates):
    """Hours after so many updates; the nearest earlier time where there is no line for them."""
    known = [done for done in (updates, updates - 1) if done in seconds]
    if not known:
        earlier = [done for done in seconds if done <= updates]
        known = [max(earlier)] if earlier else []
    return seconds[known[0]] / 3600 if known else None


def draw(runs, path):
    pyplot = load_pyplot()
    figure, panels = pyplot.subplots(1, 2, sharey=True, figsize=(12, 5), constrained_layout=True)
    of_runs = [curves(run) for run in runs]
    short_runs = all(point[0] < 0.1 for of in of_runs for points in of["hours"] for point in points)
    for index, (run, of) in enumerate(zip(runs, of_runs)):
        color = color_of(index, runs)
        for axes, name in zip(panels, ("tokens", "hours")):
            scale = 3600 if name == "hours" and short_runs else 1
            train, val = ([(x * scale, y) for x, y in points] for points in of[name])
            if train:
                axes.plot(*zip(*train), color=color, linewidth=0.8, alpha=0.55 if val else 0.9,
                          label=None if val else run.name)
            if val:
                axes.plot(*zip(*val), color=color, linewidth=1.5, marker="o", markersize=4.5,
                          markeredgecolor="white", markeredgewidth=0.6, zorder=3, label=run.name)
    panels[0].set_xlabel("tokens")
    panels[1].set_xlabel(f"{'seconds' if short_runs else 'hours'} of training")
    panels[0].set_ylabel("loss (thin: train, dots: validation)")
    panels[0].legend(loc="upper right", fontsize=9)
    save_figure(pyplot, figure, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder")
    parser.add_argument("--plot", metavar="FILE.png", help="draw loss over tokens and over time")
    parser.add_argument("--diff", action="store_true", help="list all keys that differ from the first run")
    parser.add_argument("--json", action="store_true", help="one JSON object a run instead of the table")
    arguments = parser.parse_args()
    try:
        runs = name_apart([Run(folder) for folder in arguments.runs])
        if arguments.json:
            print("\n".join(json.dumps(figures(run)) for run in runs))
        else:
            print(table(runs))
        if arguments.diff:
            print(all_differences(runs))
        if arguments.plot:
            draw(runs, arguments.plot)
            print(arguments.plot)
    except RunError as error:
        print(f"compare_runs.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
