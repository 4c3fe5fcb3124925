"""scripts/gpu_check.sh without a GPU, and the table that scripts/gpu_results.py makes of what it measured."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

from cli import ROOT

TESTS = {'testsuites': [{'name': 'A', 'testsuite': [
    {'name': 'Good', 'status': 'RUN', 'result': 'COMPLETED'},
    {'name': 'Bad', 'status': 'RUN', 'result': 'COMPLETED', 'failures': [{'failure': 'x'}]},
    {'name': 'Skipped', 'status': 'RUN', 'result': 'SKIPPED'}]}]}
CLOCKS = ('clocks.current.sm [MHz], power.draw [W], name\n'
          '1400, 300.5, NVIDIA H200\n1980, 650.0, NVIDIA H200\n1800, 640.0, NVIDIA H200\n')


def kernel(what, shape, unit, rate, share=0.5, device='NVIDIA H200, CUDA 13.0, cuBLASLt 13.1.0'):
    return {'what': f'kernel.{what}', 'shape': shape, 'dtype': 'bf16', 'ms': 1.0, unit: rate, 'ceiling_share': share,
            'device': device}


class GpuCheckTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix='lmo-test-'))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def check(self, *arguments):
        return subprocess.run([ROOT / 'scripts' / 'gpu_check.sh', *arguments], cwd=self.folder, capture_output=True,
                              text=True, timeout=60)

    @unittest.skipIf(shutil.which('nvidia-smi'), 'for machines without a GPU')
    def test_a_machine_without_a_gpu_is_told_at_once(self):
        for part in ('build', 'test', 'train', 'bench', 'ranks', 'conformance', 'sanitize', 'all'):
            result = self.check(part, '--out', 'out')
            self.assertEqual((result.returncode, result.stdout), (1, ''))
            self.assertIn('no GPU here', result.stderr)
        self.assertFalse((self.folder / 'out').exists())

    def test_wrong_use(self):
        for arguments in ([], ['tset'], ['test', '--out'], ['test', '--fast'], ['test', '--minutes'], ['test', '--minutes', '0'],
                          ['test', '--minutes', 'two']):
            self.assertEqual(self.check(*arguments).returncode, 2, arguments)
        self.assertIn('gpu_check.sh build|test', self.check('--help').stdout)

    def test_parts_after_the_minutes_are_left_out(self):
        result = subprocess.run(
            [ROOT / 'scripts' / 'gpu_check.sh', 'bench', 'test', '--emulated', '--minutes', '10', '--out', self.folder],
            env={**os.environ, 'SECONDS': '590'}, capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        parts = json.loads((self.folder / 'results.json').read_text())['parts']
        self.assertEqual([(part['check'], part['status']) for part in parts], [('bench', 'left out'), ('test', 'left out')])

    def test_what_a_machine_without_network_needs_is_gathered(self):
        carried = self.folder / 'carry'
        result = subprocess.run([ROOT / 'scripts' / 'gpu_carry.sh', carried], capture_output=True, text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stderr)
        program = self.folder / 'all.cpp'
        program.write_text('#include <nlohmann/json.hpp>\n#include <CLI/CLI.hpp>\n#include <xxhash.h>\n'
                           '#include <gtest/gtest.h>\n')
        read = subprocess.run(['g++', '-std=c++20', '-M', f'-I{carried}', f'-I{carried}/googletest/include', program],
                              capture_output=True, text=True, check=True, timeout=60).stdout
        for header in ('nlohmann/json.hpp', 'CLI/CLI.hpp', 'xxhash.h', 'googletest/include/gtest/gtest.h'):
            self.assertIn(f'{carried}/{header}', read)
        self.assertTrue((carried / 'googletest/src/gtest_main.cc').exists())
        self.assertEqual('without attention by cuDNN' in result.stderr, not (carried / 'cudnn_frontend.h').exists())

    def results(self, lines):
        (self.folder / 'bench.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines) + '{"what": "ker')
        command = [sys.executable, ROOT / 'scripts' / 'gpu_results.py', self.folder, '--commit', 'c' * 40]
        table = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        self.assertLessEqual(len(table), 60)
        return json.loads((self.folder / 'results.json').read_text()), table

    def row(self, table, start):
        return next(line for line in table if line.startswith(start))

    def test_results_and_table(self):
        (self.folder / 'status.tsv').write_text('test\ttests\tfailed\t12\tstatus 1\nsanitize\tracecheck\tok\t3\t\n')
        (self.folder / 'tests.json').write_text(json.dumps(TESTS))
        (self.folder / 'clocks_during.csv').write_text(CLOCKS)
        (self.folder / 'gpu.csv').write_text('name, driver_version\nNVIDIA H200, 580.95.05\n')
        results, table = self.results([
            kernel('rmsnorm_backward', '131072x768', 'gbs', 3650), kernel('classifier', '8192x50304', 'gbs', 3300),
            kernel('attention_forward', '256x12x512x64', 'tflops', 100), kernel('adam', '1 in 1', 'gbs', 1, 0.92),
            kernel('gemm.qkv.forward', '131072x2304x768 nt', 'tflops', 640),
            {'what': 'kernel.sign', 'shape': '1 in 1', 'dtype': 'fp32', 'error': 'broke', 'device': 'x'}])
        self.assertEqual(results['tests'], {'passed': 1, 'failed': ['A.Bad'], 'skipped': ['A.Skipped']})
        self.assertEqual((results['driver'], results['cuda'], results['cublaslt'], results['commit']),
                         ('580.95.05', '13.0', '13.1.0', 'c' * 40))
        self.assertEqual(results['clocks']['clocks_during']['clocks.current.sm'], [1400, 1800, 1980])
        self.assertEqual([part['status'] for part in results['parts']], ['failed', 'ok'])
        norm, _, attention, adam, gemm, _ = results['bench']
        self.assertEqual((norm['gate'], norm['goal'], norm['stretch']), (3200, 3600, 3900))
        self.assertEqual((attention['goal'], adam['goal_share'], gemm['predicted']), (225, 0.90, 660))
        for start, end in (('rmsnorm_backward', 'met'), ('classifier', 'gate met'), ('attention_forward', 'MISSED'),
                           ('adam', ': met'), ('gemm.qkv', 'predicted 660'), ('sign', 'failed: broke'),
                           ('tests:', '1 passed, 1 failed, 1 skipped'), ('  FAILED', 'A.Bad')):
            self.assertTrue(self.row(table, start).endswith(end), self.row(table, start))

    def test_rates_of_another_device_are_not_judged(self):
        _, table = self.results([kernel('rope', '1', 'gbs', 1, device='NVIDIA H100'),
                                 kernel('swiglu_forward', '1', 'gbs', 1, device='NVIDIA H100')])
        self.assertTrue(self.row(table, 'swiglu').endswith('goal there 3600'))

    def test_a_long_list_is_cut(self):
        results, table = self.results([kernel('rope', str(i), 'gbs', 1) for i in range(90)]
                                      + [kernel('rmsnorm_forward', 'x', 'gbs', 1)])
        self.assertEqual(len(results['bench']), 91)
        self.assertIn('more in results.json', table[-2])
        self.assertTrue(self.row(table, 'rmsnorm_forward'))

    def test_updates_are_kept_beside_the_kernels(self):
        line = {'what': 'preset.muon', 'shape': '9 in 1', 'dtype': 'fp32', 'ms': 1.0, 'device': 'x'}
        (self.folder / 'bench_optimizer.jsonl').write_text(json.dumps(line) + '\n')
        results, _ = self.results([kernel('rope', '1', 'gbs', 1)])
        self.assertEqual(results['bench_optimizer'], [line])
        self.assertEqual(len(results['bench']), 1)

    def test_training_beside_pytorch(self):
        case = {'what': 'train.case', 'case': '124m:256x512:adamw', 'mfu': 0.5, 'phases_share': 1.04,
                'tokens_per_s': {'median': 6e5, 'gate': 5.6e5, 'goal': 6.4e5}, 'device': 'NVIDIA H200',
                'launches': {'plain_ms': 218.0, 'saved_ms': {'median': 0.2, 'predicted': [0.1, 0.3]}},
                'torch': {'best': {'ratio': {'median': 1.3, 'gate': 1.1, 'goal': 1.25}},
                          'AdamW fused': {'ratio': {'median': 1.35}}}}
        left = {'what': 'train.left_out', 'case': '210m:256x512:lion', 'why': '3 of 480 s are left'}
        (self.folder / 'train.jsonl').write_text(json.dumps(case) + '\n' + json.dumps(left) + '\n{"what": "tr')
        results, table = self.results([])
        self.assertEqual((results['train'], results['device']), ([case, left], 'NVIDIA H200'))
        row = self.row(table, '124m')
        self.assertIn('600000 tokens/s, goal 640000: gate met, mfu 50.0%, parts / whole 1.040: NOT WITHIN 3 %', row)
        self.assertEqual(table[table.index(row) + 1:][:2], [
            '  dependent launches save 0.200 ms of 218.00 (predicted 0.1 to 0.3)',
            '  times best: 1.30, goal 1.25: met; AdamW fused: 1.35'])
        self.assertTrue(self.row(table, '210m').endswith('left out: 3 of 480 s are left'))

    def test_nothing_measured(self):
        results, _ = self.results([])
        self.assertEqual((results['bench'], results['tests'], results['parts']), ([], None, []))
