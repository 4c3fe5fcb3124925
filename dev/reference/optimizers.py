"""Golden data for the optimizer tests: every preset, written out in NumPy from its published equations.

Run from the repository root: /usr/bin/python3 dev/reference/optimizers.py

Files in tests/data/:
  optimizer_inputs.safetensors         weights "NAME", gradients "NAME.gradients" [STEPS, ...], "rates"
  optimizer_PRESET.safetensors         "CASE.STEP.NAME" and "CASE.STEP.NAME.STATE" in float64, and
                                       "CASE.error32": the largest error of the same code in float32
  optimizer_newton_schulz.safetensors  "x7x12", "x12x7" and, by SVD, U f(S) V^T for each set and steps
Cases: "fused" (q, k, v as one matrix, no clipping), "split" (each alone, clipping at CLIP).
Nothing here shares code or constants with the C++ except the names of parameters.
"""

import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import safetensors_io  # noqa: E402

STEPS, SAVED, DECAY, CLIP = 10, (1, 2, 10), 0.1, 3.0
LAYER = "model.layers.0."
QKV = [LAYER + "self_attn." + p + "_proj.weight" for p in "qkv"]
# name -> shape, role. Square, tall, wide, vector, table; not the shapes of a real network.
PARAMETERS = {
    "model.embed_tokens.weight": ((10, 4), "embedding"),
    LAYER + "input_layernorm.weight": ((8,), "gain"),
    QKV[0]: ((6, 6), "matrix"),
    QKV[1]: ((2, 6), "matrix"),
    QKV[2]: ((2, 6), "matrix"),
    LAYER + "self_attn.o_proj.weight": ((8, 8), "matrix"),
    LAYER + "mlp.gate_proj.weight": ((6, 4), "matrix"),
    LAYER + "mlp.up_proj.weight": ((6, 4), "matrix"),
    LAYER + "mlp.down_proj.weight": ((4, 10), "matrix"),
    "lm_head.weight": ((10, 4), "head"),
}

# ---- Newton-Schulz -------------------------------------------------------------------------------

JORDAN = [(3.4445, -4.7750, 2.0315)]
YOU = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
       (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012)]
POLAR_EXPRESS = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375)]
CANS = [(8.4703, -25.1081, 18.6293), (4.1828, -3.1087, 0.5806), (3.9619, -2.9541, 0.5630),
        (3.2866, -2.4647, 0.5074), (2.2737, -1.6447, 0.4162)]
CUBIC = [(3.3656576, -3.3420992, 0.0), (2.5744352, -1.4957376, 0.0), (2.5368962, -1.4312570, 0.0),
         (2.4418906, -1.2764040, 0.0), (2.2230472, -0.9630650, 0.0)]


def polynomials(name, steps):
    """(list of (a, b, c), factor of the Frobenius norm)"""
    table = {"jordan": JORDAN, "you": YOU, "polar-express": POLAR_EXPRESS, "cans": CANS,
             "cubic": CUBIC}[name]
    chosen = [(i, table[min(i, len(table) - 1)]) for i in range(steps)]
    if name != "polar-express":
        return [p for _, p in chosen], 1.0
    s = 1.01  # p(x / s): all but the last of the eight
    return [(a / s, b / s**3, c / s**5) if i < 7 else (a, b, c) for i, (a, b, c) in chosen], s


def newton_schulz(x, name, steps):
    chosen, scale = polynomials(name, steps)
    tall = x.shape[0] > x.shape[1]
    y = x.T if tall else x
    y = y / (np.sqrt((y * y).sum()) * scale + 1e-7)
    for a, b, c in chosen:
        gram = y @ y.T
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y.T if tall else y


def newton_schulz_svd(x, name, steps):
    """The same by its effect on the singular values."""
    chosen, scale = polynomials(name, steps)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    s = s / (np.sqrt((s * s).sum()) * scale + 1e-7)
    for a, b, c in chosen:
        s = a * s + b * s**3 + c * s**5
    return u @ np.diag(s) @ vt


# ---- update rules of one tensor ------------------------------------------------------------------
# rule(state, gradient, rate, t = 1, 2, ...) returns what is subtracted from the decayed weights;
# `state` is a dict of arrays that start at zero.


