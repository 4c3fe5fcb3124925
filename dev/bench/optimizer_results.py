#!/usr/bin/env python3
"""Runs `train_gpt bench optimizer --json` and stores its lines with machine, load and commit.

    dev/bench/optimizer_results.py --out dev/results/optimizer_bench_cpu.json --threads 2 --compare
    (every other option goes to train_gpt as it is; PYTHON names an interpreter with PyTorch)
"""
import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys

from cpu_compare import ROOT, commit, machine


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="FILE")
    parser.add_argument("--binary", default=os.path.join(ROOT, "build", "train_gpt"))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options, rest = parser.parse_known_args()
    command = [options.binary, "bench", "optimizer", "--json", "--threads", str(options.threads), *rest]
    report = {"what": "optimizer_bench", "date": datetime.date.today().isoformat(), "commit": commit(),
              "machine": machine(options.threads), "arguments": command[1:], "load_before": os.getloadavg()}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"train_gpt ended with status {done.returncode}")
    report["load_after"] = os.getloadavg()
    report["lines"] = [json.loads(line) for line in done.stdout.splitlines()]
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
