#!/usr/bin/env python3
"""Writes tests/data/hf_like.safetensors: a file with the habits of Hugging Face's own writer.

Only struct and json are used, so the format is described a second time, independently of llmc/io.
The header is padded with spaces, has metadata, names its keys in another order than ours, and
leaves one tensor unaligned (an odd number of BF16 values before F32). `steps` (I64) is of a type that the
trainer does not read.

    python3 dev/reference/make_safetensors_golden.py
"""

import json
import pathlib
import struct

TARGET = pathlib.Path(__file__).resolve().parents[2] / "tests" / "data" / "hf_like.safetensors"


def bf16(value):
    """Upper half of the float; the values below are exact in it."""
    return struct.pack("<f", value)[2:]


def main():
    tensors = [
        ("model.norm.weight", "BF16", [3], b"".join(bf16(v) for v in (1.0, -0.5, 3.25))),
        ("model.embed_tokens.weight", "F32", [2, 3],
         struct.pack("<6f", 0.0, 1.5, -2.25, 1e-30, -3e38, 0.1)),
        ("half", "F16", [2, 2], struct.pack("<4e", 1.0, -65504.0, 2.0**-24, 0.333251953125)),
        ("double", "F64", [1], struct.pack("<d", 0.1)),
        ("int", "I32", [2], struct.pack("<2i", -7, 2147483647)),
        ("scalar", "F32", [], struct.pack("<f", 42.0)),
        ("empty", "F32", [0, 5], b""),
        ("steps", "I64", [1], struct.pack("<q", 12)),
    ]
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, dtype, shape, raw in tensors:
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"shape": shape, "data_offsets": offsets, "dtype": dtype}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_bytes(struct.pack("<Q", len(text)) + text + data)


if __name__ == "__main__":
    main()
