"""The command line under valgrind: no wrong access, no decision on a value never written, no leak.

valgrind 3.19 knows no AVX-512; it says so to the program, which then takes its AVX2 kernels."""
import os
import pathlib
import shutil
import subprocess
import unittest

from cli import TRAIN_GPT, CliTest

VALGRIND = shutil.which('valgrind')
SUPPRESSIONS = pathlib.Path(__file__).resolve().parent / 'valgrind.supp'
FOUND = 99  # no exit status of the program
ENVIRONMENT = {**os.environ, 'OMP_WAIT_POLICY': 'passive', 'OMP_NUM_THREADS': '2'}
BUG = '''
#include <cstdio>
#include <cstdlib>
int main(int count, char**) {
    int* values = static_cast<int*>(std::malloc(40));
    if (count == 1) return values[3] > 0;  // never written
    values[0] = 1;
    values = nullptr;                      // lost
    return 0;
}
'''


@unittest.skipUnless(VALGRIND, 'valgrind is not installed (scripts/setup.sh check)')
class ValgrindTest(CliTest):
    def valgrind(self, *command):
        return subprocess.run([VALGRIND, '--quiet', f'--error-exitcode={FOUND}', '--leak-check=full',
                               '--show-leak-kinds=definite', '--errors-for-leak-kinds=definite',
                               f'--suppressions={SUPPRESSIONS}', *map(str, command)], cwd=self.folder,
                              env=ENVIRONMENT, capture_output=True, encoding='utf-8', errors='replace', timeout=600)

    def check(self, *arguments, status=0, expected=''):
        result = self.valgrind(TRAIN_GPT, *arguments)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        self.assertNotIn('==', result.stderr)
        self.assertIn(expected, result.stdout + result.stderr)

    def test_finds_bugs(self):
        (self.folder / 'bug.cpp').write_text(BUG)
        subprocess.run([os.environ.get('CXX', 'g++'), '-g', '-O0', 'bug.cpp', '-o', 'bug'], cwd=self.folder, check=True)
        for arguments, message in (((), 'uninitialised'), (('leak',), 'definitely lost')):
            result = self.valgrind('./bug', *arguments)
            self.assertEqual(result.returncode, FOUND, result.stderr)
            self.assertIn(message, result.stderr)

    def test_help(self):
        self.check('--help', expected='Usage')
        self.check('train', '--help', expected='--config')

    def test_errors(self):
        self.check('fly', status=2, expected='unknown command "fly"')
        self.check('train', '--config', 'absent.json', status=2, expected='absent.json')
        self.config({'model': {'n_head': 5}})
        self.check('train', '--config', 'config.json', status=2, expected='n_head')
        (self.folder / 'broken.json').write_text('{"run": ')
        self.check('train', '--config', 'broken.json', status=2, expected='broken.json')
        (self.folder / 'data' / 'train.bin').write_bytes(b'')
        self.config()
        self.check('train', '--config', 'config.json', status=1, expected='train.bin')

    def test_schedule(self):
        self.config()
        self.check('schedule', '--config', 'config.json', expected='update')

    def run_model(self, preset, compute):
        self.config({'run': {'steps': 2}, 'model': {'vocab_size': 256}, 'data': {'tokenizer': 'bytes'},
                     'batch': {'sequences': 2, 'micro_batch': 1}, 'eval': {'batches': 1},
                     'precision': {'compute': compute}, 'optimizer': {'preset': preset}})
        self.check('train', '--config', 'config.json', expected='AVX2')
        checkpoint = self.checkpoint(2)
        self.check('eval', '--checkpoint', checkpoint, '--data', 'data/val.bin', expected='loss')
        self.check('generate', '--checkpoint', checkpoint, '--prompt', 'Hi', '--tokens', '4')
        self.check('train', '--config', 'config.json', '--set', 'checkpoint.keep=5', expected='finished')

    def test_fp32(self):
        self.run_model('adamw', 'fp32')

    def test_bf16(self):
        self.run_model('muon', 'bf16')
