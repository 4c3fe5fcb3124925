#!/usr/bin/env python3
"""Our training step against PyTorch's on this CPU, in one run.

    make                                       # build/train_gpt
    dev/bench/cpu_compare.py --python PATH_OF_A_NEWER_PYTHON --out dev/results/cpu_compare.json

Ours (`train_gpt bench train`) and PyTorch (dev/bench/llama_torch.py) take turns: in every round
each variant is a process of its own that drops warm-up steps and gives the median of a few more,
and each round starts with another variant. Speeds of a machine drift, ratios inside a round hardly
do: what counts is ours / PyTorch of each round, where PyTorch is the fastest of its variants in
that round, its median and its spread. Variants of PyTorch: Debian's (/usr/bin/python3) with the
BLAS that it maps by itself, the same with OpenBLAS-openmp preloaded (where it is not that already),
and those of --python. Where OpenBLAS runs kernels of before AVX2 on a processor that has more, it
is told better, for the best PyTorch counts. Threads are equal. Other load makes the figures
worthless: it is recorded and warned of.

Both sides do forward, backward and optimizer on random tokens. Ours computes the norm of the
gradient in every step; PyTorch only with --clip.
"""

import argparse
import datetime
import glob
import json
import os
import platform
import statistics
import subprocess
import sys

FOLDER = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(FOLDER))
PEER = os.path.join(FOLDER, "llama_torch.py")
DEBIAN_PYTHON = "/usr/bin/python3"
OPENBLAS = "/usr/lib/*/openblas-openmp/libopenblas.so.0"
DTYPES = {"fp32": "fp32", "bf16": "bf16-autocast"}  # ours: PyTorch's
MATRICES = ["768x768", "768x2048"]
OLD_CORES = ("Prescott", "Core2", "Penryn", "Dunnington", "Nehalem", "Sandybridge")  # no AVX2
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")


class CompareError(Exception):
    """Something the user can mend; printed without a traceback."""