def adam(beta1, beta2, eps, uncorrected=False):
    def rule(state, g, rate, t):
        m = state["first"] = beta1 * state["first"] + (1 - beta1) * g
        v = state["second"] = beta2 * state["second"] + (1 - beta2) * g * g
        if uncorrected:  # eps meets the raw root of the second moment (Moonlight's AdamW)
            correction = (1 - beta1**t) / (1 - beta2**t) ** 0.5
            return rate / correction * m / (eps + np.sqrt(v))
        return rate * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)

    return rule, ("first", "second")


def moonlight(mu):
    def rule(state, g, rate, t):
        buffer = state["momentum"] = mu * state["momentum"] + g
        rows, columns = g.shape
        adjusted = rate * 0.2 * max(rows, columns) ** 0.5
        return adjusted * newton_schulz(g + mu * buffer, "jordan", 5)

    return rule, ("momentum",)


def keller_jordan(beta):
    def rule(state, g, rate, t):
        buffer = state["momentum"] = state["momentum"] + (1 - beta) * (g - state["momentum"])
        update = g + beta * (buffer - g)
        rows, columns = g.shape
        return rate * max(1.0, rows / columns) ** 0.5 * newton_schulz(update, "jordan", 5)

    return rule, ("momentum",)


def lion(beta1, beta2):
    def rule(state, g, rate, t):
        m = state["momentum"]
        state["momentum"] = beta2 * m + (1 - beta2) * g
        return rate * np.sign(beta1 * m + (1 - beta1) * g)

    return rule, ("momentum",)


def nesterov_sgd(mu, direction):
    def rule(state, g, rate, t):
        buffer = state["momentum"] = mu * state["momentum"] + g
        return rate * direction(g + mu * buffer)

    return rule, ("momentum",)


def unit(x):
    return x / (np.sqrt((x * x).sum()) + 1e-8)


# A mixture that no preset has: every radius rule, and the momenta that the presets leave out.
def scion_like(beta, scale):
    def rule(state, g, rate, t):
        m = state["momentum"] = beta * state["momentum"] + (1 - beta) * g
        rows, columns = g.shape
        factor = scale * (rows / columns) ** 0.5
        return rate * factor * newton_schulz(m, "polar-express", 6)

    return rule, ("momentum",)


def sign_sgd(scale):
    return lambda state, g, rate, t: rate * scale * np.sign(g), ()


def heavy_ball_unit(mu):
    def rule(state, g, rate, t):
        m = state["momentum"] = mu * state["momentum"] + g
        return rate * unit(m)

    return rule, ("momentum",)


def plain_sgd():
    return lambda state, g, rate, t: rate * g, ()


def by_role(matrix, others, scale_others=1.0):
    """Rule, rate scale and weight decay of a parameter; decay on matrices and the head only."""

    def choose(name, role):
        decay = DECAY if role in ("matrix", "head") else 0.0
        return (matrix, 1.0, decay) if role == "matrix" else (others, scale_others, decay)

    return choose


def mixture(name, role):
    if name.endswith("down_proj.weight"):  # stands before the group of all matrices
        return plain_sgd(), 0.1, 0.0
    return {"matrix": (scion_like(0.9, 0.5), 2.0, 0.02),
            "embedding": (sign_sgd(3.0), 0.5, 0.3),
            "head": (lion(0.8, 0.95), 1.0, 0.0),
            "gain": (heavy_ball_unit(0.7), 1.0, 0.0)}[role]


PRESETS = {
    "adamw": by_role(adam(0.9, 0.95, 1e-8), adam(0.9, 0.95, 1e-8)),
    "muon": by_role(moonlight(0.95), adam(0.8, 0.999, 1e-8, uncorrected=True)),
    "muon-kj": by_role(keller_jordan(0.95), adam(0.9, 0.95, 1e-10), 3e-4 / 0.02),
    "lion": by_role(lion(0.9, 0.99), lion(0.9, 0.99)),
    "signum": by_role(nesterov_sgd(0.9, np.sign), nesterov_sgd(0.9, np.sign)),
    "nsgd": by_role(nesterov_sgd(0.95, unit), nesterov_sgd(0.95, unit)),
    "mixture": mixture,
}

