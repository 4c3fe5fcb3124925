#!/usr/bin/env python3
"""Prepares text for training: train.bin, val.bin (uint16 tokens), meta.json.

  prepare_data.py austen         six novels of Jane Austen, by apt-get, no root
  prepare_data.py python-docs    Python's documentation (11 MB), likewise
  prepare_data.py text FILE|FOLDER... --out DIR    your own UTF-8 text
  prepare_data.py fineweb --tokens 1000000000      FineWeb, where network and
                                                   packages allow

Validation text is taken evenly from the whole corpus: text is cut into blocks
of about 8 KiB at blank lines and, by default, every 20th block is held out; the
choice depends on nothing but the text. A stretch of blocks of one text on one
side is a document: with a BPE tokenizer it is followed by the end-of-text token
(50256 in GPT-2's vocabulary), with bytes it ends in one blank line.

A second run with the same command finds the folder up to date and returns at
once; a damaged one is made again. Needs Python 3 and nothing else; uses
tiktoken if it is installed.
"""
import argparse
import hashlib
import os
import signal
import sys

from corpus import DataError, austen, bpe, python_docs
from corpus.folder import up_to_date, write_corpus
from corpus.split import block_bytes, pieces

REQUEST_VERSION = 1  # raise it when the same command would give other tokens
GPT2_FOLDER = os.path.join("data", "gpt2")


class ByteTokenizer:
    vocab_size, identity = 256, "bytes"

    @staticmethod
    def encode(text):
        return text.rstrip(b"\r\n") + b"\n\n"


class BpeTokenizer:
    def __init__(self, vocabulary):
        if vocabulary.end_of_text is None:
            raise DataError(f"{vocabulary.path}: no {bpe.END_OF_TEXT} token; expected one to end "
                            "documents with")
        if vocabulary.size > 1 << 16:
            raise DataError(f"{vocabulary.path}: {vocabulary.size} tokens, but token files hold "
                            "ids below 65536; use a smaller vocabulary")
        self.vocabulary, self.vocab_size = vocabulary, vocabulary.size
        self.identity = vocabulary.sha256()
        self.encoder = None

    def encode(self, text):
        self.encoder = self.encoder or bpe.make_encoder(self.vocabulary)
        return [*self.encoder(text.decode()), self.vocabulary.end_of_text]


def make_tokenizer(name):
    if name == "bytes":
        return ByteTokenizer()
    vocabulary = bpe.find_vocabulary(GPT2_FOLDER if name == "gpt2" else name)
    if vocabulary is None and name == "gpt2":
        vocabulary = gpt2_from_tiktoken()
    if vocabulary is None:
        raise DataError(f"--tokenizer {name}: expected bytes, gpt2, a .tiktoken file, or a folder "
                        "with a .tiktoken file, vocab.bpe and encoder.json, or merges.txt and "
                        "vocab.json", 2)
    tokenizer = BpeTokenizer(vocabulary)
    if tokenizer.identity == bpe.GPT2_SHA256 and bpe.find_vocabulary(GPT2_FOLDER) is None:
        # train_gpt's tokenizer "gpt2" looks there.
        path = os.path.join(GPT2_FOLDER, "gpt2.tiktoken")
        os.makedirs(GPT2_FOLDER, exist_ok=True)
        with open(path + ".tmp", "wb") as file:
            file.write(vocabulary.tiktoken_lines())
        os.replace(path + ".tmp", path)
        print(f"left GPT-2's vocabulary in {path} for train_gpt")
    return tokenizer


def gpt2_from_tiktoken():
    """GPT-2's vocabulary as the tiktoken package downloads it."""
    remedy = (f"; put a vocabulary into {GPT2_FOLDER}/ (vocab.bpe and encoder.json, or "
              "gpt2.tiktoken), name one by --tokenizer PATH, or use --tokenizer bytes")
    try:
        import tiktoken
    except ImportError:
        raise DataError(f"--tokenizer gpt2: no vocabulary in {GPT2_FOLDER}/, and Python's package "
                        "tiktoken is not installed" + remedy) from None
    try:
        # Of the public interface only this gives the bytes of each id.
        encoding = tiktoken.get_encoding("gpt2")
        ids = {encoding.decode_single_token_bytes(i): i for i in range(encoding.eot_token)}
    except Exception as error:  # requests' errors: the package is not ours to name them
        raise DataError(f"--tokenizer gpt2: tiktoken cannot download the vocabulary "
                        f"({type(error).__name__})" + remedy) from error
    return bpe.Vocabulary("tiktoken", ids, None, len(ids), len(ids) + 1)


def find_texts(paths, out):
    """The files named, and those in the folders named; (path, whether it was named itself)."""
    found = []
    for path in paths:
        if os.path.isfile(path):
            found.append((path, True))
        elif os.path.isdir(path):
            for folder, folders, names in os.walk(path):
                folders[:] = sorted(name for name in folders if not name.startswith(".") and
                                    os.path.realpath(os.path.join(folder, name)) !=
                                    os.path.realpath(out))
                found += [(os.path.join(folder, name), False) for name in sorted(names)
                          if not name.startswith(".") and
                          os.path.isfile(os.path.join(folder, name))]
        else:
            raise DataError(f"{path}: no such file or folder", 2)
    return found


