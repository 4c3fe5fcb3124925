#!/usr/bin/env python3
"""Makes tests/data/tokenizer/: a tiny byte-level BPE vocabulary in both file formats, and texts
with the pieces and token ids that a reference finds.

The reference is independent of ours: the package regex cuts the text by GPT-2's pattern, and the
encoding is the textbook loop (merge all occurrences of the best pair, look again). Run from the
repository root, with regex installed (Debian: python3-regex):

    python3 dev/reference/tokenizer_golden.py
"""
import base64
import collections
import json
import os
import random

import regex

FOLDER = "tests/data/tokenizer"
MERGES = 300
PATTERN = regex.compile(
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")

# Written for this file.
TRAINING = """
The trainer reads the tokens in one order and the order is the same on every machine. It's the
reader's work to tell where a batch ends; they'll find that it doesn't matter. We've seen that the
loss falls when the rate rises slowly, and I'm sure that you'd see it too if you were there.
In the first 100 steps the loss falls from 11 to 7, in the next 1000 steps from 7 to 4.
    for step in range(steps):
        loss = train(step)
        print(step, loss)
Die Größe der Schritte wächst mit dem Abstand. L'été, la forêt était très éloignée de la mer.
Скорость обучения растёт, потом падает. 学习率先上升，然后下降。学习率先上升。
The theory says: the further from the minimum, the steeper the ground; the steeper, the smaller
the step. There, then, the other thing that the theory thinks through is the end of the thread.
"""

TEXTS = [
    "", " ", "  ", "\n", "a", "Hello world", "  two  spaces  ", " trailing space ",
    "tab\tand\nline\n\n", "it's they're we've I'm you'll he'd can't", "IT'S O'CLOCK 's'x 're''ve",
    " 's 't ' d'", "don''t", "in 1000 steps, 3.14 or 2nd; x1y2", "½ ² Ⅷ ٣ 三 ", "Größe wächst",
    "L'été était là", "学习率 先上升", "Скорость растёт.", "e\u0301 combining", "emoji 🙂🙃 👍🏽!",
    "nbsp\u00a0and\u3000wide\u2003em", "\u2028line\u2029para\u0085next",
    "zero\u200bwidth\ufeffbom", "\x1c\x1d\x1e\x1f separators", "\x00\x01", "a\r\nb\r\n\r\n  c",
    "    for step in range(steps):\n        loss = train(step)\n", "!?... --- ***",
    " !a 1a! a1 !1", "𝔘𝔫𝔦 𝟙𝟚 𐍈", "<|endoftext|>", "the theory thinks through the thread" * 3,
    "t" * 50, " " * 37 + "x", "\n" * 9 + "\t\t ",
]
ALPHABET = list("aZé中1²½'strevmld  \n\t!-") + ["\u00a0", "\u3000", "🙂", "\u0301", "\u200b", "\x1c", "𐍈"]


def byte_characters():
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        characters.setdefault(byte, chr(256 + len(characters) - len(printable)))
    return characters


def merge_all(word, pair):
    merged, i = [], 0
    while i < len(word):
        if i + 1 < len(word) and (word[i], word[i + 1]) == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def train():
    words = collections.Counter(PATTERN.findall(TRAINING))
    parts = {word: [bytes([b]) for b in word.encode()] for word in words}
    merges = []
    while len(merges) < MERGES:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(parts[word], parts[word][1:]):
                pairs[pair] += count
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        parts = {word: merge_all(part, best) for word, part in parts.items()}
    return merges


def encode(text, rank, ids):
    found = []
    for piece in PATTERN.findall(text):
        word = [bytes([b]) for b in piece.encode()]
        while True:
            possible = [pair for pair in zip(word, word[1:]) if pair in rank]
            if not possible:
                break
            word = merge_all(word, min(possible, key=rank.get))
        found += [ids[token] for token in word]
    return found


def main():
    os.makedirs(os.path.join(FOLDER, "merges"), exist_ok=True)
    characters = byte_characters()
    written = lambda token: "".join(characters[byte] for byte in token)
    merges = train()
    # GPT-2's order of the first 256 ids: printable bytes first.
    tokens = [bytes([b]) for b in sorted(characters, key=lambda b: ord(characters[b]))]
    tokens += [left + right for left, right in merges]
    ids = {token: i for i, token in enumerate(tokens)}
    rank = {pair: i for i, pair in enumerate(merges)}
    with open(os.path.join(FOLDER, "tiny.tiktoken"), "wb") as file:
        for token, i in ids.items():
            file.write(base64.b64encode(token) + b" %d\n" % i)
    with open(os.path.join(FOLDER, "merges/vocab.bpe"), "w", encoding="utf-8") as file:
        file.write("#version: 0.2\n")
        file.writelines(f"{written(left)} {written(right)}\n" for left, right in merges)
    with open(os.path.join(FOLDER, "merges/encoder.json"), "w", encoding="utf-8") as file:
        json.dump({**{written(token): i for token, i in ids.items()},
                   "<|endoftext|>": len(ids)}, file)

    draw = random.Random(1)
    texts = TEXTS + ["".join(draw.choices(ALPHABET, k=draw.randint(2, 24))) for _ in range(120)]
    cases = [{"text": text, "pieces": PATTERN.findall(text), "ids": encode(text, rank, ids)}
             for text in texts]
    with open(os.path.join(FOLDER, "cases.json"), "w", encoding="ascii") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


main()
