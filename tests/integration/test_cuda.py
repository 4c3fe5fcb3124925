"""Training on the CUDA backend, its kernels executed by the emulator: the CPU's results, resumed exactly."""
import os
import pathlib
import subprocess
import unittest

import cli
from cli import CliTest

EMULATED = pathlib.Path(os.environ.get('LMO_BUILD', cli.ROOT / 'build')) / 'emulated' / 'plain' / 'train_gpt'
PRESETS = ('adamw', 'muon', 'lion', 'signum', 'nsgd')


@unittest.skipUnless(os.environ.get('LMO_CUDA_HEADERS', 'yes'), 'no headers of a CUDA toolkit')
class CudaTest(CliTest):
    def on_emulator(self, *arguments, status=0, environment=None):
        result = cli.Result(subprocess.run([EMULATED, *arguments], cwd=self.folder, encoding='utf-8',
                                           capture_output=True, timeout=300,
                                           env={**os.environ, **(environment or {})}))
        self.assertEqual(result.status, status, result.out + result.err)
        return result

    def losses(self, run):
        return [line['loss'] for line in self.metrics(run, 'train') + self.metrics(run, 'val')]

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

    def test_fp32_equals_the_cpu_for_every_preset(self):
        for preset in PRESETS:
            with self.subTest(preset):
                # Inside of Newton-Schulz the GPU works in fp16.
                self.both({'optimizer': {'preset': preset, 'lr': 0.003, 'clip_norm': 0.5, 'weight_decay': 0.1},
                           'run': {'steps': 6}}, bound=2e-3 if preset == 'muon' else 2e-5)

    def test_bf16_is_near_the_cpu(self):
        self.both({'optimizer': {'preset': 'adamw', 'lr': 0.003}, 'run': {'steps': 6},
                   'precision': {'compute': 'bf16'},
                   'model': {'n_head': 2, 'n_kv_head': 1, 'd_model': 128, 'd_ff': 64}}, bound=1e-2)

    def test_resume_is_exact_and_crosses_devices(self):
        self.config({'optimizer': {'preset': 'muon', 'lr': 0.003}, 'checkpoint': {'every': 2, 'keep': 0}})
        command = ['train', '--config', 'config.json', '--set', 'run.steps=4']
        on_cuda = [*command, '--device', 'cuda', '--set']
        for run in ('whole', 'parts'):
            self.on_emulator(*on_cuda, f'run.dir={run}')
        subprocess.run(['rm', '-r', self.checkpoint(4, 'parts')], check=True)
        self.on_emulator(*on_cuda, 'run.dir=parts', environment={'LMO_EMULATOR_ORDER': '7'})
        for name in ('model.safetensors', 'optimizer.safetensors'):
            self.assertEqual((self.checkpoint(4, 'whole') / name).read_bytes(),
                             (self.checkpoint(4, 'parts') / name).read_bytes(), name)
        subprocess.run(['rm', '-r', self.checkpoint(4, 'parts')], check=True)
        on_cpu = self.run_cli(*command, '--device', 'cpu', '--set', 'run.dir=parts')
        self.assertIn('resumed after 2 updates', on_cpu.out + on_cpu.err)

    def test_without_a_gpu(self):
        self.config({'run': {'steps': 1}})
        nowhere = {'LMO_EMULATOR_NO_DEVICE': '1'}
        asked = self.on_emulator('train', '--config', 'config.json', '--device', 'cuda', status=1,
                                 environment=nowhere)
        self.assertIn('no GPU', asked.err)
        auto = self.on_emulator('train', '--config', 'config.json', '--device', 'auto', environment=nowhere)
        self.assertIn('using the CPU', auto.err)
        fp64 = self.on_emulator('train', '--config', 'config.json', '--device', 'cuda', '--set',
                                'precision.compute=fp64', status=2)
        self.assertIn('fp64', fp64.err)
