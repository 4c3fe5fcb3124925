"""Byte-level byte pair encoding as GPT-2 does it: the same as llmc/data/bpe.h, in Python.

A vocabulary comes from a .tiktoken file, or from a folder with such a file, with vocab.bpe and
encoder.json, or with merges.txt and vocab.json. With the tiktoken package the encoding is its
work; without, it is done here (about 0.5 MB/s and more as words repeat).
"""
import base64
import binascii
import hashlib
import heapq
import json
import os
import re
import sys
import unicodedata

from . import DataError

PATTERN = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
# SHA-256 of Vocabulary.tiktoken_lines() of GPT-2's vocabulary.
GPT2_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
END_OF_TEXT = "<|endoftext|>"


class Vocabulary:
    """ids: token bytes -> id. pairs: (bytes, bytes) -> rank of the merge, or None where the rank of
    a merge is the id of its result."""

    def __init__(self, path, ids, pairs, end_of_text, size):
        self.path, self.ids, self.pairs = path, ids, pairs
        self.end_of_text, self.size = end_of_text, size
        for byte in range(256):
            if bytes([byte]) not in ids:
                raise DataError(f"{path}: no token for the single byte {byte}; expected a "
                                "byte-level vocabulary with all 256")

    def ranked_by_id(self):
        """Whether the order of merges is the order of ids, as a .tiktoken file assumes."""
        if self.pairs is None:
            return True
        merged = [self.ids[left + right] for left, right in self.pairs]
        return all(a < b for a, b in zip(merged, merged[1:])) and \
            len(merged) + 256 == len(self.ids)

    def tiktoken_lines(self):
        ordered = sorted(self.ids.items(), key=lambda item: item[1])
        return b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)

    def sha256(self):
        digest = hashlib.sha256(self.tiktoken_lines())
        if not self.ranked_by_id():
            digest.update(repr(list(self.pairs)).encode())
        return digest.hexdigest()


def find_vocabulary(path):
    """The vocabulary in a file or folder, or None if there is none."""
    if os.path.isfile(path):
        return read_tiktoken(path)
    if not os.path.isdir(path):
        return None
    for merges, ids in (("vocab.bpe", "encoder.json"), ("merges.txt", "vocab.json")):
        merges, ids = os.path.join(path, merges), os.path.join(path, ids)
        if os.path.isfile(merges) and os.path.isfile(ids):
            return read_merges(path, merges, ids)
    ranks = sorted(name for name in os.listdir(path) if name.endswith(".tiktoken"))
    if len(ranks) > 1:
        raise DataError(f"{path}: several .tiktoken files ({ranks[0]}, {ranks[1]}); name the one "
                        "to use", 2)
    return read_tiktoken(os.path.join(path, ranks[0])) if ranks else None


def read_lines(path):
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            return [line.rstrip("\r\n") for line in file]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the vocabulary: {error}") from error


def read_tiktoken(path):
    ids, used = {}, set()
    for number, line in enumerate(read_lines(path), 1):
        if not line:
            continue
        try:
            digits, rank = line.split()
            token, rank = base64.b64decode(digits, validate=True), int(rank)
        except (ValueError, binascii.Error):
            token, rank = b"", -1
        if not token or rank < 0:
            raise DataError(f"{path}: line {number}: expected a token in base64, a space and its "
                            "rank")
        if token in ids or rank in used:
            raise DataError(f"{path}: line {number}: this token or rank was given before")
        ids[token] = rank
        used.add(rank)
    end_of_text = max(used, default=-1) + 1
    return Vocabulary(path, ids, None, end_of_text, end_of_text + 1)


