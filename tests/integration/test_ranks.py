"""The same run on one rank or on several: real processes, started as users start them."""
import os
import shutil
import signal
import socket
import subprocess
import time
import unittest

from cli import TRAIN_GPT, CliTest

ADAPTIVE = {'warmup': {'type': 'adaptive', 'target_loss': 3.0, 'div': 20, 'max_fraction': 0.6},
            'decay': {'type': 'cosine'}}
# As root, and with more ranks than cores, mpirun wants to be asked.
MPIRUN = ['mpirun', '--oversubscribe', '--bind-to', 'none']
AS_ROOT = {'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1'}


def free_port():
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


class RanksTest(CliTest):
    def setUp(self):
        super().setUp()
        # One thread each: the machines that run this have few cores.
        self.changes = {'run': {'steps': 20, 'threads': 1}, 'optimizer': {'preset': 'muon', 'lr': 0.02},
                        'batch': {'micro_batch': None}, 'schedule': ADAPTIVE, 'eval': {'every': 10, 'batches': 3}}
        self.config(self.changes)

    def ranks(self, count, *arguments, run='run', **options):
        more = ('--gpus', count, '--device', 'cpu') if count > 1 else ()
        return self.train('--set', f'run.dir={run}', *more, *arguments, **options)

    def assert_close(self, one, other, tolerance=1e-5):
        """Losses agree, and the schedule switches at the same update."""
        a, b = self.metrics(one, 'train'), self.metrics(other, 'train')
        self.assertEqual(len(a), len(b))
        for first, second in zip(a, b):
            self.assertLess(abs(first['loss'] / second['loss'] - 1), tolerance, (first, second))
            self.assertEqual([first[key] for key in ('step', 'tokens', 'phase')],
                             [second[key] for key in ('step', 'tokens', 'phase')])
        a, b = self.metrics(one, 'val'), self.metrics(other, 'val')
        self.assertEqual([line['tokens'] for line in a], [line['tokens'] for line in b])
        for first, second in zip(a, b):
            self.assertLess(abs(first['loss'] / second['loss'] - 1), tolerance, (first, second))

    def start(self, rank, count, port, *arguments):
        """One rank, with torchrun's variables."""
        variables = {'RANK': str(rank), 'WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1',
                     'MASTER_PORT': str(port)}
        return subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json', *arguments], cwd=self.folder,
                                env={**os.environ, **variables}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True)

    def wait_for_update(self, run='run', update=1):
        file = self.folder / run / 'metrics.jsonl'
        for _ in range(3000):
            if file.exists() and file.read_text().count('"train"') > update:
                return
            time.sleep(0.01)
        self.fail('no update within 30 s')


class SameRunTest(RanksTest):
    def test_two_ranks_train_as_one_and_repeat_themselves(self):
        self.ranks(1, run='one')
        said = self.ranks(2, run='two').out
        self.assertIn('ranks      2, each 1 x 2 sequences of an update', said)
        self.assertEqual(said.count('validation loss'), 3, said)  # one rank speaks
        self.ranks(2, run='again')
        self.assert_close('one', 'two')
        phases = [line['phase'] for line in self.metrics('two', 'train')]
        self.assertEqual({'warmup', 'decay'}, set(phases))
        self.assert_same_run('two', 'again', 20)
        summary = self.metrics('two', 'summary')[0]
        self.assertEqual(summary['ranks'], 2)
        # Gradients to their owners and weights back, in fp32: 2 (N - 1) times all of them.
        expected = 20 * 2 * 4 * summary['parameters']
        self.assertGreater(summary['sent_bytes'], expected)
        self.assertLess(summary['sent_bytes'], 1.05 * expected)

    def test_resume_on_another_number_of_ranks(self):
        self.ranks(1, run='one')
        for until, ranks in ((6, 2), (13, 1), (20, 2)):
            result = self.ranks(ranks, '--set', 'checkpoint.every=1', '--set', 'checkpoint.keep=0', run='parts')
            if until == 13:
                self.assertIn('checkpoint of 2 ranks, continued on 1', result.out)
            for folder in (self.folder / 'parts' / 'checkpoints').iterdir():
                if int(folder.name[5:]) > until:
                    shutil.rmtree(folder)
        self.assert_close('one', 'parts')

    def test_analyzer_and_samples(self):
        changes = {'smoothness': {'every': 5}, 'batch': {'micro_batch': 1}, 'data': {'tokenizer': 'bytes'},
                   'model': {'vocab_size': 256}, 'eval': {'sample': 'a'}, 'run': {'steps': 6}}
        self.config({**self.changes, **changes, 'schedule': {}})
        self.ranks(1, run='one')
        self.ranks(2, run='two')
        self.assert_close('one', 'two')
        for first, second in zip(self.metrics('one', 'smoothness'), self.metrics('two', 'smoothness')):
            self.assertLess(abs(first['ratio'] / second['ratio'] - 1), 1e-3)


    def test_numbers_that_are_not_finite(self):
        """All ranks find them, leave out the same updates and give up together; one says so."""
        for what in ('stop', 'skip', 'rollback'):
            with self.subTest(what):
                keys = ('--set', 'optimizer.lr=1e38', '--set', f'run.on_nonfinite={what}', '--set', 'schedule={}')
                limit = ('--set', 'run.nonfinite_limit=2') if what != 'stop' else ()
                one = self.ranks(1, *keys, *limit, run=f'{what}-one', status=1)
                two = self.ranks(2, *keys, *limit, run=f'{what}-two', status=1)
                self.assertEqual(one.err.replace('-one', ''), two.err.replace('-two', ''))
                self.assertEqual(two.err.count('train_gpt: '), 1)

    def test_momentum_that_starts_as_the_weights(self):
        keys = ('--set', 'optimizer.preset=nsgd', '--set', 'optimizer.compat.momentum_init=parameters')
        self.ranks(1, *keys, run='one')
        self.ranks(2, *keys, run='two')
        self.assert_close('one', 'two')