def run_lines(command, environment=None):
    """The JSON lines that a command prints."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT,
                              env={**os.environ, **(environment or {})})
    except OSError as error:
        raise CompareError(f"cannot start {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        tail = "\n".join(done.stderr.strip().splitlines()[-6:])
        raise CompareError(f"{' '.join(command)}\nended with status {done.returncode}:\n{tail}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def cpu_info():
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return dict(map(str.strip, line.split(":", 1)) for line in file if ":" in line)


def right_core(core):
    """What to tell an OpenBLAS that runs its kernels of old on this processor; else None."""
    flags = cpu_info().get("flags", "").split()
    if core not in OLD_CORES or "OPENBLAS_CORETYPE" in os.environ or "avx2" not in flags:
        return None
    return "SkylakeX" if "avx512f" in flags else "Haswell"


class Ours:
    name = "ours"

    def __init__(self, options):
        self.options = options

    def sample(self, shape, dtype):
        o, (batch, seq) = self.options, shape
        settings = {"batch.sequences": batch, "batch.micro_batch": batch, "model.seq_len": seq,
                    "optimizer.preset": o.preset, "optimizer.clip_norm": o.clip,
                    "precision.compute": dtype}
        command = [o.binary, "bench", "train", "--config", o.config, "--json", "--threads",
                   str(o.threads), "--warmup", str(o.warmup), "--steps", str(o.steps)]
        for key, value in settings.items():
            command += ["--set", f"{key}={value}"]
        lines = run_lines(command, {"OMP_NUM_THREADS": str(o.threads)})
        line = [line for line in lines if line["what"] == "train"][-1]
        return {"ms": line["ms"], "ms_min": line["ms_min"], "detail": line}


class Torch:
    """One interpreter with one BLAS; `compiled`: through torch.compile."""

    def __init__(self, options, python, preload=None, compiled=False):
        self.options, self.python, self.compiled = options, python, compiled
        self.environment = {"OMP_NUM_THREADS": str(options.threads)}
        if preload:
            self.environment["LD_PRELOAD"] = preload
        self.setup = self.look()
        core = right_core(self.setup["openblas_core"])
        if core:
            self.environment["OPENBLAS_CORETYPE"] = core
            self.setup = self.look()
        self.blas = "MKL" if self.setup["mkl"] else " + ".join(
            library for library in self.setup["libraries"] if "blas" in library)
        self.name = "torch " + self.setup["torch"].split("+")[0] + (" compiled" if compiled else "")
        self.name += " preloaded" if preload else ""
        self.blas += f" for {self.setup['openblas_core']}" if self.setup["openblas_core"] else ""
        self.blas += f" (OPENBLAS_CORETYPE={core}: not recognised by itself)" if core else ""

    def look(self):
        return self.peer("--newton-schulz", "64x64", "--steps", "1")[0]

    def peer(self, *arguments):
        command = [self.python, PEER, "--threads", str(self.options.threads), *arguments]
        return run_lines(command, self.environment)

    def sample(self, shape, dtype):
        o = self.options
        lines = self.peer("--model", o.config, "--preset", o.preset, "--dtype", DTYPES[dtype],
                          "--batch", str(shape[0]), "--seq", str(shape[1]), "--clip", str(o.clip),
                          "--steps", str(o.warmup + o.steps),
                          *(["--compile"] if self.compiled else []))
        steps = [line for line in lines if line["what"] == "step"][o.warmup:]
        times = [step["ms"] for step in steps]
        middle = min(steps, key=lambda step: abs(step["ms"] - statistics.median_low(times)))
        return {"ms": middle["ms"], "ms_min": min(times), "detail": middle, "all_ms": times}

    def newton_schulz(self, matrix, dtype):
        lines = self.peer("--newton-schulz", matrix, "--dtype", DTYPES[dtype], "--steps", "12")
        return statistics.median(line["ms"] for line in lines[3:])  # setup and two to warm up


def torch_variants(options):
    variants = []
    for python in [DEBIAN_PYTHON] + options.python:
        variant = Torch(options, python)
        variants.append(variant)
        preload = glob.glob(OPENBLAS)
        if python == DEBIAN_PYTHON and preload and "openblas-openmp" not in variant.blas:
            variants.append(Torch(options, python, preload=preload[0]))
        if options.compile and int(variant.setup["torch"].split(".")[0]) >= 2:
            variants.append(Torch(options, python, compiled=True))
    return variants


def measure(options, variants):
    """One sample for each setting, round, precision and variant."""
    total = len(options.shapes) * options.rounds * len(options.dtypes) * len(variants)
    samples = []
    for shape in options.shapes:
        for turn in range(options.rounds):
            first = turn % len(variants)
            for dtype in options.dtypes:
                for variant in variants[first:] + variants[:first]:
                    load = os.getloadavg()[0]
                    sample = {"shape": "x".join(map(str, shape)), "dtype": dtype, "round": turn,
                              "variant": variant.name, **variant.sample(shape, dtype)}
                    sample["tokens_per_s"] = 1e3 * shape[0] * shape[1] / sample["ms"]
                    sample["load_before"] = load
                    samples.append(sample)
                    print(f"[{len(samples):3}/{total}] {sample['shape']:>6} {dtype}  "
                          f"round {turn + 1}  {variant.name:24} "
                          f"{sample['tokens_per_s']:8.1f} tokens/s  (load {load:.1f})", flush=True)
    return samples


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summarise(samples):
    """For each setting and precision: speeds of all variants, and the ratios of the rounds.

    Precision "best" gives each variant the faster of its precisions in a round.
    """
    cases = {}  # (shape, dtype): {round: {variant: tokens/s}}
    for sample in samples:
        for dtype in (sample["dtype"], "best"):
            rounds = cases.setdefault((sample["shape"], dtype), {})
            speeds = rounds.setdefault(sample["round"], {})
            name, speed = sample["variant"], sample["tokens_per_s"]
            speeds[name] = max(speed, speeds.get(name, 0.0))
    rows = []
    for (shape, dtype), rounds in sorted(cases.items(), key=lambda case: case[0][1] == "best"):
        ratios, best = [], []
        for speeds in rounds.values():
            peers = {name: speed for name, speed in speeds.items() if name != Ours.name}
            best.append(max(peers, key=peers.get))
            ratios.append(speeds[Ours.name] / peers[best[-1]])
        rows.append({"shape": shape, "dtype": dtype, "ratio": spread(ratios), "ratios": ratios,
                     "best_torch": best,
                     "tokens_per_s": {name: spread([speeds[name] for speeds in rounds.values()])
                                      for name in next(iter(rounds.values()))}})
    return rows


def print_table(rows, preset):
    print(f"\nLLaMA training step, {preset}\n\n{'tokens':>7} {'dtype':5} {'variant':24}"
          f"{'tokens/s':>9}   min .. max")
    for row in rows:
        for name, speed in sorted(row["tokens_per_s"].items(), key=lambda item: item[1]["median"]):
            print(f"{row['shape']:>7} {row['dtype']:5} {name:24}{speed['median']:9.1f}"
                  f"   {speed['min']:.1f} .. {speed['max']:.1f}")
        ratio = row["ratio"]
        print(f"{'':14}ours / best PyTorch of a round: {ratio['median']:.2f}"
              f"   ({ratio['min']:.2f} .. {ratio['max']:.2f})\n")


def compare_newton_schulz(options, variants):
    """Milliseconds of five iterations in PyTorch; ours has no command that runs them alone."""
    print("Newton-Schulz, 5 iterations, ms in PyTorch (ours has no command for it alone: left out)")
    peers = [v for v in variants if isinstance(v, Torch) and not v.compiled]
    rows = []
    for matrix in MATRICES:
        for dtype in options.dtypes:
            times = {peer.name: [] for peer in peers}
            for _ in range(options.rounds):
                for peer in peers:
                    times[peer.name].append(peer.newton_schulz(matrix, dtype))
            row = {"matrix": matrix, "dtype": dtype,
                   "torch_ms": {name: spread(values) for name, values in times.items()}}
            rows.append(row)
            print(f"{matrix:>9} {dtype}  " + "  ".join(
                f"{name}: {ms['median']:.1f} ({ms['min']:.1f} .. {ms['max']:.1f})"
                for name, ms in row["torch_ms"].items()), flush=True)
    return rows


def machine(threads):
    info = cpu_info()
    flags = set(info.get("flags", "").split())
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {"cpu": info.get("model name", platform.machine()), "cores": os.cpu_count(),
            "threads": threads, "flags": [flag for flag in FLAGS if flag in flags],
            "memory_gib": round(pages * size / 2**30, 1), "kernel": platform.release(),
            "omp": {key: value for key, value in os.environ.items() if key.startswith("OMP_")}}


def commit():
    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True,
                              check=False).stdout.strip()
    changed = " with local changes" if git("status", "--porcelain") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + changed


def parse_shape(text):
    batch, seq = (int(number) for number in text.split("x"))
    return batch, seq


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--python", action="append", default=[], metavar="PATH",
                        help="another interpreter with PyTorch; may be given several times")
    parser.add_argument("--binary", default=os.path.join(ROOT, "build", "train_gpt"))
    parser.add_argument("--config", default="configs/run/llama-124m-adamw.json")
    parser.add_argument("--preset", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--shapes", type=parse_shape, nargs="+", default=[(4, 64), (2, 512)],
                        metavar="BATCHxSEQ")
    parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+", default=list(DTYPES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="measured steps of a process")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clip", type=float, default=0.0, help="clip gradients, both; 0: no")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, from 2.0 on")
    parser.add_argument("--no-newton-schulz", action="store_true")
    parser.add_argument("--out", metavar="FILE", help="write all samples as JSON")
    options = parser.parse_args()
    options.binary = os.path.abspath(options.binary)
    if not os.path.exists(options.binary):
        raise CompareError(f"{options.binary} does not exist: run make, or give --binary")
    return options


def main():
    options = parse_options()
    report = {"what": "cpu_compare", "date": datetime.date.today().isoformat(), "commit": commit(),
              "machine": machine(options.threads), "load_before": os.getloadavg(),
              "config": options.config, "preset": options.preset, "clip": options.clip,
              "steps": options.steps, "warmup": options.warmup}
    peers = torch_variants(options)
    report["torch"] = {peer.name: {**peer.setup, "blas": peer.blas} for peer in peers}
    print(f"{report['machine']['cpu']}, {options.threads} threads, flags "
          f"{' '.join(report['machine']['flags'])}; commit {report['commit']}")
    for peer in peers:
        print(f"{peer.name}: BLAS {peer.blas}, vector code {peer.setup['capability']}")
    if report["load_before"][0] > 0.5:
        print(f"warning: load average {report['load_before'][0]:.1f} before the start: other "
              "programs run, these figures are not worth keeping")
    report["samples"] = measure(options, [Ours(options)] + peers)
    report["summary"] = summarise(report["samples"])
    print_table(report["summary"], options.preset)
    if not options.no_newton_schulz:
        report["newton_schulz"] = compare_newton_schulz(options, peers)
    report["load_after"] = os.getloadavg()
    if options.out:
        os.makedirs(os.path.dirname(os.path.abspath(options.out)), exist_ok=True)
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
        print(f"\nwritten: {options.out}")


if __name__ == "__main__":
    try:
        main()
    except CompareError as error:
        sys.exit(f"cpu_compare.py: {error}")
