"""Matrices that are cut over the ranks: adamw's and lion's all, muon's embedding. Slices that nothing divides evenly."""
import json
import shutil
import struct

from cli import long
from test_ranks import RanksTest

MODEL = {'vocab_size': 201, 'd_model': 32, 'd_ff': 101, 'tie_embeddings': False}  # 6432 = 3 * 33.5 * 64 elements


def tensors(path):
    """Of a safetensors file, in the order of its header: name -> values of fp32."""
    data = path.read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    header = json.loads(data[8:8 + length])
    header.pop('__metadata__', None)
    body = data[8 + length:]
    return {name: struct.unpack(f"<{(entry['data_offsets'][1] - entry['data_offsets'][0]) // 4}f",
                                body[slice(*entry['data_offsets'])]) for name, entry in header.items()}


class CutTest(RanksTest):
    def configure(self, preset, rate, **more):
        self.config(self.changes, model=MODEL, batch={'sequences': 12, 'micro_batch': None},
                    optimizer={'preset': preset, 'lr': rate, 'clip_norm': 0.5, 'weight_decay': 0.1, **more})

    def assert_same_states(self, one, other):
        """The same tensors in the same order, with nearly the same numbers: a slice elsewhere would be far off."""
        a, b = (tensors(self.checkpoint(20, run) / 'optimizer.safetensors') for run in (one, other))
        self.assertEqual(list(a), list(b))
        for name, values in a.items():
            self.assertEqual(len(values), len(b[name]), name)
            size = max(map(abs, values))
            self.assertGreater(size, 0, name)
            wrong = sum(abs(x - y) > 0.02 * size for x, y in zip(values, b[name]))
            # Where a gradient is about zero its sign, and lion's step, may turn.
            self.assertLess(wrong, 0.02 * len(values), name)

    @long
    def test_other_numbers_of_ranks(self):
        for preset, rate in (('adamw', 0.003), ('lion', 0.001), ('muon', 0.01), ('soda', 0.001)):
            with self.subTest(preset):
                self.configure(preset, rate)
                said = {count: self.ranks(count, run=f'{preset}-{count}').out for count in (1, 2, 3, 4)}
                for count in (2, 3, 4):
                    self.assertIn(f'the steps of 1/{count} of ', ' '.join(said[count].split()))
                    self.assert_close(f'{preset}-1', f'{preset}-{count}')
                    self.assert_same_states(f'{preset}-1', f'{preset}-{count}')

    @long
    def test_the_same_bits_again_and_resumed(self):
        self.configure('adamw', 0.01)
        every = ('--set', 'checkpoint.every=1', '--set', 'checkpoint.keep=0')
        for run in ('whole', 'again'):
            self.ranks(4, *every, run=run)
        self.assert_same_run('whole', 'again', 20)
        for folder in (self.folder / 'again' / 'checkpoints').iterdir():
            if int(folder.name[5:]) > 7:
                shutil.rmtree(folder)
        self.assertIn('resumed after 7 updates', self.ranks(4, *every, run='again').out)
        self.assert_same_run('whole', 'again', 20)

    @long
    def test_resume_on_other_numbers_of_ranks(self):
        self.configure('adamw', 0.01)
        self.ranks(1, run='one')
        for until, ranks in ((5, 4), (10, 1), (15, 3), (20, 2)):
            self.ranks(ranks, '--set', 'checkpoint.every=1', '--set', 'checkpoint.keep=0', run='parts')
            for folder in (self.folder / 'parts' / 'checkpoints').iterdir():
                if int(folder.name[5:]) > until:
                    shutil.rmtree(folder)
        self.assert_close('one', 'parts')
        self.assert_same_states('one', 'parts')

    def test_memory_and_traffic_are_even_and_as_planned(self):
        self.configure('adamw', 0.01)
        result = self.run_cli('plan', '--config', 'config.json', '--json', '--ranks', '3')
        self.assertEqual(result.status, 0, result.err)
        plan = json.loads(result.out)
        states = [rank['state_bytes'] for rank in plan['ownership']]
        self.assertEqual(sum(states), 8 * plan['parameters'])
        self.assertLess(max(states), 1.15 * sum(states) / 3)  # small matrices are whole
        self.assertGreater(plan['ownership'][0]['slices'], 0)
        self.ranks(3, run='three')
        summary = self.metrics('three', 'summary')[0]
        self.assertEqual(plan['memory']['total'], summary['memory_bytes'])
        self.assertLess(abs(summary['sent_bytes'] / 20 / 3 / plan['bytes_sent_per_update'] - 1), 0.05)
        said = ' '.join(self.run_cli('plan', '--config', 'config.json', '--ranks', '3').out.split())
        self.assertRegex(said, r'the steps of 1/3 of \d+ blocks and \d+ to \d+ others .* and keeps .* of states')

    def test_around_the_optimizer(self):
        """Estimates that are clipped or of small batches, outer steps and anchors, of what is owned."""
        outer = {'outer': {'type': 'lookahead', 'every': 3, 'rate': 0.5, 'momentum': 0.5}}
        page = {'estimator': {'type': 'page', 'small': 6, 'probability': 0.3}}
        clipped = {'estimator': {'type': 'storm', 'beta': 0.5, 'clip': 0.3, 'clip_correction': 0.1}}
        for name, more in (('outer', outer), ('page', page), ('clipped', clipped)):
            with self.subTest(name):
                self.configure('signum', 0.003, **more)
                self.ranks(1, run=f'{name}-1')
                self.ranks(3, run=f'{name}-3')
                self.assert_close(f'{name}-1', f'{name}-3')
                self.assert_same_states(f'{name}-1', f'{name}-3')


del RanksTest  # its own tests run where it is at home