class LaunchTest(RanksTest):
    @unittest.skipUnless(shutil.which('mpirun'), 'no mpirun here (package openmpi-bin)')
    def test_mpirun(self):
        self.ranks(2, run='own')
        result = subprocess.run([*MPIRUN, '-np', '2', TRAIN_GPT, 'train', '--config', 'config.json', '--set',
                                 'run.dir=mpi'], cwd=self.folder, env={**os.environ, **AS_ROOT}, capture_output=True,
                                text=True, timeout=60)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assert_same_run('own', 'mpi', 20)

    def test_variables_of_torchrun(self):
        self.ranks(2, run='own')
        port = free_port()
        ranks = [self.start(rank, 2, port, '--set', 'run.dir=torchrun') for rank in (1, 0)]
        for rank in ranks:
            out, err = rank.communicate(timeout=60)
            self.assertEqual(rank.returncode, 0, out + err)
        self.assert_same_run('own', 'torchrun', 20)

    def test_another_configuration_is_refused_by_name(self):
        port = free_port()
        first = self.start(0, 2, port)
        second = self.start(1, 2, port, '--set', 'optimizer.lr=0.03')
        out, err = first.communicate(timeout=60)
        self.assertEqual(err, 'train_gpt: rank 1: the configuration differs from that of rank 0 (its value first):\n'
                              '  optimizer.lr: 0.02 -> 0.03\nstart all ranks with the same configuration\n')
        self.assertEqual(second.communicate(timeout=60), ('', ''))
        self.assertEqual((first.returncode, second.returncode), (2, 2))
        self.assertFalse((self.folder / 'run').exists())

    def test_never_one_rank_instead_of_several(self):
        result = self.train(environment={'WORLD_SIZE': '4'}, status=2)
        self.assertIn('WORLD_SIZE = 4 but RANK is not set', result.err)
        result = self.train('--gpus', '2', environment={'RANK': '0', 'WORLD_SIZE': '2', 'MASTER_ADDR': 'localhost'},
                            status=2)
        self.assertIn('--gpus 2: torchrun has started this as one of 2 ranks already', result.err)
        self.assertFalse((self.folder / 'run').exists())

    def test_batches_that_cannot_be_cut(self):
        result = self.ranks(3, status=2)
        self.assertEqual(result.err, 'train_gpt: batch.sequences = 4: expected a multiple of 3 ranks, which share '
                                     'every batch\n')
        result = self.ranks(2, '--set', 'batch.micro_batch=4', status=2)
        self.assertIn('batch.micro_batch = 4: expected a divisor of 2, the batch.sequences = 4 over 2 ranks', result.err)
        result = self.ranks(2, '--set', 'schedule.compat.loss_source=local', '--set', 'smoothness.every=2', status=2)
        self.assertIn('schedule.compat.loss_source = "local" on 2 ranks', result.err)

    def test_published_ranks_that_follow_their_own_losses(self):
        """Rank 0's first loss is that of a run on its part of the first batch; later its rates are its own too."""
        local = ['--set', 'schedule.compat.loss_source="local"']
        self.ranks(2, *local, run='local')
        self.ranks(2, *local, run='again')
        self.ranks(2, run='mean')
        self.ranks(1, '--set', 'batch.sequences=2', run='part')
        mean, local, part = ({line['type']: line for line in reversed(self.metrics(run))}
                             for run in ('mean', 'local', 'part'))
        self.assertAlmostEqual(local['schedule']['delta0'], part['schedule']['delta0'], places=5)
        self.assertNotAlmostEqual(local['schedule']['delta0'], mean['schedule']['delta0'], places=3)
        self.assertAlmostEqual(local['train']['loss'], mean['train']['loss'], places=5)
        rates = {run: [line['lr'] for line in self.metrics(run, 'train')] for run in ('local', 'again', 'mean')}
        self.assertEqual(rates['local'], rates['again'])
        self.assertNotEqual(rates['local'], rates['mean'])
        for file in ('model.safetensors', 'optimizer.safetensors'):
            self.assertEqual((self.checkpoint(20, 'local') / file).read_bytes(),
                             (self.checkpoint(20, 'again') / file).read_bytes())
        # What is saved is evaluated: rank 0's weights.
        loss = self.metrics('local', 'val')[-1]['loss']
        self.assertNotEqual(loss, self.metrics('mean', 'val')[-1]['loss'])
        self.train('--set', 'run.dir=resumed', '--set', 'run.steps=20', '--resume', self.checkpoint(20, 'local'), *(
            '--set', 'schedule.compat.loss_source="local"'))


