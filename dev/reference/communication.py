"""Whole training runs in NumPy and float64, with workers that are simulated: gradient estimators, EF21, local steps and
outer steps, each from its published equations (their form: dev/docs/communication.md).

    /usr/bin/python3 dev/reference/communication.py RUN      (from the working directory of the run)

repeats the run in the folder RUN, whose weights came from init.from, and prints how far losses and last weights are
apart. Nothing here is read from the C++, except the order of the data and the streams of random numbers.
"""

import dataclasses
import json
import os
import sys
from dataclasses import dataclass

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import llama_numpy as llama  # noqa: E402
import safetensors_io  # noqa: E402
import stages  # noqa: E402
from compressors import Compressor  # noqa: E402
from groups import find_group, read_group, read_power  # noqa: E402

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
STREAM = int.from_bytes(b"estimato", "big")  # of hessian's points and of page's coins

# ---- points and gradients: dicts of tensors ------------------------------------------------------------


def combine(*terms):
    """The sum of factor times tensors."""
    return {name: sum(factor * tensors[name] for factor, tensors in terms) for name in terms[0][1]}


def length(v):
    return sum((x * x).sum() for x in v.values()) ** 0.5


def clip(v, limit):
    norm = length(v)
    return combine((min(1.0, limit / norm), v)) if limit and norm > 0 else v


# ---- data --------------------------------------------------------------------------------------------


