"""The same program on older processors, emulated: it starts, picks its kernels, and trains alike."""
import json
import os
import shutil
import unittest

from cli import TRAIN_GPT, CliTest

import subprocess

QEMU = shutil.which('qemu-x86_64')
UPDATES = 3


@unittest.skipUnless(QEMU, 'qemu-x86_64 is not installed (package qemu-user)')
class ProcessorTest(CliTest):
    def emulate(self, processor, *arguments):
        # OMP_WAIT_POLICY also keeps the program from starting itself anew, outside of the emulator.
        result = subprocess.run([QEMU, '-cpu', processor, TRAIN_GPT, *map(str, arguments)], cwd=self.folder,
                                env={**os.environ, 'OMP_WAIT_POLICY': 'passive', 'OMP_NUM_THREADS': '2'},
                                capture_output=True, text=True, timeout=300)
        self.assertEqual(result.returncode, 0, f'{processor}: {result.stdout}{result.stderr}')
        return result.stdout

    def losses(self, run, kind='train'):
        return [line['loss'] for line in self.metrics(run, kind)]

    def check(self, processor, kernels):
        for preset in ('adamw', 'muon'):
            for compute, tolerance in (('fp32', 2e-5), ('bf16', 2e-2)):
                with self.subTest(preset=preset, compute=compute):
                    self.config({'run': {'steps': UPDATES}, 'optimizer': {'preset': preset},
                                 'precision': {'compute': compute}})
                    native, emulated = f'native-{preset}-{compute}', f'emulated-{preset}-{compute}'
                    self.train('--set', f'run.dir={native}')
                    output = self.emulate(processor, 'train', '--config', 'config.json', '--set',
                                          f'run.dir={emulated}')
                    self.assertIn(f', {kernels}', output)
                    self.assertEqual(len(self.losses(emulated)), UPDATES)
                    for kind in ('train', 'val'):
                        for here, there in zip(self.losses(native, kind), self.losses(emulated, kind)):
                            self.assertAlmostEqual(here, there, delta=tolerance)
        arguments = ('eval', '--checkpoint', self.checkpoint(UPDATES, 'native-adamw-fp32'), '--data',
                     'data/val.bin', '--precision', 'fp32', '--json')
        here = json.loads(self.run_cli(*arguments).out)
        there = json.loads(self.emulate(processor, *arguments))
        self.assertAlmostEqual(here['loss'], there['loss'], delta=1e-5)

    def test_avx2(self):
        self.check('Haswell-noTSX', 'avx2')

    def test_before_avx(self):
        self.check('Nehalem', 'baseline')
