"""precision.master "split": the masters of fp32 in the bf16 weights and 16-bit remainders, in whole runs."""
import json
import struct
import subprocess

from cli import CliTest
from emulated import EmulatedTest
from test_gpu_ranks import GpuRanksTest

BF16 = {'compute': 'bf16'}
SPLIT = {'compute': 'bf16', 'master': 'split'}
REFUSED = {'ef21-muon', 'muon-igt', 'nsgd-storm', 'nsgd-hessian'}


def read_tensors(path):
    """Name: the bits of its elements."""
    data = path.read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    types = {'BF16': 'H', 'F32': 'I'}
    tensors = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name != '__metadata__':
            begin, end = (8 + length + offset for offset in entry['data_offsets'])
            tensors[name] = [bits for bits, in struct.iter_unpack('<' + types[entry['dtype']], data[begin:end])]
    return tensors


class SplitMasterBase(CliTest):
    def optimizer(self, preset):
        return {'preset': preset, 'lr': 0.003, 'weight_decay': 0.1}

    def stop_and_resume(self):
        for run in ('whole', 'parts'):
            self.train('--set', f'run.dir={run}', '--set', 'run.steps=4')
        subprocess.run(['rm', '-r', self.checkpoint(4, 'parts')], check=True)
        result = self.train('--set', 'run.dir=parts', '--set', 'run.steps=4')
        self.assertIn('resumed after 2 updates', result.out)
        self.assert_same_run('whole', 'parts', 4)

    def resume_presets(self, presets):
        for preset in presets:
            with self.subTest(preset):
                subprocess.run(['rm', '-rf', 'whole', 'parts'], cwd=self.folder, check=True)
                self.config({'optimizer': self.optimizer(preset), 'precision': SPLIT,
                             'checkpoint': {'every': 2, 'keep': 0}, 'eval': {'every': 2, 'batches': 2}})
                self.stop_and_resume()
                model = read_tensors(self.checkpoint(4, 'whole') / 'model.safetensors')
                stored = read_tensors(self.checkpoint(4, 'whole') / 'optimizer.safetensors')
                for name, halves in model.items():
                    master = stored[name + '.master']
                    self.assertEqual([(bits + 0x8000) >> 16 for bits in master], halves, name)
                    self.assertTrue(any(bits & 0xffff for bits in master), name)


