"""Several ranks on GPUs: processes on the emulator, with a stand-in for NCCL between them (dev/emulator/nccl)."""
import os
import re
import shutil
import signal
import subprocess
import time

from emulated import EMULATED, EmulatedTest
from test_ranks import free_port

TINY = {'n_layer': 1, 'n_head': 2, 'n_kv_head': 1, 'd_model': 16, 'd_ff': 24, 'vocab_size': 64, 'seq_len': 8}


class GpuRanksTest(EmulatedTest):
    def setUp(self):
        super().setUp()
        self.base = {'model': TINY, 'run': {'steps': 6, 'threads': 1, 'device': 'cuda'},
                     'optimizer': {'preset': 'muon', 'lr': 0.02}, 'batch': {'micro_batch': None}, 'eval': {'batches': 2}}
        self.config(self.base)

    def ranks(self, count, *arguments, run='run', devices=None, environment=None, **options):
        """`devices`: how many GPUs the machine has."""
        several = ('--gpus', str(count)) if count > 1 else ()
        return self.on_emulator('train', '--config', 'config.json', '--set', f'run.dir={run}', *several, *arguments,
                                environment={'LMO_EMULATOR_DEVICES': str(devices or count), **(environment or {})}, **options)

    def assert_close(self, one, other, tolerance=1e-5):
        for first, second in zip(self.losses(one), self.losses(other), strict=True):
            self.assertLess(abs(first / second - 1), tolerance)

    def start(self, count, *arguments, environment=None):
        """Each rank by itself, with torchrun's variables."""
        port, started = free_port(), []
        for rank in range(count):
            variables = {'RANK': str(rank), 'WORLD_SIZE': str(count), 'MASTER_ADDR': '127.0.0.1',
                         'MASTER_PORT': str(port), 'LMO_EMULATOR_DEVICES': str(count)}
            started.append(subprocess.Popen(
                [EMULATED, 'train', '--config', 'config.json', *arguments], cwd=self.folder, text=True,
                env={**os.environ, **variables, **(environment or {}).get(rank, {})},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        self.addCleanup(lambda: [(process.kill(), process.communicate()) for process in started])
        return started

    def assert_first_says(self, ranks, pattern, status=1):
        """Rank 0 says what happened, once; it does not wait for ever."""
        out, err = ranks[0].communicate(timeout=30)
        self.assertEqual(ranks[0].returncode, status, out + err)
        self.assertRegex(err, '^train_gpt: ' + pattern)
        self.assertEqual(err.count('train_gpt: '), 1, err)

    def start_and_hang(self, group, *arguments):
        """Both ranks are inside of a collective of their devices, which never ends."""
        hang = {'LMO_NCCL_HANG': str(group)}
        ranks = self.start(2, '--set', 'run.steps=50', *arguments, environment={0: hang, 1: hang})
        for rank in ranks:
            self.assertEqual(rank.stderr.readline(), 'stand-in: hangs\n')
        return ranks


class SameRunTest(GpuRanksTest):
    def test_two_ranks_train_as_one_and_repeat_themselves(self):
        self.ranks(1, run='one')
        said = self.ranks(2, run='two').out
        self.assertIn('ranks      2, each 1 x 2 sequences of an update', said)
        self.assertIn('; by NCCL 2.99.0\n', said)
        # Work of the device in another order, and when it is waited for.
        self.ranks(2, run='again', environment={'LMO_EMULATOR_ORDER': '5', 'LMO_EMULATOR_STREAMS': 'random'})
        self.assert_close('one', 'two', 3e-5)  # Newton-Schulz works in fp16 on a GPU
        self.assert_same_run('two', 'again', 6)
        summary = self.metrics('two', 'summary')[0]
        expected = 6 * 2 * 4 * summary['parameters']  # gradients to their owners, weights back
        self.assertGreater(summary['sent_bytes'], expected)
        self.assertLess(summary['sent_bytes'], 1.5 * expected)  # the model is tiny

    def test_overlap_changes_nothing(self):
        """Small parts, several micro-batches, two layers; work of the device is put off, and its streams take turns."""
        self.config({**self.base, 'model': {**TINY, 'n_layer': 2}, 'batch': {'micro_batch': 1}, 'precision': {'compute': 'bf16'},
                     'checkpoint': {'every': 2}})
        self.ranks(2, '--set', 'run.overlap=false', run='whole')
        for streams, *changes in (('last', ), ('first', '--set', 'run.graphs=false'), ('random', '--set', 'run.bucket_mb=1')):
            run = f'parts-{streams}'
            self.ranks(2, '--set', 'run.bucket_mb=0.001', *changes, run=run, environment={'LMO_EMULATOR_STREAMS': streams})
            self.assert_same_run('whole', run, 6)

    def test_adamw_in_fp32(self):
        self.config({**self.base, 'optimizer': {'preset': 'adamw', 'lr': 0.01}})
        self.ranks(1, run='one')
        self.ranks(2, run='two')
        self.assert_close('one', 'two')

    def test_an_embedding_that_is_cut(self):
        for preset, tolerance in (('adamw', 1e-5), ('lion', 1e-5), ('muon', 3e-5)):
            with self.subTest(preset):
                self.config({**self.base, 'model': {**TINY, 'vocab_size': 131},
                             'optimizer': {'preset': preset, 'lr': 0.003, 'clip_norm': 0.5}})
                self.ranks(1, run=f'{preset}-one')
                said = self.ranks(2, run=f'{preset}-two').out
                self.assertIn('the steps of 1/2 of 1 block and', ' '.join(said.split()))
                self.assert_close(f'{preset}-one', f'{preset}-two', tolerance)
                self.ranks(2, run=f'{preset}-again')
                self.assert_same_run(f'{preset}-two', f'{preset}-again', 6)

    def test_resume_on_other_numbers_of_ranks_and_on_the_cpu(self):
        self.config({**self.base, 'model': {**TINY, 'vocab_size': 131}})  # the embedding is cut
        self.ranks(1, run='one')
        more = ('--set', 'checkpoint.every=1', '--set', 'checkpoint.keep=0')
        for until, ranks in ((2, 2), (4, 1), (6, 2)):
            said = self.ranks(ranks, *more, run='parts').out
            if until == 4:
                self.assertIn('checkpoint of 2 ranks, continued on 1', said)
            for folder in (self.folder / 'parts' / 'checkpoints').iterdir():
                if int(folder.name[5:]) > until:
                    shutil.rmtree(folder)
        self.assert_close('one', 'parts', 3e-5)
        shutil.rmtree(self.checkpoint(6, 'parts'))
        on_cpu = self.train('--set', 'run.dir=parts', '--device', 'cpu', '--gpus', '2')
        self.assertIn('resumed after 5 updates', on_cpu.out)
        self.assert_close('one', 'parts', 2e-3)


class FailureTest(GpuRanksTest):
    def test_a_killed_rank_ends_all(self):
        ranks = self.start_and_hang(8)
        ranks[1].kill()
        start = time.time()
        self.assert_first_says(ranks, r"rank 1 ended without a word at 'new weights', so all ranks stop")
        self.assertLess(time.time() - start, 5)

    def test_a_stopped_rank_is_named(self):
        ranks = self.start_and_hang(5, '--set', 'run.rank_timeout=2')
        ranks[1].send_signal(signal.SIGSTOP)
        self.assert_first_says(ranks, r"rank 1 gave no sign of life in 'sum of gradients' for 2 s, so all ranks stop")

    def test_a_collective_that_never_ends(self):
        ranks = self.start_and_hang(3, '--set', 'run.rank_timeout=2')
        self.assert_first_says(ranks, r"(rank 1: )?'sum of gradients' did not end within 2 s \(run\.rank_timeout\)")

    def test_what_nccl_reports(self):
        ranks = self.start(2, environment={1: {'LMO_NCCL_FAIL': '3'}})
        self.assert_first_says(ranks, r'rank 1: NCCL: working with the other ranks: system error \(stand-in: told to fail\)')

    def test_without_the_library(self):
        (self.folder / 'library').mkdir()
        (self.folder / 'library' / 'libnccl.so.2').write_text('not a library')
        missing = {'LD_LIBRARY_PATH': str(self.folder / 'library')}
        said = self.ranks(2, status=1, environment=missing).err
        self.assertRegex(said, r'^train_gpt: NCCL: cannot load libnccl\.so\.2: .*install NCCL \(package libnccl2, or '
                               r'nvidia-nccl-cu\d+ of pip\), or name its folder in LD_LIBRARY_PATH\n$')
        self.ranks(1, '--set', 'run.steps=1', environment=missing)  # one rank has no use for it

    def test_too_few_devices(self):
        self.assertEqual(self.ranks(4, devices=2, status=2).err,
                         'train_gpt: 4 ranks on this machine, where 2 GPUs are visible: every rank needs one of '
                         'its own; start at most 2 here, look at CUDA_VISIBLE_DEVICES, or compute on the CPU '
                         '(--device cpu)\n')
        self.assertEqual(self.ranks(2, devices=1, status=2).err,
                         'train_gpt: ranks 0 and 1 are on one machine and see 1 GPU, the same: every rank needs one of '
                         'its own; start at most 1 there, look at CUDA_VISIBLE_DEVICES, or compute on the CPU '
                         '(--device cpu)\n')
        self.assertTrue(re.search('no GPU', self.ranks(2, status=1, environment={'LMO_EMULATOR_NO_DEVICE': '1'}).err))
        self.assertFalse((self.folder / 'run' / 'checkpoints').exists())
