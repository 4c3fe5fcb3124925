#!/usr/bin/env python3
"""Compares train_gpt and scripts/export_hf.py with Hugging Face's transformers, both ways; needs torch and transformers.

    dev/reference/check_hf.py                          # models made here, see below
    dev/reference/check_hf.py CHECKPOINT --data FILE   # any folder of a LLaMA, on a file of uint16 tokens

Ours in theirs: train_gpt trains a tied, an untied and a grouped-query model for some updates;
transformers opens the checkpoint. Theirs in ours: transformers writes random models as float32, bfloat16 and
float16, in one file and in shards; train_gpt eval reads them. Compared are the loss of each window and,
of our models, greedily generated tokens. Both sides compute in float64 from the same stored weights;
transformers keeps RMSNorm and rotary angles in float32, so losses agree to about 1e-6, not to every digit.
The tokenizers that export_hf.py writes are compared with the ids of tests/data/tokenizer, and bytes with themselves.
Exit status: 0 all agree, 1 some do not, 2 torch or transformers is missing.
"""
import argparse
import copy
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

try:
    import torch
    import transformers
except ImportError as error:
    print(f"check_hf.py: {error}: python3 -m pip install torch transformers", file=sys.stderr)
    sys.exit(2)

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import export_hf  # noqa: E402
TRAIN_GPT = os.environ.get("TRAIN_GPT", str(ROOT / "build" / "train_gpt"))
TOLERANCE = 1e-5  # of a loss in nats
WINDOWS, GENERATED = 8, 60
SHAPE = {"n_layer": 3, "n_head": 4, "d_model": 64, "d_ff": 96, "vocab_size": 256, "seq_len": 48}
OURS = {"tied": {"n_kv_head": 4, "tie_embeddings": True}, "untied": {"n_kv_head": 4, "tie_embeddings": False},
        "untied, 4 heads on 2": {"n_kv_head": 2, "tie_embeddings": False},
        "tied, 4 heads on 1": {"n_kv_head": 1, "tie_embeddings": True, "rope_theta": 500.0, "norm_eps": 1e-6}}


def run(*arguments):
    result = subprocess.run([TRAIN_GPT, *map(str, arguments)], capture_output=True, check=False)
    if result.returncode:
        sys.exit(f"check_hf.py: train_gpt {' '.join(map(str, arguments))}: {result.stderr.decode(errors='replace')}")
    return result.stdout


def write_tokens(path, tokens):
    path.write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))


def walk(count, seed):
    """Learnable bytes: a noisy walk over printable ASCII."""
    generator = torch.Generator().manual_seed(seed)
    jumps = (torch.rand(count, generator=generator) < 0.2) * torch.randint(0, 90, (count,), generator=generator)
    tokens, value = [], 0
    for jump in jumps.tolist():
        value = (value * 5 + 1 + jump) % 90
        tokens.append(32 + value)
    return tokens


def open_model(folder):
    return transformers.LlamaForCausalLM.from_pretrained(str(folder), dtype=torch.float64).eval()


def their_loss(model, window):
    tokens = torch.tensor([window])
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits[0].double(), tokens[0, 1:]).item()


def our_loss(folder, window, scratch):
    path = pathlib.Path(scratch) / "window.bin"
    write_tokens(path, window)
    printed = run("eval", "--checkpoint", folder, "--data", path, "--device", "cpu", "--threads", 1,
                  "--precision", "fp64", "--seq-len", len(window) - 1, "--json")
    return json.loads(printed)["loss"]


def same_losses(name, folder, windows, scratch):
    model = open_model(folder)
    pairs = [(our_loss(folder, window, scratch), their_loss(model, window)) for window in windows]
    worst = max(abs(ours - theirs) for ours, theirs in pairs)
    mean = [sum(side) / len(pairs) for side in zip(*pairs)]
    good = worst < TOLERANCE
    print(f"{'ok    ' if good else 'DIFFER'} {name:<44} loss ours {mean[0]:.7f}, theirs {mean[1]:.7f}; "
          f"largest difference {worst:.1e}", flush=True)
    return good


def same_texts(name, folder):
    """Greedy continuation; theirs without their cache of keys and values, as one forward pass a token."""
    model, prompt = open_model(folder), "AbZ"
    printed = run("generate", "--checkpoint", folder, "--prompt", prompt, "--tokens", GENERATED, "--temperature", 0,
                  "--tokenizer", "bytes", "--device", "cpu", "--threads", 1)
    tokens = list(prompt.encode())
    length = model.config.max_position_embeddings
    with torch.no_grad():
        while len(tokens) < min(len(prompt) + GENERATED, length):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    good = printed.startswith(bytes(tokens))
    print(f"{'ok    ' if good else 'DIFFER'} {name:<44} {len(tokens) - len(prompt)} greedy tokens", flush=True)
    return good


