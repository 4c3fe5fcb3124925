"""LLaMA and its gradient in NumPy and float64, the backward pass written by hand from the chain rule.

    /usr/bin/python3 dev/reference/llama_numpy.py      (from the repository root)

compares it with the golden data of llama.py (automatic differentiation) and with finite differences. Conventions are
those of llama.py: y = x W^T, rotary pairs (i, i + D/2), query head h reads key/value head h // (H/K), no biases. Weights
are a dict of Hugging Face names. Letters: B sequences, T positions, C channels, H query heads, K key/value heads, D head
size, V vocabulary.
"""

import os
import sys
from dataclasses import dataclass

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import safetensors_io  # noqa: E402

EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@dataclass
class Config:
    n_layer: int
    n_head: int
    n_kv_head: int
    tied: bool = True
    theta: float = 10000.0
    eps: float = 1e-5

    @property
    def head(self):
        return EMBEDDING if self.tied else HEAD


# Each forward function returns its result and what its backward function needs; a backward function takes that and the
# gradient of the result, adds the gradients of weights to `grads` and returns the gradient of its input.


def linear(w, name, x):
    return x @ w[name].T


def linear_back(w, grads, name, x, dy):
    channels = dy.shape[-1]
    grads[name] = grads.get(name, 0) + dy.reshape(-1, channels).T @ x.reshape(-1, x.shape[-1])
    return dy @ w[name]


def rms_norm(gain, x, eps):
    r = ((x * x).mean(-1, keepdims=True) + eps) ** -0.5
    return x * r * gain, (x, r)


def rms_norm_back(w, grads, name, kept, dy):
    """With z = x r: dz = gain dy, and dr/dx = -r^3 x / C."""
    x, r = kept
    grads[name] = (dy * x * r).reshape(-1, x.shape[-1]).sum(0)
    dz = dy * w[name]
    return r * dz - x * r**3 * (x * dz).mean(-1, keepdims=True)


def rotate(x, theta, direction=1):
    """[B, H, T, D] turned by the angle t theta^(-2i/D) in the plane (i, i + D/2); the transpose turns back."""
    positions, size = x.shape[-2:]
    angles = np.outer(np.arange(positions), theta ** (-np.arange(0, size, 2) / size))
    cos, sin = np.cos(angles), direction * np.sin(angles)
    low, high = x[..., : size // 2], x[..., size // 2 :]
    return np.concatenate((low * cos - high * sin, low * sin + high * cos), axis=-1)


def split_heads(y, heads):
    """[B, T, H D] -> [B, H, T, D]"""
    return y.reshape(*y.shape[:2], heads, -1).transpose(0, 2, 1, 3)


def join_heads(y):
    return y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1)


