#!/usr/bin/env python3
"""Writes a report of a run: one HTML file that needs nothing else, for a screen, a phone or paper.

    scripts/report.py runs/NAME                  # writes runs/NAME/report.html
    scripts/report.py runs/NAME -o FILE.html

Summary, what the configuration does (told by train_gpt plan where the program is built), curves,
warnings, sampled texts, the configuration. The run may still be going on. Needs matplotlib.
"""
import argparse
import html
import io
import json
import math
import os
import pathlib
import re
import statistics
import string
import subprocess
import sys

from plot_run import PANELS, load_pyplot
from run_folder import Run, RunError, clock, counted, in_bytes, number_or_nan

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = pathlib.Path(__file__).resolve().parent / "report_page.html"
CAPTIONS = {"loss": "Loss", "lr": "Learning rate and phases", "delta": "Gap to the target loss",
            "grad_norm": "Gradient norm", "tokens_per_s": "Speed",
            "update_norms": "How far updates moved the weights, relative to their norms: medians"}
MOST_WARNINGS = 20


def escape(value):
    return html.escape(str(value), quote=True)


# ---- figures ------------------------------------------------------------------------------------------


def summary(run):
    """[(what, value)] of the tiles at the top."""
    finite = [(number_or_nan(line["loss"]), line["step"]) for line in run.val]
    finite = [point for point in finite if not math.isnan(point[0])]
    last, seconds = run.last("summary"), run.seconds()
    tokens = run.tokens_of(run.updates)
    parameters = last.get("parameters")
    shares = [share for share in run.curve("mfu")[1] if not math.isnan(share)]
    found = []
    if finite:
        best = min(finite)
        found += [("validation loss", f"{finite[-1][0]:.4f}"),
                  ("perplexity", f"{math.exp(min(finite[-1][0], 700)):.4g}"),
                  (f"best, after {best[1]} updates", f"{best[0]:.4f}")]
    found.append(("updates", f"{run.updates} of {run.get('run.steps')}" if run.get("run.steps") else run.updates))
    if tokens:
        found.append(("tokens", counted(tokens)))
    if parameters:
        found.append(("parameters", counted(parameters)))
    if seconds:
        found.append(("time of the updates", clock(seconds[-1][1])))
        if tokens:
            found.append(("tokens/s", counted(run.tokens_of(seconds[-1][0]) / seconds[-1][1])))
    if shares:
        found.append(("MFU, median", f"{100 * statistics.median(shares):.1f} %"))
    if last.get("memory_bytes"):
        found.append(("memory planned", in_bytes(last["memory_bytes"])))
    if last.get("ranks", 1) > 1:
        found.append(("ranks", last["ranks"]))
    return found


def state_of(run):
    if run.finished:
        return "finished"
    return f"not finished: {run.updates} of {run.get('run.steps', '?')} updates so far"


# ---- the configuration in words -----------------------------------------------------------------------


