"""Estimators, error feedback, local and outer steps: resumed bit by bit, planned, alike where they have to be; and
what does not go together. That they are what the papers say: test_communication.py."""
import json
import shutil
import signal
import struct
import subprocess

from cli import TRAIN_GPT, CliTest, long

EMA = [{'match': {'role': 'matrix'}, 'momentum': {'type': 'ema', 'beta': 0.9},
        'norm': {'type': 'spectral', 'coefficients': 'jordan', 'steps': 5}, 'radius': '0.2*sqrt(max(m,n))'},
       {'match': {'role': 'any'}, 'momentum': {'type': 'ema', 'beta': 0.9}, 'norm': {'type': 'frobenius'}}]
MUON = {'preset': 'muon', 'lr': 0.02}

ESTIMATORS = {
    'igt': {'type': 'igt'},
    'storm': {'type': 'storm'},
    'storm_clipped': {'type': 'storm', 'clip': 0.5, 'clip_correction': 2.0},
    'central': {'type': 'hessian'},
    'central_same': {'type': 'hessian', 'batch': 'same', 'clip': 0.5},
    'segment': {'type': 'hessian', 'difference': 'segment'},
    'page': {'type': 'page', 'small': 3, 'probability': 0.4},
    'clip': {'type': 'plain', 'clip': 0.5},
}
COMMUNICATION = {
    'topk': {'up': {'type': 'topk', 'fraction': 0.2}},
    'columns': {'up': {'type': 'columns', 'fraction': 0.3, 'natural': True}},
    'rank': {'up': {'type': 'rank', 'rank': 2}},
    'natural_both': {'up': {'type': 'natural'}, 'down': {'type': 'natural'}},
    'rank_both': {'up': {'type': 'rank', 'rank': 2, 'natural': True}, 'down': {'type': 'rank', 'rank': 2}},
    'down': {'down': {'type': 'topk', 'fraction': 0.3, 'natural': True}},
}
OUTER = {
    'lookahead': {'outer': {'type': 'lookahead', 'every': 2}},
    'rapp': {'outer': {'type': 'rapp', 'every': 3, 'rate': 0.9}},
    'momentum': {'outer': {'type': 'lookahead', 'every': 2, 'rate': 0.7, 'momentum': 0.5, 'nesterov': True}},
}
LOCAL = {
    'local': {'communication': {'type': 'local'}, 'outer': {'type': 'lookahead', 'every': 3}},
    'decaying': {'communication': {'type': 'local', 'inner_power': 0.5},
                 'outer': {'type': 'lookahead', 'every': 3, 'rate': 0.8, 'momentum': 0.6, 'nesterov': True}},
    'local_storm': {'communication': {'type': 'local'}, 'outer': {'type': 'lookahead', 'every': 3},
                    'estimator': {'type': 'storm'}, 'groups': EMA, 'preset': None},
}


def stages():
    """(name, settings of the optimizer) of all of them."""
    for name, estimator in ESTIMATORS.items():
        yield name, {'groups': EMA, 'estimator': estimator}
    for name, settings in COMMUNICATION.items():
        yield name, {'communication': {'type': 'ef21', **settings}}
    for name, settings in {**OUTER, **LOCAL}.items():
        yield name, settings
    yield 'storm_ef21', {'groups': EMA, 'estimator': {'type': 'storm', 'clip': 1.0},
                         'communication': {'type': 'ef21', 'up': {'type': 'topk', 'fraction': 0.3}}}


def momenta(checkpoint):
    """fp32 momentum by name, of all ranks."""
    data = (checkpoint / 'optimizer.safetensors').read_bytes()
    length = struct.unpack('<Q', data[:8])[0]
    result = {}
    for name, tensor in json.loads(data[8:8 + length]).items():
        if '.momentum' in name:
            begin, end = (8 + length + offset for offset in tensor['data_offsets'])
            result[name] = struct.unpack(f'<{(end - begin) // 4}f', data[begin:end])
    return result