def byte_alphabet():
    """GPT-2 writes a byte as its Latin-1 character where that is printable, and the other bytes in
    order as characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return alphabet


def read_merges(path, merges_path, ids_path):
    alphabet = byte_alphabet()

    def to_bytes(written):
        return bytes(alphabet[character] for character in written)

    try:
        with open(ids_path, encoding="utf-8") as file:
            written_ids = json.load(file)
        if not isinstance(written_ids, dict) or not written_ids or not all(
                isinstance(i, int) and i >= 0 for i in written_ids.values()):
            raise ValueError("expected an object of token to id")
    except (OSError, ValueError) as error:
        raise DataError(f"{ids_path}: not a vocabulary: {error}") from error
    ids = {to_bytes(written): number for written, number in written_ids.items()
           if written != END_OF_TEXT and written and all(c in alphabet for c in written)}
    pairs = {}
    for number, line in enumerate(read_lines(merges_path), 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        words = line.split(" ")
        if len(words) != 2 or not all(c in alphabet for word in words for c in word):
            raise DataError(f"{merges_path}: line {number}: expected two tokens, as in \"t h\"")
        left, right = map(to_bytes, words)
        if not all(token in ids for token in (left, right, left + right)):
            raise DataError(f"{merges_path}: line {number}: a token of {line!r} is not in "
                            f"{ids_path}; the two files do not belong together")
        pairs.setdefault((left, right), len(pairs))
    return Vocabulary(path, ids, pairs, written_ids.get(END_OF_TEXT),
                      max(written_ids.values()) + 1)


def split_pattern():
    """PATTERN for Python's re, which knows no \\p; \\s is Unicode's White_Space."""
    categories = "".join(unicodedata.category(chr(code))[0] for code in range(sys.maxunicode + 1))

    def inside(category):  # the code points of a category, as the inside of [...]
        return "".join(f"\\U{run.start():08x}-\\U{run.end() - 1:08x}"
                       for run in re.finditer(category + "+", categories))

    letter, number, space = inside("L"), inside("N"), r"\t-\r\x85" + inside("Z")
    pattern = PATTERN.replace(r"(?!\S)", f"(?![^{space}])").replace(r"[^\s", f"[^{space}")
    pattern = pattern.replace(r"\s", f"[{space}]")
    pattern = pattern.replace(r"\p{L}\p{N}", letter + number)
    return re.compile(pattern.replace(r"\p{L}", f"[{letter}]").replace(r"\p{N}", f"[{number}]"))


class Encoder:
    """Text (str) to a list of ids."""

    CACHE_WORDS = 1 << 20

    def __init__(self, vocabulary):
        self.vocabulary, self.cache = vocabulary, {}
        self.words = split_pattern().findall

    def __call__(self, text):
        ids, cache = [], self.cache
        for word in self.words(text):
            known = cache.get(word)
            if known is None:
                known = self.encode_word(word.encode("utf-8", "surrogateescape"))
                if len(cache) < self.CACHE_WORDS and len(word) < 64:
                    cache[word] = known
            ids += known
        return ids

    def rank(self, left, right):
        if self.vocabulary.pairs is None:
            return self.vocabulary.ids.get(left + right)
        return self.vocabulary.pairs.get((left, right))

    def encode_word(self, word):
        """The merge of least rank first, the leftmost of equals; a heap of what is possible."""
        ids = self.vocabulary.ids
        if self.vocabulary.pairs is None and word in ids:
            return [ids[word]]
        count = len(word)
        tokens = [word[i:i + 1] for i in range(count)]  # None: merged into the one before
        before, after = list(range(-1, count - 1)), list(range(1, count + 1))
        heap = []

        def consider(left, right):
            if left >= 0 and right < count:
                rank = self.rank(tokens[left], tokens[right])
                if rank is not None:
                    heapq.heappush(heap, (rank, left, right, tokens[left], tokens[right]))

        for i in range(count - 1):
            consider(i, i + 1)
        while heap:
            _, left, right, left_token, right_token = heapq.heappop(heap)
            if tokens[left] != left_token or tokens[right] != right_token or after[left] != right:
                continue
            tokens[left] += right_token
            tokens[right] = None
            after[left] = after[right]
            if after[left] < count:
                before[after[left]] = left
            consider(before[left], left)
            consider(left, after[left])
        return [ids[token] for token in tokens if token is not None]


def make_encoder(vocabulary):
    """tiktoken's encoder where the package is installed and certain to give the same ids."""
    if vocabulary.pairs is None or vocabulary.sha256() == GPT2_SHA256:
        try:
            import tiktoken
        except ImportError:
            return Encoder(vocabulary)
        encoding = tiktoken.Encoding("vocabulary", pat_str=PATTERN, mergeable_ranks=vocabulary.ids,
                                     special_tokens={})
        return encoding.encode_ordinary
    return Encoder(vocabulary)
