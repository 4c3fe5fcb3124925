"""scripts/upload_wandb.py against a module named wandb that records what it is asked."""
import json
import os
import signal
import subprocess
import sys
import time
import unittest

from cli import ROOT, CliTest

PYTHON = os.environ.get('PYTHON') or sys.executable
FAKE = '''
import json, os
def record(**call):
    with open(os.environ["CALLS"], "a") as file:
        file.write(json.dumps(call) + "\\n")
class Html:
    def __init__(self, text): self.text = text
class Histogram:
    def __init__(self, values): self.text = sorted(values)
def plain(values):
    return {key: getattr(value, "text", value) for key, value in values.items()}
class Summary(dict):
    def update(self, values): record(call="summary", values=values)
class Run:
    summary = Summary()
    last = -1
    def log(self, values, step):
        assert step >= self.last, (step, self.last)  # W&B drops such rows
        self.last = step
        record(call="log", step=step, values=plain(values))
    def finish(self): record(call="finish")
def init(**options):
    record(call="init", **options)
    return Run()
'''


class UploadTest(CliTest):
    def setUp(self):
        super().setUp()
        (self.folder / 'fake').mkdir()
        (self.folder / 'fake' / 'wandb.py').write_text(FAKE)
        self.environment = {**os.environ, 'PYTHONPATH': str(self.folder / 'fake'), 'CALLS': str(self.folder / 'calls')}
        self.command = [PYTHON, ROOT / 'scripts' / 'upload_wandb.py', 'run']

    def upload(self, *arguments, status=0):
        result = subprocess.run([*self.command, *arguments], cwd=self.folder, env=self.environment, text=True,
                                capture_output=True, check=False, timeout=60)
        self.assertEqual(result.returncode, status, result.stderr)
        return result

    def calls(self, kind=None):
        """What was asked since the last call of this."""
        path = self.folder / 'calls'
        if not path.exists():
            return []
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [call for call in found if kind in (None, call['call'])]

    def logged(self):
        """{(type, update it counts at): values}; fails where one came twice."""
        found = {}
        for call in self.calls('log'):
            key = (next(iter(call['values'])).split('/')[0], call['step'])
            self.assertNotIn(key, found)
            found[key] = call['values']
        return found

    def expected(self):
        of_weights = ('val', 'sample')
        return {(line['type'], line['step'] + (line['type'] not in of_weights)) for line in self.metrics()
                if line['type'] != 'summary'}

    def config_of_run(self, **run):
        self.config(model={'vocab_size': 256}, run={'name': 'mine', 'note': 'why', **run}, data={'tokenizer': 'bytes'},
                    eval={'every': 4, 'sample': 'It'}, checkpoint={'every': 4, 'keep': 0},
                    schedule={'warmup': {'type': 'adaptive', 'target_loss': 2.0}})

    def test_a_run_and_its_continuation(self):
        self.config_of_run()
        self.train()
        whole = (self.folder / 'run/metrics.jsonl').read_text()
        # As if it had been stopped after 6 updates, uploaded, continued from the checkpoint after 4.
        lines = whole.splitlines(keepends=True)
        cut = next(i for i, line in enumerate(lines) if '"train","step":6' in line)
        (self.folder / 'run/metrics.jsonl').write_text(''.join(lines[:cut]) + lines[cut][:20])
        self.assertIn('has not ended', self.upload('--project', 'p', '--entity', 'e').stdout)
        self.assertEqual(self.logged().keys(), self.expected_of(lines[:cut]))
        self.assertEqual(self.calls('summary')[0]['values'].keys() & {'schedule/delta_star', 'schedule/kappa'},
                         {'schedule/delta_star', 'schedule/kappa'})
        (self.folder / 'run/metrics.jsonl').write_text(whole)
        self.upload()
        self.assertEqual(self.logged().keys(), self.expected())
        first, second = self.calls('init')
        self.assertEqual(first, second)  # the id, the project and the entity too
        self.assertEqual((first['project'], first['entity'], first['name'], first['notes'], first['resume']),
                         ('p', 'e', 'mine', 'why', 'allow'))
        self.assertEqual(first['config'], json.loads((self.folder / 'run/run_config.json').read_text()))
        summary = self.calls('summary')[-1]['values']
        self.assertEqual(summary['summary/val_loss'], self.metrics(kind='summary')[0]['val_loss'])
        for line in self.metrics(kind='train'):
            values = self.logged()['train', line['step'] + 1]
            self.assertEqual((values['train/loss'], values['train/phase']), (line['loss'], line['phase']))
        self.assertTrue(self.logged()['sample', 8]['sample'].startswith('<pre>It'))
        self.assertEqual(len(self.calls('finish')), 2)
        # Once more: nothing new.
        before = len(self.calls('log'))
        self.assertIn('0 new lines', self.upload().stdout)
        self.assertEqual(len(self.calls('log')), before)

    def test_update_norms_are_histograms_of_each_kind(self):
        self.config(run={'steps': 2}, log={'update_norms': True})
        self.train()
        self.upload()
        for line in self.metrics(kind='update_norms'):
            values, tensors = self.logged()['update_norms', line['step'] + 1], line['tensors']
            self.assertEqual(len(values), 11)
            self.assertEqual(values['update_norms/embed_tokens'], tensors['model.embed_tokens.weight'])
            self.assertEqual(values['update_norms/q_proj'], sorted(tensors[f'model.layers.{layer}.self_attn.q_proj.weight']
                                                                   for layer in (0, 1)))

    def expected_of(self, lines):
        path = self.folder / 'run/metrics.jsonl'
        kept, text = path.read_text(), ''.join(lines)
        path.write_text(text)
        found = self.expected()
        path.write_text(kept)
        return found

    def wait_for(self, condition):
        end = time.time() + 30
        while time.time() < end:
            if condition():
                return
            time.sleep(0.05)
        self.fail('nothing came')

    def test_follow(self):
        self.config_of_run()
        self.train()
        path = self.folder / 'run/metrics.jsonl'
        lines = path.read_text().splitlines(keepends=True)
        path.unlink()
        with subprocess.Popen([*self.command, '--follow', '--interval', '0.02'], cwd=self.folder, env=self.environment,
                              stdout=subprocess.PIPE, text=True) as process:
            self.wait_for(lambda: self.calls('init'))
            path.write_text(''.join(lines[:5]) + lines[5][:7])
            self.wait_for(lambda: len(self.calls('log')) == 5)
            # Cut by a resume, which replaces the file, and longer after it.
            (self.folder / 'run/new').write_text(''.join(lines[:3]))
            os.replace(self.folder / 'run/new', path)
            with path.open('a') as file:
                file.write(''.join(lines[3:-1]))
            self.wait_for(lambda: len(self.calls('log')) == len(lines) - 1)
            with path.open('a') as file:
                file.write(lines[-1])
            self.assertEqual(process.wait(30), 0)  # the summary ends it
            self.assertIn(f'{len(lines) - 1} new lines', process.stdout.read())
        self.assertEqual(self.logged().keys(), self.expected())

    def test_a_kill_hands_over_what_was_taken(self):
        self.config_of_run(steps=4)
        self.train()
        path = self.folder / 'run/metrics.jsonl'
        path.write_text(''.join(path.read_text().splitlines(keepends=True)[:-1]))
        with subprocess.Popen([*self.command, '--follow'], cwd=self.folder, env=self.environment,
                              stdout=subprocess.DEVNULL) as process:
            self.wait_for(lambda: len(self.calls('log')) == len(self.metrics()))
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(30), 0)
        self.assertEqual(len(self.calls('finish')), 1)
        self.assertIn('0 new lines', self.upload().stdout)

    def test_numbers_that_are_not_finite(self):
        (self.folder / 'run').mkdir()
        (self.folder / 'run/metrics.jsonl').write_text(json.dumps({
            'type': 'train', 'step': 0, 'loss': None, 'lr': 0.1, 'phase': 'constant'}) + '\n')
        self.upload()
        self.assertNotEqual(self.calls('log')[0]['values']['train/loss'], None)  # NaN equals nothing
        self.assertEqual(str(self.calls('log')[0]['values']['train/loss']), 'nan')

    def test_errors(self):
        self.assertIn('give the folder of a run', self.upload(status=1).stderr)
        (self.folder / 'run').mkdir()
        self.assertIn('give the folder of a run', self.upload(status=1).stderr)
        (self.folder / 'run/metrics.jsonl').write_text('{"type": "train"}\n')
        self.assertIn("metrics.jsonl' line 1", self.upload(status=1).stderr)
        (self.folder / 'fake' / 'wandb.py').write_text("raise ImportError('not here')\n")
        result = self.upload(status=1)
        self.assertEqual(len(result.stderr.splitlines()), 1)
        self.assertIn('pip install wandb', result.stderr)


if __name__ == '__main__':
    unittest.main()
