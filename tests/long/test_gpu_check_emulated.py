"""scripts/gpu_check.sh with the programs built for the emulator: its parts run, and say what they did."""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

from cli import ROOT

# As make names it: its lists of dependencies are of these names.
BUILD = pathlib.Path(os.environ.get('LMO_BUILD', ROOT / 'build'))
BUILD = BUILD.relative_to(ROOT) if BUILD.is_relative_to(ROOT) else BUILD


@unittest.skipUnless(os.environ.get('LMO_CUDA_HEADERS', 'yes'), 'no headers of a CUDA toolkit')
class GpuCheckTest(unittest.TestCase):
    def test_all_parts_emulated(self):
        folder = pathlib.Path(tempfile.mkdtemp(prefix='lmo-test-'))
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        result = subprocess.run([ROOT / 'scripts' / 'gpu_check.sh', 'all', '--emulated', '--build', BUILD, '--out',
                                 folder], capture_output=True, text=True, timeout=1200)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        results = json.loads((folder / 'results.json').read_text())
        self.assertTrue(results['emulated'])
        self.assertEqual({part['part'] for part in results['parts']},
                         {'build', 'test', 'train', 'bench', 'ranks', 'conformance', 'sanitize'})
        ranks = [part for part in results['parts'] if part['part'] == 'ranks']
        self.assertEqual({part['status'] for part in ranks}, {'ok'}, ranks)
        self.assertEqual(len(ranks), 6)
        self.assertGreater(results['tests']['passed'], 0)
        self.assertEqual(results['tests']['failed'], [])
        self.assertFalse([line for line in results['bench'] if 'error' in line])
        self.assertGreater(len(results['bench']), 40)
        cases = [line for line in results['train'] if line['what'] == 'train.case']
        self.assertEqual([case['preset'] for case in cases], ['muon', 'adamw'])
        for case in cases:  # launched in both ways
            self.assertLess(case['launches']['saved_ms']['min'], case['launches']['plain_ms'])
        self.assertFalse([line for line in results['bench_optimizer'] if 'error' in line])
        self.assertGreater(len(results['bench_optimizer']), 15)
        self.assertEqual({line['kernel'] for line in results['newton_schulz']},
                         {'cublasLt', 'mma', 'narrow', 'wide', 'fp16', 'bf16', 'gram fp16'})
