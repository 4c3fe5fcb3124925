"""The stages of a parameter group in NumPy, from their published equations, and a run of groups over blocks.

Nothing here is read from the C++; coefficients and helpers that dev/reference/optimizers.py has come from there.
A group is a Group below; a block is a list of parameters that stages see as one matrix, stacked by rows.
"""

import math
import os
import sys
from dataclasses import dataclass, field

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from optimizers import newton_schulz  # noqa: E402

# ---- random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers, SC 2011) ----


def philox(counter, key):
    """Section 3.3: the right words of each pair are multiplied, halves swap places, keys step by Weyl constants."""
    c, k = list(counter), list(key)
    for _ in range(10):
        first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(second >> 32) ^ c[1] ^ k[0], second & 0xFFFFFFFF, (first >> 32) ^ c[3] ^ k[1], first & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


# Known answers of the authors' library (Random123, kat_vectors).
assert philox([0] * 4, [0] * 2) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
assert philox([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def uniform(seed, stream, index):
    """In (0, 1): 53 bits of the first two words, at the middle of their interval."""
    halves = [index & 0xFFFFFFFF, index >> 32, stream & 0xFFFFFFFF, stream >> 32]
    words = philox(halves, [seed & 0xFFFFFFFF, seed >> 32])
    return (((words[0] << 32 | words[1]) >> 11) + 0.5) / 2**53


@dataclass
class Sampling:
    """Which layers an update is of; -1 always."""

    type: str = "all"
    probability: float = 1.0
    period: int = 1
    seed: int = 0
    layers: int = 2

    def chosen(self, update, layer):
        stream = int.from_bytes(b"layer", "big")
        if layer < 0 or self.type == "all":
            return True
        if self.type == "progressive":  # uniform s: layers s, s + 1, ...
            return layer >= math.floor(uniform(self.seed, stream, update) * self.layers)
        if self.type == "subset":
            return uniform(self.seed, stream, update * self.layers + layer) < self.probability
        assert self.type == "periodic"
        return (update + layer) % self.period == 0


# ---- momentum: stage(state, g, first) -> u -----------------------------------------------------------


def no_momentum():
    return lambda state, g, first: g


def old(state, g, first, start):
    return g if first and start == "gradient" else state["momentum"]


def ema(beta, start="zero"):
    def stage(state, g, first):
        state["momentum"] = beta * old(state, g, first, start) + (1 - beta) * g
        return state["momentum"]

    return stage


def ema_power(power):
    """The share of the new gradient falls with the number of updates: (k+1)^-power."""

    def stage(state, g, first):
        state["t"] = t = state.get("t", 0) + 1
        eta = t**-power
        state["momentum"] = (1 - eta) * state["momentum"] + eta * g
        return state["momentum"]

    return stage


def heavy_ball(beta, start="zero"):
    def stage(state, g, first):
        state["momentum"] = beta * old(state, g, first, start) + g
        return state["momentum"]

    return stage


def nesterov(beta, start="zero"):
    def stage(state, g, first):
        state["momentum"] = beta * old(state, g, first, start) + g
        return g + beta * state["momentum"]

    return stage


def nesterov_ema(beta, start="zero"):
    def stage(state, g, first):
        state["momentum"] = beta * old(state, g, first, start) + (1 - beta) * g
        return (1 - beta) * g + beta * state["momentum"]

    return stage


def lion(beta1, beta2, start="zero"):
    def stage(state, g, first):
        m = old(state, g, first, start)
        state["momentum"] = beta2 * m + (1 - beta2) * g
        return beta1 * m + (1 - beta1) * g

    return stage


def adam(beta1, beta2, eps, uncorrected=False):
    """The direction of Adam; uncorrected: eps meets the raw root (Moonlight's)."""

    def stage(state, g, first):
        state["t"] = t = state.get("t", 0) + 1
        m = state["first"] = beta1 * state["first"] + (1 - beta1) * g
        v = state["second"] = beta2 * state["second"] + (1 - beta2) * g * g
        if uncorrected:
            return m / (np.sqrt(v) + eps) * ((1 - beta2**t) ** 0.5 / (1 - beta1**t))
        return (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)

    return stage


def kept_gradient(beta):
    """ScionLight: a new gradient is added to what the last update left, which is the share beta of all."""

    def stage(state, g, first):
        total = state["momentum"] + g
        state["momentum"] = beta * total
        return total

    return stage


# ---- norms: direction(x) for x [m, n], a vector being one column -----------------------------------------

EPS = 1e-8


def length(x):
    return np.sqrt((x * x).sum())


def frobenius(x):
    return x / (length(x) + EPS)


def rms(x):  # a unit ball of entries of size 1
    return frobenius(x) * x.size**0.5


def rows(x):
    return x / (np.sqrt((x * x).sum(axis=1, keepdims=True)) + EPS)


def columns(x):
    return x / (np.sqrt((x * x).sum(axis=0, keepdims=True)) + EPS)


def spectral(name, steps):
    def direction(x):
        return newton_schulz(x, name, steps)

    direction.is_spectral = True
    return direction


def schatten(p):
    """U diag(s^(q-1)) V^T / ||s||_q^(q-1) over the values that are not rounding."""

    def direction(x):
        u, s, vt = np.linalg.svd(x, full_matrices=False)
        if s[0] == 0:
            return np.zeros_like(x)
        if p == 1:
            return np.outer(u[:, 0], vt[0])
        power = 0.0 if math.isinf(p) else 1 / (p - 1)
        there = s > max(x.shape) * np.finfo(x.dtype).eps * s[0]
        s = np.where(there, s, 1)
        norm = (s ** (power + 1))[there].sum() ** (1 / (power + 1))
        return (u * np.where(there, (s / norm) ** power, 0).astype(x.dtype)) @ vt

    return direction


# ---- behind the norm -----------------------------------------------------------------------------------


def unit_frobenius(state, x):
    return frobenius(x)


def row_moment(beta2, eps=1e-8):
    """NorMuon: rows over the root of the running mean of their mean squares, at the old Frobenius norm."""

    def stage(state, x):
        v = state["row_moment"] = beta2 * state["row_moment"] + (1 - beta2) * (x * x).mean(axis=1)
        y = x / (np.sqrt(v) + eps)[:, None]
        return y * (length(x) / (length(y) + eps))

    return stage


def power_range(x, iterations, smallest=True):
    """Largest and smallest singular value by the power method, from 1/2 + frac(j / golden ratio)."""
    x = (x if x.shape[0] <= x.shape[1] else x.T).astype(np.float64)
    start = 0.5 + np.modf(0.6180339887498949 * np.arange(x.shape[0]))[0]

    def search(shift, sign):
        v = start / length(start)
        for _ in range(iterations):
            v = shift * v + sign * (x @ (x.T @ v))
            v = v / length(v) if length(v) > 0 else 0 * v
        return length(x.T @ v)

    top = search(0.0, 1.0)
    return top, min(top, search(top * top, -1.0)) if smallest else 0.0


def oracle_error(x, exact=False):
    """e with ||O - U V^T|| <= e, from the ends of the spectrum of the orthogonalised matrix O."""
    if exact:
        s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
        top, least = s[0], s[-1]
    else:
        top, least = power_range(x, 20)
    return min(1.0, max(top - 1, 1 - least))


def stable_rank(x):
    top, _ = power_range(x, 3, smallest=False)
    return (x.astype(np.float64) ** 2).sum() / top**2 if top > 0 else 0.0


# ---- groups --------------------------------------------------------------------------------------------


@dataclass
class Alternate:
    norm: object
    radius: object = lambda m, n: 1.0
    lr_scale: float = 1.0
    period: int = 0  # else by stable rank
    stable_rank: float = 0.0


@dataclass
class Group:
    momentum: object = field(default_factory=no_momentum)
    states: tuple = ()  # names of elementwise states
    norm: object = lambda x: x
    radius: object = lambda m, n: 1.0
    post: object = lambda state, x: x
    has_row_moment: bool = False
    step: str = "schedule"
    limit: float = 0.0
    together: bool = False
    constants: tuple = (0.0, 0.0)  # gluon: L0, L1
    inexact: bool = False
    decay: str = "none"
    weight_decay: float = 0.0
    lr_scale: float = 1.0
    alternate: Alternate = None


class Block:
    """Parameters under one group, with the state that stages keep."""

    def __init__(self, names, group, layer, weights):
        self.names, self.group, self.layer, self.updates = names, group, layer, 0
        self.start = self.matrix(weights)
        self.state = {key: np.zeros_like(self.start) for key in group.states}
        if group.has_row_moment:
            self.state["row_moment"] = np.zeros_like(self.start[:, 0])

    def matrix(self, tensors):
        stacked = np.concatenate([tensors[name] for name in self.names])
        return stacked.reshape(len(stacked), -1)

    def parts(self, stacked, tensors):
        """The rows of each parameter, in the shape of the one of `tensors`; one value a row stays one."""
        row = 0
        for name in self.names:
            shape = tensors[name].shape
            part = stacked[row:row + shape[0]]
            row += shape[0]
            yield name, part if stacked.ndim == 1 else part.reshape(shape)

    def look(self, g):
        """Momentum and direction of this update; d, the dual norm."""
        group, (m, n) = self.group, self.start.shape
        u = group.momentum(self.state, g, self.updates == 0)
        norm, self.radius, self.scale = group.norm, group.radius(m, n), group.lr_scale
        a = group.alternate
        if a:
            main = self.updates % a.period == 0 if a.period else stable_rank(u) ** 2 <= a.stable_rank * min(m, n)
            if not main:
                norm, self.radius, self.scale = a.norm, a.radius(m, n), a.lr_scale
        oracle = norm(u)
        self.error = oracle_error(oracle) if group.inexact and hasattr(norm, "is_spectral") else 0.0
        self.direction = group.post(self.state, oracle)
        self.d = self.radius * float((u.astype(np.float64) * self.direction).sum())

    def size(self, d):
        group = self.group
        l0, l1 = group.constants(self.names) if callable(group.constants) else group.constants
        size = {"schedule": lambda: 1.0, "dual": lambda: d, "clipped": lambda: min(group.limit, d),
                "gluon": lambda: d / (l0 + l1 * d) if d > 0 else 0.0}[group.step]()
        return size * (1 - self.error) / (1 + self.error) ** 2

    def move(self, w, rate, d):
        group, lr, k = self.group, rate * self.scale, self.updates
        step = lr * self.radius * self.size(d) * self.direction
        self.updates += 1
        if group.decay == "decoupled":
            return (1 - lr * group.weight_decay) * w - step
        if group.decay == "constrained":
            return (1 - lr) * w - step
        if group.decay == "cautious":  # where the step lowers the weight's size
            return np.where(self.direction * w > 0, (1 - lr * group.weight_decay) * w, w) - step
        if group.decay == "start":
            return w - step + (self.start - w) / (k + 2)
        return w - step


def update(blocks, gradients, weights, rate, by_layer=False):
    """One update of `blocks`, each with its gradient; returns their new weights. by_layer: blocks of different layers
    are not stepped together."""
    for block, g in zip(blocks, gradients):
        block.look(g)
    new = {}
    for block in blocks:
        d = block.d
        if block.group.together:
            d = sum(b.d for b in blocks if b.group is block.group and b.start.shape == block.start.shape and
                    (not by_layer or b.layer == block.layer))
        new.update(block.parts(block.move(block.matrix(weights), rate, d), weights))
    return new


def run(parameters, blocks, choose, inputs, steps, clip, dtype, sampling=Sampling()):
    """Yields (t, {tensor name: value}) after every step. parameters: {name: (shape, role, layer)}; blocks: lists of
    names; choose(name, role) -> Group."""
    weights = {name: inputs[name].astype(dtype) for name in parameters}
    all_blocks = [Block(names, choose(names[0], parameters[names[0]][1]), parameters[names[0]][2], weights)
                  for names in blocks]
    for t in range(1, steps + 1):
        gradients = {name: inputs[name + ".gradients"][t - 1].astype(dtype) for name in parameters}
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
        factor = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
        moving = [block for block in all_blocks if sampling.chosen(t - 1, block.layer)]
        looks = [factor * block.matrix(gradients) for block in moving]
        weights.update(update(moving, looks, weights, float(inputs["rates"][t - 1]), sampling.type != "all"))
        result = {}
        for block in all_blocks:
            kept = {key: value for key, value in block.state.items() if key != "t"}
            if block.group.decay == "start":
                kept["start"] = block.start
            kept = {key: dict(block.parts(value, weights)) for key, value in kept.items()}
            for name in block.names:
                result[name] = weights[name]
                result.update({f"{name}.{key}": parts[name] for key, parts in kept.items()})
        assert all(value.dtype == dtype for value in result.values())
        yield t, result
