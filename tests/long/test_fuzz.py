"""Coverage-guided fuzzing of every reader (tests/fuzz), a short time each; LMO_FUZZ_SECONDS for longer.

A fuzzer fails by a crash, a sanitizer, an exception that is no lmo::Error, a broken promise, 20 s or 64 MB for one
input. Its finding stays in build/fuzz/crashes, and the message ends with the line that runs it again.
"""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / 'tests' / 'fuzz'))
import run_fuzzers as fuzzing

SECONDS = int(os.environ.get('LMO_FUZZ_SECONDS', '12'))
BROKEN = '''#include <cstddef>
#include <cstdint>
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    if (size >= 2 && data[0] == 'a' && data[1] == 'b') __builtin_trap();
    if (size == 2000) delete[] new char[size_t{100} << 20];
    return 0;
}
'''


class FuzzTest(unittest.TestCase):
    def setUp(self):
        if subprocess.run([ROOT / 'tests' / 'fuzz' / 'has_libfuzzer'], check=False).returncode:
            self.skipTest('no clang++ with libFuzzer here (scripts/setup.sh check installs it)')

    def test_readers(self):
        targets = fuzzing.all_targets()
        self.assertGreaterEqual(len(targets), 9)
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda target: fuzzing.fuzz(target, SECONDS), targets))
        for result in results:
            print('         ' + result.text, flush=True)
        for result in results:
            self.assertFalse(result.failed, result.text)
            seeds = len(list((ROOT / 'tests/fuzz/corpus' / result.target).iterdir()))
            self.assertGreater(result.executions, seeds, f'{result.target}: nothing but the seeds was executed')
            self.assertGreater(result.edges, 100, f'{result.target}: hardly anything was reached')

    def test_a_finding_is_reported(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            program = folder / 'broken'
            subprocess.run(['clang++', '-fsanitize=fuzzer,address', '-x', 'c++', '-', '-o', program], input=BROKEN,
                           text=True, check=True)
            result = fuzzing.fuzz('tokens', 60, program, folder)
            self.assertTrue(result.failed)
            found = list((folder / 'crashes' / 'tokens').iterdir())
            self.assertEqual(len(found), 1)
            self.assertIn(f'run it again: FUZZ_TARGET=tokens {program} ', result.text)
            again = [program, f'-malloc_limit_mb={fuzzing.MEGABYTES}']
            self.assertNotEqual(subprocess.run([*again, found[0]], capture_output=True, check=False).returncode, 0)
            large = folder / 'large'
            large.write_bytes(bytes(2000))
            self.assertNotEqual(subprocess.run([*again, large], capture_output=True, check=False).returncode, 0)
            large.write_bytes(bytes(1999))
            self.assertEqual(subprocess.run([*again, large], capture_output=True, check=False).returncode, 0)
