"""train_gpt bench train, bench kernels, bench optimizer: JSON lines for scripts, a table for people, on random data."""
import json
import os
import pathlib
import re
import subprocess
import sys
import unittest

from cli import ROOT, TINY_MODEL, CliTest, long

PARTS = ('gemm', 'attention', 'classifier', 'elementwise', 'optimizer', 'data', 'other')
KEYS = {'what', 'config', 'preset', 'sequences', 'seq_len', 'dtype', 'threads', 'tokens_per_s', 'ms', 'ms_min',
        'gemm_library_ms', 'mfu', 'peak_memory_bytes', 'planned_bytes', 'device'} | {f'{part}_ms' for part in PARTS}


class BenchTest(CliTest):
    def bench(self, *arguments, status=0):
        result = self.run_cli('bench', 'train', '--config', 'config.json', *arguments)
        self.assertEqual(result.status, status, result.out + result.err)
        return result

    def lines(self, *arguments):
        return [json.loads(line) for line in self.bench('--json', *arguments).out.splitlines()]

    def small(self, **changes):
        """Large enough that most of a step is work; it names no data."""
        self.config({'model': {'d_model': 128, 'd_ff': 384, 'seq_len': 64}, **changes})
        config = json.loads((self.folder / 'config.json').read_text())
        del config['data'], config['run']['steps']
        (self.folder / 'config.json').write_text(json.dumps(config))

    def test_lines_for_scripts(self):
        self.small()
        lines = self.lines('--steps', '3', '--warmup', '1')
        whole = lines[-1]
        self.assertEqual(whole['what'], 'train')
        self.assertLessEqual(KEYS, set(whole))
        self.assertEqual([whole[key] for key in ('config', 'preset', 'sequences', 'seq_len', 'dtype', 'threads')],
                         ['config.json', 'adamw', 4, 64, 'fp32', 2])
        self.assertTrue(whole['device'].startswith('CPU, 2 threads'))

        self.assertAlmostEqual(sum(whole[f'{part}_ms'] for part in PARTS) / whole['ms'], 1, delta=0.03)
        for part in PARTS:
            self.assertGreater(whole[f'{part}_ms'], 0, part)
        self.assertLess(whole['other_ms'], whole['ms'] / 2)
        self.assertLessEqual(whole['ms_min'], whole['ms'])
        self.assertLessEqual(whole['ms'], whole['ms_max'])
        # On a CPU whole steps are the steps by parts.
        self.assertEqual((whole['graphs'], whole['phases_share'], whole['phases_ms']), (False, 1, whole['ms']))
        self.assertAlmostEqual(whole['tokens_per_s'] * whole['ms'] / 1e3, 4 * 64, places=6)
        self.assertGreater(whole['gemm_library_ms'], 0)
        self.assertGreater(whole['mfu'], 0)
        self.assertGreater(whole['planned_bytes'], 0)
        self.assertGreater(whole['peak_memory_bytes'], whole['planned_bytes'])

        parts = {line['what']: line for line in lines}
        for part in PARTS + ('gemm_library',):
            self.assertEqual(parts[f'train.{part}']['ms'], whole[f'{part}_ms'])
            self.assertEqual(parts[f'train.{part}']['device'], whole['device'])
        shapes = [line for line in lines if line['what'] == 'train.gemm.shape']
        self.assertEqual(len(shapes), 3 * 5)
        # Two micro-batches, two layers of four matrices and the head, one product forward and two backward.
        self.assertEqual(sum(line['calls'] for line in shapes), 2 * (2 * 4 + 1) * 3)
        self.assertEqual(parts['train.gemm']['calls'], 2 * (2 * 4 + 1) * 3)
        self.assertAlmostEqual(sum(line['ms'] for line in shapes), whole['gemm_ms'], places=6)
        self.assertAlmostEqual(sum(line['library_ms'] for line in shapes), whole['gemm_library_ms'], places=6)

    def test_table_for_people(self):
        self.small()
        out = self.bench('--steps', '2', '--warmup', '0').out
        head, table = out.split('\n\n', 1)
        self.assertTrue(head.startswith('CPU, 2 threads'))
        self.assertNotIn('{', out)
        rows = table.splitlines()
        for part in PARTS + ('step', 'fastest step'):
            self.assertEqual(sum(row.startswith(f'{part} ') for row in rows), 1 + (part == 'gemm'), part)
        self.assertIn('tokens/s', table)
        self.assertIn('planned', table)
        self.assertLessEqual(max(map(len, rows)), 80)

    def test_options_change_the_run(self):
        self.small(optimizer={'preset': 'muon'})
        whole = self.lines('--steps', '1', '--warmup', '0', '--threads', '1', '--set', 'batch.sequences=2',
                           '--set', 'precision.compute=bf16')[-1]
        self.assertEqual([whole[key] for key in ('preset', 'sequences', 'dtype', 'threads')], ['muon', 2, 'bf16', 1])
        self.assertTrue(whole['device'].startswith('CPU, 1 thread,'))
        self.assertFalse((self.folder / 'run').exists())

    def test_groups_of_ones_own_have_no_preset(self):
        self.small()
        groups = '[{"match": {"role": "any"}, "norm": {"type": "sign"}}]'
        whole = self.lines('--steps', '1', '--set', 'optimizer.preset=null', '--set', f'optimizer.groups={groups}')[-1]
        self.assertIsNone(whole['preset'])

    def test_wrong_use(self):
        self.small()
        for arguments in (['bench'], ['bench', 'trian'], ['bench', 'train'],
                          ['bench', 'train', '--config', 'nowhere.json'],
                          *(['bench', 'train', '--config', 'config.json', *more]
                            for more in (['--steps', '0'], ['--steps', 'x'], ['--warmup', '-1'], ['--threads', '0'],
                                         ['--device', 'tpu'], ['--set', 'batch.sequence=2']))):
            with self.subTest(arguments):
                result = self.run_cli(*arguments)
                self.assertEqual(result.status, 2, result.out + result.err)
                self.assertTrue(result.err)
                self.assertNotIn('terminate', result.err)
        result = self.bench('--set', 'batch=null', status=2)
        self.assertIn('config.json: missing: batch.sequences', result.err)

    def test_loss_that_is_not_finite(self):
        self.small(optimizer={'lr': 1e308})
        self.assertIn('not finite', self.bench(status=1).err)

    def test_help_has_examples(self):
        for arguments in (['bench', '--help'], ['bench', 'train', '--help']):
            result = self.run_cli(*arguments)
            self.assertEqual(result.status, 0)
            self.assertIn('Example', result.out)


