"""Four ranks and more: every preset, resume on other numbers of ranks, ranks killed and stopped at any moment."""
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
import unittest

from cli import TRAIN_GPT, CliTest

ADAPTIVE = {'warmup': {'type': 'adaptive', 'target_loss': 3.0, 'div': 20, 'max_fraction': 0.6},
            'decay': {'type': 'cosine'}}
MPIRUN = ['mpirun', '--oversubscribe', '--bind-to', 'none']
AS_ROOT = {'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'}
KILLS = int(os.environ.get('LMO_RANK_KILLS', '12'))
RATES = {'adamw': 0.01, 'muon': 0.02, 'muon-kj': 0.02, 'lion': 0.003, 'signum': 0.003, 'nsgd': 0.05}


def children(process):
    """The ranks of a starter, in their order."""
    path = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children')
    for _ in range(500):
        found = [int(text) for text in path.read_text().split()]
        if len(found) == 4:
            return sorted(found)
        time.sleep(0.01)
    raise AssertionError('no four ranks after 5 s')


class RanksTest(CliTest):
    def configure(self, **changes):
        base = {'run': {'steps': 20, 'threads': 1}, 'optimizer': {'preset': 'muon', 'lr': 0.02},
                'batch': {'sequences': 8, 'micro_batch': None}, 'schedule': ADAPTIVE, 'eval': {'batches': 2},
                'model': {'vocab_size': 130}}  # an embedding that is cut over four ranks
        self.config(base, **changes)

    def ranks(self, count, *arguments, run='run', **options):
        more = ('--gpus', count, '--device', 'cpu') if count > 1 else ()
        return self.train('--set', f'run.dir={run}', *more, *arguments, **options)

    def assert_close(self, one, other):
        for kind in ('train', 'val'):
            a, b = self.metrics(one, kind), self.metrics(other, kind)
            self.assertEqual(len(a), len(b))
            for first, second in zip(a, b):
                self.assertLess(abs(first['loss'] / second['loss'] - 1), 1e-5, (one, other, first, second))
                self.assertEqual([first.get(key) for key in ('step', 'tokens', 'phase')],
                                 [second.get(key) for key in ('step', 'tokens', 'phase')])

    def start(self, *arguments):
        output = open(self.folder / 'output', 'w')
        self.addCleanup(output.close)
        process = subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json', '--device', 'cpu', '--gpus', '4',
                                    *arguments], cwd=self.folder, stdout=output, stderr=subprocess.STDOUT)
        self.addCleanup(lambda: (process.kill(), process.wait()))
        return process

    def lines(self, run):
        file = self.folder / run / 'metrics.jsonl'
        return file.read_text().count('"train"') if file.exists() else 0