def told_by_plan(run, program):
    """[(what, words)] of train_gpt plan; None where it is not built or does not know the configuration."""
    path = os.path.join(run.folder, "run_config.json")
    if run.config is None or not os.access(program, os.X_OK):
        return None
    command = [program, "plan", "--config", path, "--device", "cpu", "--peak", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        return None
    found = []
    # Lines that go on below are put together again; those of the optimizer are indented by their level.
    for line in re.sub(r"\n {11,}", " ", result.stdout).splitlines():
        what, _, words = line.strip().partition(" ")
        indent = len(line) - len(line.lstrip())
        if indent and found and found[-1][0] == "optimizer":
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{' ' * (indent - 2)}{' '.join(line.split())}")
        elif what in ("model", "batch", "run", "optimizer", "schedule") and not indent:
            # Of the run, not of the machine that makes the report.
            words = re.sub(r", epochs unknown.*", "", words.strip())
            if run.get("precision.compute") == "auto":
                words = re.sub(r", (fp32|bf16|fp64)$", "", words)
            found.append((what, words))
    return found


def told_by_config(run):
    """The same from run_config.json, briefer."""
    get = run.get
    if run.config is None:
        return []
    warmup, decay = get("schedule.warmup.type", "none"), get("schedule.decay.type", "constant")
    details = f" (target loss {run.target:g})" if run.target is not None else ""
    if get("schedule.warmup.steps"):
        details = f" of {get('schedule.warmup.steps')} updates"
    return [("model", f"LLaMA: {get('model.n_layer')} layers, width {get('model.d_model')}, "
                      f"{get('model.n_head')} heads"),
            ("batch", f"{get('batch.sequences')} sequences of {get('model.seq_len')} tokens an update"),
            ("run", f"{get('run.steps')} updates"),
            ("optimizer", f"{get('optimizer.preset', 'own groups')}, lr {get('optimizer.lr')}, weight decay "
                          f"{get('optimizer.weight_decay')}"),
            ("schedule", f"warm-up {warmup}{details}, decay {decay}")]


# ---- parts of the page --------------------------------------------------------------------------------


def inline_svg(pyplot, figure, name):
    """The figure as an <svg> element; its ids begin with `name`, so that several fit into one page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    pyplot.close(figure)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg"):], flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r'^<svg[^>]*viewBox="([^"]*)"[^>]*>',
                 rf'<svg viewBox="\1" role="img" aria-label="{escape(CAPTIONS[name])}">', svg)
    return svg


def curves(run):
    pyplot = load_pyplot()
    pyplot.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "report", "path.simplify_threshold": 0.5})
    parts = []
    for name, panel in PANELS.items():
        if not panel.has([run]):
            continue
        figure, axes = pyplot.subplots(figsize=(5.6, 3.1), constrained_layout=True)
        patches = panel.draw(axes, [run])
        axes.set_xlabel("update")
        if name == "lr" and patches:
            axes.legend(handles=patches, loc="upper right", fontsize=8)
        parts.append(f'<figure>{inline_svg(pyplot, figure, name)}<figcaption>{escape(CAPTIONS[name])}'
                     "</figcaption></figure>")
    return "\n".join(parts)


def warnings(run):
    found = [f"Update {line['step']} was left out: {line.get('what')} is {line.get('value')}"
             + (f", in {line['tensor']}" if line.get("tensor") else "") for line in run.left_out]
    found += [f"Loss spike at update {line['step']}: {number_or_nan(line['loss']):.4f}, "
              f"{number_or_nan(line.get('expected')):.4f} was expected"
              + (f"; the gradient that grew most is that of {line['tensor']}" if line.get("tensor") else "")
              for line in run.spikes]
    for line in run.train + run.val:
        if line["loss"] is None:
            found.append(f"The {'validation ' if line['type'] == 'val' else ''}loss at {line['step']} is not finite")
    more = len(found) - MOST_WARNINGS
    return found[:MOST_WARNINGS] + ([f"and {more} more in metrics.jsonl"] if more > 0 else [])


def section(title, body):
    return f"<section><h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def items(pairs):
    return "".join(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in pairs)


def samples(run):
    return "\n".join(f"<figure class=text><pre>{escape(line['text'])}</pre>"
                     f"<figcaption>after {line['step']} updates</figcaption></figure>"
                     for line in reversed(run.of_type("sample")))


def make_page(run, program):
    told = told_by_plan(run, program) or told_by_config(run)
    wrong = warnings(run)
    validation = items((f"after {line['step']}", f"{number_or_nan(line['loss']):.4f}") for line in run.val)
    parts = [
        f"<dl class=tiles>{items(summary(run))}</dl>",
        section("Warnings", "<ul class=warnings>" + "".join(f"<li>{escape(text)}</li>" for text in wrong) + "</ul>"
                if wrong else ""),
        section("What it does", f"<dl class=words>{items(told)}</dl>" if told else ""),
        section("Curves", f"<div class=curves>\n{curves(run)}\n</div>"),
        section("Validation loss", f"<dl class=values>{validation}</dl>" if validation else ""),
        section("Sampled texts", samples(run)),
        section("Configuration", f"<pre class=config>{escape(json.dumps(run.config, indent=1))}</pre>"
                if run.config else "")]
    note = run.get("run.note")
    return string.Template(PAGE.read_text(encoding="utf-8")).substitute(
        name=escape(run.name), state=escape(state_of(run)), kind="" if run.finished else "open",
        note=f"<p>{escape(note)}</p>" if note else "", body="\n".join(filter(None, parts)),
        folder=escape(run.folder))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("-o", "--out", metavar="FILE.html", help="default: report.html in RUN")
    parser.add_argument("--program", metavar="FILE", default=os.environ.get("TRAIN_GPT", str(ROOT / "build/train_gpt")),
                        help="train_gpt, default: %(default)s")
    arguments = parser.parse_args()
    path = arguments.out or os.path.join(arguments.run, "report.html")
    try:
        page = make_page(Run(arguments.run), arguments.program)
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
    except RunError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"report.py: cannot write '{path}': {error.strerror}", file=sys.stderr)
        return 1
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
