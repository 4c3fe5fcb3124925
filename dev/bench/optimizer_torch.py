#!/usr/bin/env python3
"""Optimizer updates in PyTorch, for `train_gpt bench optimizer --compare`, which starts this script.

Every peer does what one of our presets does, on the same shapes, from the published equations:

    torch.optim.Muon       muon   where this PyTorch has it (2.9 on); its products are in bf16 always,
                                  so it is left out on a CPU that would take minutes for them
    Muon foreach           muon   torch._foreach_* for momentum and weights, one matrix at a time
    Muon stacked           muon   equal shapes as one batch of products, through torch.compile where
                                  that works, else as it is (the name says which)
    AdamW fused            adamw
    Lion eager             lion   operation by operation

Muon's products are in fp32 on a CPU, as ours are there by default, and in bf16 on a GPU; --inner says
otherwise. What is not a hidden
matrix gets fused AdamW, as in our preset. A time is that of one update: neither the norm of the
gradients nor new gradients are in it. Threads spin as briefly as ours do (GOMP_SPINCOUNT, which
train_gpt sets and this process inherits).

Talks by lines: a question on stdin, a JSON object for each on stdout; first of all one that says
which PyTorch this is, or {"error": ...}. Ends with stdin. Questions:

    prepare {"blocks": [{"shape": [rows, columns], "matrix": true}, ...], "presets": ["muon", ...]}
    round
"""
import argparse
import json
import math
import os
import statistics
import sys
import time


def answer(**values):
    print(json.dumps(values), flush=True)


try:
    import torch
except ImportError as failure:
    answer(error=f"{sys.executable} has no PyTorch ({failure}); set PYTHON to an interpreter that has")
    sys.exit(0)

A, B, C = 3.4445, -4.7750, 2.0315  # Keller Jordan's polynomial, five times
STEPS = 5
MOMENTUM, DECAY, LR = 0.95, 0.1, 1e-4


def orthogonalise(x):
    """Newton-Schulz on a matrix or a batch of them."""
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(STEPS):
        gram = x @ x.mT
        x = A * x + (B * gram + C * (gram @ gram)) @ x
    return x.mT if tall else x


def radius(shape):  # an update as large as Adam's
    return 0.2 * math.sqrt(max(shape[-2:]))


class FusedAdamW:
    """torch.optim.AdamW, fused; fails before PyTorch 2.4, which has that on GPUs only."""

    def __init__(self, parameters, betas):
        settings = dict(lr=LR, betas=betas, eps=1e-8, weight_decay=DECAY)
        self.optimizer = torch.optim.AdamW(parameters, fused=True, **settings) if parameters else None

    def step(self):
        if self.optimizer:
            self.optimizer.step()


class Muon:
    """`parts`: what takes the matrices and what the rest. `inner`: the type of its products."""

    takes_inner = True

    def __init__(self, matrices, others, inner):
        self.matrices, self.parts = matrices, [self.matrix_part(matrices, inner), FusedAdamW(others, (0.8, 0.999))]

    def step(self):
        for part in self.parts:
            part.step()


