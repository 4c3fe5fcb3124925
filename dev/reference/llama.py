"""LLaMA in PyTorch and float64, written for reading, not for speed: the reference of the C++ model.

    /usr/bin/python3 dev/reference/llama.py        (from the repository root)

writes tests/data/llama_*.safetensors. Each file holds
  config      int32: n_layer, n_head, n_kv_head, d_model, d_ff, vocab_size, seq_len, tie_embeddings
  constants   float64: rope_theta, norm_eps
  tokens, targets  int32 [B, T]; targets of -1 are not counted
  NAME        weights under their Hugging Face names, float32 (so that float32 tests start equal)
  logits      float64 [B, T, V]
  losses      float64 [B, T], loss  float64: their sum
  gradient.NAME    float64: gradient of the sum of the losses, by automatic differentiation

Conventions of Hugging Face's LlamaForCausalLM: y = x W^T, rotary pairs (i, i + D/2), query head h
uses key/value head h // (H/K), no biases.
"""

import numpy as np
import torch

import safetensors_io

CASES = {
    "tied_mha": dict(n_layer=2, n_head=2, n_kv_head=2, d_model=16, d_ff=24, vocab_size=64,
                     tie_embeddings=1, batch=2, seq_len=7, theta=10000.0, eps=1e-5, seed=1),
    "untied_gqa": dict(n_layer=2, n_head=4, n_kv_head=2, d_model=16, d_ff=20, vocab_size=50,
                       tie_embeddings=0, batch=3, seq_len=5, theta=500.0, eps=1e-6, seed=2),
    "one_token": dict(n_layer=1, n_head=1, n_kv_head=1, d_model=6, d_ff=5, vocab_size=11,
                      tie_embeddings=1, batch=1, seq_len=1, theta=10000.0, eps=1e-5, seed=3),
}


def make_weights(c, generator):
    """Random weights, large enough that attention and SwiGLU are far from their linear regime."""
    head = c["d_model"] // c["n_head"]
    weights = {}

    def matrix(name, rows, columns):
        weights[name] = torch.randn(rows, columns, generator=generator) * 1.5 / columns ** 0.5

    def gain(name):
        weights[name] = 1 + 0.3 * torch.randn(c["d_model"], generator=generator)

    matrix("model.embed_tokens.weight", c["vocab_size"], c["d_model"])
    for layer in range(c["n_layer"]):
        prefix = f"model.layers.{layer}."
        gain(prefix + "input_layernorm.weight")
        matrix(prefix + "self_attn.q_proj.weight", c["d_model"], c["d_model"])
        matrix(prefix + "self_attn.k_proj.weight", c["n_kv_head"] * head, c["d_model"])
        matrix(prefix + "self_attn.v_proj.weight", c["n_kv_head"] * head, c["d_model"])
        matrix(prefix + "self_attn.o_proj.weight", c["d_model"], c["d_model"])
        gain(prefix + "post_attention_layernorm.weight")
        matrix(prefix + "mlp.gate_proj.weight", c["d_ff"], c["d_model"])
        matrix(prefix + "mlp.up_proj.weight", c["d_ff"], c["d_model"])
        matrix(prefix + "mlp.down_proj.weight", c["d_model"], c["d_ff"])
    gain("model.norm.weight")
    if not c["tie_embeddings"]:
        matrix("lm_head.weight", c["vocab_size"], c["d_model"])
    return weights


def rms_norm(x, gain, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * gain


def rotate(x, theta):
    """[B, H, T, D]: pairs (x_j, x_{j+D/2}), as complex numbers, times exp(i t theta^(-2j/D))."""
    positions, size = x.shape[-2:]
    frequencies = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    angles = torch.outer(torch.arange(positions, dtype=torch.float64), frequencies)
    low, high = x.split(size // 2, dim=-1)
    turned = torch.complex(low, high) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def attention(x, w, prefix, c):
    batch, positions, channels = x.shape
    size = channels // c["n_head"]

    def heads(part):
        y = x @ w[f"{prefix}{part}_proj.weight"].T
        return y.view(batch, positions, -1, size).transpose(1, 2)

    group = c["n_head"] // c["n_kv_head"]
    query, key = rotate(heads("q"), c["theta"]), rotate(heads("k"), c["theta"])
    key, value = key.repeat_interleave(group, dim=1), heads("v").repeat_interleave(group, dim=1)
    scores = query @ key.transpose(-1, -2) / size ** 0.5
    future = torch.ones(positions, positions, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
    mixed = (weights @ value).transpose(1, 2).reshape(batch, positions, channels)
    return mixed @ w[prefix + "o_proj.weight"].T


def mlp(x, w, prefix):
    gate, up = x @ w[prefix + "gate_proj.weight"].T, x @ w[prefix + "up_proj.weight"].T
    return (gate * torch.sigmoid(gate) * up) @ w[prefix + "down_proj.weight"].T


def logits_of(w, tokens, c):
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(c["n_layer"]):
        prefix = f"model.layers.{layer}."
        normed = rms_norm(x, w[prefix + "input_layernorm.weight"], c["eps"])
        x = x + attention(normed, w, prefix + "self_attn.", c)
        normed = rms_norm(x, w[prefix + "post_attention_layernorm.weight"], c["eps"])
        x = x + mlp(normed, w, prefix + "mlp.")
    head = w["model.embed_tokens.weight"] if c["tie_embeddings"] else w["lm_head.weight"]
    return rms_norm(x, w["model.norm.weight"], c["eps"]) @ head.T


def make_golden(c):
    generator = torch.Generator().manual_seed(c["seed"])
    stored = make_weights(c, generator)
    weights = {name: value.double().requires_grad_() for name, value in stored.items()}
    shape = (c["batch"], c["seq_len"])
    tokens = torch.randint(c["vocab_size"], shape, generator=generator)
    targets = torch.randint(c["vocab_size"], shape, generator=generator)
    if targets.numel() > 4:
        targets[0, 1] = targets[-1, -1] = -1
    logits = logits_of(weights, tokens, c)
    losses = torch.nn.functional.cross_entropy(
        logits.reshape(-1, c["vocab_size"]), targets.reshape(-1), ignore_index=-1, reduction="none")
    losses.sum().backward()

    keys = ("n_layer", "n_head", "n_kv_head", "d_model", "d_ff", "vocab_size", "seq_len",
            "tie_embeddings")
    golden = {"config": np.array([c[key] for key in keys], np.int32),
              "constants": np.array([c["theta"], c["eps"]]),
              "tokens": tokens.numpy(), "targets": targets.numpy(),
              "logits": logits.detach().numpy(),
              "losses": losses.detach().reshape(shape).numpy(),
              "loss": losses.detach().sum().reshape(1).numpy()}
    golden.update({name: value.numpy() for name, value in stored.items()})
    golden.update({"gradient." + name: value.grad.numpy() for name, value in weights.items()})
    return golden


if __name__ == "__main__":
    for name, case in CASES.items():
        path = f"tests/data/llama_{name}.safetensors"
        safetensors_io.save(path, make_golden(case))
        print("wrote", path)
