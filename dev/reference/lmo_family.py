"""Golden data of the LMO family's presets, each composed by hand from its published equations.

Run from the repository root: /usr/bin/python3 dev/reference/lmo_family.py

Files in tests/data/ beside those of optimizers.py, whose format they have:
  optimizer_layered_inputs.safetensors  the same for a list of two layers: presets that sample layers, mixture2
  optimizer_PRESET.safetensors          the new presets, and mixture2: stages that no preset combines
"""

import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import safetensors_io  # noqa: E402
import stages as s  # noqa: E402
from optimizers import CLIP, DECAY, PARAMETERS, QKV, SAVED, STEPS, make_inputs, newton_schulz  # noqa: E402

SEED = 7  # of layer sampling

# name -> shape, role, layer. An untied embedding is behind all layers of the backward pass.
FLAT = {name: (shape, role, -1) for name, (shape, role) in PARAMETERS.items()}
LAYERED = {"model.embed_tokens.weight": ((10, 4), "embedding", 0)}
for _layer in (0, 1):
    _prefix = f"model.layers.{_layer}."
    LAYERED[_prefix + "input_layernorm.weight"] = ((8,), "gain", _layer)
    for _p, _rows in (("q", 6), ("k", 2), ("v", 2)):
        LAYERED[_prefix + f"self_attn.{_p}_proj.weight"] = ((_rows, 6), "matrix", _layer)
    LAYERED[_prefix + "mlp.up_proj.weight"] = ((6, 4), "matrix", _layer)
LAYERED["model.layers.1.mlp.down_proj.weight"] = ((4, 10), "matrix", 1)
LAYERED["lm_head.weight"] = ((10, 4), "head", -1)


def layered_inputs():
    rng = np.random.default_rng(20260911)
    scales = np.array([1.0, 0.3, 0.05, 2.0, 0.1, 1.5, 0.01, 1.0, 0.2, 0.7])
    inputs = {"rates": 0.02 * (1 + 0.5 * np.cos(np.arange(STEPS)))}
    for name, (shape, _, _) in LAYERED.items():
        inputs[name] = rng.standard_normal(shape)
        shared, noise = rng.standard_normal(shape), rng.standard_normal((STEPS,) + shape)
        inputs[name + ".gradients"] = scales.reshape((-1,) + (1,) * len(shape)) * (shared + noise)
    return inputs


def blocks(parameters, fused):
    if not fused:
        return [[name] for name in parameters]
    result = []
    for name in parameters:
        if ".self_attn." not in name or "o_proj" in name:
            result.append([name])
        elif "q_proj" in name:
            result.append([name.replace("q_proj", p + "_proj") for p in "qkv"])
    return result


# ---- the presets ---------------------------------------------------------------------------------

M = ("momentum",)
JORDAN = s.spectral("jordan", 5)


def adam_rest(role, everywhere=False):
    """Adam as D-Muon has it on what is no matrix; only the head decays unless all do."""
    return s.Group(s.adam(0.8, 0.999, 1e-8, uncorrected=True), ("first", "second"), decay="decoupled",
                   weight_decay=DECAY if everywhere or role == "head" else 0.0)


def matrices(group):
    """A preset whose matrices have their own group, of scale 0.2 sqrt(max(m, n)), and decoupled decay."""

    def choose(name, role):
        return group() if role == "matrix" else adam_rest(role)

    return choose


def muon_like(momentum, norm=JORDAN, **more):
    return matrices(lambda: s.Group(**{
        "momentum": momentum, "states": M, "norm": norm, "decay": "decoupled", "weight_decay": DECAY,
        "radius": lambda m, n: 0.2 * max(m, n) ** 0.5, **more}))


def scion_like(momentum, step="schedule", limit=0.0, decay="none", scales=(1.0, 1.0, 1.0), constants=None, lr=1.0):
    """Spectral sqrt(m/n) for hidden matrices, RMS for gains, sign/n for embedding and head (arXiv 2502.07529, table
    of norms), times the groups' scales."""

    def choose(name, role):
        norm, radius, scale, l1 = {
            "matrix": (JORDAN, lambda m, n: scales[0] * (m / n) ** 0.5, 1.0, 70.0),
            "gain": (s.rms, lambda m, n: scales[1], 1.0, 70.0),
            "embedding": (np.sign, lambda m, n: scales[2] / n, lr, 1.33),
            "head": (np.sign, lambda m, n: scales[2] / n, lr, 1.33)}[role]
        return s.Group(momentum, M, norm, radius, step=step, limit=limit, decay=decay, lr_scale=scale,
                       constants=(0.0, l1))

    return choose


SCION = (50.0, 2.0, 3000.0)


def lionmuon(name, role):
    if role != "matrix":
        return adam_rest(role, everywhere=True)
    other = s.Alternate(np.sign, period=2, lr_scale=5e-5 / 1e-3)
    return s.Group(s.lion(0.9, 0.99), M, JORDAN, lambda m, n: 0.2 * max(m, n) ** 0.5, decay="decoupled",
                   weight_decay=DECAY, alternate=other)


def ef21_muon(name, role):
    """Its directions; what ranks send each other is in communication.py."""
    decays = {"decay": "decoupled", "weight_decay": DECAY if role in ("matrix", "head") else 0.0}
    if role == "matrix":
        return s.Group(s.ema(0.95), M, JORDAN, lambda m, n: 0.2 * max(m, n) ** 0.5, **decays)
    return s.Group(s.ema(0.95), M, np.sign, lambda m, n: 0.2, **decays)