class FailureTest(RanksTest):
    def start_long_run(self, count=2, **run):
        self.config({**self.changes, 'run': {'steps': 100000, 'threads': 1, **run}, 'eval': {'every': 0},
                     'schedule': {}, 'checkpoint': {'every': 5}})
        port = free_port()
        ranks = [self.start(rank, count, port) for rank in range(count)]
        self.addCleanup(lambda: [(rank.kill(), rank.communicate()) for rank in ranks])
        self.wait_for_update(update=12)
        return ranks

    def test_a_killed_rank_ends_all_and_the_run_goes_on(self):
        first, second = self.start_long_run()
        second.kill()
        start = time.time()
        out, err = first.communicate(timeout=30)
        self.assertLess(time.time() - start, 5)
        self.assertEqual(first.returncode, 1)
        self.assertRegex(err, r"^train_gpt: rank 1 ended without a word at '[a-z ]+', so all ranks stop; was it killed, "
                              r'for lack of memory perhaps\?\n$')
        names = sorted(folder.name for folder in (self.folder / 'run' / 'checkpoints').iterdir())
        self.assertFalse([name for name in names if 'tmp' in name], names)
        updates = int(names[-1][5:])
        last = self.metrics(kind='train')[-1]['step']  # perhaps beyond the checkpoint
        port = free_port()
        ranks = [self.start(rank, 2, port) for rank in range(2)]
        self.wait_for_update(update=last + 3)
        ranks[0].send_signal(signal.SIGTERM)
        out, err = ranks[0].communicate(timeout=30)
        ranks[1].communicate(timeout=30)
        self.assertEqual((ranks[0].returncode, ranks[1].returncode), (3, 3), out + err)
        self.assertIn(f'resumed after {updates} updates', out)
        steps = [line['step'] for line in self.metrics(kind='train')]
        self.assertEqual(steps, list(range(len(steps))))

    def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(self):
        first, second = self.start_long_run()
        second.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=30)
        second.communicate(timeout=30)
        self.assertEqual((first.returncode, second.returncode), (3, 3), out + err)
        self.assertIn('checkpoint written', out)

    def test_signals_to_the_starter(self):
        self.config({**self.changes, 'run': {'steps': 100000, 'threads': 1}, 'schedule': {}, 'eval': {'every': 0}})
        process = subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json', '--gpus', '2', '--device', 'cpu'],
                                   cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(lambda: (process.kill(), process.communicate()))
        self.wait_for_update()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
        self.assertEqual(process.returncode, 3, out + err)
        self.assertIn('checkpoint written', out)