class SameRunTest(RanksTest):
    def test_every_preset(self):
        for preset, rate in RATES.items():
            with self.subTest(preset):
                self.configure(optimizer={'preset': preset, 'lr': rate, 'clip_norm': 0.5, 'weight_decay': 0.1})
                self.ranks(1, run=f'{preset}-1')
                for name, count, micro_batch in (('2', 2, 'null'), ('4', 4, 'null'), ('4-micro', 4, 1)):
                    self.ranks(count, '--set', f'batch.micro_batch={micro_batch}', run=f'{preset}-{name}')
                    if micro_batch == 'null':
                        self.assert_close(f'{preset}-1', f'{preset}-{name}')
                    else:
                        self.ranks(1, '--set', f'batch.micro_batch={micro_batch}', run=f'{preset}-1-micro')
                        self.assert_close(f'{preset}-1-micro', f'{preset}-{name}')
                self.assertEqual({'warmup', 'decay'}, {line['phase'] for line in self.metrics(f'{preset}-4', 'train')})

    def test_published_order_and_loss(self):
        for changes in ({'data': {'compat': {'order': 'numpy'}}},
                        {'schedule': {'warmup': {**ADAPTIVE['warmup'], 'target_loss': 0.5}, 'decay': {'type': 'cosine'},
                                      'compat': {'loss': 'last_micro_batch', 'lag': True}},
                         'batch': {'sequences': 8, 'micro_batch': 2}}):
            with self.subTest(changes):
                shutil.rmtree(self.folder / 'one', ignore_errors=True)
                shutil.rmtree(self.folder / 'four', ignore_errors=True)
                self.configure(**changes)
                self.ranks(1, run='one')
                self.ranks(4, run='four')
                # The last micro-batches of four ranks are other samples than the last one of one rank.
                if 'data' in changes:
                    self.assert_close('one', 'four')
                first = [self.metrics(run, 'train')[0]['loss'] for run in ('one', 'four')]
                self.assertLess(abs(first[0] / first[1] - 1), 1e-5)

    def test_more_ranks_than_matrices(self):
        self.configure(model={'n_layer': 1, 'd_model': 16, 'n_head': 2, 'n_kv_head': 1, 'd_ff': 16},
                       batch={'sequences': 16}, run={'steps': 6})
        self.ranks(1, run='one')
        self.ranks(16, run='many')
        self.assert_close('one', 'many')

    def test_resume_4_1_2(self):
        self.configure()
        self.ranks(1, run='one')
        for until, ranks in ((5, 4), (12, 1), (20, 2)):
            self.ranks(ranks, '--set', 'checkpoint.every=1', '--set', 'checkpoint.keep=0', run='parts')
            for folder in (self.folder / 'parts' / 'checkpoints').iterdir():
                if int(folder.name[5:]) > until:
                    shutil.rmtree(folder)
        self.assert_close('one', 'parts')

    @unittest.skipUnless(shutil.which('mpirun'), 'no mpirun here (package openmpi-bin)')
    def test_mpirun_with_4(self):
        self.configure()
        self.ranks(4, run='own')
        result = subprocess.run([*MPIRUN, '-np', '4', TRAIN_GPT, 'train', '--config', 'config.json', '--set',
                                 'run.dir=mpi'], cwd=self.folder, env={**os.environ, **AS_ROOT}, capture_output=True,
                                text=True, timeout=120)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assert_same_run('own', 'mpi', 20)


class FailureTest(RanksTest):
    def test_kills_at_any_moment(self):
        """Any rank; the run ends with the bits of one never killed."""
        self.configure(run={'steps': 40, 'threads': 1}, checkpoint={'every': 4}, eval={'every': 10})
        self.ranks(4, run='whole')
        random.seed(8)
        killed = 0
        for number in range(KILLS):
            process = self.start('--set', 'run.dir=parts')
            ranks, before = children(process), self.lines('parts')
            while number % 3 and process.poll() is None and self.lines('parts') <= before:
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.5))
            victim = random.randrange(4)
            try:
                os.kill(ranks[victim], signal.SIGKILL)
            except ProcessLookupError:
                pass
            start = time.time()
            status = process.wait(30)
            said = (self.folder / 'output').read_text()
            self.assertLess(time.time() - start, 20)
            if status == 0:
                self.assertIn('finished', said)
                shutil.rmtree(self.folder / 'parts')
                continue
            killed += 1
            self.assertEqual(status, 1, said)
            # Killed before the ranks have met, it is missed there.
            self.assertRegex(said, f'rank {victim} ended without a word|train_gpt: rank', said)
            self.assertEqual(said.count('train_gpt: '), 1, said)
        self.assertGreater(killed, KILLS // 3)
        self.ranks(4, run='parts')
        self.assert_same_run('whole', 'parts', 40)

    def test_a_stopped_rank(self):
        self.configure(run={'steps': 100000, 'threads': 1, 'rank_timeout': 5}, eval={'every': 0}, schedule={})
        for victim in (2, 0):
            process = self.start('--set', f'run.dir=stopped-{victim}')
            ranks = children(process)
            while self.lines(f'stopped-{victim}') < 3 and process.poll() is None:
                time.sleep(0.01)
            self.assertIsNone(process.poll(), (self.folder / 'output').read_text())
            os.kill(ranks[victim], signal.SIGSTOP)
            start = time.time()
            self.assertEqual(process.wait(30), 1)
            self.assertLess(time.time() - start, 20)
            said = (self.folder / 'output').read_text()
            self.assertRegex(said, rf"train_gpt: rank {victim} did not come to '[a-z ]+' within 5 s \(run.rank_timeout\)")
            self.assertEqual(said.count('train_gpt: '), 1, said)
