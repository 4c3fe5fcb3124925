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

    def test_sweep_of_stages_and_tiles(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix='lmo-test-'))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        result = self.run_bench('--shapes', '64x136,264x272', '--windows', '1', '--stages', '2,3,5,6,7', '--json',
                                str(folder / 'rows.json'))
        self.assertEqual(result.returncode, 0, result.stderr)  # other stages give the same bits
        rows = [json.loads(line) for line in (folder / 'rows.json').read_text().splitlines()]
        self.assertEqual(len(result.stdout.splitlines()), 1 + len(rows))
        for shape, usual_tile in (('1x64x136', 64), ('1x264x272', 128)):
            mine = [row for row in rows if row['shape'] == shape and row['what'] == 'x x^T']
            usual = [(row['kernel'], row['tile'], row['stages']) for row in mine if 'ms' in row][:4]
            self.assertEqual(usual, [('cublasLt', None, None), ('mma', usual_tile, 4), ('narrow', 128, 5), ('wide', 128, 3)])
            swept = {(row['kernel'], row['tile'], row['stages']) for row in mine if 'ms' in row} - set(usual)
            self.assertEqual(swept, {('mma', 64, 3), ('mma', 64, 6), ('mma', 128, 5), ('mma', 128, 6), ('narrow', 128, 3),
                                     ('wide', 128, 2)})
            left_out = {(row['kernel'], row['tile'], row['stages']): row['left_out'] for row in mine if 'left_out' in row}
            self.assertEqual(left_out[('mma', 128, 3)], 'needs at least 4 stages')
            self.assertRegex(left_out[('narrow', 128, 6)], r'^262\d\d\d bytes of shared memory, a block may have 232448$')
            self.assertRegex(left_out[('wide', 128, 5)], r'^311\d\d\d bytes of shared memory, a block may have 232448$')
            self.assertIn('not compiled', left_out[('mma', 64, 5)])
            self.assertIn(f'narrow 128/6 left out: {left_out[("narrow", 128, 6)]}', result.stdout)
            # Tiles of 64 compute less that nobody asked for.
            executed = {(row['tile'], row['stages']): row['flops_executed'] for row in mine if row['kernel'] == 'mma' and 'ms' in row}
            columns = int(shape.split('x')[2])
            small, large = (1, 1) if shape == '1x64x136' else (15, 6)
            self.assertEqual(executed[(64, 6)], small * 2 * 64 * 64 * columns)
            self.assertEqual(executed[(128, 6)], large * 2 * 128 * 128 * columns)

    def test_wrong_use(self):
        for arguments in (['--shapes', '12'], ['--json', '/no/such/folder/file'], ['--stages', '1'], ['--stages', 'many']):
            result = self.run_bench(*arguments)
            self.assertNotEqual(result.returncode, 0)
            self.assertIn(arguments[1], result.stderr)


if __name__ == '__main__':
    unittest.main()