class StagesTest(CliTest):
    def configure(self, settings, **changes):
        optimizer = {**MUON, **settings}
        if optimizer.get('groups') or optimizer['preset'] is None:
            optimizer.pop('preset')
        self.config({'optimizer': optimizer, 'run': {'steps': 6, 'threads': 1}, 'checkpoint': {'every': 3, 'keep': 0},
                     'batch': {'sequences': 6, 'micro_batch': 1}, 'eval': {'every': 3, 'batches': 1}}, **changes)

    def train(self, *arguments, **options):
        return super().train('--device', 'cpu', *arguments, **options)

    def losses(self, run, kind='train'):
        return [line['loss'] for line in self.metrics(run, kind)]

    def check(self, name, ranks):
        whole, parts = f'{name}{ranks}', f'{name}{ranks}-parts'
        planned = self.run_cli('plan', '--config', 'config.json', '--json', '--ranks', ranks)
        self.assertEqual(planned.status, 0, planned.err)
        plan = json.loads(planned.out)
        self.train('--set', f'run.dir={whole}', '--gpus', ranks)
        summary = self.metrics(whole, 'summary')[0]
        self.assertEqual(plan['memory']['total'], summary['memory_bytes'])
        shutil.copytree(self.folder / whole, self.folder / parts)
        shutil.rmtree(self.checkpoint(6, parts))
        self.assertIn('resumed after 3 updates', self.train('--set', f'run.dir={parts}', '--gpus', ranks).out)
        self.assert_same_run(whole, parts, 6)
        losses = self.losses(whole)
        self.assertLess(losses[-1], losses[0])
        return plan, self.metrics(whole, 'train')

    def compare_ranks(self, name):
        """Estimators are of the global batch: their numbers do not depend on the ranks."""
        self.configure({'groups': EMA, 'estimator': ESTIMATORS[name]}, precision={'compute': 'fp64'})
        self.train('--set', f'run.dir={name}1')
        self.train('--set', f'run.dir={name}3', '--gpus', 3)
        for one, three in zip(self.losses(f'{name}1'), self.losses(f'{name}3'), strict=True):
            self.assertAlmostEqual(one, three, delta=1e-11 * one)

    @long
    def test_some_resume_and_are_planned(self):
        """All of them: tests/long/test_stages_long.py."""
        for name, ranks in (('storm_clipped', 1), ('central', 3), ('page', 1), ('rank_both', 3), ('decaying', 3),
                            ('momentum', 1), ('storm_ef21', 3)):
            with self.subTest(name):
                self.configure(dict(stages())[name])
                self.check(name, ranks)

    def test_clipped_estimates_are_of_all_ranks(self):
        self.compare_ranks('storm_clipped')

    def test_without_compression_ef21_is_the_plain_optimizer(self):
        self.configure({})
        self.train('--set', 'run.dir=plain')
        self.train('--set', 'run.dir=plain3', '--gpus', 3)
        self.train('--set', 'run.dir=ef21', '--set', 'optimizer.communication.type=ef21')
        self.train('--set', 'run.dir=ef213', '--set', 'optimizer.communication.type=ef21', '--gpus', 3)
        self.assertEqual(self.losses('plain'), self.losses('ef21'))
        weights = [(self.checkpoint(6, run) / 'model.safetensors').read_bytes() for run in ('plain', 'ef21')]
        self.assertTrue(weights[0] == weights[1])
        for plain, other in zip(self.losses('plain3'), self.losses('ef213'), strict=True):
            self.assertAlmostEqual(plain, other, delta=1e-5 * plain)

    def test_lookahead_of_one_rank_is_local_steps_of_one(self):
        self.configure({'outer': {'type': 'lookahead', 'every': 3, 'rate': 1}})
        self.train('--set', 'run.dir=lookahead')
        self.train('--set', 'run.dir=local', '--set', 'optimizer.communication.type=local')
        self.assertEqual(self.losses('lookahead'), self.losses('local'))
        self.configure({})
        self.train('--set', 'run.dir=plain')  # an anchor that goes all the way changes nothing
        self.assertEqual(self.losses('lookahead'), self.losses('plain'))

    def test_data_is_used_up_once(self):
        """No sample twice: tokens of a line are those read so far, of both batches and of the small ones."""
        for name, used in (('central', [12] * 6), ('central_same', [6] * 6), ('storm', [6] * 6), ('page', None)):
            with self.subTest(name):
                self.configure({'groups': EMA, 'estimator': ESTIMATORS[name]})
                self.train('--set', f'run.dir={name}')
                tokens = [line['tokens'] for line in self.metrics(name, 'train')]
                steps = [(b - a) // 16 for a, b in zip([0] + tokens, tokens)]
                if used:
                    self.assertEqual(steps, used)
                else:
                    self.assertEqual(steps[0], 6)
                    self.assertEqual(set(steps), {3, 6})
                state = json.loads((self.checkpoint(6, name) / 'state.json').read_text())
                self.assertEqual(state['samples'] * 16, tokens[-1])

    def test_one_rank_takes_the_mean_of_many(self):
        """Momentum that hardly changes shows what it was continued from."""
        slow = [{'match': {'role': 'any'}, 'norm': {'type': 'frobenius'},
                 'momentum': {'type': 'ema', 'beta': 1 - 1e-9, 'start': 'gradient'}}]
        self.configure({**LOCAL['local'], 'groups': slow, 'lr': 1e-3})
        self.train('--gpus', 3)
        before = momenta(self.checkpoint(3))
        shutil.rmtree(self.checkpoint(6))
        self.assertIn('resumed after 3 updates', self.train().out)
        after = momenta(self.checkpoint(6))
        self.assertEqual(set(after), {name for name in before if '.rank' not in name})
        for name, values in after.items():
            ranks = [before[name], before[f'{name}.rank1'], before[f'{name}.rank2']]
            size = max(abs(value) for value in values)
            for mean, each in zip(values, zip(*ranks)):
                self.assertAlmostEqual(mean, sum(each) / 3, delta=1e-5 * size)
            self.assertGreater(max(abs(a - b) for a, b in zip(*ranks[:2])), 1e-2 * size)

    def test_signal_waits_for_the_meeting(self):
        self.configure(LOCAL['local'], run={'steps': 3000}, checkpoint={'every': 0}, eval={'every': 0})
        process = subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json', '--device', 'cpu', '--gpus', '2'],
                                   cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
        for line in process.stdout:
            if line.strip().startswith('1'):
                process.send_signal(signal.SIGTERM)
                break
        out = process.communicate(timeout=60)[0]
        self.assertEqual(process.returncode, 3, out)
        [folder] = (self.folder / 'run' / 'checkpoints').iterdir()
        self.assertEqual(int(folder.name.split('_')[1]) % 3, 0)

    def test_what_does_not_go_together(self):
        ef21 = {'communication': {'type': 'ef21', 'up': {'type': 'natural'}}}
        local = LOCAL['local']
        scion_light = {'preset': 'scion-light', 'lr': 1e-4}
        cases = [
            ({**ef21, 'clip_norm': 1.0}, {}, 'optimizer.clip_norm = 1.0: expected 0.0, as optimizer.communication.type'),
            ({**ef21, 'qk_clip': 1.0}, {}, 'optimizer.qk_clip'),
            ({**ef21, 'sampling': {'type': 'progressive'}}, {}, 'optimizer.sampling.type'),
            (ef21, {'run': {'on_nonfinite': 'skip'}}, 'run.on_nonfinite'),
            (ef21, {'smoothness': {'every': 2}}, 'smoothness.every'),
            ({**ef21, 'estimator': {'type': 'page', 'small': 3}}, {}, 'optimizer.estimator.type'),
            ({**ef21, **scion_light}, {}, 'optimizer.communication.type'),
            ({'communication': {'type': 'local'}}, {}, 'optimizer.outer.type = "none": expected "lookahead"'),
            (local, {'checkpoint': {'every': 2}}, 'checkpoint.every = 2: expected a multiple of optimizer.outer.every = 3'),
            (local, {'eval': {'every': 1}}, 'eval.every'),
            (local, {'run': {'on_nonfinite': 'rollback'}}, 'run.on_nonfinite'),
            ({'estimator': {'type': 'igt'}}, {}, 'optimizer.estimator.beta'),
            ({'groups': EMA, 'estimator': {'type': 'page', 'small': 4}}, {}, 'batch.sequences = 6: expected a multiple'),
            ({'groups': EMA, 'estimator': {'type': 'page'}}, {}, 'optimizer.estimator.small'),
            ({'groups': EMA, 'estimator': {'type': 'storm'}}, {'smoothness': {'every': 2}}, 'smoothness.every'),
            ({'groups': EMA, 'estimator': {'type': 'igt'}, 'sampling': {'type': 'progressive'}}, {},
             'optimizer.sampling.type'),
            ({'estimator': {'type': 'plain', 'small': 3}}, {}, 'optimizer.estimator.small'),
            ({'communication': {'type': 'ef21', 'up': {'type': 'topk'}}}, {}, 'optimizer.communication.up.fraction'),
            ({'communication': {'type': 'ef21', 'up': {'type': 'topk', 'fraction': 2}}}, {}, 'up.fraction = 2'),
            ({'communication': {'type': 'mean', 'up': {'type': 'natural'}}}, {}, 'optimizer.communication.up'),
            ({'outer': {'type': 'lookahead', 'every': 1}}, {}, 'optimizer.outer.every = 1'),
            ({'outer': {'every': 2}}, {}, 'optimizer.outer.every'),
            ({'groups': [{'momentum': {'type': 'ema', 'beta': 0.9, 'eta_power': '1/2'}}]}, {}, 'momentum.beta'),
            ({'groups': [{'momentum': {'type': 'ema'}}]}, {}, 'momentum.beta'),
            ({'groups': [{'momentum': {'type': 'ema', 'eta_power': '1/3'}}]}, {}, 'eta_power = "1/3"'),
            ({}, {'schedule': {'decay': {'type': 'power'}}}, 'schedule.decay.power'),
        ]
        for settings, changes, expected in cases:
            with self.subTest(settings, **changes):
                self.configure(settings, **changes)
                result = self.run_cli('train', '--config', 'config.json')
                self.assertEqual(result.status, 2, result.out + result.err)
                self.assertIn(expected, result.err)
                self.assertFalse((self.folder / 'run').exists())

    def test_small_batches_over_ranks(self):
        self.configure({'groups': EMA, 'estimator': ESTIMATORS['page']})
        result = self.train('--gpus', 2, status=2)
        self.assertIn('optimizer.estimator.small = 3: expected a multiple of 2 ranks', result.out + result.err)

    def test_power_decay(self):
        self.configure({}, schedule={'decay': {'type': 'power', 'power': '2/3'}})
        self.train()
        for line in self.metrics('run', 'train'):
            self.assertAlmostEqual(line['lr'], 0.02 * (line['step'] + 1) ** (-2 / 3), delta=1e-16)
