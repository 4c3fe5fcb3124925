"""What the tests of training on the emulated CUDA backend share."""
import os
import pathlib
import subprocess
import unittest

import cli
from cli import CliTest

EMULATED = pathlib.Path(os.environ.get('LMO_BUILD', cli.ROOT / 'build')) / 'emulated' / 'plain' / 'train_gpt'


@unittest.skipUnless(os.environ.get('LMO_CUDA_HEADERS', 'yes'), 'no headers of a CUDA toolkit')
class EmulatedTest(CliTest):
    def on_emulator(self, *arguments, status=0, environment=None):
        result = cli.Result(subprocess.run([EMULATED, *arguments], cwd=self.folder, encoding='utf-8',
                                           capture_output=True, timeout=300,
                                           env={**os.environ, **(environment or {})}))
        self.assertEqual(result.status, status, result.out + result.err)
        return result

    def losses(self, run):
        return [line['loss'] for line in self.metrics(run, 'train') + self.metrics(run, 'val')]

    def assert_resumes_exactly(self, changes):
        """Four updates at once, and two with two more under another order of threads: the same bits. Leaves the runs
        `whole` and `parts`."""
        self.config({**changes, 'checkpoint': {'every': 2, 'keep': 0}})
        command = ['train', '--config', 'config.json', '--set', 'run.steps=4', '--device', 'cuda', '--set']
        for run in ('whole', 'parts'):
            self.on_emulator(*command, f'run.dir={run}')
        subprocess.run(['rm', '-r', self.checkpoint(4, 'parts')], check=True)
        self.on_emulator(*command, 'run.dir=parts', environment={'LMO_EMULATOR_ORDER': '7'})
        for name in ('model.safetensors', 'optimizer.safetensors'):
            self.assertEqual((self.checkpoint(4, 'whole') / name).read_bytes(),
                             (self.checkpoint(4, 'parts') / name).read_bytes(), name)

    def both(self, changes, bound):
        """The same run on both devices: losses agree to `bound`, relative."""
        self.config(changes)
        common = ['train', '--config', 'config.json', '--resume', 'never', '--device']
        run = self.on_emulator(*common, 'cuda', '--set', 'run.dir=on_cuda')
        self.assertIn('emulator', run.out)
        cpu = self.run_cli(*common, 'cpu', '--set', 'run.dir=on_cpu')
        self.assertEqual(cpu.status, 0, cpu.err)
        pairs = list(zip(self.losses('on_cuda'), self.losses('on_cpu')))
        self.assertGreater(len(pairs), 5)
        for cuda_loss, cpu_loss in pairs:
            self.assertAlmostEqual(cuda_loss / cpu_loss, 1, delta=bound)
        subprocess.run(['rm', '-r', 'on_cpu', 'on_cuda'], cwd=self.folder, check=True)
