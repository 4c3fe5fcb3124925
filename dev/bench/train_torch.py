#!/usr/bin/env python3
"""Training steps in PyTorch, for dev/bench/gpu_compare.py, which starts this script and asks by lines.

The model is dev/bench/llama_torch.py's (fp32 weights, bf16 by autocast, tied head), compiled; the updates
are dev/bench/optimizer_torch.py's, and Lion by torch._foreach_* in one compiled function. Of the kernels
that scaled_dot_product_attention has, the one is taken that is fastest at the shape, forward and backward.

A question a line on stdin, a JSON object for each on stdout; the first object says which PyTorch this is,
an answer with "error" what went wrong. Ends with stdin.

    model {"config": FILE, "seq": T, "micro": sequences at a time}
    variants {"preset": "muon"}             -> {"variants": [names]}; their states are made anew
    round {"variant": NAME, "sequences": in an update, "steps": N, "warmup": N}
"""
import argparse
import contextlib
import json
import math
import statistics
import sys
import time


def answer(**values):
    print(json.dumps(values), flush=True)


try:
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel
    import llama_torch
    import optimizer_torch
except ImportError as failure:
    answer(error=f"{sys.executable}: {failure}; PyTorch 2.3 or newer is needed: give --python")
    sys.exit(0)

KERNELS = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
LION = (0.9, 0.99)


def lion_step(weights, momenta, gradients):
    updates = torch._foreach_mul(momenta, LION[0])
    torch._foreach_add_(updates, gradients, alpha=1 - LION[0])
    torch._foreach_sign_(updates)
    torch._foreach_mul_(momenta, LION[1])
    torch._foreach_add_(momenta, gradients, alpha=1 - LION[1])
    torch._foreach_mul_(weights, 1 - optimizer_torch.LR * optimizer_torch.DECAY)
    torch._foreach_add_(weights, updates, alpha=-optimizer_torch.LR)


class ForeachLion:
    name, preset = "Lion foreach", "lion"

    def __init__(self, matrices, others):
        self.weights, self.run = matrices + others, lion_step
        self.momenta = [torch.zeros_like(weight) for weight in self.weights]
        try:
            self.run = torch.compile(lion_step, dynamic=False)
            self.step()
            self.name += ", compiled"
        except Exception as failure:  # a compiler that is missing or cannot
            print(f"train_torch.py: torch.compile failed for Lion: {failure}", file=sys.stderr)
            self.run = lion_step

    def step(self):
        self.run(self.weights, self.momenta, [weight.grad for weight in self.weights])


PEERS = [optimizer_torch.AdamW, optimizer_torch.Lion, ForeachLion, optimizer_torch.TorchMuon, optimizer_torch.StackedMuon]


