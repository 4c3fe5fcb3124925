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
from lmo_family import LAYERED, SEED, blocks, layered_inputs  # noqa: E402

STEPS, COMMITTED = 8, 40
RADII = {"sqrt(max(1,m/n))": lambda m, n: max(1, m / n) ** 0.5, "sqrt(m/n)": lambda m, n: (m / n) ** 0.5,
         "sqrt(max(m,n))": lambda m, n: max(m, n) ** 0.5, "sqrt(m)": lambda m, n: m**0.5,
         "sqrt(n)": lambda m, n: n**0.5, "sqrt(m*n)": lambda m, n: (m * n) ** 0.5, "1/n": lambda m, n: 1 / n,
         "1/sqrt(n)": lambda m, n: n**-0.5}

# ---- a group of JSON -> stages -----------------------------------------------------------------------


def read_momentum(j):
    kind, start = j["type"], j.get("start", "zero")
    if kind == "nesterov" and j.get("ema"):
        kind = "nesterov_ema"
    if kind == "adam":
        return s.adam(j["beta1"], j["beta2"], j.get("eps", 1e-8), j.get("eps_inside", False)), ("first", "second")
    if kind == "lion":
        return s.lion(j["beta1"], j["beta2"], start), ("momentum",)
    if kind == "none":
        return s.no_momentum(), ()
    if kind == "gradient":
        return s.kept_gradient(j["beta"]), ("momentum",)
    return getattr(s, kind)(j["beta"], start), ("momentum",)


def read_norm(j):
    if j["type"] == "spectral":
        return s.spectral(j["coefficients"], j["steps"])
    if j["type"] == "schatten":
        return s.schatten(float(j["p"]))
    return {"none": lambda x: x, "sign": np.sign, "frobenius": s.frobenius, "rms": s.rms, "row": s.rows,
            "column": s.columns}[j["type"]]


def read_radius(value):
    if not isinstance(value, str):
        return lambda m, n: value
    factor, _, rule = value.partition("*") if value[0].isdigit() and value[:2] != "1/" else ("1", "", value)
    return lambda m, n: float(factor) * RADII[rule](m, n)


def read_group(j, weight_decay, role):
    momentum, states = read_momentum(j["momentum"])
    group = s.Group(momentum, states, read_norm(j["norm"]), read_radius(j["radius"]), lr_scale=j["lr_scale"])
    post, step, decay = j["post"], j["step"], j["decay"]
    if post["type"] == "frobenius":
        group.post = s.unit_frobenius
    if post["type"] == "row_moment":
        group.post, group.has_row_moment = s.row_moment(post["beta2"], post["eps"]), True
    group.step, group.limit = step["type"], step.get("limit", 0.0)
    group.together, group.inexact = step.get("together", False), step.get("inexact", False)
    layers = step.get("layers", {})
    group.constants = lambda names: layers.get(names[0], (step.get("L0", 0.0), step.get("L1", 0.0)))
    roles = decay.get("roles", ["any"] if decay["type"] == "constrained" else ["matrix", "head"])
    decays = decay["type"] == "start" or "any" in roles or role in roles
    group.decay = decay["type"] if decays else "none"
    group.weight_decay = decay.get("weight_decay", weight_decay)
    if "alternate" in j:
        a = j["alternate"]
        group.alternate = s.Alternate(read_norm(a["norm"]), read_radius(a["radius"]), a["lr_scale"],
                                      a.get("period", 0), a.get("stable_rank", 0.0))
    return group


def final_weights(config, inputs):
    o = config["optimizer"]
    groups = {}

    def choose(name, role):
        if role not in groups:
            groups[role] = read_group(next(g for g in o["groups"] if g["match"]["role"] in (role, "any")),
                                      o["weight_decay"], role)
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
