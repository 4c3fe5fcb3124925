#!/usr/bin/env python3
"""Uploads a run to Weights & Biases: configuration, all lines of metrics.jsonl, sampled texts, summary.

    scripts/upload_wandb.py runs/NAME [--project lmo.cu]
    scripts/upload_wandb.py runs/NAME --follow     # beside the run, until it ends or Ctrl-C

The run's id there and how far it is uploaded stand in RUN/wandb.json: the same command again adds what
is new, also after the run was stopped and continued. Numbers are called as in TensorBoard (train/loss,
val/loss, ...), at the count of updates done. Needs Python's package wandb, and its login (or
WANDB_MODE=offline).
"""
import argparse
import html
import json
import math
import os
import secrets
import signal
import sys
import time

from run_folder import RunError, kind_of, parse_metrics, read_config

# Lines that speak of the weights after `step` updates; the others speak of update `step` itself.
OF_WEIGHTS = ("val", "sample")


class Tail:
    """The complete lines of a file as it grows; from its start again where it was cut or replaced."""

    def __init__(self, path):
        self.path, self.offset, self.inode = path, 0, None

    def read(self):
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self.inode or status.st_size < self.offset:
                    self.offset, self.inode = 0, status.st_ino
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"cannot read '{self.path}': {error.strerror}") from None
        data = data[:data.rfind(b"\n") + 1]
        self.offset += len(data)
        return parse_metrics(data.decode("utf-8", "replace"), self.path)


class State:
    """RUN/wandb.json: the id of the run at W&B, and the last update uploaded with the types of its lines."""

    def __init__(self, folder):
        self.path = os.path.join(folder, "wandb.json")
        known = read_config(self.path) or {}
        self.id = known.get("id") or secrets.token_hex(4)
        self.project, self.entity = known.get("project"), known.get("entity")
        self.step, self.types = known.get("step", -1), known.get("types", [])

    def save(self):
        kept = {"id": self.id, "project": self.project, "entity": self.entity, "step": self.step, "types": self.types}
        with open(self.path + ".tmp", "w", encoding="utf-8") as file:
            json.dump(kept, file)
        os.replace(self.path + ".tmp", self.path)

    def knows(self, step, kind):
        return step < self.step or (step == self.step and kind in self.types)

    def add(self, step, kind):
        if step > self.step:
            self.step, self.types = step, []
        self.types.append(kind)


def numbers(line):
    """{"train/loss": ...}; what was not finite is null in the file and NaN there."""
    found = {}
    for key, value in line.items():
        if key in ("type", "step") or isinstance(value, (dict, list)):
            continue
        found[f"{line['type']}/{key}"] = math.nan if value is None else value
    return found


def by_kind(tensors):
    """{"q_proj": [value of each layer]}, as in TensorBoard."""
    kinds = {}
    for name, value in tensors.items():
        if value is not None:
            kinds.setdefault(kind_of(name), []).append(value)
    return kinds


class Uploader:
    def __init__(self, wandb, state, run):
        self.wandb, self.state, self.run = wandb, state, run
        self.new, self.ended = 0, False

    def upload(self, lines):
        for line in lines:
            kind = line["type"]
            if kind == "summary":
                self.run.summary.update(numbers(line))
            elif isinstance(line.get("step"), int):
                self.add(line, kind)
        if lines:
            self.ended = lines[-1]["type"] == "summary"
            self.state.save()

    def add(self, line, kind):
        # Steps may never go down there; a line that comes late joins the update before it.
        step = line["step"] + (0 if kind in OF_WEIGHTS else 1)
        if self.state.knows(step, kind):
            return
        values = numbers(line)
        if kind == "sample":
            values = {"sample": self.wandb.Html(f"<pre>{html.escape(line['text'])}</pre>")}
        if kind == "update_norms":
            values = {f"{kind}/{name}": found[0] if len(found) == 1 else self.wandb.Histogram(found)
                      for name, found in by_kind(line["tensors"]).items()}
        self.run.log(values, step=step)
        if kind == "schedule":
            self.run.summary.update(values)
        self.state.add(step, kind)
        self.new += 1


def import_wandb():
    try:
        import wandb
    except ImportError as error:
        raise RunError(f"wandb is needed ({error}): python3 -m pip install wandb, then wandb login") from None
    return wandb


def start(wandb, arguments, state):
    config = read_config(os.path.join(arguments.run, "run_config.json"))
    state.project = arguments.project or state.project or "lmo.cu"
    state.entity = arguments.entity or state.entity
    state.save()  # before there is anything to find again
    own = (config or {}).get("run") or {}
    name = arguments.name or own.get("name") or os.path.basename(os.path.abspath(arguments.run))
    return wandb.init(project=state.project, entity=state.entity, name=name, id=state.id, resume="allow", config=config,
                      notes=own.get("note"), dir=arguments.run)


def follow(uploader, tail, arguments):
    """Uploads until the end that was asked for."""
    while True:
        uploader.upload(tail.read())
        if not arguments.follow or uploader.ended:
            return
        time.sleep(arguments.interval)


def upload(arguments):
    path = os.path.join(arguments.run, "metrics.jsonl")
    if not os.path.isdir(arguments.run) or not (arguments.follow or os.path.exists(path)):
        raise RunError(f"cannot read '{path}': no such file; give the folder of a run (run.dir)")
    wandb, state = import_wandb(), State(arguments.run)
    run = start(wandb, arguments, state)
    # A kill ends as Ctrl-C does: what was taken is handed over.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    uploader = Uploader(wandb, state, run)
    try:
        follow(uploader, Tail(path), arguments)
    except KeyboardInterrupt:
        pass
    finally:
        state.save()
        run.finish()
    print(f"{arguments.run}: {uploader.new} new lines uploaded to {state.project}, run {state.id}"
          + ("" if uploader.ended else "; the run has not ended, the same command adds what comes"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--project", help="default: lmo.cu, or that of the last time")
    parser.add_argument("--entity", help="default: yours, or that of the last time")
    parser.add_argument("--name", help="default: run.name")
    parser.add_argument("--follow", action="store_true", help="go on while the run does")
    parser.add_argument("--interval", type=float, default=10.0, metavar="S",
                        help="seconds between two looks with --follow; default: %(default)s")
    arguments = parser.parse_args()
    try:
        upload(arguments)
    except RunError as error:
        print(f"upload_wandb.py: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"upload_wandb.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
