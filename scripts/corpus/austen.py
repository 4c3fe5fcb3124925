"""Six novels of Jane Austen (public domain) from Debian's package r-cran-janeaustenr.

Neither the package nor R need be installed. The texts are character vectors in R's lazy-load
database: Rdata.rdx is an index (name -> offset and length), Rdata.rdb has the compressed objects,
both in R's XDR serialisation (R Internals, section 1.8).
"""
import bz2
import lzma
import os
import struct
import tempfile
import zlib

from . import DataError, debian

PACKAGE = "r-cran-janeaustenr"
FOLDER = "usr/lib/R/site-library/janeaustenr/data"
BOOKS = ["emma", "mansfieldpark", "northangerabbey", "persuasion", "prideprejudice",
         "sensesensibility"]
REMEDY = debian.remedy(PACKAGE)


def read_books():
    """The novels as (name, UTF-8 bytes), from the installed package or from a download."""
    installed = "/" + FOLDER
    if os.path.isfile(os.path.join(installed, "Rdata.rdx")):
        return read_database(installed)
    with tempfile.TemporaryDirectory(prefix="prepare_data_") as folder:
        return read_database(os.path.join(debian.download(PACKAGE, "1.6 MB", folder), FOLDER))


def read_database(folder):
    try:
        with open(os.path.join(folder, "Rdata.rdx"), "rb") as file:
            index = RReader(zlib.decompress(file.read(), zlib.MAX_WBITS | 32)).read()
        with open(os.path.join(folder, "Rdata.rdb"), "rb") as file:
            database = file.read()
        books = []
        for name in BOOKS:
            offset, length = index["variables"][name]
            chunk = database[offset:offset + length]
            lines = RReader(decompress(chunk, index["compressed"][0])).read()
            books.append((name, b"\n".join(lines) + b"\n"))
        return books
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error, zlib.error,
            EOFError, lzma.LZMAError) as error:
        raise DataError(f"{folder}: cannot read the texts in {PACKAGE}'s database "
                        f"({type(error).__name__}: {error}){REMEDY}") from error


def decompress(chunk, kind):
    """kind 1: zlib; 2 and 3: a letter says which of bzip2, xz, zlib, or nothing."""
    length = struct.unpack(">I", chunk[:4])[0]
    letter, body = (b"1", chunk[4:]) if kind == 1 else (chunk[4:5], chunk[5:])
    if letter == b"1":
        data = zlib.decompress(body)
    elif letter == b"2":
        data = bz2.decompress(body)
    elif letter == b"Z":
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]
        data = lzma.decompress(body, lzma.FORMAT_RAW, filters=filters)
    elif letter == b"0":
        data = body
    else:
        raise ValueError(f"unknown compression {letter!r}")
    if len(data) != length:
        raise ValueError(f"{len(data)} bytes after decompression, expected {length}")
    return data


class RReader:
    """Reads one serialised R object made of lists, vectors, strings and attributes. A named list
    becomes a dict, a character vector a list of UTF-8 bytes."""

    SYMBOL, PAIRS, CHARS, LOGICAL, INTEGER, STRINGS, LIST = 1, 2, 9, 10, 13, 16, 19
    NULL, REFERENCE = 254, 255
    LATIN1 = 1 << 2  # among a string's general-purpose bits

    def __init__(self, data):
        self.data, self.at, self.symbols = data, 2, []
        if data[:2] != b"X\n":
            raise ValueError("not R's XDR format")
        version = self.integer()
        self.at += 8  # versions of R that wrote it and that can read it
        if version == 3:
            self.take(self.integer())  # native encoding
        elif version != 2:
            raise ValueError(f"serialisation version {version}, expected 2 or 3")

    def take(self, count):
        if count < 0 or self.at + count > len(self.data):
            raise ValueError("truncated R object")
        self.at += count
        return self.data[self.at - count:self.at]

    def integer(self):
        return struct.unpack(">i", self.take(4))[0]

    def read(self):
        flags = self.integer()
        kind, has_attributes, has_tag = flags & 0xFF, flags & 0x200, flags & 0x400
        if kind == self.NULL:
            return None
        if kind == self.REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == self.SYMBOL:
            self.symbols.append(self.read())
            return self.symbols[-1]
        if kind == self.CHARS:
            length = self.integer()
            text = b"" if length == -1 else self.take(length)  # -1: NA
            latin1 = flags >> 12 & self.LATIN1
            return text.decode("latin-1").encode() if latin1 else text
        if kind == self.PAIRS:
            return self.read_pairs(has_attributes, has_tag)
        if kind in (self.LOGICAL, self.INTEGER):
            count = self.integer()
            value = list(struct.unpack(f">{count}i", self.take(4 * count)))
        elif kind in (self.STRINGS, self.LIST):
            value = [self.read() for _ in range(self.integer())]
        else:
            raise ValueError(f"R object of type {kind}, expected text or a list")
        attributes = self.read() if has_attributes else None
        if kind == self.LIST and attributes and b"names" in attributes:
            return dict(zip((name.decode() for name in attributes[b"names"]), value))
        return value

    def read_pairs(self, has_attributes, has_tag):
        if has_attributes:
            self.read()
        tag = self.read() if has_tag else None
        pairs = {tag: self.read()}
        rest = self.read()
        return {**pairs, **rest} if rest else pairs
