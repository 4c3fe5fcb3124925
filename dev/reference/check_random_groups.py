"""Random parameter groups against a small NumPy interpreter of their JSON: stages in combinations nobody chose.

Run from the repository root:
  /usr/bin/python3 dev/reference/check_random_groups.py                 writes tests/data/random_groups.*
  /usr/bin/python3 dev/reference/check_random_groups.py --check 100 [--seed 1]
                                     other groups, in a temporary folder, put to build/unit_tests

random_groups.json         a list of {"optimizer": ...} as configuration files have it
random_groups.safetensors  "I": all weights of configuration I after STEPS updates, parameter by parameter
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import safetensors_io  # noqa: E402
import stages as s  # noqa: E402
from groups import RADII, find_group, read_group  # noqa: E402
from lmo_family import LAYERED, SEED, blocks, layered_inputs  # noqa: E402

STEPS, COMMITTED = 8, 40


def final_weights(config, inputs):
    o = config["optimizer"]
    groups = {}

    def choose(name, role):
        if role not in groups:
            groups[role] = read_group(find_group(o["groups"], name, role), o["weight_decay"], role)
        return groups[role]

    sampling = s.Sampling(**o["sampling"], seed=SEED)
    results = s.run(LAYERED, blocks(LAYERED, o["qkv"] == "fused"), choose, inputs, STEPS, o["clip_norm"], np.float64,
                    sampling)
    *_, (_, last) = results
    return np.concatenate([last[name].reshape(-1) for name in LAYERED])


# ---- random groups -----------------------------------------------------------------------------------


def random_norm(rng, matrix):
    kind = rng.choice(["sign", "frobenius", "rms", "row", "column", "none"] + 5 * ["spectral", "schatten"] * matrix)
    if kind == "spectral":
        return {"type": kind, "coefficients": rng.choice(["jordan", "you", "polar-express", "cans", "cubic"]),
                "steps": rng.randint(1, 7)}
    if kind == "schatten":
        return {"type": kind, "p": rng.choice([1, 1.25, 1.5, 2, 2.5, 3, 5, 20, "inf"])}
    return {"type": kind}


def random_radius(rng):
    rule = rng.choice(list(RADII))
    return rng.choice([rule, f"{rng.uniform(0.1, 2):.3f}*{rule}", round(rng.uniform(0.1, 2), 3)])


def random_momentum(rng, keeps):
    kind = rng.choice(["none", "ema", "heavy_ball", "nesterov", "lion", "adam"] + ["gradient"] * 3 * keeps)
    share = lambda: round(rng.uniform(0, 0.99), 3)  # noqa: E731
    result = {"type": kind}
    if kind in ("lion", "adam"):
        result.update(beta1=share(), beta2=share())
    elif kind != "none":
        result["beta"] = share()
    if kind in ("ema", "heavy_ball", "nesterov", "lion") and rng.random() < 0.5:
        result["start"] = "gradient"
    if kind == "nesterov" and rng.random() < 0.5:
        result["ema"] = True
    if kind == "adam":
        result.update(eps=rng.choice([1e-8, 1e-3]), eps_inside=rng.random() < 0.5)
    return result


def random_group(rng, role, keeps, layers):
    matrix = role != "gain"
    norm = random_norm(rng, matrix)
    group = {"match": {"role": role}, "momentum": random_momentum(rng, keeps), "norm": norm,
             "radius": random_radius(rng), "lr_scale": round(rng.uniform(0.2, 2), 3)}
    post = rng.choice(["none", "none", "frobenius", "row_moment"]) if norm["type"] != "rms" else "none"
    group["post"] = {"type": post}
    if post == "row_moment":
        group["post"].update(beta2=round(rng.uniform(0, 0.99), 3), eps=rng.choice([1e-8, 1e-2]))
    step = rng.choice(["schedule", "dual", "clipped", "gluon"])
    group["step"] = {"type": step}
    if step == "clipped":
        group["step"]["limit"] = round(rng.uniform(0.05, 3), 3)
    if step in ("dual", "clipped") and rng.random() < 0.5:
        group["step"]["together"] = True
    if step == "gluon":
        group["step"].update(L0=round(rng.uniform(0, 1), 3), L1=round(rng.uniform(0.1, 3), 3))
        if layers and role == "matrix":
            group["step"]["layers"] = {"model.layers.1.mlp.up_proj.weight": [0.3, 0.7]}
    if norm["type"] == "spectral" and rng.random() < 0.5:
        group["step"]["inexact"] = True
    decay = rng.choice(["none", "decoupled", "constrained", "cautious", "start"])
    group["decay"] = {"type": decay}
    if decay in ("decoupled", "cautious") and rng.random() < 0.5:
        group["decay"]["weight_decay"] = round(rng.uniform(0, 2), 3)
    if decay in ("decoupled", "cautious", "constrained") and rng.random() < 0.5:
        group["decay"]["roles"] = rng.sample(["matrix", "embedding", "head", "gain", "any"], rng.randint(1, 3))
    if rng.random() < 0.4 and norm["type"] != "rms" and not group["step"].get("together"):
        other = random_norm(rng, matrix)
        if other["type"] != "rms":
            kind = rng.choice(["periodic", "stable_rank"])
            group["alternate"] = {"type": kind, "norm": other, "radius": random_radius(rng), "lr_scale": 0.4}
            group["alternate"].update({"period": rng.randint(1, 4)} if kind == "periodic" else
                                      {"stable_rank": round(rng.uniform(0.3, 1.5), 3)})
    return group


def random_config(rng):
    sampling = rng.choice(4 * [{"type": "all"}] + [{"type": "progressive"}, {"type": "subset", "probability": 0.6},
                                                   {"type": "periodic", "period": 2}])
    keeps = sampling["type"] == "all" and rng.random() < 0.3
    groups = [random_group(rng, role, keeps, layers=True) for role in ("matrix", "gain", "head", "embedding")]
    kept = any(g["momentum"]["type"] == "gradient" for g in groups)
    return {"optimizer": {"groups": groups, "lr": 0.02, "weight_decay": 0.1,
                          "clip_norm": 0.0 if kept or rng.random() < 0.5 else 3.0,
                          "qkv": rng.choice(["fused", "split"]), "sampling": sampling}}


def write(folder, count, seed):
    """Configurations that tell an error of the program from one of rounding: weights stay within reach, and inputs
    that are rounded otherwise change little (the largest of two equal singular values is anyone's)."""
    rng, inputs, configs, tensors = random.Random(seed), layered_inputs(), [], {}
    noise = np.random.default_rng(seed)
    rounded = {name: value * (1 + 1e-15 * noise.standard_normal(value.shape)) for name, value in inputs.items()}
    while len(configs) < count:
        config = random_config(rng)
        weights = final_weights(config, inputs)
        if not np.abs(weights).max() < 1e3 or np.abs(weights - final_weights(config, rounded)).max() > 1e-11:
            continue
        tensors[str(len(configs))] = weights
        configs.append(config)
    with open(os.path.join(folder, "random_groups.json"), "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(config, separators=(",", ":")) for config in configs) + "\n]\n")
    safetensors_io.save(os.path.join(folder, "random_groups.safetensors"), tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", type=int, metavar="COUNT", help="so many other groups, put to the program")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.check:
        return write(os.path.join("tests", "data"), COMMITTED, 0)
    with tempfile.TemporaryDirectory() as folder:
        write(folder, arguments.check, arguments.seed)
        command = ["build/unit_tests", "--gtest_filter=RandomGroups.*"]
        sys.exit(subprocess.run(command, env={**os.environ, "LMO_RANDOM_GROUPS": folder}).returncode)


if __name__ == "__main__":
    main()
