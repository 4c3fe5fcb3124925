#!/usr/bin/env python3
"""The same training step in PyTorch: the peer that dev/bench/cpu_compare.py measures us against.

    dev/bench/llama_torch.py --dtype bf16-autocast --batch 4 --seq 64 --threads 2 --steps 5
    dev/bench/llama_torch.py --newton-schulz 768x2048 --dtype bf16-autocast --steps 10

It is written to be fast as plain PyTorch goes: q, k, v in one matrix and gate, up in another,
fused attention, RMSNorm and AdamW where this PyTorch has them. One JSON line says what was found,
then comes one for each step; the first steps are warm-up, for the reader to drop. Data are random
tokens, made outside of the time that is taken. Works with PyTorch 1.13 and newer.
"""

import argparse
import contextlib
import ctypes
import inspect
import json
import math
import os
import resource
import time

import torch
import torch.nn.functional as F
from torch import nn

JORDAN = (3.4445, -4.7750, 2.0315)  # Newton-Schulz coefficients of Muon
FUSED_ATTENTION = hasattr(F, "scaled_dot_product_attention")
FUSED_NORM = hasattr(F, "rms_norm")


class RMSNorm(nn.Module):
    def __init__(self, size, eps=1e-5):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):  # the residual stream x is fp32, also under autocast
        if FUSED_NORM:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x, cosine, sine):
    """RoPE on [B, H, T, D] with the pairs (j, j + D/2)."""
    low, high = x.chunk(2, dim=-1)
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)


class Block(nn.Module):
    def __init__(self, n_head, d_model, d_ff):
        super().__init__()
        self.n_head = n_head
        self.norm1, self.norm2 = RMSNorm(d_model), RMSNorm(d_model)
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.gate_up = nn.Linear(d_model, 2 * d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def attention(self, x, cosine, sine, mask):
        batch, length, channels = x.shape
        size = channels // self.n_head
        q, k, v = (part.view(batch, length, self.n_head, size).transpose(1, 2)
                   for part in self.qkv(x).split(channels, dim=-1))
        cosine, sine = cosine.to(q.dtype), sine.to(q.dtype)
        q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
        if FUSED_ATTENTION:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1) / math.sqrt(size) + mask.to(q.dtype)
            y = scores.softmax(-1).to(v.dtype) @ v
        return self.out(y.transpose(1, 2).reshape(batch, length, channels))

    def forward(self, x, cosine, sine, mask):
        x = x + self.attention(self.norm1(x), cosine, sine, mask)
        gate, up = self.gate_up(self.norm2(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, shape, seq):
        super().__init__()
        width, size = shape["d_model"], shape["d_model"] // shape["n_head"]
        self.embedding = nn.Embedding(shape["vocab_size"], width)
        self.blocks = nn.ModuleList(Block(shape["n_head"], width, shape["d_ff"])
                                    for _ in range(shape["n_layer"]))
        self.norm = RMSNorm(width)
        frequency = 10000.0 ** (-torch.arange(0, size, 2) / size)
        angles = torch.outer(torch.arange(seq), frequency)
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())
        self.register_buffer("mask", torch.full((seq, seq), -math.inf).triu(1))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosine, self.sine, self.mask)
        logits = F.linear(self.norm(x), self.embedding.weight)  # tied head
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def newton_schulz(matrix, dtype, steps=5):
    a, b, c = JORDAN
    x = matrix.to(dtype)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised; the step has the size of an Adam update (Moonlight).

    Parameters are pairs (matrix, parts): a matrix of several stacked ones is taken apart.
    """

    def __init__(self, pairs, dtype, lr, momentum=0.95, weight_decay=0.1):
        groups = [dict(params=[matrix], parts=parts) for matrix, parts in pairs]
        super().__init__(groups, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            parameter = group["params"][0]
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            average = state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
            direction = parameter.grad.add(average, alpha=group["momentum"])
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parts = group["parts"]
            for weight, part in zip(parameter.chunk(parts), direction.chunk(parts)):
                scale = 0.2 * math.sqrt(max(part.shape))
                weight.add_(newton_schulz(part, self.dtype), alpha=-group["lr"] * scale)


def make_adamw(parameters, lr):
    """The fastest AdamW that this PyTorch has for the CPU, and its name."""
    settings = dict(lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    if "fused" in inspect.signature(torch.optim.AdamW).parameters:
        with contextlib.suppress(RuntimeError):  # 2.0 to 2.3: on GPUs only
            return torch.optim.AdamW(parameters, fused=True, **settings), "fused"
    return torch.optim.AdamW(parameters, **settings), "loop"  # foreach gains nothing on a CPU


def make_optimizers(model, preset, dtype):
    if preset == "adamw":
        optimizer, name = make_adamw(list(model.parameters()), 3e-4)
        return [optimizer], "adamw " + name
    pairs = [pair for block in model.blocks
             for pair in ((block.qkv.weight, 3), (block.out.weight, 1),
                          (block.gate_up.weight, 2), (block.down.weight, 1))]
    matrices = {id(matrix) for matrix, _ in pairs}
    others, name = make_adamw([p for p in model.parameters() if id(p) not in matrices], 3e-4)
    return [Muon(pairs, dtype, 3e-4), others], "muon, rest adamw " + name


def libraries():
    """Paths of the BLAS, oneDNN and OpenMP libraries that this process has mapped."""
    words = ("blas", "mkl", "dnnl", "gomp", "iomp", "libomp")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        paths = {line.split()[-1] for line in maps if "/" in line}
    return sorted(path for path in paths if any(w in os.path.basename(path) for w in words))


def openblas_core(paths):
    """What OpenBLAS takes this processor for (it errs on new ones), or None without OpenBLAS."""
    for path in paths:
        name = getattr(ctypes.CDLL(path), "openblas_get_corename", None)
        if name and "libopenblas" in path:
            name.restype = ctypes.c_char_p
            return name().decode()
    return None


def emit(**line):
    print(json.dumps(line), flush=True)


def emit_setup(options, **more):
    info, paths = torch.__config__.show(), libraries()
    capability = [line for line in info.splitlines() if "CPU capability" in line]
    emit(what="setup", torch=torch.__version__, threads=torch.get_num_threads(),
         dtype=options.dtype, libraries=["/".join(path.split("/")[-2:]) for path in paths],
         openblas_core=openblas_core(paths), mkl=torch.backends.mkl.is_available(),
         capability="".join(capability).split(" ")[-1], **more)


def measure_newton_schulz(options, dtype):
    rows, columns = (int(number) for number in options.newton_schulz.split("x"))
    matrix = torch.randn(rows, columns)
    newton_schulz(matrix, dtype, 1)  # maps the libraries
    emit_setup(options)
    for step in range(options.steps):
        start = time.perf_counter()
        newton_schulz(matrix, dtype)
        emit(what="newton-schulz", step=step, ms=(time.perf_counter() - start) * 1e3)


def read_shape(path):
    """The "model" object of one of our configurations, over those of the files that it includes."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    included = config.get("include", [])
    shape = {}
    for name in [included] if isinstance(included, str) else included:
        shape.update(read_shape(os.path.join(os.path.dirname(path), name)))
    return {**shape, **config.get("model", {})}