def attention(w, prefix, x, c):
    group = c.n_head // c.n_kv_head
    q = rotate(split_heads(linear(w, prefix + "q_proj.weight", x), c.n_head), c.theta)
    k = rotate(split_heads(linear(w, prefix + "k_proj.weight", x), c.n_kv_head), c.theta).repeat(group, axis=1)
    v = split_heads(linear(w, prefix + "v_proj.weight", x), c.n_kv_head).repeat(group, axis=1)
    scores = q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5
    scores[..., np.triu(np.ones(scores.shape[-2:], bool), 1)] = -np.inf
    p = np.exp(scores - scores.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    mixed = join_heads(p @ v)
    return linear(w, prefix + "o_proj.weight", mixed), (x, q, k, v, p, mixed)


def attention_back(w, grads, prefix, kept, dy, c):
    x, q, k, v, p, mixed = kept
    d_mixed = split_heads(linear_back(w, grads, prefix + "o_proj.weight", mixed, dy), c.n_head)
    dv, dp = p.swapaxes(-1, -2) @ d_mixed, d_mixed @ v.swapaxes(-1, -2)
    d_scores = p * (dp - (dp * p).sum(-1, keepdims=True)) / q.shape[-1] ** 0.5
    dq, dk = d_scores @ k, d_scores.swapaxes(-1, -2) @ q

    def shared(y):  # the query heads of a key/value head add up
        return y.reshape(y.shape[0], c.n_kv_head, -1, *y.shape[2:]).sum(2)

    parts = {"q": rotate(dq, c.theta, -1), "k": rotate(shared(dk), c.theta, -1), "v": shared(dv)}
    return sum(linear_back(w, grads, f"{prefix}{part}_proj.weight", x, join_heads(d)) for part, d in parts.items())


def mlp(w, prefix, x):
    gate, up = linear(w, prefix + "gate_proj.weight", x), linear(w, prefix + "up_proj.weight", x)
    s = 1 / (1 + np.exp(-gate))
    return linear(w, prefix + "down_proj.weight", gate * s * up), (x, gate, up, s)


def mlp_back(w, grads, prefix, kept, dy):
    x, gate, up, s = kept
    d = linear_back(w, grads, prefix + "down_proj.weight", gate * s * up, dy)
    dx = linear_back(w, grads, prefix + "gate_proj.weight", x, d * up * s * (1 + gate * (1 - s)))
    return dx + linear_back(w, grads, prefix + "up_proj.weight", x, d * gate * s)


def forward(w, tokens, c):
    """Logits [B, T, V], and what backward needs."""
    x, kept = w[EMBEDDING][tokens], []
    for layer in range(c.n_layer):
        prefix = f"model.layers.{layer}."
        y, first = rms_norm(w[prefix + "input_layernorm.weight"], x, c.eps)
        y, attended = attention(w, prefix + "self_attn.", y, c)
        x = x + y
        y, second = rms_norm(w[prefix + "post_attention_layernorm.weight"], x, c.eps)
        y, mixed = mlp(w, prefix + "mlp.", y)
        x = x + y
        kept.append((first, attended, second, mixed))
    y, last = rms_norm(w[LAST_NORM], x, c.eps)
    return linear(w, c.head, y), (kept, last, y)


def backward(w, tokens, kept, d_logits, c):
    grads = {}
    layers, last, y = kept
    dx = rms_norm_back(w, grads, LAST_NORM, last, linear_back(w, grads, c.head, y, d_logits))
    for layer in reversed(range(c.n_layer)):
        prefix = f"model.layers.{layer}."
        first, attended, second, mixed = layers[layer]
        dy = mlp_back(w, grads, prefix + "mlp.", mixed, dx)
        dx = dx + rms_norm_back(w, grads, prefix + "post_attention_layernorm.weight", second, dy)
        dy = attention_back(w, grads, prefix + "self_attn.", attended, dx, c)
        dx = dx + rms_norm_back(w, grads, prefix + "input_layernorm.weight", first, dy)
    table = np.zeros_like(w[EMBEDDING])
    np.add.at(table, tokens, dx)
    grads[EMBEDDING] = grads.get(EMBEDDING, 0) + table
    return grads


def loss_and_gradient(w, tokens, targets, c):
    """Mean cross-entropy over the targets that are not -1, and its gradient."""
    logits, kept = forward(w, tokens, c)
    top = logits.max(-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    counted = targets >= 0
    chosen = np.expand_dims(np.where(counted, targets, 0), -1)
    loss = -(np.take_along_axis(log_p, chosen, -1)[..., 0] * counted).sum() / counted.sum()
    d = np.exp(log_p)
    np.put_along_axis(d, chosen, np.take_along_axis(d, chosen, -1) - 1, -1)
    return loss, backward(w, tokens, kept, d * counted[..., None] / counted.sum(), c)


# ---- checks ------------------------------------------------------------------------------------------------


def check_golden(path):
    """Against automatic differentiation; returns the weights and the rest of the case."""
    golden = safetensors_io.load(path)
    n_layer, n_head, n_kv_head, _, _, _, _, tied = golden["config"].tolist()
    c = Config(n_layer, n_head, n_kv_head, bool(tied), *golden["constants"])
    w = {name[9:]: golden[name[9:]].astype(np.float64) for name in golden if name.startswith("gradient.")}
    count = (golden["targets"] >= 0).sum()
    loss, grads = loss_and_gradient(w, golden["tokens"], golden["targets"], c)
    errors = {"logits": np.abs(forward(w, golden["tokens"], c)[0] - golden["logits"]).max(),
              "loss": abs(loss * count - golden["loss"][0])}
    for name in w:
        errors[name] = np.abs(grads[name] * count - golden["gradient." + name]).max()
    assert set(grads) == set(w) and max(errors.values()) < 1e-12, errors
    print(f"{path}: largest difference {max(errors.values()):.1e}")
    return w, golden["tokens"], golden["targets"], c


def check_differences(w, tokens, targets, c, h=5e-5):
    """The derivative along random directions in one tensor each, against differences of fourth order."""
    rng, worst = np.random.default_rng(5), 0.0
    _, grads = loss_and_gradient(w, tokens, targets, c)
    for name in w:
        direction = rng.standard_normal(w[name].shape)

        def loss(step):
            return loss_and_gradient({**w, name: w[name] + step * direction}, tokens, targets, c)[0]

        difference = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
        worst = max(worst, abs(difference - (grads[name] * direction).sum()))
    assert worst < 1e-9, worst
    print(f"  finite differences: {worst:.1e}")


if __name__ == "__main__":
    for case in ("tied_mha", "untied_gqa", "one_token"):
        check_differences(*check_golden(f"tests/data/llama_{case}.safetensors"))
