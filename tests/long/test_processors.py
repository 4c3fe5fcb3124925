"""The same program on older processors, emulated: it starts, picks its kernels, and trains alike."""
import json
import os
import shutil
import subprocess
import unittest

from cli import TRAIN_GPT, CliTest

QEMU = shutil.which('qemu-x86_64')
UPDATES = 3


@unittest.skipUnless(QEMU, 'qemu-x86_64 is not installed (package qemu-user)')
class ProcessorTest(CliTest):
    def emulate(self, processor, *arguments, status=0):
        # OMP_WAIT_POLICY also keeps the program from starting itself anew, outside of the emulator.
        result = subprocess.run([QEMU, '-cpu', processor, TRAIN_GPT, *map(str, arguments)], cwd=self.folder,
                                env={**os.environ, 'OMP_WAIT_POLICY': 'passive', 'OMP_NUM_THREADS': '2'},
                                capture_output=True, text=True, timeout=300)
        self.assertEqual(result.returncode, status, f'{processor}: {result.stdout}{result.stderr}')
        return result.stderr if status else result.stdout

    def losses(self, run, kind='train'):
        return [line['loss'] for line in self.metrics(run, kind)]

    def check(self, processor, kernels):
        for preset, compute, tolerance in (('adamw', 'fp32', 2e-5), ('muon', 'bf16', 2e-2)):
            with self.subTest(preset=preset, compute=compute):
                self.config({'run': {'steps': UPDATES}, 'optimizer': {'preset': preset},
                             'precision': {'compute': compute}})
                self.train('--set', f'run.dir=native-{preset}')
                output = self.emulate(processor, 'train', '--config', 'config.json', '--set',
                                      f'run.dir=emulated-{preset}')
                self.assertIn(f', {kernels}, ', output)
                self.assertEqual(len(self.losses(f'emulated-{preset}')), UPDATES)
                for kind in ('train', 'val'):
                    for here, there in zip(self.losses(f'native-{preset}', kind),
                                           self.losses(f'emulated-{preset}', kind)):
                        self.assertAlmostEqual(here, there, delta=tolerance)
        arguments = ('eval', '--checkpoint', self.checkpoint(UPDATES, 'native-adamw'), '--data',
                     'data/val.bin', '--precision', 'fp32', '--json')
        here = json.loads(self.run_cli(*arguments).out)
        there = json.loads(self.emulate(processor, *arguments))
        self.assertAlmostEqual(here['loss'], there['loss'], delta=1e-5)

    def check_without_bf16(self, processor):
        error = self.emulate(processor, 'bench', 'optimizer', '--device', 'cpu', '--shapes', '8x8', '--inner', 'bf16',
                             status=2)
        self.assertIn('--inner bf16: this processor has no matrix products in bf16 (AVX512-BF16); expected auto or '
                      'fp32', error)

    def test_avx2(self):
        self.check('Haswell-noTSX', 'AVX2')
        self.check_without_bf16('Haswell-noTSX')

    def test_before_avx(self):
        self.check('Nehalem', 'baseline')
        self.check_without_bf16('Nehalem')
