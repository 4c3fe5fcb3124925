"""dev/bench/newton_schulz in the emulator: every kernel and form has a row, and is as near to the polynomial as
emulated arithmetic of its precision in NumPy was (gpu.md, section 6: the wider of the two spectra)."""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from cli import ROOT

PROGRAM = pathlib.Path(os.environ.get('LMO_BUILD', ROOT / 'build')) / 'emulated' / 'plain' / 'newton_schulz_bench'
WORST = {'cublasLt': 8e-3, 'fp16': 8e-3, 'bf16': 6e-2, 'gram fp16': 4e-2}


@unittest.skipUnless(os.environ.get('LMO_CUDA_HEADERS', 'yes'), 'no headers of a CUDA toolkit')
class NewtonSchulzBenchTest(unittest.TestCase):
    def run_bench(self, *arguments):
        return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=900)

    def test_rows_and_errors(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix='lmo-test-'))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        result = self.run_bench('--shapes', '64x64x2,264x400', '--windows', '1', '--errors', '--json',
                                str(folder / 'rows.json'))
        self.assertEqual(result.returncode, 0, result.stderr)
        rows = [json.loads(line) for line in (folder / 'rows.json').read_text().splitlines()]
        self.assertEqual(len(result.stdout.splitlines()), 1 + len(rows))
        for shape in ('2x64x64', '1x264x400'):
            mine = [row for row in rows if row['shape'] == shape]
            for product in ('x x^T', 'c r r + b r + a I'):
                self.assertEqual([row['kernel'] for row in mine if row['what'] == product],
                                 ['cublasLt', 'mma', 'narrow', 'wide'])
            whole = [row for row in mine if 'error' in row]
            self.assertEqual(len(whole), 12)
            for row in whole:
                self.assertLess(row['error'], WORST[row['kernel']], row)
                self.assertGreater(row['error'], 1e-5, row)
        large = {row['kernel']: row['flops_executed'] for row in rows
                 if row['shape'] == '1x264x400' and row['what'] == 'x x^T'}
        self.assertEqual(large['cublasLt'], 2 * 264 * 264 * 400)
        self.assertEqual(large['mma'], 2 * 6 * 128 * 128 * 400)  # of 9 tiles of 128

    def test_wrong_use(self):
        for arguments in (['--shapes', '12'], ['--json', '/no/such/folder/file']):
            result = self.run_bench(*arguments)
            self.assertEqual(result.returncode, 1)
            self.assertIn(arguments[1], result.stderr)


if __name__ == '__main__':
    unittest.main()