class SplitMasterTest(SplitMasterBase):
    def test_resumes_exactly_and_stores_fp32(self):
        self.resume_presets(('adamw', 'muon-clip', 'nsgd', 'soda'))

    def test_is_the_run_with_fp32_masters_but_for_ties(self):
        losses = []
        for precision in (BF16, SPLIT):
            self.config({'optimizer': self.optimizer('muon'), 'precision': precision})
            self.train('--set', 'run.dir=' + precision.get('master', 'fp32'))
            run = precision.get('master', 'fp32')
            losses.append([line['loss'] for line in self.metrics(run, 'train') + self.metrics(run, 'val')])
        self.assertEqual(losses[0][0], losses[1][0])
        for plain, split in zip(*losses):
            self.assertAlmostEqual(plain / split, 1, delta=1e-4)

    def test_checkpoints_are_those_of_fp32_masters(self):
        self.config({'optimizer': self.optimizer('adamw'), 'precision': BF16, 'checkpoint': {'every': 4, 'keep': 0}})
        for run, masters in (('one', ('fp32', 'split')), ('other', ('split', 'fp32'))):
            self.train('--set', f'run.dir={run}', '--set', f'precision.master={masters[0]}')
            subprocess.run(['rm', '-r', self.checkpoint(8, run)], check=True)
            result = self.train('--set', f'run.dir={run}', '--set', f'precision.master={masters[1]}')
            self.assertIn('resumed after 4 updates', result.out)
        names = [set(read_tensors(self.checkpoint(8, run) / 'optimizer.safetensors')) for run in ('one', 'other')]
        self.assertEqual(*names)
        losses = [[line['loss'] for line in self.metrics(run, 'train')] for run in ('one', 'other')]
        for one, other in zip(*losses):
            self.assertAlmostEqual(one / other, 1, delta=1e-4)

    def test_several_ranks_share_both_halves(self):
        ranks = ('--gpus', 2, '--device', 'cpu')
        changes = {'optimizer': self.optimizer('muon'), 'checkpoint': {'every': 2, 'keep': 0},
                   'batch': {'micro_batch': None}, 'run': {'threads': 1}}
        self.config({**changes, 'precision': BF16})
        self.train('--set', 'run.dir=fp32', '--set', 'run.steps=4', *ranks)
        self.config({**changes, 'precision': SPLIT})
        for run in ('whole', 'parts'):
            self.train('--set', f'run.dir={run}', '--set', 'run.steps=4', *ranks)
        subprocess.run(['rm', '-r', self.checkpoint(4, 'parts')], check=True)
        self.train('--set', 'run.dir=parts', '--set', 'run.steps=4', *ranks)
        self.assert_same_run('whole', 'parts', 4)
        for one, other in zip(self.metrics('fp32', 'train'), self.metrics('whole', 'train')):
            self.assertAlmostEqual(one['loss'] / other['loss'], 1, delta=1e-4)
            self.assertAlmostEqual(one['down_bytes'] / other['down_bytes'], 1, delta=1e-2)

    def test_evaluation_and_export_read_it(self):
        self.config({'optimizer': self.optimizer('lion'), 'precision': SPLIT, 'eval': {'batches': 24}})
        self.train()
        result = self.run_cli('eval', '--checkpoint', self.checkpoint(8), '--data', 'data/val.bin', '--device', 'cpu',
                              '--precision', 'bf16', '--json')
        self.assertEqual(result.status, 0, result.err)
        loss = json.loads(result.out.strip().splitlines()[-1])['loss']
        self.assertAlmostEqual(loss / self.metrics(kind='val')[-1]['loss'], 1, delta=2e-2)
        self.config({'optimizer': self.optimizer('lion'), 'precision': SPLIT, 'init': {'from': str(self.checkpoint(8))}})
        self.train('--set', 'run.dir=on', '--set', 'run.steps=1')
        first = self.metrics('on', 'train')[0]['loss']
        self.assertLess(first, self.metrics(kind='train')[0]['loss'])

    def test_memory_is_planned(self):
        totals = []
        for precision in (BF16, SPLIT):
            self.config({'optimizer': self.optimizer('muon'), 'precision': precision, 'run': {'steps': 1}})
            plan = self.run_cli('plan', '--config', 'config.json', '--json')
            self.assertEqual(plan.status, 0, plan.err)
            memory = json.loads(plan.out)['memory']
            run = precision.get('master', 'fp32')
            self.train('--set', 'run.dir=' + run)
            self.assertEqual(memory['total'], self.metrics(run, 'summary')[0]['memory_bytes'])
            totals.append(memory['parts'])
        count = totals[0]['weights (compute copy)'] // 2
        self.assertEqual(totals[0]['weights'] - totals[1]['weights'], 2 * count)
        self.assertEqual(totals[1]['weights (remainders)'], 2 * count + 4 * count)  # and all of them joined: few
        self.assertNotIn('weights (compute copy)', totals[1])

    def test_what_reads_whole_weights(self):
        """Update norms and the analyzer see the first update as they do with fp32 masters."""
        lines = []
        for precision in (BF16, SPLIT):
            self.config({'optimizer': self.optimizer('muon'), 'precision': precision, 'run': {'steps': 2},
                         'smoothness': {'every': 2}, 'log': {'update_norms': True}})
            run = precision.get('master', 'fp32')
            plan = self.run_cli('plan', '--config', 'config.json', '--json')
            self.train('--set', 'run.dir=' + run)
            self.assertEqual(json.loads(plan.out)['memory']['total'], self.metrics(run, 'summary')[0]['memory_bytes'])
            lines.append([self.metrics(run, 'update_norms')[0], *self.metrics(run, 'smoothness')])
        self.assertGreater(lines[0][1]['weight_change'], 0)
        self.assertEqual(*[line[0] for line in lines])
        self.assertEqual(*[line[1]['weight_change'] for line in lines])

    def test_broken_weights_are_found(self):
        self.config({'optimizer': {'preset': 'lion', 'lr': 1e39}, 'precision': SPLIT})
        result = self.train('--set', 'run.steps=1', status=1)
        self.assertRegex(result.err, 'the weights are .*not saved')
        self.assertFalse((self.folder / 'run' / 'checkpoints').exists())

    def test_what_does_not_go_with_it(self):
        for changes, words in (
                ({'precision': {'compute': 'fp32', 'master': 'split'}}, ('precision.master', 'precision.compute')),
                ({'precision': {'compute': 'auto', 'master': 'split'}}, ('precision.master', 'precision.compute')),
                ({'precision': {**SPLIT, 'master': 'halves'}}, ('precision.master', '"fp32", "split"')),
                ({'precision': SPLIT, 'optimizer': {'outer': {'type': 'lookahead', 'every': 2}}},
                 ('optimizer.outer.type', 'precision.master')),
                ({'precision': SPLIT, 'optimizer': {'estimator': {'clip': 1.0}}},
                 ('optimizer.estimator.clip', 'precision.master')),
                *[({'precision': SPLIT, 'optimizer': self.optimizer(preset)}, ('optimizer.', 'precision.master'))
                  for preset in sorted(REFUSED)]):
            self.config(changes)
            result = self.train(status=2)
            for word in words:
                self.assertIn(word, result.err)


class EmulatedRanksTest(GpuRanksTest):
    def test_ranks_on_gpus_share_both_halves(self):
        self.config({**self.base, 'precision': SPLIT})
        for run, order in (('one', '1'), ('other', '6')):
            self.ranks(2, run=run, environment={'LMO_EMULATOR_ORDER': order, 'LMO_EMULATOR_STREAMS': 'random'})
        self.assert_same_run('one', 'other', 6)
        self.config({**self.base, 'precision': BF16})
        self.ranks(2, run='fp32')
        self.assert_close('one', 'fp32', 1e-3)


class EmulatedSplitMasterTest(EmulatedTest):
    MODEL = {'n_head': 2, 'n_kv_head': 1, 'd_model': 128, 'd_ff': 64}

    def test_is_near_the_cpu(self):
        self.both({'optimizer': {'preset': 'adamw', 'lr': 0.003}, 'run': {'steps': 6}, 'precision': SPLIT,
                   'model': self.MODEL}, bound=1e-2)

    def test_resumes_exactly(self):
        self.assert_resumes_exactly({'optimizer': {'preset': 'muon-clip', 'lr': 0.003}, 'precision': SPLIT})