class BenchKernelsTest(CliTest):
    def bench(self, *arguments, status=0):
        (self.folder / 'model.json').write_text(json.dumps({'model': TINY_MODEL}))
        result = self.run_cli('bench', 'kernels', '--config', 'model.json', '--device', 'cpu', '--tokens', '40',
                              '--seconds', '1', *arguments)
        self.assertEqual(result.status, status, result.out + result.err)
        return result

    def lines(self, *arguments):
        return [json.loads(line) for line in self.bench('--json', *arguments).out.splitlines()]

    def test_every_operation_of_the_border_has_lines(self):
        lines = self.lines('--threads', '2', '--dtype', 'fp32')
        self.check_what_is_counted({line['what']: line for line in lines})
        names = [line['what'] for line in lines]
        self.assertEqual(names[:2], ['ceiling.copy', 'ceiling.gemm'])
        border = (ROOT / 'llmc' / 'device' / 'backend.h').read_text()
        operations = re.findall(r'virtual void (\w+)\(const [A-Z]\w+& *\w*\) = 0', border)
        self.assertGreater(len(operations), 18)
        for operation in operations:
            self.assertTrue(any(name.split('.')[:2] == ['kernel', operation] for name in names), operation)
        self.assertEqual(len(lines), len({(line['what'], line['shape'], line['dtype']) for line in lines}))

        for line in lines:
            memory = 'bytes' in line
            rate = ('bytes', 'gbs', 1e9) if memory else ('flops', 'tflops', 1e12)
            self.assertEqual(set(line), {'what', 'shape', 'dtype', 'ms', 'ms_min', 'ms_max', rate[0], rate[1],
                                         'ceiling_share', 'device'}, line)
            self.assertTrue(0 < line['ms_min'] <= line['ms'] <= line['ms_max'], line)
            self.assertAlmostEqual(line[rate[0]] / line[rate[1]] / line['ms'] * 1e3 / rate[2], 1, places=6)
            ceiling = next(other for other in lines if other['what'].startswith('ceiling.') and rate[1] in other
                           and (memory or other['dtype'] == line['dtype']))
            best = ceiling[rate[0]] / ceiling['ms_min'] * 1e3
            self.assertAlmostEqual(line[rate[1]] * rate[2] / best / line['ceiling_share'], 1, places=6)
            self.assertTrue(line['device'].startswith('CPU, 2 threads'))

    def check_what_is_counted(self, by_name):
        """Two sequences of 16; chunks of 4 rows of logits; fp32."""
        rows, width = 32, 32
        self.assertEqual(by_name['kernel.rmsnorm_forward']['bytes'], 4 * (4 * rows * width + rows + width))
        self.assertEqual(by_name['kernel.swiglu_backward']['bytes'], 4 * 5 * rows * 48)
        self.assertEqual(by_name['kernel.classifier']['bytes'], 4 * 2 * 4 * 64 + 4 * 8)
        self.assertEqual(by_name['kernel.rope']['bytes'], 4 * (rows * 6 * 8 * 2 + 16 * 8))
        self.assertEqual(by_name['kernel.gemm.gate_up.wgrad']['flops'], 2 * rows * 96 * width)
        self.assertEqual(by_name['kernel.gemm.gate_up.wgrad']['shape'], '96x32x32 tn')
        self.assertEqual(by_name['kernel.attention_forward']['flops'], 2 * 2 * 4 * 16 * 16 * 8)
        self.assertEqual(by_name['kernel.attention_one']['bytes'], 4 * (2 * 16 * 2 + 2 * 4) * 8)
        self.assertEqual(by_name['kernel.attention_backward']['flops'], 5 * 2 * 4 * 16 * 16 * 8)
        parameters = 64 * 32 + 2 * (64 * 32 + 32 * 32 + 3 * 48 * 32 + 2 * 32) + 32
        self.assertEqual(by_name['kernel.adam']['bytes'], 24 * parameters)
        self.assertEqual(by_name['kernel.apply']['bytes'], 12 * parameters)
        self.assertEqual(by_name['kernel.apply.split']['bytes'], 12 * parameters)
        self.assertEqual(by_name['kernel.fused_update.lion_split']['bytes'], 20 * parameters)
        self.assertEqual(by_name['kernel.fused_update.adamw_split']['bytes'], 28 * parameters)
        self.assertEqual(by_name['kernel.join_weights']['bytes'], 8 * parameters)

    @long
    def test_table_and_choice(self):
        lines = self.lines('--only', 'rmsnorm', '--dtype', 'bf16')
        self.assertEqual([line['what'] for line in lines],
                         ['ceiling.copy', 'ceiling.gemm', 'kernel.rmsnorm_forward', 'kernel.rmsnorm_backward'])
        self.assertEqual(lines[2]['dtype'], 'bf16')
        result = self.bench('--only', 'rmsnorm', '--dtype', 'bf16')
        table = result.out.splitlines()
        self.assertNotIn('{', result.out)
        for start in ('ceiling.copy', 'ceiling.gemm', 'rmsnorm_forward', 'rmsnorm_backward'):
            self.assertEqual(sum(row.startswith(f'{start} ') for row in table), 1, start)
        self.assertIn('rmsnorm_forward', result.err)  # progress

    def test_wrong_use(self):
        for more in (['--tokens', '0'], ['--dtype', 'fp64'], ['--only', 'rmsnrom'], ['--seconds', '0'], ['--fast'],
                     ['--device', 'tpu'], ['--threads', '0'], ['--config', 'nowhere.json']):
            with self.subTest(more):
                result = self.run_cli('bench', 'kernels', *more)
                self.assertEqual((result.status, result.out), (2, ''), result.err)
                self.assertTrue(result.err)
        self.assertIn('rmsnorm_forward', self.bench('--only', 'rmsnrom', status=2).err)

    def test_help_has_an_example(self):
        self.assertIn('Example', self.run_cli('bench', 'kernels', '--help').out)


