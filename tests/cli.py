"""Helpers of the integration tests: a scratch folder with tiny data and configurations, and the program."""
import json
import os
import pathlib
import random
import shutil
import struct
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN_GPT = os.environ.get('TRAIN_GPT', str(ROOT / 'build' / 'train_gpt'))

TINY_MODEL = {'n_layer': 2, 'n_head': 4, 'n_kv_head': 2, 'd_model': 32, 'd_ff': 48, 'vocab_size': 64,
              'seq_len': 16}


def write_tokens(path, count, vocabulary=64, seed=1):
    """Learnable tokens: a noisy walk, headerless uint16."""
    random.seed(seed)
    tokens, value = [], 0
    for _ in range(count):
        value = (value * 5 + 1 + (random.random() < 0.2) * random.randrange(vocabulary)) % vocabulary
        tokens.append(value)
    path.write_bytes(struct.pack(f'<{count}H', *tokens))


def merge(base, other):
    result = dict(base)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def long(test):
    """A test that `make check` runs in place of `make test`, which has five minutes."""
    test.long = True
    return test


class Result:
    def __init__(self, process):
        self.status, self.out, self.err = process.returncode, process.stdout, process.stderr


class CliTest(unittest.TestCase):
    """Each test has a folder of its own with data/train.bin, data/val.bin; paths are relative to it."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix='lmo-test-'))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        (self.folder / 'data').mkdir()
        write_tokens(self.folder / 'data' / 'train.bin', 4000)
        write_tokens(self.folder / 'data' / 'val.bin', 800, seed=2)

    def config(self, changes=None, name='config.json', **top):
        config = {
            # The CPU by name: a CUDA build that finds no GPU says so, and some tests want silence.
            'run': {'name': 'test', 'dir': 'run', 'steps': 8, 'threads': 2, 'device': 'cpu'},
            'model': dict(TINY_MODEL),
            'data': {'train': ['data/train.bin'], 'val': ['data/val.bin']},
            'batch': {'sequences': 4, 'micro_batch': 2},
            'precision': {'compute': 'fp32'},
            'optimizer': {'preset': 'adamw', 'lr': 0.01},
            'eval': {'batches': 2},
            'log': {'peak_tflops': 1},  # measuring it would take longer than most of the runs
        }
        config = merge(merge(config, changes or {}), top)
        (self.folder / name).write_text(json.dumps(config))
        return name

    def run_cli(self, *arguments, environment=None, **options):
        process = subprocess.run([TRAIN_GPT, *map(str, arguments)], cwd=self.folder, encoding='utf-8',
                                 errors='replace', capture_output=True, env={**os.environ, **(environment or {})},
                                 timeout=300, **options)
        return Result(process)

    def train(self, *arguments, config='config.json', status=0, **options):
        result = self.run_cli('train', '--config', config, *arguments, **options)
        self.assertEqual(result.status, status, result.out + result.err)
        return result

    def metrics(self, run='run', kind=None):
        text = (self.folder / run / 'metrics.jsonl').read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if kind is None or line['type'] == kind]

    def assert_same_run(self, one, two, step):
        """Same weights, optimizer state and schedule after `step` updates, same metrics, byte by byte."""
        a, b = self.checkpoint(step, one), self.checkpoint(step, two)
        for name in ('model.safetensors', 'optimizer.safetensors'):
            self.assertTrue((a / name).read_bytes() == (b / name).read_bytes(), name)
        states = [json.loads((folder / 'state.json').read_text()) for folder in (a, b)]
        for state in states:
            state.pop('config')
        self.assertEqual(*states)
        clean = [[{key: value for key, value in line.items() if key not in ('tokens_per_s', 'mfu', 'step_ms')}
                  for line in self.metrics(run) if line['type'] != 'summary'] for run in (one, two)]
        self.assertEqual(*clean)
        self.assertLessEqual({'schedule', 'train', 'val'}, {line['type'] for line in clean[0]})

    def checkpoint(self, step, run='run'):
        return self.folder / run / 'checkpoints' / f'step_{step:08d}'