def read_texts(files):
    skipped = 0
    for path, named in files:
        try:
            with open(path, "rb") as file:
                text = file.read()
            text.decode()
        except UnicodeDecodeError as error:
            if named:
                raise DataError(f"{path}: byte {error.start}: not UTF-8 text; convert it, for "
                                f"example with iconv -t UTF-8") from error
            skipped += 1
            continue
        except OSError as error:
            raise DataError(f"{path}: cannot read: {error.strerror}") from error
        yield text
    if skipped:
        print(f"skipped {skipped} of {len(files)} files that are not UTF-8 text")


def text_fingerprint(files):
    """Changes when a file is added, removed or written."""
    digest = hashlib.sha256()
    for path, _ in files:
        status = os.stat(path)
        digest.update(f"{os.path.realpath(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode(
            "utf-8", "surrogateescape"))
    return digest.hexdigest()


def fineweb_documents(subset):
    try:
        import datasets
    except ImportError:
        raise DataError("FineWeb needs Python's package datasets: python3 -m pip install datasets "
                        "tiktoken; without it, use prepare_data.py austen or prepare_data.py text "
                        "FILE... --out DIR") from None
    try:
        stream = datasets.load_dataset("HuggingFaceFW/fineweb", name=subset, split="train",
                                       streaming=True)
        for document in stream:
            yield document["text"].encode()
    except Exception as error:  # of whatever the packages under it raise
        message = (str(error).strip().splitlines() or [""])[0]
        raise DataError(f"cannot read FineWeb from huggingface.co ({type(error).__name__}: "
                        f"{message}); check the network and run the same command again") from error


def prepare(arguments):
    tokenizer = make_tokenizer(arguments.tokenizer)
    fraction, source = arguments.val_fraction, arguments.source
    request = {"version": REQUEST_VERSION, "source": source, "tokenizer": tokenizer.identity,
               "val_fraction": fraction, "format": arguments.format}
    files = []
    if source == "text":
        files = find_texts(arguments.paths, arguments.out)
        request["texts"] = text_fingerprint(files)
    elif source == "fineweb":
        request.update(tokens=arguments.tokens, subset=arguments.subset)

    meta = None if arguments.force else up_to_date(arguments.out, request)
    if meta is not None:
        print(f"{arguments.out} is up to date")
        return
    total, size, max_tokens = None, None, None
    if source == "austen":
        documents = [text for _, text in austen.read_books()]
        total = sum(map(len, documents))
    elif source == "python-docs":
        documents = python_docs.read_pages()
        total = sum(map(len, documents))
    elif source == "text":
        documents = read_texts(files)
        total = sum(os.path.getsize(path) for path, _ in files)
    else:
        documents, max_tokens = fineweb_documents(arguments.subset), arguments.tokens
    if source == "fineweb":
        held_out = "whole documents, evenly from the stream"
    else:
        size = block_bytes(total, fraction)
        held_out = f"blocks of about {size} bytes, evenly from all texts"
    meta = {"source": source, "tokenizer": arguments.tokenizer,
            "validation": f"{fraction:g} of the text: {held_out}"}
    meta = write_corpus(arguments.out, pieces(documents, size, fraction), tokenizer, request, meta,
                        arguments.format, total, max_tokens)
    print(f"{arguments.out}: {meta['train_tokens']:,} tokens for training, "
          f"{meta['val_tokens']:,} for validation ({meta['validation']})")
    print(f"tokenizer {arguments.tokenizer}, vocabulary {meta['vocab_size']}; a unigram model's "
          f"validation loss is {meta['unigram_val_loss']:.4f} nats per token")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"prepare_data.py: error: {message} (see --help)\n")


def share(text):
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def count(text):
    value = int(text.replace("_", ""))
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def parse(argv):
    parser = Parser(prog="prepare_data.py", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_subparsers(dest="source", metavar="austen|python-docs|text|fineweb", required=True)
    helps = {"austen": "Jane Austen's novels from Debian's package r-cran-janeaustenr",
             "python-docs": "Python's documentation from Debian's package python3-doc",
             "text": "UTF-8 text files; a folder means all text files in it",
             "fineweb": "FineWeb from huggingface.co (needs the package datasets)"}
    for name, text in helps.items():
        source = sources.add_parser(name, help=text, description=text)
        if name == "text":
            source.add_argument("paths", nargs="+", metavar="FILE|FOLDER")
        source.add_argument("--out", metavar="DIR", required=name == "text",
                            default=os.path.join("data", name), help="default: data/" + name
                            if name != "text" else "folder to write")
        source.add_argument("--tokenizer", default="gpt2" if name == "fineweb" else "bytes",
                            metavar="bytes|gpt2|PATH", help="default: %(default)s")
        source.add_argument("--val-fraction", type=share, metavar="F",
                            default=0.001 if name == "fineweb" else 0.05,
                            help="share of text held out (default: %(default)s)")
        source.add_argument("--format", choices=["uint16", "llmc"], default="uint16",
                            help="headerless (default), or llm.c's shards with header")
        source.add_argument("--force", action="store_true", help="even if it is up to date")
        if name == "fineweb":
            source.add_argument("--tokens", type=count, default=1_000_000_000, metavar="N",
                                help="stop at N tokens (default: %(default)s)")
            source.add_argument("--subset", default="sample-10BT",
                                help="default: %(default)s; also sample-100BT, sample-350BT")
    return parser.parse_args(argv)


def main(argv):
    arguments = parse(argv)
    # A kill cleans up as an error does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        prepare(arguments)
    except DataError as error:
        print(f"prepare_data.py: error: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"prepare_data.py: error: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("prepare_data.py: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