# ---- runs ----------------------------------------------------------------------------------------


def make_inputs():
    rng = np.random.default_rng(20260205)
    scales = np.array([1.0, 0.3, 0.05, 2.0, 0.1, 1.5, 0.01, 1.0, 0.2, 0.7])  # some below CLIP
    inputs = {"rates": 0.02 * (1 + 0.5 * np.cos(np.arange(STEPS)))}
    for name, (shape, _) in PARAMETERS.items():
        inputs[name] = rng.standard_normal(shape)
        shared = rng.standard_normal(shape)  # gradients of successive steps agree in part
        noise = rng.standard_normal((STEPS,) + shape)
        inputs[name + ".gradients"] = scales.reshape((-1,) + (1,) * len(shape)) * (shared + noise)
    return inputs


def blocks(fused):
    """Lists of parameters that one rule sees stacked by rows."""
    if not fused:
        return [[name] for name in PARAMETERS]
    return [QKV if name == QKV[0] else [name] for name in PARAMETERS if name not in QKV[1:]]


def run(choose, inputs, fused, clip, dtype):
    """Yields (t, {tensor name: value}) after every step."""
    weights = {name: inputs[name].astype(dtype) for name in PARAMETERS}
    states = {}
    for t in range(1, STEPS + 1):
        gradients = {name: inputs[name + ".gradients"][t - 1].astype(dtype) for name in PARAMETERS}
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
        factor = float(min(1.0, clip / (norm + 1e-6))) if clip else 1.0
        base = float(inputs["rates"][t - 1])
        result = {}
        for block in blocks(fused):
            (rule, names), scale, decay = choose(block[0], PARAMETERS[block[0]][1])
            rate = base * scale
            g = factor * np.concatenate([gradients[name] for name in block])
            state = states.setdefault(block[0], {name: np.zeros_like(g) for name in names})
            w = np.concatenate([weights[name] for name in block])
            w = w * (1 - rate * decay) - rule(state, g, rate, t)
            row = 0
            for name in block:
                rows = slice(row, row + PARAMETERS[name][0][0])
                row = rows.stop
                weights[name] = w[rows]
                result[name] = w[rows]
                result.update({f"{name}.{key}": state[key][rows] for key in names})
        assert all(value.dtype == dtype for value in result.values())
        yield t, result


def write_preset(folder, preset, choose, inputs):
    tensors = {}
    for case, fused, clip in (("fused", True, 0.0), ("split", False, CLIP)):
        error = 0.0
        pairs = zip(run(choose, inputs, fused, clip, np.float64),
                    run(choose, inputs, fused, clip, np.float32))
        for (t, exact), (_, rounded) in pairs:
            if t not in SAVED:
                continue
            tensors.update({f"{case}.{t}.{name}": value for name, value in exact.items()})
            error = max(error, max(np.abs(exact[n] - rounded[n]).max() for n in exact))
        tensors[f"{case}.error32"] = np.array([error])
    safetensors_io.save(os.path.join(folder, f"optimizer_{preset}.safetensors"), tensors)


def write_newton_schulz(folder):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((7, 12))
    tensors = {"x7x12": x, "x12x7": 100.0 * x.T}
    for name in ("jordan", "you", "polar-express", "cans", "cubic"):
        for steps in (1, 5, 9):
            for key in ("x7x12", "x12x7"):
                exact = newton_schulz_svd(tensors[key], name, steps)
                assert np.abs(newton_schulz(tensors[key], name, steps) - exact).max() < 1e-12
                tensors[f"{name}.{steps}.{key[1:]}"] = exact
    safetensors_io.save(os.path.join(folder, "optimizer_newton_schulz.safetensors"), tensors)


def main():
    folder = os.path.join("tests", "data")
    inputs = make_inputs()
    safetensors_io.save(os.path.join(folder, "optimizer_inputs.safetensors"), inputs)
    for preset, choose in PRESETS.items():
        write_preset(folder, preset, choose, inputs)
    write_newton_schulz(folder)


if __name__ == "__main__":
    main()