class Bench:
    def __init__(self, device):
        self.device, self.gpu = device, device == "cuda"
        self.model = self.run = self.shape = None
        self.peers, self.updates, self.attention = {}, 0, contextlib.ExitStack()

    def wait(self):
        if self.gpu:
            torch.cuda.synchronize()

    def clock(self):
        self.wait()
        return time.perf_counter()

    # ---- the model ------------------------------------------------------------------------------

    def prepare(self, what):
        self.free()
        start = time.perf_counter()
        self.shape, self.seq, self.micro = llama_torch.read_shape(what["config"]), what["seq"], what["micro"]
        kernels = self.attention_times()
        usable = {name: ms for name, ms in kernels.items() if isinstance(ms, float)}
        fastest = min(usable, key=usable.get)
        self.attention.enter_context(sdpa_kernel([getattr(SDPBackend, fastest)]))
        self.model = llama_torch.Llama(self.shape, self.seq).to(self.device)
        self.run, compiled = torch.compile(self.model, dynamic=False), True
        try:
            self.micro_step(1.0)
        except Exception as failure:
            if isinstance(failure, torch.OutOfMemoryError):
                raise
            print(f"train_torch.py: torch.compile failed, the model runs without: {failure}", file=sys.stderr)
            self.run, compiled = self.model, False
            self.micro_step(1.0)
        self.wait()
        answer(parameters=sum(p.numel() for p in self.model.parameters()), attention=fastest, attention_ms=kernels,
               compiled=compiled, seconds=time.perf_counter() - start)

    def free(self):
        self.attention.close()
        self.model = self.run = None
        self.peers = {}
        torch.compiler.reset()
        if self.gpu:
            torch.cuda.empty_cache()

    def attention_times(self):
        """Milliseconds forward and backward of each kernel, or why there is none."""
        heads = self.shape["n_head"]
        size = (self.micro, heads, self.seq, self.shape["d_model"] // heads)
        q, k, v, gradient = (torch.randn(size, device=self.device, dtype=torch.bfloat16) for _ in range(4))
        for tensor in (q, k, v):
            tensor.requires_grad_()
        times = {}
        for name in KERNELS:
            if not hasattr(SDPBackend, name) or name == "MATH" and self.gpu:
                continue
            try:
                with sdpa_kernel([getattr(SDPBackend, name)]):
                    taken = []
                    for _ in range(4):
                        start = self.clock()
                        F.scaled_dot_product_attention(q, k, v, is_causal=True).backward(gradient)
                        taken.append((self.clock() - start) * 1e3)
                times[name] = min(taken[1:])
            except RuntimeError as failure:
                times[name] = str(failure).splitlines()[0]
        return times

    def micro_step(self, share):
        tokens = torch.randint(self.shape["vocab_size"], (self.micro, self.seq + 1))
        tokens = tokens.to(self.device, non_blocking=True)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            loss = self.run(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
        (loss * share).backward()
        return loss.detach()

    # ---- updates --------------------------------------------------------------------------------

    def variants(self, what):
        inside = {id(p) for block in self.model.blocks for p in block.parameters() if p.dim() == 2}
        matrices = [p for p in self.model.parameters() if id(p) in inside]
        others = [p for p in self.model.parameters() if id(p) not in inside]
        self.peers, left_out = {}, []
        self.micro_step(1.0)  # gradients, which a peer that compiles needs
        for kind in PEERS:
            if kind.preset != what["preset"]:
                continue
            try:
                with torch.no_grad():
                    peer = kind(matrices, others)
                self.peers[peer.name] = peer
            except Exception as failure:
                left_out.append(f"{kind.name}: {failure}".splitlines()[0])
        answer(variants=list(self.peers), left_out=left_out)

    def update(self, peer, sequences):
        micro_steps = sequences // self.micro
        start = self.clock()
        loss = sum(self.micro_step(1.0 / micro_steps) for _ in range(micro_steps)) / micro_steps
        middle = self.clock()
        with torch.no_grad():
            peer.step()
        self.model.zero_grad(set_to_none=True)
        loss = loss.item()
        if not math.isfinite(loss):
            raise RuntimeError("the loss is not finite")
        return [(middle - start) * 1e3, (self.clock() - middle) * 1e3]

    def round(self, what):
        peer = self.peers[what["variant"]]
        self.model.zero_grad(set_to_none=True)
        if self.gpu:
            torch.cuda.reset_peak_memory_stats()
        for _ in range(what["warmup"]):
            self.update(peer, what["sequences"])
        parts = [self.update(peer, what["sequences"]) for _ in range(what["steps"])]
        times = [sum(part) for part in parts]
        answer(ms=statistics.median(times), ms_min=min(times), ms_max=max(times),
               forward_backward_ms=statistics.median(part[0] for part in parts),
               optimizer_ms=statistics.median(part[1] for part in parts),
               peak_memory_bytes=torch.cuda.max_memory_allocated() if self.gpu else None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--threads", type=int, default=0, help="on a CPU; 0: PyTorch's own choice")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        return answer(error=f"PyTorch {torch.__version__} of {sys.executable} sees no GPU")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    answer(torch=torch.__version__, python=sys.executable,
           device=torch.cuda.get_device_name() if options.device == "cuda" else "CPU")
    bench = Bench(options.device)
    questions = {"model": bench.prepare, "variants": bench.variants, "round": bench.round}
    for line in sys.stdin:
        question, _, more = line.strip().partition(" ")
        try:
            questions[question](json.loads(more))
        except Exception as failure:  # told, so that the other cases go on
            answer(error=f"{type(failure).__name__}: {failure}".splitlines()[0])
    return None


if __name__ == "__main__":
    main()