def measure_training(options, dtype):
    shape = read_shape(options.model)
    model = Llama(shape, options.seq)
    optimizers, name = make_optimizers(model, options.preset, dtype)
    run = torch.compile(model) if options.compile else model
    cast = dtype == torch.bfloat16
    emit_setup(options, batch=options.batch, seq=options.seq, optimizer=name,
               compile=options.compile, parameters=sum(p.numel() for p in model.parameters()),
               attention="fused" if FUSED_ATTENTION else "masked")
    for step in range(options.steps):
        tokens = torch.randint(shape["vocab_size"], (options.batch, options.seq + 1))
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        clock = [time.perf_counter()]
        with torch.autocast("cpu", dtype=torch.bfloat16) if cast else contextlib.nullcontext():
            loss = run(inputs, targets)
        clock.append(time.perf_counter())
        loss.backward()
        clock.append(time.perf_counter())
        if options.clip > 0:
            nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        clock.append(time.perf_counter())
        parts = [(after - before) * 1e3 for before, after in zip(clock, clock[1:])]
        emit(what="step", step=step, ms=sum(parts), forward_ms=parts[0], backward_ms=parts[1],
             optimizer_ms=parts[2], loss=loss.item(),
             peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="configs/model/llama-124m.json",
                        help="one of our configurations")
    parser.add_argument("--dtype", choices=["fp32", "bf16-autocast"], default="fp32")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--preset", choices=["adamw", "muon"], default="adamw")
    parser.add_argument("--clip", type=float, default=0.0, help="norm to clip gradients to; 0: no")
    parser.add_argument("--compile", action="store_true", help="torch.compile the model (2.x)")
    parser.add_argument("--newton-schulz", metavar="ROWSxCOLUMNS",
                        help="measure one orthogonalisation instead of a step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    dtype = torch.bfloat16 if options.dtype == "bf16-autocast" else torch.float32
    (measure_newton_schulz if options.newton_schulz else measure_training)(options, dtype)


if __name__ == "__main__":
    main()
