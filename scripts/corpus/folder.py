"""A prepared folder: train and val token files and meta.json, which is written last and seals it.

Everything is first written to a hidden folder inside, then renamed. The seal has the size of each
file (and the SHA-256 of those that are not huge) and the request that made it: so a second run sees
whether there is anything to do, and a damaged or half-written folder is made again.
"""
import array
import collections
import hashlib
import json
import math
import os
import shutil
import struct
import sys
import time

from . import DataError

MAGIC, VERSION, HEADER_WORDS = 20240520, 1, 256  # llm.c
SHARD_TOKENS = 100_000_000
HASHED_BYTES = 256 << 20  # larger files are known by their size only: a check must be quick
PARTIAL = ".partial-"


def file_seal(path):
    size = os.path.getsize(path)
    if size > HASHED_BYTES:
        return {"bytes": size}
    with open(path, "rb") as file:
        return {"bytes": size, "sha256": hashlib.sha256(file.read()).hexdigest()}


def read_meta(folder):
    """What meta.json says, or None if there is no readable one."""
    try:
        with open(os.path.join(folder, "meta.json"), encoding="utf-8") as file:
            meta = json.load(file)
        return meta if isinstance(meta.get("files"), dict) else None
    except (OSError, ValueError, AttributeError):
        return None


def up_to_date(folder, request):
    """The folder's meta data if it was made by an equal request and is undamaged, else None."""
    meta = read_meta(folder)
    if meta is None or meta.get("request") != request:
        return None
    try:
        intact = all(file_seal(os.path.join(folder, name)) == seal
                     for name, seal in meta["files"].items())
    except OSError:
        return None
    return meta if intact and meta["files"] else None


class Progress:
    """Tells on stderr how far long work is: one line rewritten on a terminal, else one in ten
    seconds."""

    def __init__(self, total=None):
        self.total, self.start, self.shown = total, time.monotonic(), False
        self.period = 0.2 if sys.stderr.isatty() else 10.0
        self.next = self.start + max(self.period, 1.0)

    def update(self, done_bytes, tokens):
        now = time.monotonic()
        if now < self.next:
            return
        self.next = now + self.period
        of_total = f" of {self.total / 1e6:.1f}" if self.total else ""
        line = (f"tokenised {done_bytes / 1e6:.1f}{of_total} MB, {tokens:,} tokens, "
                f"{done_bytes / 1e6 / (now - self.start):.2f} MB/s")
        self.shown = sys.stderr.isatty()
        print("\r\033[K" + line if self.shown else line, end="" if self.shown else "\n",
              file=sys.stderr, flush=True)

    def close(self):
        if self.shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


class TokenWriter:
    """One side of a corpus: headerless uint16 NAME.bin, or llm.c shards NAME_000000.bin, ..."""

    def __init__(self, folder, name, form, shard_tokens=SHARD_TOKENS):
        self.folder, self.name, self.llmc, self.shard_tokens = folder, name, form == "llmc", \
            shard_tokens
        self.file, self.in_file, self.tokens = None, 0, 0
        self.names, self.counts = [], collections.Counter()

    def write(self, tokens):
        ids = array.array("H")
        ids.extend(tokens)
        self.counts.update(ids)
        self.tokens += len(ids)
        if sys.byteorder == "big":
            ids.byteswap()
        while ids:
            if self.file is None:
                self.open()
            room = self.shard_tokens - self.in_file if self.llmc else len(ids)
            self.file.write(ids[:room].tobytes())
            self.in_file += min(room, len(ids))
            ids = ids[room:]
            if self.llmc and self.in_file == self.shard_tokens:
                self.close()

    def open(self):
        suffix = f"_{len(self.names):06d}" if self.llmc else ""
        self.names.append(f"{self.name}{suffix}.bin")
        self.file, self.in_file = open(os.path.join(self.folder, self.names[-1]), "wb"), 0
        if self.llmc:
            self.file.write(bytes(4 * HEADER_WORDS))

    def close(self):
        if self.file is None:
            return
        if self.llmc:
            self.file.seek(0)
            self.file.write(struct.pack("<3i", MAGIC, VERSION, self.in_file))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.file = None


def unigram_loss(train, val, vocab_size):
    """Cross-entropy in nats of the val tokens under the train counts, each plus one."""
    total = sum(train.values()) + vocab_size
    loss = sum(count * -math.log((train[token] + 1) / total) for token, count in val.items())
    return loss / sum(val.values())


class PreparedFolder:
    """Use with `with`: leaving it by an exception leaves the folder as it was."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self.partial = os.path.join(self.folder, f"{PARTIAL}{os.getpid()}")

    def __enter__(self):
        self.missing = self.folder  # the topmost folder that is ours to make, and to remove
        while not os.path.exists(os.path.dirname(self.missing)):
            self.missing = os.path.dirname(self.missing)
        self.made = not os.path.exists(self.missing)
        try:
            os.makedirs(self.folder, exist_ok=True)
            for name in os.listdir(self.folder):  # of runs that were killed
                if name.startswith(PARTIAL) and not is_running(name[len(PARTIAL):]):
                    shutil.rmtree(os.path.join(self.folder, name), ignore_errors=True)
            os.mkdir(self.partial)
        except BaseException:  # a signal, too
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, error, traceback):
        shutil.rmtree(self.partial, ignore_errors=True)
        folder = self.folder
        while kind is not None and self.made and len(folder) >= len(self.missing):
            try:
                os.rmdir(folder)
            except OSError:
                break  # somebody else uses it
            folder = os.path.dirname(folder)

    def seal(self, writers, meta):
        """Moves the files into place, meta.json last."""
        names = [name for writer in writers for name in writer.names]
        meta["files"] = {name: file_seal(os.path.join(self.partial, name)) for name in names}
        with open(os.path.join(self.partial, "meta.json"), "w", encoding="utf-8") as file:
            json.dump(meta, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        before = read_meta(self.folder)
        stale = set(before["files"]) - set(names) if before else set()
        for name in ["meta.json", *stale]:
            if os.path.basename(name) == name and os.path.exists(os.path.join(self.folder, name)):
                os.remove(os.path.join(self.folder, name))
        for name in [*names, "meta.json"]:
            os.replace(os.path.join(self.partial, name), os.path.join(self.folder, name))


def is_running(pid):
    try:
        os.kill(int(pid), 0)
    except PermissionError:
        return True
    except (OSError, ValueError):
        return False
    return True


def write_corpus(folder, pieces, tokenizer, request, meta, form, total_bytes, max_tokens=None):
    """Tokenises (is val, bytes) pieces into a sealed folder; returns its meta data."""
    with PreparedFolder(folder) as prepared:
        train = TokenWriter(prepared.partial, "train", form)
        val = TokenWriter(prepared.partial, "val", form)
        progress, done = Progress(total_bytes), 0
        for is_val, text in pieces:
            (val if is_val else train).write(tokenizer.encode(text))
            done += len(text)
            progress.update(done, train.tokens + val.tokens)
            if max_tokens and train.tokens + val.tokens >= max_tokens:
                break
        progress.close()
        for side, writer in (("training", train), ("validation", val)):
            if writer.tokens == 0:
                raise DataError(f"{done} bytes of text are too little: no {side} tokens; give more "
                                "text, or another --val-fraction")
            writer.close()
        meta = {**meta, "vocab_size": tokenizer.vocab_size, "train_tokens": train.tokens,
                "val_tokens": val.tokens,
                "unigram_val_loss": unigram_loss(train.counts, val.counts, tokenizer.vocab_size),
                "format": form, "request": request}
        prepared.seal([train, val], meta)
        return meta