# Stands for PyTorch: answers as dev/bench/optimizer_torch.py does.
PEER = """#!/bin/sh
echo "$@" >arguments
echo '{"torch": "9.9", "presets": ["adamw", "muon"]}'
while read -r question more; do
    case $question in
        prepare) echo "$more" >prepared; echo '{"left_out": ["Slow: too slow"]}' ;;
        round) echo '{"times": [{"peer": "Fast", "preset": "muon", "seconds": 0.5}]}' ;;
    esac
done
"""


def has_torch():
    return subprocess.run([sys.executable, '-c', 'import torch'], capture_output=True, check=False).returncode == 0


class BenchOptimizerTest(CliTest):
    def bench(self, *arguments, status=0, **options):
        result = self.run_cli('bench', 'optimizer', '--device', 'cpu', '--threads', '2', '--steps', '2', *arguments,
                              **options)
        self.assertEqual(result.status, status, result.out + result.err)
        return result

    def lines(self, *arguments, **options):
        return [json.loads(line) for line in self.bench('--json', *arguments, **options).out.splitlines()]

    @long
    def test_every_preset_and_coefficient_set_has_lines(self):
        (self.folder / 'model.json').write_text(json.dumps({'model': TINY_MODEL}))
        lines = self.lines('--config', 'model.json', '--layers', '1')
        names = [line['what'] for line in lines]
        self.assertEqual(names[:2], ['ceiling.copy', 'ceiling.gemm'])
        presets = {path.stem for path in (ROOT / 'configs' / 'optimizer').glob('*.json')}
        self.assertEqual({name[7:] for name in names if name.startswith('preset.')}, presets)
        source = (ROOT / 'llmc' / 'norm' / 'newton_schulz.cpp').read_text()
        sets = set(re.findall(r'^ +\{"([\w-]+)",', source, re.MULTILINE))
        self.assertGreater(len(sets), 4)
        by_set = {name[14:] for name in names if name.startswith('newton_schulz.')}
        self.assertEqual(by_set, sets)

        parameters = 64 * 32 + 64 * 32 + 32 * 32 + 3 * 48 * 32 + 2 * 32 + 32
        copy, gemm = (lines[i][rate] for i, rate in ((0, 'gbs'), (1, 'tflops')))
        for line in lines[2:]:
            self.assertTrue(0 < line['ms_min'] <= line['ms'] <= line['ms_max'], line)
            self.assertTrue(line['device'].startswith('CPU, 2 threads'))
            self.assertAlmostEqual(line['tflops'] * line['ms'] * 1e9, line['flops'], delta=line['flops'] * 1e-9)
            if line['what'].startswith('preset.'):
                self.assertTrue(line['shape'].startswith(f'{parameters} in '))
                self.assertGreater(line['norm_ms'], 0)
                state = line['state_bytes_per_parameter'] * parameters
                self.assertAlmostEqual(line['bytes'], 12 * parameters + 2 * state, delta=1)
                self.assertAlmostEqual(line['gbs'] / copy, line['copy_share'], delta=1e-9 * line['copy_share'])
            else:
                self.assertAlmostEqual(line['tflops_executed'] / gemm, line['ceiling_share'], places=9)
        adamw = next(line for line in lines if line['what'] == 'preset.adamw')
        self.assertAlmostEqual(adamw['state_bytes_per_parameter'], 8, delta=0.1)
        self.assertEqual(adamw['flops'], 0)

    @long
    def test_split_master_weights(self):
        (self.folder / 'model.json').write_text(json.dumps({'model': TINY_MODEL}))
        lines = self.lines('--config', 'model.json', '--layers', '1', '--master', 'split', '--only', 'preset.')[2:]
        self.assertGreater(len(lines), 10)
        for line in lines:
            self.assertEqual(line['master'], 'split')
            parameters = int(line['shape'].split()[0])
            state = line['state_bytes_per_parameter'] * parameters
            self.assertAlmostEqual(line['bytes'], 12 * parameters + 2 * state, delta=1)
        self.assertIn('--master', self.bench('--master', 'bf16', status=2).err)

    @long
    def test_orthogonality_and_operations(self):
        lines = self.lines('--shapes', '160x300x3,300x160', '--only', 'newton_schulz.you')[2:]
        self.assertEqual([(line['shape'], line['form']) for line in lines],  # a CPU takes two
                         [(shape, form) for shape in ('2x160x300', '1x300x160') for form in ('standard', 'gram')])
        plain, block = 5 * (4 * 160 * 160 * 300 + 2 * 160 ** 3), 128 * 128 + 32 * 160
        executed = {'standard': 5 * 2 * (block * 300 + block * 160 + 160 * 160 * 300),
                    # one restart: two Gram matrices, two products with them, and 3 squares behind each other step
                    'gram': 2 * (2 * block * 300 + 5 * block * 160 + 2 * 160 * 160 * 300 + 3 * 3 * 160 ** 3)}
        for line in lines:
            count = int(line['shape'][0])
            self.assertEqual((line['flops'], line['flops_executed']), (count * plain, count * executed[line['form']]))
            self.assertEqual(line['input'], 'normal')
            # Singular values of a normal 160 x 300 matrix are far from 0: within the polynomials' bounds.
            self.assertLess(line['orthogonality_max'], 0.04)
            self.assertTrue(0 < line['orthogonality_rms'] <= line['orthogonality_max'])
        jordan = self.lines('--shapes', '160x300', '--only', 'jordan')[2]
        self.assertTrue(0.1 < jordan['orthogonality_max'] < 0.35)

    @long
    def test_a_chosen_type_inside(self):
        arguments = ('--shapes', '60x200', '--only', 'newton_schulz.you', '--inner')
        lines = self.lines(*arguments, 'fp32')[2:]
        self.assertEqual([(line['dtype'], line['form']) for line in lines], [('fp32', 'standard'), ('fp32', 'gram')])
        result = self.bench(*arguments, 'fp16', status=2)
        self.assertIn('--inner fp16: this processor has no matrix products in fp16', result.err)
        if 'avx512_bf16' not in pathlib.Path('/proc/cpuinfo').read_text().split():
            self.assertIn('AVX512-BF16', self.bench(*arguments, 'bf16', status=2).err)
            return
        self.assertIn('expected auto, bf16 or fp32', result.err)
        ceiling, line = self.lines(*arguments, 'bf16')[1:]  # too coarse for the gram form
        self.assertEqual((line['dtype'], line['form']), ('bf16', 'standard'))
        # 64 rows with 224 columns: of the symmetric products 48 columns and then 16, from the diagonal on
        half = 64 * 64 if 'AMX' in line['device'] else 64 * 48 + 16 * 16
        self.assertEqual(line['flops_executed'], 5 * 2 * (half * 224 + half * 64 + 64 * 64 * 224))
        self.assertAlmostEqual(line['tflops_executed'] / ceiling['tflops'], line['ceiling_share'], places=9)
        self.assertLess(line['orthogonality_max'], 0.08)
        for inner, differs in (('fp32', False), ('bf16', True)):
            own = self.lines('--shapes', '60x200', '--only', 'preset.muon-kj', '--inner', inner)[-1]
            self.assertEqual(own['flops_executed'] == 5 * 2 * (half * 224 + half * 64 + 64 * 64 * 224), differs)

    def test_table_and_own_presets(self):
        group = {'match': {'role': 'any'}, 'norm': {'type': 'sign'}}
        (self.folder / 'mine.json').write_text(json.dumps({'description': 'x', 'groups': [group]}))
        out = self.bench('--shapes', '32x48', '--preset', 'mine.json', '--preset', 'muon').out
        table = out.splitlines()
        self.assertNotIn('{', out)
        for start in ('mine.json', 'muon', 'jordan', 'cubic'):
            self.assertEqual(sum(row.startswith(f'{start} ') for row in table), 1, start)
        self.assertFalse([row for row in table if row.startswith('adamw')])
        self.assertLessEqual(max(map(len, table[3:])), 80)  # above them the device

    @long
    def test_a_preset_that_does_not_suit_is_a_failed_line(self):
        group = {'match': {'name': '*.q_proj.*'}, 'norm': {'type': 'sign'}}
        rest = {'match': {'role': 'any'}, 'norm': {'type': 'sign'}}
        (self.folder / 'named.json').write_text(json.dumps({'description': 'x', 'groups': [group, rest]}))
        result = self.bench('--shapes', '8x8', '--preset', 'named.json', '--preset', 'lion', '--only', 'preset',
                            status=1)
        self.assertIn('1 of 2 measurements failed', result.err)
        self.assertIn('takes no parameter of this model', result.out)
        self.assertIn('lion ', result.out)
        result = self.bench('--shapes', '8x8', '--preset', 'named.json', '--only', 'preset', '--json', status=1)
        self.assertIn('takes no parameter', json.loads(result.out.splitlines()[-1])['error'])

    def peer(self, text):
        path = self.folder / 'peer.sh'
        path.write_text(text)
        path.chmod(0o755)
        return {'environment': {**os.environ, 'PYTHON': str(path)}}

    @long
    def test_compare_takes_turns_with_the_peers(self):
        options = self.peer(PEER)
        arguments = ('--shapes', '16x8x2', '--preset', 'muon', '--only', 'preset', '--compare', '--rounds', '4')
        line = self.lines(*arguments, **options)[-1]
        self.assertEqual((line['what'], line['preset'], line['torch'], line['ms']),
                         ('compare.Fast', 'muon', '9.9', 500))
        self.assertEqual(len(line['ratios']), 4)
        self.assertTrue(min(line['ratios']) <= line['ratio'] <= max(line['ratios']))
        self.assertGreater(line['ratio'], 20)  # half a second against an update of two tiny matrices
        result = self.bench(*arguments, **options)
        self.assertIn('left out: Slow: too slow', result.err)
        self.assertIn('PyTorch 9.9', result.out)
        self.assertEqual(json.loads((self.folder / 'prepared').read_text()),
                         {'blocks': [{'shape': [16, 8], 'matrix': True}] * 2, 'presets': ['muon']})
        said = (self.folder / 'arguments').read_text()
        self.assertIn('--threads 2', said)
        self.assertNotIn('--inner', said)
        self.bench(*arguments, '--inner', 'fp32', **options)
        self.assertIn('--inner fp32', (self.folder / 'arguments').read_text())
        result = self.bench('--preset', 'lion', '--compare', status=2, **options)
        self.assertIn('adamw, muon', result.err)

    def test_compare_without_pytorch(self):
        for text, message in (('#!/bin/sh\n', 'ended without an answer'), ('#!/bin/sh\necho no', 'answered "no'),
                              ('#!/bin/sh\necho \'{"error": "has none"}\'', 'has none')):
            result = self.bench('--compare', status=1, **self.peer(text))
            self.assertEqual(result.out, '')
            self.assertIn(message, result.err)
        nowhere = {**os.environ, 'PYTHON': 'no-such-python'}
        self.assertIn('cannot start no-such-python', self.bench('--compare', status=1, environment=nowhere).err)

    @unittest.skipUnless(has_torch(), 'this Python has no PyTorch')
    def test_compare_with_pytorch(self):
        lines = self.lines('--shapes', '16x8x2,24x8', '--compare', '--only', 'preset',
                           environment={**os.environ, 'PYTHON': sys.executable})
        peers = {line['what']: line['preset'] for line in lines if line['what'].startswith('compare.')}
        self.assertEqual(peers['compare.Muon foreach'], 'muon')
        self.assertEqual(peers['compare.Lion eager'], 'lion')

    def test_wrong_use(self):
        for more in (['--shapes', '8'], ['--shapes', '8x'], ['--shapes', '8x0'], ['--shapes', '8x8x8x8'],
                     ['--shapes', '8x8,'], ['--shapes', '8x9999999'], ['--shapes', '-8x8'],
                     ['--preset', 'moun'], ['--preset', 'nowhere.json'], ['--only', 'nothing'], ['--steps', '0'],
                     ['--rounds', '2'], ['--shapes', '8x8', '--layers', '1'], ['--config', 'nowhere.json'],
                     ['--device', 'tpu'], ['--threads', '0'], ['--inner', 'fp8']):
            with self.subTest(more):
                result = self.run_cli('bench', 'optimizer', *more)
                self.assertEqual((result.status, result.out), (2, ''), result.err)
                self.assertTrue(result.err)
        self.assertIn('768x768x12', self.bench('--shapes', '8', status=2).err)
        self.assertIn('muon', self.bench('--preset', 'moun', status=2).err)

    def test_help_has_an_example(self):
        self.assertIn('Example', self.run_cli('bench', 'optimizer', '--help').out)