class Reader:
    """data.compat.order = "numpy" within its first epoch: windows of T tokens, permuted, shifted by one draw."""

    def __init__(self, tokens, length, seed):
        rng = np.random.default_rng(seed)
        self.tokens, self.length, self.position = tokens.astype(np.int64), length, 0
        self.windows = rng.permutation((len(tokens) - length - 1) // length - 1)
        self.offset = rng.integers(length)

    def take(self, count):
        """The next sequences: an array [count, T + 1]."""
        chosen = self.windows[self.position:self.position + count]
        self.position += count
        assert len(chosen) == count, "more than an epoch"
        starts = chosen * self.length + self.offset
        return self.tokens[starts[:, None] + np.arange(self.length + 1)]


def share(batch, rank, ranks, micro_batch):
    """Micro-batch n belongs to rank n mod ranks."""
    size = min(micro_batch, len(batch) // ranks)
    return batch.reshape(-1, ranks, size, batch.shape[-1])[:, rank].reshape(-1, batch.shape[-1])


# ---- gradient estimators -----------------------------------------------------------------------------


@dataclass
class Draw:
    """What all workers know of an update: its sequences, those of the correction, whether a batch of page is large."""

    batch: np.ndarray
    other: np.ndarray
    large: bool = True


class Estimator:
    """estimate(k, x, draw, gradient) -> loss, g. gradient(y, batch) -> loss, gradient, means over the batch."""

    def __init__(self, settings, beta, seed):
        self.settings, self.type, self.beta, self.seed = settings, settings.get("type", "plain"), beta, seed
        self.before = self.value = None

    def draw(self, k, reader, sequences):
        s = self.settings
        if self.type == "page":
            small = s["small"]
            probability = s.get("probability", small / (sequences + small))
            large = k == 0 or stages.uniform(self.seed, STREAM, k) < probability
            batch = reader.take(sequences if large else small)
            return Draw(batch, batch, large)
        batch = reader.take(sequences)
        own = self.type == "hessian" and s.get("batch", "own") == "own"
        return Draw(batch, reader.take(sequences) if own else batch)

    def estimate(self, k, x, draw, gradient):
        before, self.before = self.before, x
        if self.type == "page":
            return self.page(x, before, draw, gradient)
        s = self.settings
        if self.type == "plain" or before is None:
            loss, g = gradient(x, draw.batch)
            return loss, clip(g, s.get("clip", 0))
        ratio, d = self.beta(k) / (1 - self.beta(k)), combine((1, x), (-1, before))
        if self.type == "igt":
            loss, g = gradient(combine((1, x), (ratio, d)), draw.batch)
            return loss, clip(g, s.get("clip", 0))
        loss, g = gradient(x, draw.batch)
        correction = self.correction(k, x, before, d, g, draw, gradient)
        limit, size = s.get("clip_correction", 0), length(d)
        if limit and size > 0:
            correction = combine((size, clip(combine((1 / size, correction)), limit)))
        return loss, combine((1, clip(g, s.get("clip", 0))), (s.get("scale", 1) * ratio, correction))

    def correction(self, k, x, before, d, g, draw, gradient):
        """What d changes the gradient by."""
        s = self.settings
        if self.type == "storm":
            return combine((1, g), (-1, gradient(before, draw.batch)[1]))
        if s.get("difference", "central") == "segment":
            return combine((1, gradient(x, draw.other)[1]), (-1, gradient(before, draw.other)[1]))
        q, eps = stages.uniform(self.seed, STREAM, k), s.get("step", 0.1)
        ends = [combine((1, x), (-(1 - q) + sign * eps, d)) for sign in (1, -1)]
        high, low = (gradient(end, draw.other)[1] for end in ends)
        return combine((1 / (2 * eps), high), (-1 / (2 * eps), low))

    def page(self, x, before, draw, gradient):
        loss, g = gradient(x, draw.batch)
        self.value = g if draw.large else combine((1, self.value), (1, g), (-1, gradient(before, draw.batch)[1]))
        return loss, self.value


# ---- the parts of a run --------------------------------------------------------------------------------


def with_preset(optimizer):
    """The keys of the preset, where they are not given."""
    if "preset" not in optimizer:
        return optimizer
    with open(os.path.join(ROOT, "configs", "optimizer", optimizer["preset"] + ".json")) as file:
        return {**json.load(file), **{key: value for key, value in optimizer.items() if key != "preset"}}


class Setup:
    """What is fixed in a run; config as the configuration file has it."""

    def __init__(self, config, ranks):
        model, o, self.ranks = config["model"], with_preset(config["optimizer"]), ranks
        self.optimizer = o
        self.model = llama.Config(model["n_layer"], model["n_head"], model.get("n_kv_head", model["n_head"]),
                                  model.get("tie_embeddings", True), model.get("rope_theta", 1e4),
                                  model.get("norm_eps", 1e-5))
        self.seq_len, self.seed = model["seq_len"], config["run"].get("seed", 0)
        self.steps, self.data_seed = config["run"]["steps"], config["data"].get("seed", 1337)
        self.sequences = config["batch"]["sequences"]
        self.micro_batch = config["batch"].get("micro_batch") or self.sequences // ranks
        self.decay = config.get("schedule", {}).get("decay", {})
        self.communication = o.get("communication", {"type": "mean"})
        self.local = self.communication["type"] == "local"
        self.outer = o.get("outer", {"type": "none"})
        assert o.get("sampling", {"type": "all"})["type"] == "all", "a gradient that stops at a layer is not here"
        self.groups = {}

    def rate(self, k):
        kind = self.decay.get("type", "constant")
        assert kind in ("constant", "power"), kind
        power = read_power(self.decay["power"]) if kind == "power" else 0
        rate = self.optimizer["lr"] * (k + 1) ** -power
        inner = self.communication.get("inner_power", 0)
        return rate * (k % self.outer["every"] + 1) ** -inner if self.local else rate

    def blocks(self, weights):
        """The parameter list as the norms see it: q, k, v of a layer are one matrix unless split."""
        fused, result = self.optimizer.get("qkv", "fused") == "fused", []
        for name in weights:
            role = {llama.EMBEDDING: "embedding", llama.HEAD: "head"}.get(
                name, "gain" if weights[name].ndim == 1 else "matrix")
            if fused and name.endswith(("k_proj.weight", "v_proj.weight")):
                continue
            names = [name.replace("q_proj", p + "_proj") for p in "qkv"] if fused and "q_proj" in name else [name]
            result.append(stages.Block(names, self.group(name, role), -1, weights))
        return result

    def group(self, name, role):
        """One object for the blocks of a group and role."""
        j = find_group(self.optimizer["groups"], name, role)
        key = id(j), role
        if key not in self.groups:
            if "decay" in self.optimizer:
                j = {**j, "decay": self.optimizer["decay"]}
            self.groups[key] = read_group(j, self.optimizer.get("weight_decay", 0.0), role)
            self.groups[key].is_adam = j.get("momentum", {}).get("type") == "adam"
        return self.groups[key]

    def estimator(self):
        settings = self.optimizer.get("estimator", {"type": "plain"})
        matrices = find_group(self.optimizer["groups"], "model.layers.0.mlp.up_proj.weight", "matrix")
        momentum = matrices.get("momentum", {})

        def beta(k):
            if "beta" in settings:
                return settings["beta"]
            if "eta_power" in momentum:
                return 1 - (k + 1) ** -read_power(momentum["eta_power"])
            return momentum["beta"]

        return Estimator(settings, beta, self.seed)

    def gradient(self, rank=None):
        """gradient(weights, batch) over all of a batch, or over a rank's share of it."""

        def of(weights, batch):
            part = batch if rank is None else share(batch, rank, self.ranks, self.micro_batch)
            return llama.loss_and_gradient(weights, part[:, :-1], part[:, 1:], self.model)

        return of

    def limited(self, g):
        limit = self.optimizer.get("clip_norm", 0)
        return combine((min(1.0, limit / (length(g) + 1e-6)), g)) if limit else g


class Trainer:
    """One copy of the weights and its optimizer; rank: trained on its share alone (local steps).

    An update moves `server`, then the outer step may, and share() makes it the weights that gradients are taken at."""

    def __init__(self, setup, weights, rank=None):
        self.setup, self.weights, self.server, self.blocks = setup, weights, weights, setup.blocks(weights)
        self.estimator, self.gradient = setup.estimator(), setup.gradient(rank)

    def update(self, k, draw, rate, start):
        """start: the point that the step is taken from, if it is not the last one."""
        loss, g = self.estimator.estimate(k, self.weights, draw, self.gradient)
        g = self.setup.limited(g)
        gradients = [block.matrix(g) for block in self.blocks]
        self.server = stages.update(self.blocks, gradients, start or self.server, rate)
        return loss

    def share(self):
        self.weights = self.server


class Ef21:
    """All ranks of EF21 with a server: momentum on the workers, the step on the server, messages compressed."""

    def __init__(self, setup, weights):
        self.setup, self.weights, self.server = setup, weights, weights
        self.blocks = setup.blocks(weights)
        self.groups = [block.group for block in self.blocks]
        plain = {id(g): g if g.is_adam else dataclasses.replace(g, momentum=stages.no_momentum(), states=())
                 for g in self.groups}
        for block in self.blocks:
            block.group = plain[id(block.group)]
        self.total = [np.zeros_like(block.start) for block in self.blocks]  # the server's G
        self.up, self.down = (Compressor(setup.communication.get(way, {"type": "identity"}), setup.seed)
                              for way in ("up", "down"))
        self.workers = [self.Worker(self, rank) for rank in range(setup.ranks)]
        self.down_states = [{} for _ in self.blocks]

    class Worker:
        def __init__(self, all_ranks, rank):
            setup = all_ranks.setup
            self.all, self.estimator, self.gradient = all_ranks, setup.estimator(), setup.gradient(rank)
            self.momenta = [{"momentum": np.zeros_like(block.start)} for block in all_ranks.blocks]
            self.sent = [np.zeros_like(block.start) for block in all_ranks.blocks]  # G_j
            self.states = [{} for _ in all_ranks.blocks]

        def messages(self, k, draw):
            """The loss, and R_j of each block."""
            setup, up, result = self.all.setup, self.all.up, []
            loss, g = self.estimator.estimate(k, self.all.weights, draw, self.gradient)
            g = combine((1 / setup.ranks, g))
            for i, block in enumerate(self.all.blocks):
                u, group = block.matrix(g), self.all.groups[i]
                if not group.is_adam:
                    u = group.momentum(self.momenta[i], u, k == 0)
                difference = u - self.sent[i]
                r = difference if k == 0 else up(difference, block.names[0], self.states[i])
                self.sent[i] = self.sent[i] + r
                result.append(r)
            return loss, result

    def update(self, k, draw, rate, start):
        losses, messages = zip(*(worker.messages(k, draw) for worker in self.workers))
        for of_rank in messages:
            self.total = [total + r for total, r in zip(self.total, of_rank)]
        self.server = stages.update(self.blocks, self.total, start or self.server, rate)
        return np.mean(losses)

    def share(self):
        """The server's weights become S = C(X - W) nearer."""
        new = {}
        for block, state in zip(self.blocks, self.down_states):
            w = block.matrix(self.weights)
            s = self.down(block.matrix(self.server) - w, block.names[0], state)
            new.update(block.parts(w + s, self.weights))
        self.weights = new


class Outer:
    """The step on the displacement since the last one."""

    def __init__(self, settings, local, weights):
        self.rate = settings.get("rate", 1.0 if local else 0.5)
        self.momentum, self.nesterov = settings.get("momentum", 0.0), settings.get("nesterov", False)
        self.anchor, self.v = weights, combine((0, weights))

    def step(self, points):
        mean = combine(*((1 / len(points), x) for x in points))
        d = combine((1, self.anchor), (-1, mean))
        self.v = combine((self.momentum, self.v), (1, d))
        step = combine((1, d), (self.momentum, self.v)) if self.nesterov else self.v
        self.anchor = combine((1, self.anchor), (-self.rate, step))
        return self.anchor


def run(config, weights, tokens, ranks=1):
    """The loss of every update, and the last weights. weights: by name in the order of the parameter list."""
    setup = Setup(config, ranks)
    if setup.communication["type"] == "ef21":
        trainers = [Ef21(setup, weights)]
    else:
        trainers = [Trainer(setup, weights, rank) for rank in (range(ranks) if setup.local else [None])]
    kind = setup.outer["type"]
    outer = Outer(setup.outer, setup.local, weights) if kind != "none" else None
    reader, draws, losses = Reader(tokens, setup.seq_len, setup.data_seed), setup.estimator(), []
    for k in range(setup.steps):
        draw = draws.draw(k, reader, setup.sequences)
        start = outer.anchor if kind == "rapp" else None
        losses.append(np.mean([trainer.update(k, draw, setup.rate(k), start) for trainer in trainers]))
        if outer and ((k + 1) % setup.outer["every"] == 0 or setup.local and k + 1 == setup.steps):
            anchor = outer.step([trainer.server for trainer in trainers])
            for trainer in trainers:
                trainer.server = anchor
        for trainer in trainers:
            trainer.share()
    return losses, trainers[0].weights


def parameter_order(config, tensors):
    """Embedding, then layer by layer, last norm, head: as the program lists them."""
    layer = ["input_layernorm", *(f"self_attn.{p}_proj" for p in "qkvo"), "post_attention_layernorm",
             *(f"mlp.{p}_proj" for p in ("gate", "up", "down"))]
    names = ["model.embed_tokens", *(f"model.layers.{i}.{part}" for i in range(config["model"]["n_layer"])
                                     for part in layer), "model.norm", "lm_head"]
    return {name + ".weight": tensors[name + ".weight"].astype(np.float64) for name in names
            if name + ".weight" in tensors}


def compare(folder):
    with open(os.path.join(folder, "run_config.json")) as file:
        config = json.load(file, object_pairs_hook=lambda pairs: {k: v for k, v in pairs if v is not None})
    with open(os.path.join(folder, "metrics.jsonl")) as file:
        lines = [json.loads(line) for line in file]
    losses = [line["loss"] for line in lines if line["type"] == "train"]
    ranks = next(line.get("ranks", 1) for line in lines if line["type"] == "summary")
    weights = parameter_order(config, safetensors_io.load(os.path.join(config["init"]["from"], "model.safetensors")))
    tokens = np.concatenate([np.fromfile(path, "<u2") for path in config["data"]["train"]])
    ours, last = run(config, weights, tokens, ranks)
    step = f"step_{config['run']['steps']:08d}"
    theirs = safetensors_io.load(os.path.join(folder, "checkpoints", step, "model.safetensors"))
    print("losses", max(abs(a / b - 1) for a, b in zip(ours, losses)), "weights",
          max(np.abs(last[name] - theirs[name]).max() for name in last))


if __name__ == "__main__":
    compare(sys.argv[1])
