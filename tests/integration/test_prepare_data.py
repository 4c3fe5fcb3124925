"""scripts/prepare_data.py as a user runs it, on texts made here; no network."""
import array
import base64
import bz2
import collections
import glob
import json
import lzma
import math
import os
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
import time
import unittest
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SCRIPT = os.path.join(ROOT, "scripts", "prepare_data.py")
GOLDEN = os.path.join(ROOT, "tests", "data", "tokenizer")
sys.path.insert(0, os.path.join(ROOT, "scripts"))
from corpus import DataError, austen, split  # noqa: E402

PARAGRAPH = "The loss of step {0} is {1:.3f}, and it's\nless than before; größer ist es nie.\n\n"


def text_of(paragraphs, start=0):
    return "".join(PARAGRAPH.format(i, 11 / (i + 1)) for i in range(start, start + paragraphs))


def tokens_of(data):
    tokens = array.array("H", data)
    if sys.byteorder == "big":
        tokens.byteswap()
    return tokens.tolist()


class PrepareTest(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix="lmo_prepare_")
        self.addCleanup(holder.cleanup)
        self.folder = holder.name

    def path(self, *names):
        return os.path.join(self.folder, *names)

    def write(self, name, data):
        os.makedirs(os.path.dirname(self.path(name)), exist_ok=True)
        with open(self.path(name), "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
        return self.path(name)

    def read(self, *names):
        with open(self.path(*names), "rb") as file:
            return file.read()

    def meta(self, folder="out"):
        return json.loads(self.read(folder, "meta.json"))

    def start(self, *arguments, **environment):
        # A shell starts what runs in its background with Ctrl-C ignored, which is inherited.
        return subprocess.Popen([sys.executable, "-B", SCRIPT, *arguments], cwd=self.folder,
                                env={**os.environ, **environment}, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def run_script(self, *arguments, status=0, **environment):
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=100)
        self.assertEqual(process.returncode, status, out + err)
        if status in (1, 2):
            self.assertRegex(err, r"\Aprepare_data.py: error: .*\n\Z")  # one line
        return out + err

    def assert_fails(self, status, words, *arguments, **environment):
        self.assertIn(words, self.run_script(*arguments, status=status, **environment))


class TextTest(PrepareTest):
    def test_bytes(self):
        text = text_of(2000)
        self.write("a.txt", text)
        out = self.run_script("text", "a.txt", "--out", "deep/er/out")
        self.assertNotIn("warning", out.lower())
        train, val = (bytes(tokens_of(self.read("deep/er/out", name)))
                      for name in ("train.bin", "val.bin"))
        # Nothing is lost and nothing is in both.
        paragraphs = [part for part in text.split("\n\n") if part]
        found = [part for part in (train + val).decode().split("\n\n") if part]
        self.assertEqual(sorted(found), sorted(paragraphs))
        self.assertAlmostEqual(len(val) / len(text), 0.05, delta=0.01)
        held_out = [paragraphs.index(part) / len(paragraphs)
                    for part in val.decode().split("\n\n") if part]
        for quarter in range(4):  # from all over the text
            self.assertTrue(any(quarter <= 4 * place < quarter + 1 for place in held_out))

        meta = self.meta("deep/er/out")
        self.assertEqual((meta["source"], meta["tokenizer"], meta["vocab_size"]),
                         ("text", "bytes", 256))
        self.assertEqual((meta["train_tokens"], meta["val_tokens"]), (len(train), len(val)))
        counts = collections.Counter(train)
        loss = -sum(math.log((counts[byte] + 1) / (len(train) + 256)) for byte in val) / len(val)
        self.assertAlmostEqual(meta["unigram_val_loss"], loss, places=9)
        self.assertEqual(sorted(os.listdir(self.path("deep/er/out"))),
                         ["meta.json", "train.bin", "val.bin"])

    def test_llmc_format_holds_the_same_tokens(self):
        self.write("a.txt", text_of(300))
        self.run_script("text", "a.txt", "--out", "out")
        self.run_script("text", "a.txt", "--out", "shards", "--format", "llmc")
        for name in ("train", "val"):
            shard = self.read("shards", name + "_000000.bin")
            tokens = self.read("out", name + ".bin")
            self.assertEqual(struct.unpack("<4i", shard[:16]), (20240520, 1, len(tokens) // 2, 0))
            self.assertEqual(shard[1024:], tokens)
        # The other format in the same folder replaces the files of the first.
        self.run_script("text", "a.txt", "--out", "shards")
        self.assertEqual(sorted(os.listdir(self.path("shards"))),
                         ["meta.json", "train.bin", "val.bin"])

    def test_folders(self):
        self.write("in/b.txt", text_of(50))
        self.write("in/sub/a.txt", text_of(50, 50))
        self.write("in/.hidden.txt", "SECRET " * 99)
        self.write("in/image.png", b"\x89PNG\xff\xfe")
        out = self.run_script("text", "in", "--out", "in/out")
        self.assertIn("skipped 1 of 3 files", out)
        train = bytes(tokens_of(self.read("in/out/train.bin"))).decode()
        self.assertNotIn("SECRET", train)
        self.assertLess(train.index("step 49 "), train.index("step 51 "))  # sorted; both are there
        self.assertIn("up to date", self.run_script("text", "in", "--out", "in/out"))

    def test_second_run_is_up_to_date_and_damage_is_repaired(self):
        self.write("a.txt", text_of(300))
        command = ("text", "a.txt", "--out", "out")
        self.run_script(*command)
        before = {name: self.read("out", name) for name in ("train.bin", "val.bin", "meta.json")}
        self.assertIn("up to date", self.run_script(*command))
        self.assertNotIn("up to date", self.run_script(*command, "--force"))

        flipped = bytearray(before["val.bin"])
        flipped[10] ^= 1
        for name, data in (("val.bin", before["val.bin"][:-2]), ("val.bin", bytes(flipped)),
                           ("train.bin", None), ("meta.json", None), ("meta.json", b'{"so'),
                           ("meta.json", b"[]"), ("meta.json", b'{"files": {}}')):
            with self.subTest(name=name, data=data and data[:9]):
                os.remove(self.path("out", name))
                if data is not None:
                    self.write("out/" + name, data)
                self.assertNotIn("up to date", self.run_script(*command))
                for each, content in before.items():
                    self.assertEqual(self.read("out", each), content)
        self.assertNotIn("up to date", self.run_script(*command, "--val-fraction", "0.2"))
        self.write("a.txt", text_of(301))
        self.assertNotIn("up to date", self.run_script(*command, "--val-fraction", "0.2"))

    def test_errors(self):
        self.write("a.txt", text_of(100))
        self.write("latin1.txt", "fa\xe7ade".encode("latin-1"))
        self.write("empty.txt", "")
        out = ("--out", "out")
        self.assert_fails(2, "--out", "text", "a.txt")
        self.assert_fails(2, "austen|python-docs|text|fineweb")
        self.assert_fails(2, "invalid choice: 'web'", "web")
        self.assert_fails(2, "1.5 is not between 0 and 1", "text", "a.txt", *out,
                          "--val-fraction", "1.5")
        self.assert_fails(2, "nothing.txt: no such file", "text", "nothing.txt", *out)
        self.assert_fails(2, "--tokenizer spam: expected bytes", "text", "a.txt", *out,
                          "--tokenizer", "spam")
        self.assert_fails(1, "latin1.txt: byte 2: not UTF-8", "text", "a.txt", "latin1.txt", *out)
        self.assert_fails(1, "0 bytes of text are too little", "text", "empty.txt", *out)
        self.assert_fails(1, "no validation tokens", "text", self.write("b.txt", "few"), *out)
        self.assert_fails(1, "data/gpt2/", "text", "a.txt", *out, "--tokenizer", "gpt2",
                          PYTHONPATH=os.path.dirname(self.write("no/tiktoken.py",
                                                                "raise ImportError")))
        self.assert_fails(1, "a.txt", "text", "a.txt", "--out", "a.txt/out")
        self.assertFalse(os.path.exists(self.path("out")))

    def test_an_error_leaves_the_folder_as_it_was(self):
        self.write("a.txt", text_of(100))
        self.run_script("text", "a.txt", "--out", "out")
        before = {name: self.read("out", name) for name in os.listdir(self.path("out"))}
        self.write("bad.txt", b"\xff")
        self.assert_fails(1, "bad.txt", "text", "a.txt", "bad.txt", "--out", "out")
        self.assertEqual({name: self.read("out", name) for name in os.listdir(self.path("out"))},
                         before)


class SplitTest(unittest.TestCase):
    def test_blocks_cover_the_text(self):
        texts = [b"", b"a", b"x" * 5000, "ä".encode() * 5000, b"word " * 2000, b"line\n" * 2000,
                 text_of(200).encode(), text_of(200).replace("\n", "\r\n").encode()]
        for text in texts:
            blocks = list(split.cut_blocks(text, 1000))
            self.assertEqual(b"".join(blocks), text)
            for block in blocks:
                block.decode()  # no character is cut
                self.assertLessEqual(len(block), 2003)
            for block in blocks[:-1]:
                self.assertGreaterEqual(len(block), 1000)

    def test_paragraphs_stay_whole(self):
        for end in ("\n", "\r\n"):
            text = text_of(200).replace("\n", end).encode()
            for block in split.cut_blocks(text, 1000):
                self.assertTrue(block.startswith(b"The loss") and block.endswith(2 * end.encode()))

    def test_fraction(self):
        for fraction in (0.001, 0.05, 0.3, 0.5, 0.9):
            chooser = split.Chooser(fraction)
            blocks = [b"x" * (1 + i * 37 % 100) for i in range(4000)]
            chosen = [block for block in blocks if chooser.validation(block)]
            share = sum(map(len, chosen)) / sum(map(len, blocks))
            self.assertAlmostEqual(share, fraction, delta=0.001)


class BpeTest(PrepareTest):
    """Against the cases of dev/reference/tokenizer_golden.py; with and without tiktoken."""

    def test_documents_are_the_reference_tokens(self):
        with open(os.path.join(GOLDEN, "cases.json"), encoding="ascii") as file:
            cases = [case for case in json.load(file) if case["text"]]
        names = []
        for i, case in enumerate(cases):
            names.append(self.write(f"in/{i:03d}.txt", case["text"]))
        expected = sorted(tuple(case["ids"]) for case in cases)
        without = self.write("no/tiktoken.py", "raise ImportError")
        for path in (GOLDEN, os.path.join(GOLDEN, "tiny.tiktoken"), os.path.join(GOLDEN, "merges")):
            for environment in ({}, {"PYTHONPATH": os.path.dirname(without)}):
                self.run_script("text", *names, "--out", "out", "--tokenizer", path, "--force",
                                **environment)
                ids = tokens_of(self.read("out/train.bin") + self.read("out/val.bin"))
                documents, document = [], []
                for number in ids:
                    if number == 556:  # end of text
                        documents.append(tuple(document))
                        document = []
                    else:
                        document.append(number)
                self.assertEqual(document, [])
                self.assertEqual(sorted(documents), expected)
        meta = self.meta()
        self.assertEqual(meta["vocab_size"], 557)
        self.assertFalse(os.path.exists(self.path("data")))  # it is not GPT-2's vocabulary

    def test_gpt2_is_looked_for_in_data_gpt2(self):
        self.write("a.txt", text_of(100))
        with open(os.path.join(GOLDEN, "tiny.tiktoken"), "rb") as file:
            self.write("data/gpt2/gpt2.tiktoken", file.read())
        self.run_script("text", "a.txt", "--out", "out", "--tokenizer", "gpt2")
        self.assertEqual(self.meta()["tokenizer"], "gpt2")

    def test_damaged_vocabularies(self):
        self.write("a.txt", text_of(100))

        def fails(words, path):
            self.assert_fails(1, words, "text", "a.txt", "--out", "out", "--tokenizer", path)

        every = b"".join(base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256))
        fails("x.tiktoken: no token for the single byte 0", self.write("x.tiktoken", ""))
        fails("x.tiktoken: line 2: expected", self.write("x.tiktoken", "IQ== 0\nIg== one\n"))
        fails("x.tiktoken: line 257: this token or rank",
              self.write("x.tiktoken", every + b"IQ== 900\n"))
        fails("x.tiktoken: cannot read", self.write("x.tiktoken", b"\xff\xff"))
        fails("70002 tokens, but token files hold ids below 65536",
              self.write("x.tiktoken", every + b"YWI= 70000\n"))
        with open(os.path.join(GOLDEN, "merges", "encoder.json"), encoding="utf-8") as file:
            ids = json.load(file)
        self.write("v/vocab.json", json.dumps(ids))
        self.write("v/merges.txt", "q q\n")
        fails("merges.txt: line 1: a token of 'q q'", "v")
        self.write("v/merges.txt", "")
        del ids["<|endoftext|>"]
        self.write("v/vocab.json", json.dumps(ids))
        fails("no <|endoftext|> token", "v")
        self.write("v/vocab.json", "[]")
        fails("vocab.json: not a vocabulary", "v")


def r_string(text, flags=0x40009):
    return struct.pack(">Ii", flags, len(text)) + text


def r_strings(texts):
    return struct.pack(">Ii", 16, len(texts)) + b"".join(map(r_string, texts))


def r_object(body, version=3):
    encoding = struct.pack(">i", 5) + b"UTF-8" if version == 3 else b""
    return b"X\n" + struct.pack(">iii", version, 0x40200, 0x30500) + encoding + body


def r_list(names, values, symbol):
    """A list with names: attributes are a pair list; the symbol `names` is spelt once."""
    return struct.pack(">Ii", 0x213, len(values)) + b"".join(values) + struct.pack(">I", 0x402) + \
        symbol + r_strings(names) + struct.pack(">I", 0xFE)


def r_integers(*values):
    return struct.pack(">Ii", 13, len(values)) + struct.pack(f">{len(values)}i", *values)


class AustenTest(PrepareTest):
    def database(self, folder, kind, version=3, packer=zlib.compress, letter=b""):
        books = {name: [b"It was the time of " + name.encode(), b"", "Emma's café".encode()] +
                 text_of(40).encode().split(b"\n") for name in austen.BOOKS}
        database, places = b"", []
        for lines in books.values():
            data = r_object(r_strings(lines), version)
            chunk = struct.pack(">I", len(data)) + letter + packer(data)
            places.append(r_integers(len(database), len(chunk)))
            database += chunk
        spelt, again = struct.pack(">I", 1) + r_string(b"names"), struct.pack(">I", 0x1FF)
        variables = r_list([name.encode() for name in books], places, spelt)
        index = r_list([b"variables", b"compressed"], [variables, r_integers(kind)], again)
        self.write(f"{folder}/Rdata.rdx", zlib.compress(r_object(index, version)))
        self.write(f"{folder}/Rdata.rdb", database)
        return {name: b"\n".join(lines) + b"\n" for name, lines in books.items()}

    def test_reads_r_databases(self):
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 6}]
        packers = [(1, zlib.compress, b""), (2, bz2.compress, b"2"), (3, zlib.compress, b"1"),
                   (3, lambda data: lzma.compress(data, lzma.FORMAT_RAW, filters=filters), b"Z"),
                   (3, bytes, b"0")]
        for kind, packer, letter in packers:
            for version in (2, 3):
                books = self.database("db", kind, version, packer, letter)
                self.assertEqual(dict(austen.read_database(self.path("db"))), books)

    def test_latin1_and_missing_strings(self):
        data = struct.pack(">Ii", 16, 2) + r_string(b"caf\xe9", 4 << 12 | 9) + \
            struct.pack(">Ii", 9, -1)
        self.assertEqual(austen.RReader(r_object(data)).read(), ["café".encode(), b""])

    def test_damaged_databases(self):
        self.database("db", 1)
        index, database = self.read("db/Rdata.rdx"), self.read("db/Rdata.rdb")
        for name, data in (("Rdata.rdb", database[:-9]), ("Rdata.rdb", b""), ("Rdata.rdx", b"XX"),
                           ("Rdata.rdx", index[:-9]), ("Rdata.rdx", zlib.compress(b"X\nfoo")),
                           ("Rdata.rdb", database[:300] + b"!!" + database[302:])):
            self.write("db/Rdata.rdx", index)
            self.write("db/Rdata.rdb", database)
            self.write("db/" + name, data)
            with self.assertRaises(DataError):
                austen.read_database(self.path("db"))

    def tool(self, name, script):
        path = self.write("tools/" + name, "#!/bin/sh\n" + script)
        os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)

    @unittest.skipIf(os.path.exists("/" + austen.FOLDER), "r-cran-janeaustenr is installed")
    def test_download(self):
        tools = self.path("tools") + os.pathsep + os.environ["PATH"]
        books = self.database("db", 1)
        self.tool("apt-get", "echo 'W: not in a sandbox' >&2\n: > r-cran-janeaustenr.deb\n")
        self.tool("dpkg-deb", f'mkdir -p "$3/{austen.FOLDER}"\n'
                              f'cp {self.path("db")}/* "$3/{austen.FOLDER}"\n')
        out = self.run_script("austen", PATH=tools)
        self.assertNotIn("sandbox", out)
        train, val = (bytes(tokens_of(self.read("data/austen", name)))
                      for name in ("train.bin", "val.bin"))
        for name in books:
            self.assertIn(f"the time of {name}".encode(), train + val)
        self.assertIn("up to date", self.run_script("austen", PATH=tools))
        self.assertEqual(self.meta("data/austen")["source"], "austen")

        self.tool("apt-get", "echo 'E: Unable to locate package' >&2\nexit 100\n")
        self.assertIn("up to date", self.run_script("austen", PATH=tools))
        for words in ("E: Unable to locate package", "prepare_data.py text FILE..."):
            self.assert_fails(1, words, "austen", "--out", "other", PATH=tools)
        self.assert_fails(1, "apt-get is not on this machine", "austen", "--out", "other",
                          PATH=self.path("nowhere"))
        self.assertFalse(os.path.exists(self.path("other")))

    @unittest.skipIf(glob.glob("/usr/share/doc/python3.*/html/_sources"), "Python's documentation is installed")
    def test_python_docs(self):
        tools = self.path("tools") + os.pathsep + os.environ["PATH"]
        pages = "$3/usr/share/doc/python3.99/html/_sources"
        self.tool("apt-cache", "echo python3-doc; echo '  Depends: python3.99-doc'")
        self.tool("apt-get", 'test "$6" = python3.99-doc && : > it.deb')
        self.tool("dpkg-deb", f'mkdir -p "{pages}/b" && echo second > "{pages}/b/x.txt" && echo first > "{pages}/a.txt"')
        self.run_script("python-docs", "--val-fraction", "0.5", PATH=tools)
        tokens = [bytes(tokens_of(self.read("data/python-docs", name))) for name in ("train.bin", "val.bin")]
        self.assertEqual(sorted(b"".join(tokens).split()), [b"first", b"second"])
        self.tool("apt-cache", "echo 'N: Unable to locate package'")
        self.assert_fails(1, "run apt-get update", "python-docs", "--out", "other", PATH=tools)
        self.assert_fails(1, "apt-cache is not on this machine", "python-docs", "--out", "other",
                          PATH=self.path("nowhere"))