def bf16_slowdown(size=384):
    """Time of a product in bf16 over that in fp32: above 100 where the processor has no bf16."""
    def best(dtype):
        x = torch.randn(size, size).to(dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            x @ x
            times.append(time.perf_counter() - start)
        return min(times)

    return best(torch.bfloat16) / best(torch.float32)


class TorchMuon(Muon):
    name, preset = "torch.optim.Muon", "muon"

    takes_inner = False

    def matrix_part(self, matrices, inner):
        if not hasattr(torch.optim, "Muon"):
            raise RuntimeError(f"PyTorch {torch.__version__} does not have it")
        slower = 1 if matrices[0].is_cuda else bf16_slowdown()
        if slower > 8:
            raise RuntimeError(f"its products are in bf16, here {slower:.0f} times as slow as in fp32")
        return torch.optim.Muon(matrices, lr=LR, weight_decay=DECAY, momentum=MOMENTUM, nesterov=True,
                                adjust_lr_fn="match_rms_adamw")


class Foreach:
    def __init__(self, matrices, inner):
        self.matrices, self.inner = matrices, inner
        self.momenta = [torch.zeros_like(m) for m in matrices]

    def step(self):
        gradients = [m.grad for m in self.matrices]
        torch._foreach_mul_(self.momenta, MOMENTUM)
        torch._foreach_add_(self.momenta, gradients)
        mixed = torch._foreach_add(gradients, self.momenta, alpha=MOMENTUM)
        directions = [orthogonalise(x.to(self.inner)).to(x.dtype) for x in mixed]
        torch._foreach_mul_(directions, [-LR * radius(x.shape) for x in directions])
        torch._foreach_mul_(self.matrices, 1 - LR * DECAY)
        torch._foreach_add_(self.matrices, directions)


class ForeachMuon(Muon):
    name, preset = "Muon foreach", "muon"

    def matrix_part(self, matrices, inner):
        return Foreach(matrices, inner)


def stacked_step(weights, momenta, gradients, inner):
    """One shape; weights a list, momenta [n, rows, columns]."""
    gradient = torch.stack(gradients)
    momenta.mul_(MOMENTUM).add_(gradient)
    mixed = gradient.add(momenta, alpha=MOMENTUM)
    direction = orthogonalise(mixed.to(inner)).to(mixed.dtype) * (LR * radius(mixed.shape))
    for weight, each in zip(weights, direction.unbind()):
        weight.mul_(1 - LR * DECAY).sub_(each)


class Stacked:
    def __init__(self, matrices, inner, run):
        self.inner, self.run, shapes = inner, run, {}
        for matrix in matrices:
            shapes.setdefault(matrix.shape, []).append(matrix)
        self.batches = [(ms, torch.zeros(len(ms), *shape, device=ms[0].device)) for shape, ms in shapes.items()]

    def step(self):
        for matrices, momenta in self.batches:
            self.run(matrices, momenta, [m.grad for m in matrices], self.inner)


class StackedMuon(Muon):
    name, preset = "Muon stacked", "muon"

    def matrix_part(self, matrices, inner):
        try:
            part = Stacked(matrices, inner, torch.compile(stacked_step, dynamic=False))
            part.step()  # compiles
            self.name += ", compiled"
        except Exception as failure:  # a compiler that is missing or cannot
            print(f"optimizer_torch.py: torch.compile failed, stacked Muon runs without: {failure}", file=sys.stderr)
            part = Stacked(matrices, inner, stacked_step)
        return part


class AdamW(FusedAdamW):
    name, preset, takes_inner = "AdamW fused", "adamw", False

    def __init__(self, matrices, others, _):
        super().__init__(matrices + others, (0.9, 0.95))


class Lion:
    name, preset, takes_inner = "Lion eager", "lion", False

    def __init__(self, matrices, others, _):
        self.pairs = [(p, torch.zeros_like(p)) for p in matrices + others]

    def step(self):
        for parameter, momentum in self.pairs:
            update = momentum.mul(0.9).add_(parameter.grad, alpha=0.1).sign_()
            momentum.mul_(0.99).add_(parameter.grad, alpha=0.01)
            parameter.mul_(1 - LR * DECAY).add_(update, alpha=-LR)


PEERS = [TorchMuon, ForeachMuon, StackedMuon, AdamW, Lion]
INNER = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


class Bench:
    def __init__(self, options):
        self.options, self.peers = options, []
        self.gpu = options.device == "cuda"
        self.inner = INNER[options.inner or ("bf16" if self.gpu else "fp32")]

    @torch.no_grad()
    def prepare(self, what):
        def parameters(blocks):
            made = [torch.nn.Parameter(torch.randn(block["shape"], device=self.options.device)) for block in blocks]
            for each in made:
                each.grad = torch.randn_like(each)
            return made

        matrices = parameters(b for b in what["blocks"] if b["matrix"])
        others = parameters(b for b in what["blocks"] if not b["matrix"])
        left_out = []
        for kind in PEERS:
            if kind.preset not in what["presets"]:
                continue
            try:
                peer = kind(matrices, others, self.inner)
                if self.options.inner and kind.takes_inner:
                    peer.name += f", {self.options.inner}"
                self.time(peer)  # states are made, libraries loaded
                self.peers.append(peer)
            except Exception as failure:
                left_out.append(f"{kind.name}: {failure}".splitlines()[0])
        answer(left_out=left_out)

    def time(self, peer):
        self.wait()
        start = time.perf_counter()
        peer.step()
        self.wait()
        return time.perf_counter() - start

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize()

    @torch.no_grad()
    def round(self):
        times = []
        for peer in self.peers:
            seconds = statistics.median(self.time(peer) for _ in range(self.options.updates))
            times.append({"peer": peer.name, "preset": peer.preset, "seconds": seconds})
        answer(times=times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--updates", type=int, default=3, help="of a round; their median counts")
    parser.add_argument("--threads", type=int, default=0, help="0: one for each core of this process")
    parser.add_argument("--inner", choices=sorted(INNER), help="of Muon's products, but torch.optim.Muon's")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        return answer(error=f"PyTorch {torch.__version__} of {sys.executable} sees no GPU")
    torch.set_num_threads(options.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(1)
    answer(torch=torch.__version__, python=sys.executable, threads=torch.get_num_threads(),
           presets=sorted({peer.preset for peer in PEERS}))
    bench = Bench(options)
    for line in sys.stdin:
        question, _, more = line.strip().partition(" ")
        if question == "prepare":
            bench.prepare(json.loads(more))
        else:
            bench.round()
    return None


if __name__ == "__main__":
    main()
