"""Parameter groups as configuration files have them -> the stages of stages.py."""

import fnmatch
import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import stages as s  # noqa: E402

RADII = {"sqrt(max(1,m/n))": lambda m, n: max(1, m / n) ** 0.5, "sqrt(m/n)": lambda m, n: (m / n) ** 0.5,
         "sqrt(max(m,n))": lambda m, n: max(m, n) ** 0.5, "sqrt(m)": lambda m, n: m**0.5,
         "sqrt(n)": lambda m, n: n**0.5, "sqrt(m*n)": lambda m, n: (m * n) ** 0.5, "1/n": lambda m, n: 1 / n,
         "1/sqrt(n)": lambda m, n: n**-0.5}


def read_power(value):
    """A number, or a fraction in words."""
    above, _, below = str(value).partition("/")
    return float(above) / float(below or 1)


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
    if j.get("eta_power"):
        return s.ema_power(read_power(j["eta_power"])), ("momentum",)
    return getattr(s, kind)(j["beta"], start), ("momentum",)


def read_norm(j):
    if j["type"] == "spectral":
        return s.spectral(j["coefficients"], j.get("steps", 5))
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
    momentum, states = read_momentum(j.get("momentum", {"type": "none"}))
    group = s.Group(momentum, states, read_norm(j.get("norm", {"type": "none"})), read_radius(j.get("radius", 1.0)),
                    lr_scale=j.get("lr_scale", 1.0))
    none = {"type": "none"}
    post, step, decay = j.get("post", none), j.get("step", {"type": "schedule"}), j.get("decay", none)
    decay = {"type": decay} if isinstance(decay, str) else decay
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
    a = j.get("alternate", none)
    if a["type"] != "none":
        group.alternate = s.Alternate(read_norm(a["norm"]), read_radius(a.get("radius", 1.0)), a.get("lr_scale", 1.0),
                                      a.get("period", 0), a.get("stable_rank", 0.0))
    return group


def find_group(groups, name, role):
    """The first group that matches a parameter."""
    return next(g for g in groups if g["match"].get("role", "any") in (role, "any")
                and fnmatch.fnmatchcase(name, g["match"].get("name", "*")))