class FinewebTest(PrepareTest):
    """With a stand-in for the package datasets."""

    def stand_in(self, name, body):
        source = "import time\ndef load_dataset(path, name, split, streaming):\n" + \
            textwrap.indent(textwrap.dedent(body), "    ")
        return {"PYTHONPATH": os.path.dirname(self.write(f"{name}/datasets.py", source))}

    def test_documents_and_number_of_tokens(self):
        stream = self.stand_in("stream", """
            assert (path, split, streaming) == ("HuggingFaceFW/fineweb", "train", True)
            return ({"text": f"document {i} of {name}"} for i in range(10**9))
            """)
        command = ("fineweb", "--tokenizer", "bytes", "--tokens", "20_000", "--val-fraction", "0.1")
        self.run_script(*command, **stream)
        meta = self.meta("data/fineweb")
        self.assertTrue(20000 <= meta["train_tokens"] + meta["val_tokens"] < 20100)
        val = bytes(tokens_of(self.read("data/fineweb/val.bin")))
        for document in val.decode().split("\n\n")[:-1]:
            self.assertRegex(document, r"\Adocument \d+ of sample-10BT\Z")
        self.assertIn("up to date", self.run_script(*command, **stream))

    def test_without_package_or_network(self):
        self.assert_fails(1, "pip install datasets", "fineweb", "--tokenizer", "bytes",
                          PYTHONPATH=os.path.dirname(self.write("no/datasets.py",
                                                                "raise ImportError")))
        self.assert_fails(1, "ConnectionError: no route", "fineweb", "--tokenizer", "bytes",
                          **self.stand_in("broken", "raise ConnectionError('no route')"))
        self.assertFalse(os.path.exists(self.path("data")))

    def test_kills(self):
        slow = self.stand_in("slow", """
            def documents():
                yield {"text": "a" * 1000}
                time.sleep(100)
            return documents()
            """)
        quick = self.stand_in("quick", "return [{'text': 'b' * 100}] * 1000")
        command = ("fineweb", "--out", "out", "--tokenizer", "bytes", "--val-fraction", "0.1")
        for number, status in ((signal.SIGTERM, 1), (signal.SIGINT, 130), (signal.SIGKILL, -9)):
            process = self.start(*command, **slow)
            for _ in range(1000):
                if os.path.isdir(self.path("out")) and os.listdir(self.path("out")):
                    break
                time.sleep(0.02)
            process.send_signal(number)
            _, err = process.communicate(timeout=50)
            self.assertEqual(process.returncode, status)
            self.assertNotIn("Traceback", err)
            if number == signal.SIGKILL:
                self.assertEqual(len(os.listdir(self.path("out"))), 1)  # could not clean up
            else:
                self.assertFalse(os.path.exists(self.path("out")))
        self.run_script(*command, **quick)
        self.assertEqual(sorted(os.listdir(self.path("out"))),
                         ["meta.json", "train.bin", "val.bin"])


if __name__ == "__main__":
    unittest.main()