def ours_in_theirs(scratch):
    data = {name: scratch / f"{name}.bin" for name in ("train", "val")}
    for seed, path in enumerate(data.values()):
        write_tokens(path, walk(6000, seed))
    windows, good = cut(walk(6000, 7), SHAPE["seq_len"]), True
    for number, (name, changes) in enumerate(OURS.items()):
        folder = scratch / f"run{number}"
        (scratch / "config.json").write_text(json.dumps({
            "run": {"dir": str(folder), "steps": 30, "threads": 1, "device": "cpu"}, "model": {**SHAPE, **changes},
            "data": {"train": [str(data["train"])], "val": [str(data["val"])]}, "batch": {"sequences": 8},
            "precision": {"compute": "fp32"}, "optimizer": {"preset": "muon", "lr": 0.01}, "eval": {"batches": 1}}))
        run("train", "--config", scratch / "config.json")
        checkpoint = folder / "checkpoints" / "step_00000030"
        good &= same_losses(f"ours in theirs: {name}", checkpoint, windows, scratch)
        good &= same_texts(f"ours in theirs: {name}", checkpoint)
    return good


def cut(tokens, length):
    return [tokens[start:start + length + 1] for start in range(0, WINDOWS * length, length)]


def theirs_in_ours(scratch):
    good = True
    generator = torch.Generator().manual_seed(3)
    windows = [torch.randint(0, 300, (33,), generator=generator).tolist() for _ in range(WINDOWS)]
    for number, (tied, heads) in enumerate(((True, 4), (False, 4), (False, 2))):
        torch.manual_seed(number)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
            hidden_size=64, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=heads, vocab_size=300, max_position_embeddings=64, tie_word_embeddings=tied,
            initializer_range=0.2, rms_norm_eps=1e-6))
        for dtype in ("float32", "bfloat16", "float16"):
            for files, size in (("one file", "1GB"), ("shards", "100KB")):
                folder = scratch / f"hf{number}{dtype}{size}"
                copy.deepcopy(model).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=size)
                count = len(list(folder.glob("*.safetensors")))
                if (count > 1) != (files == "shards"):
                    sys.exit(f"check_hf.py: {folder} has {count} files of weights, expected {files}")
                name = f"theirs in ours: {'tied' if tied else 'untied'}, 4 heads on {heads}, {dtype}, {files}"
                good &= same_losses(name, folder, windows, scratch)
    return good


def same_tokens(name, tokenizer, cases):
    wrong = [text for text, ids in cases if tokenizer.encode(text, add_special_tokens=False) != ids]
    lost = [text for text, ids in cases if tokenizer.decode(ids, clean_up_tokenization_spaces=False) != text]
    good = not wrong and not lost
    print(f"{'ok    ' if good else 'DIFFER'} tokenizer {name:<34} {len(cases)} texts"
          + ("" if good else f"; encoded otherwise: {wrong[:3]}; not decoded: {lost[:3]}"), flush=True)
    return good


def tokenizers(scratch):
    """AutoTokenizer on exported folders."""
    data, good = ROOT / "tests" / "data" / "tokenizer", True
    # "<|endoftext|>" in a text is the token there, as with Hugging Face's GPT-2, and plain text for us.
    cases = [(case["text"], case["ids"]) for case in json.loads((data / "cases.json").read_text())
             if "<|endoftext|>" not in case["text"]]
    sources = {"bytes": [(text, list(text.encode())) for text, _ in cases],
               str(data / "tiny.tiktoken"): cases, str(data / "merges"): cases}
    for number, (source, found) in enumerate(sources.items()):
        folder = scratch / f"tokenizer{number}"
        export_hf.write_tokenizer(source, 1024, str(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
        good &= same_tokens(pathlib.Path(source).name, tokenizer, found)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("checkpoint", nargs="?", help="folder with config.json and weights")
    parser.add_argument("--data", help="token file without header, uint16")
    arguments = parser.parse_args()
    if (arguments.checkpoint is None) != (arguments.data is None):
        parser.error("a checkpoint and --data come together")
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        scratch = pathlib.Path(name)
        if arguments.checkpoint:
            config = json.loads((pathlib.Path(arguments.checkpoint) / "config.json").read_text())
            length = config["max_position_embeddings"]
            data = pathlib.Path(arguments.data).read_bytes()[:2 * (WINDOWS * length + 1)]
            tokens = list(struct.unpack(f"<{len(data) // 2}H", data[:len(data) // 2 * 2]))
            windows = [window for window in cut(tokens, length) if len(window) > 1]
            good = same_losses(arguments.checkpoint, arguments.checkpoint, windows, scratch)
        else:
            good = tokenizers(scratch)
            good = ours_in_theirs(scratch) and good
            good = theirs_in_ours(scratch) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
