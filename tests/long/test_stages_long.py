"""Estimators, error feedback, local and outer steps: all of them resumed bit by bit on one rank and three, continued on
other numbers of ranks, killed in the middle; and their bytes as the network counts them."""
import contextlib
import ctypes
import fcntl
import os
import pathlib
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import unittest

from cli import TRAIN_GPT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'integration'))
from test_stages import EMA, ESTIMATORS, LOCAL, StagesTest as Stages, stages  # noqa: E402

KILLS = int(os.environ.get('LMO_RANK_KILLS', '12'))


def loopback_bytes():
    for line in pathlib.Path('/proc/self/net/dev').read_text().splitlines():
        name, _, numbers = line.partition(':')
        if name.strip() == 'lo':
            return int(numbers.split()[8])  # transmitted
    return None


def in_own_network(body):
    """The number that body() returns, in a process with a loopback device of its own where that is allowed: the
    machine's counts what others send, too."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0:  # CLONE_NEWNET
                up = struct.pack('16sh14x', b'lo', 0x1 | 0x40)  # IFF_UP | IFF_RUNNING
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                    fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
            os.write(writer, str(body()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as text:
        result = text.read()
    if os.waitpid(child, 0)[1] != 0:
        raise AssertionError('the ranks failed')
    return int(result)


class StagesLongTest(Stages):
    def test_one_rank_resumes_and_is_planned(self):
        for name, settings in stages():
            with self.subTest(name):
                self.configure(settings)
                self.check(name, 1)

    def test_three_ranks_resume_and_are_planned(self):
        for name, settings in stages():
            with self.subTest(name):
                self.configure(settings)
                plan, lines = self.check(name, 3)
                if name == 'page':
                    continue
                # Over two meetings, or from the second update on: the first one sends all.
                for way in ('up_bytes', 'down_bytes'):
                    sent = sum(line[way] for line in lines[0 if name in LOCAL else 3:])
                    updates = 6 if name in LOCAL else 3
                    planned = 3 * updates * plan[f'{way}_per_update']
                    self.assertTrue(planned <= sent <= 1.05 * planned + 2000 * updates, (way, sent, planned))

    def test_one_rank_is_three_ranks(self):
        for name in ESTIMATORS:
            with self.subTest(name):
                self.compare_ranks(name)

    def test_everything_kept_is_no_compression(self):
        """All elements, all columns, the full rank: nothing is left out, whatever the feedback does."""
        for up in ({'type': 'topk', 'fraction': 1}, {'type': 'columns', 'fraction': 1}, {'type': 'rank', 'rank': 32}):
            for way in ('up', 'down'):
                with self.subTest(way, **up):
                    run = f"{up['type']}-{way}"
                    self.configure({'communication': {'type': 'ef21', way: up}}, precision={'compute': 'fp64'})
                    self.train('--set', f'run.dir={run}', '--gpus', 2)
                    self.train('--set', f'run.dir={run}-plain', '--set', 'optimizer.communication={}')
                    for plain, other in zip(self.losses(f'{run}-plain'), self.losses(run), strict=True):
                        self.assertAlmostEqual(plain, other, delta=1e-9 * plain)

    def test_another_number_of_ranks_continues(self):
        for name in ('topk', 'rank_both', 'local', 'decaying', 'momentum', 'storm', 'page'):
            settings = dict(stages())[name]
            for first, then in ((3, 1), (1, 3), (3, 2)):
                with self.subTest(name, ranks=(first, then)):
                    run = f'{name}{first}{then}'
                    self.configure(settings)
                    if name == 'page':
                        self.configure({'groups': EMA, 'estimator': {'type': 'page', 'small': 6}},
                                       batch={'sequences': 12})
                    arguments = ('--set', f'run.dir={run}')
                    self.train(*arguments, '--gpus', first)
                    shutil.rmtree(self.checkpoint(6, run))
                    result = self.train(*arguments, '--gpus', then)
                    self.assertIn('resumed after 3 updates', result.out)
                    losses = self.losses(run)
                    self.assertEqual(len(losses), 6)
                    self.assertLess(losses[-1], losses[0])

    def test_ranks_killed_in_the_middle(self):
        """Whatever is killed whenever: the others end and say so, and the run goes on to the same bits."""
        random.seed(5)
        for name in ('rank_both', 'decaying', 'storm_ef21'):
            self.configure(dict(stages())[name], run={'steps': 600}, eval={'every': 0}, log={'every': 20},
                           checkpoint={'every': 15, 'keep': 2})
            self.train('--set', f'run.dir={name}', '--gpus', 3)
            arguments = ['--config', 'config.json', '--device', 'cpu', '--gpus', '3', '--set', f'run.dir={name}-killed']
            kills = 0
            for _ in range(40):
                process = subprocess.Popen([TRAIN_GPT, 'train', *arguments], cwd=self.folder, stdout=subprocess.PIPE,
                                           stderr=subprocess.STDOUT, text=True)
                time.sleep(random.uniform(0.05, 0.6))
                children = pathlib.Path(f'/proc/{process.pid}/task/{process.pid}/children').read_text().split()
                with contextlib.suppress(ProcessLookupError):
                    if children:
                        os.kill(int(random.choice(children)), signal.SIGKILL)
                out = process.communicate(timeout=60)[0]
                if process.returncode == 0:  # too late
                    shutil.rmtree(self.folder / f'{name}-killed')
                    continue
                self.assertEqual(process.returncode, 1, out)
                kills += 1
                if kills == KILLS // 3:
                    break
            self.assertGreater(kills, 0)
            result = self.run_cli('train', *arguments)
            self.assertEqual(result.status, 0, result.out + result.err)
            self.assert_same_run(name, f'{name}-killed', 600)

    @unittest.skipIf(loopback_bytes() is None, 'no counters of the loopback device')
    def test_bytes_are_those_of_the_network(self):
        """Over TCP on the loopback device, whose counter has headers too."""
        for name, up in (('mean', None), ('topk', {'type': 'topk', 'fraction': 0.1, 'natural': True})):
            communication = {'type': 'ef21', 'up': up, 'down': {'type': 'natural'}} if up else {'type': 'mean'}
            self.configure({'communication': communication, 'preset': 'ef21-muon', 'lr': 0.01},
                           model={'d_model': 128, 'd_ff': 256, 'vocab_size': 4096}, eval={'every': 0},
                           checkpoint={'every': 0}, log={'tensorboard': False})
            sent = {}
            # The difference of a long and a short run is free of start and end.
            for steps in (12, 42):
                wire = in_own_network(lambda: self.run_over_tcp(steps, f'{name}{steps}'))
                lines = self.metrics(f'{name}{steps}', 'train')
                sent[steps] = (wire, sum(line['up_bytes'] + line['down_bytes'] for line in lines))
            wire, counted = (long - short for long, short in zip(sent[42], sent[12]))
            self.assertTrue(counted <= wire <= 1.05 * counted + 100_000, (name, wire, counted))

    def run_over_tcp(self, steps, run):
        """Bytes on the loopback device while two ranks train."""
        environment = {**os.environ, 'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1',
                       'MASTER_PORT': str(random.randint(20000, 30000))}
        before = loopback_bytes()
        ranks = [subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json', '--device', 'cpu', '--set',
                                   f'run.steps={steps}', '--set', f'run.dir={run}'], cwd=self.folder,
                                  env={**environment, 'RANK': str(r)}, stdout=subprocess.DEVNULL)
                 for r in range(2)]
        for rank in ranks:
            self.assertEqual(rank.wait(timeout=120), 0)
        return loopback_bytes() - before


# The tests of the base class run where they are at home.
for name in [key for key in dir(Stages) if key.startswith('test_')]:
    if name not in vars(StagesLongTest):
        setattr(StagesLongTest, name, None)
del Stages