def falling_momentum(name, role):
    return s.Group(s.ema_power(2 / 3), M, s.frobenius, decay="decoupled",
                   weight_decay=DECAY if role in ("matrix", "head") else 0.0)


PRESETS = {
    "scion": scion_like(s.ema(0.9), decay="constrained", scales=SCION),
    "scion-unconstrained": scion_like(s.ema(0.9), scales=SCION),
    "scion-light": scion_like(s.kept_gradient(0.9), decay="constrained", scales=SCION),
    "gluon": scion_like(s.ema(0.9), step="gluon"),
    "clipped-scion": scion_like(s.ema(0.9), step="clipped", limit=0.1, lr=60.0),
    "soda": scion_like(s.nesterov_ema(0.95, "gradient"), decay="start", scales=SCION),
    "inexact-muon": muon_like(s.ema(0.95), s.spectral("polar-express", 5), inexact=True),
    "drop-muon": muon_like(s.ema(0.95)),
    "lionmuon": lionmuon,
    "schatten": muon_like(s.nesterov(0.95), s.schatten(3), post=s.unit_frobenius,
                          radius=lambda m, n: 0.2 * (m * n) ** 0.5),
    "normuon": muon_like(s.nesterov_ema(0.95), post=s.row_moment(0.95), has_row_moment=True),
    "muon-clip": muon_like(s.nesterov(0.95)),
    "ef21-muon": ef21_muon,
    "muon-igt": muon_like(s.ema(0.95)),
    "nsgd-storm": falling_momentum,
    "nsgd-hessian": falling_momentum,
}


def once(groups):
    """Blocks of one group share the object: their dual norms may be summed."""
    return lambda name, role: groups["down" if "down_proj" in name else "qkv" if "self_attn" in name else role]


# tests/data/optimizer_mixture2.json says the same to the program.
MIXTURE2 = once({
    "down": s.Group(s.ema(0.8, "gradient"), M, s.schatten(1.5), lambda m, n: 0.3 * n**0.5, step="dual",
                    decay="cautious", weight_decay=0.4, lr_scale=0.25),
    "qkv": s.Group(s.heavy_ball(0.6, "gradient"), M, s.schatten(float("inf")), lambda m, n: 0.5 * m**0.5,
                   decay="start",
                   alternate=s.Alternate(s.columns, lambda m, n: m**0.5, 0.3, stable_rank=0.9)),
    "matrix": s.Group(s.nesterov(0.7, "gradient"), M, s.rows, lambda m, n: n**-0.5, step="clipped", limit=2.5,
                      together=True, decay="cautious", weight_decay=DECAY),
    "gain": s.Group(s.lion(0.85, 0.9, "gradient"), M, s.columns, lambda m, n: 2.0, decay="constrained"),
    "embedding": s.Group(s.nesterov_ema(0.9), M, s.rows, lambda m, n: 1.5, post=s.row_moment(0.8, 1e-6),
                         has_row_moment=True, step="gluon",
                         constants=(0.5, 0.25), decay="start"),
    "head": s.Group(s.ema(0.5), M, s.spectral("cans", 4), lambda m, n: max(1, m / n) ** 0.5, step="dual",
                    inexact=True, decay="decoupled", weight_decay=0.7),
})


def write(folder, preset, choose, inputs):
    layered = preset in ("drop-muon", "mixture2")
    parameters = LAYERED if layered else FLAT
    sampling = {"drop-muon": s.Sampling("progressive", seed=SEED),
                "mixture2": s.Sampling("subset", probability=0.6, seed=SEED)}.get(preset, s.Sampling())
    tensors = {}
    for case, fused, clip in (("fused", True, 0.0), ("split", False, CLIP)):
        clip = 0.0 if preset == "scion-light" else clip
        error, parts = 0.0, blocks(parameters, fused)
        pairs = zip(*(s.run(parameters, parts, choose, inputs[layered], STEPS, clip, dtype, sampling)
                      for dtype in (np.float64, np.float32)))
        for (t, exact), (_, rounded) in pairs:
            if t not in SAVED:
                continue
            tensors.update({f"{case}.{t}.{name}": value for name, value in exact.items()})
            error = max(error, max(np.abs(exact[n] - rounded[n]).max() for n in exact))
        tensors[f"{case}.error32"] = np.array([error])
    safetensors_io.save(os.path.join(folder, f"optimizer_{preset}.safetensors"), tensors)


def check_oracle_error(inputs):
    """The power method's estimate of the oracle's error against the singular values: never above, and at most
    TOLERANCE below. Orthogonalised values lie close together, so that it is slow to tell them apart."""
    TOLERANCE, most = 0.04, 0.0
    for name, (shape, role) in PARAMETERS.items():
        if role != "matrix":
            continue
        for g in inputs[name + ".gradients"]:
            o = newton_schulz(g, "polar-express", 5)
            exact, estimate = s.oracle_error(o, exact=True), s.oracle_error(o)
            assert -1e-12 <= exact - estimate, (name, exact, estimate)
            most = max(most, exact - estimate)
    print(f"inexact oracle: the estimated error is at most {most:.4f} below the exact one")
    assert most < TOLERANCE


def main():
    folder = os.path.join("tests", "data")
    inputs = {False: make_inputs(), True: layered_inputs()}
    check_oracle_error(inputs[False])
    safetensors_io.save(os.path.join(folder, "optimizer_layered_inputs.safetensors"), inputs[True])
    for preset, choose in {**PRESETS, "mixture2": MIXTURE2}.items():
        write(folder, preset, choose, inputs)


if __name__ == "__main__":
    main()
