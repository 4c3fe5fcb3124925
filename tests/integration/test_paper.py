"""configs/paper: every published run resolves, has a schedule and trains at a small width."""
import json
import os
import re
import subprocess
import sys

from cli import ROOT, CliTest

PAPER = ROOT / 'configs' / 'paper'
PUBLISHED = json.loads((PAPER / 'published.json').read_text())
RUNS = sorted(path for path in PAPER.glob('*.json') if path.name != 'published.json')
SMALL = ['model.n_layer=1', 'model.n_head=2', 'model.d_model=16', 'model.d_ff=32', 'model.n_kv_head=2',
         'model.vocab_size=64', 'model.seq_len=16', 'batch.sequences=4', 'batch.micro_batch=2',
         'data.train="data/train.bin"', 'data.val="data/val.bin"', 'data.tokenizer=null', 'run.threads=1',
         'eval.batches=2', 'log.tensorboard=false', 'log.peak_tflops=1']


def three_updates(test, path):
    """Trains a published run on a tiny model and data; a `CliTest` gives the folder."""
    overrides = [word for setting in SMALL + ['run.steps=3'] for word in ('--set', setting)]
    warmup = 'schedule.warmup.steps=2' if 'baseline' in path.name else 'schedule.warmup.target_loss=0.5'
    result = test.run_cli('train', '--config', path, *overrides, '--set', warmup)
    test.assertEqual(result.status, 0, result.out + result.err)
    lines = test.metrics(f'runs/{path.stem}')
    test.assertEqual([line['type'] for line in lines].count('train'), 3)


class PaperTest(CliTest):
    def test_one_file_for_each_published_result_which_it_states(self):
        results = {entry['name']: entry['loss'] for entry in PUBLISHED['ablation']}
        for entry in PUBLISHED['cells']:
            for kind in ('baseline', 'adaptive'):
                results[f'{entry["setup"]}-{kind}'] = entry[kind]
        self.assertEqual(len(PUBLISHED['cells']), 24)
        self.assertEqual([path.stem for path in RUNS], sorted(results, key=lambda name: f'{name}.json'))
        for path in RUNS:
            run = json.loads(path.read_text())['run']
            self.assertEqual(run['name'], path.stem)
            stated = run['note'].removeprefix('published: ').split(',')[0]
            self.assertEqual(float(stated), results[path.stem], path.name)

    def test_schedules_of_all(self):
        """From the published settings; kappa is the model's and the optimizer's."""
        kappa = {'muon-124m': 46848, 'muon-210m': 92928, 'lion-124m': 123568128, 'lion-210m': 208502784,
                 'nsgd-124m': 61, 'nsgd-210m': 121}
        for path in RUNS:
            with self.subTest(path.name):
                report = self.run_cli('schedule', '--config', path, '--loss0', '10.95', '--json')
                self.assertEqual(report.status, 0, report.err)
                values = json.loads(report.out)
                name = path.stem.removeprefix('ablation-')
                self.assertEqual(values['kappa'], kappa[name[:9]])
                rate = {'muon': (1e-3, 2e-3, 3e-3), 'lion': (1e-3,), 'nsgd': (1e-2,)}[name[:4]]
                peak = max(values['lr'])
                self.assertLess(min(abs(peak / lr - 1) for lr in rate), 0.01)
                if 'baseline' in name:
                    self.assertEqual(values['update'][-1], int(name.split('-')[3][:-1]) * 1000 - 1)

    def test_plans_of_all(self):
        """The published parameter counts; memory within one of the paper's GPUs."""
        for path in RUNS:
            with self.subTest(path.name):
                said = self.run_cli('plan', '--config', path, '--device', 'cuda', '--peak', '790', '--json')
                self.assertEqual(said.status, 0, said.err)
                plan = json.loads(said.out)
                self.assertEqual(plan['parameters'], 123_587_328 if '124m' in path.name else 208_540_416)
                self.assertEqual(plan['tokens_per_update'], 512 * (256 if 'bs256' in path.name else 32))
                self.assertGreater(plan['fits']['largest_micro_batch'], 0)

    def test_three_updates_at_a_small_width(self):
        """Of one run of each kind; tests/long/test_paper_runs.py takes all."""
        kinds = re.compile('(muon|lion|nsgd)-(124m-bs32-64k|210m-bs256-8k)-|ablation-.*-target-0')
        paths = [path for path in RUNS if kinds.match(path.name)]
        self.assertEqual(len(paths), 13)
        for path in paths:
            with self.subTest(path.name):
                three_updates(self, path)
        table = subprocess.run([sys.executable, ROOT / 'scripts' / 'paper_table.py'], cwd=self.folder,
                               capture_output=True, text=True)
        self.assertEqual(table.returncode, 0, table.stderr)
        rows = [line.split() for line in table.stdout.splitlines()]
        first = next(row for row in rows if row and row[0] == 'muon-124m-bs32-64k')
        ours = [self.metrics(f'runs/{first[0]}-{kind}', 'summary')[-1]['val_loss']
                for kind in ('baseline', 'adaptive')]
        self.assertEqual(first[1:], ['3.4712', f'{ours[0]:.4f}', f'{ours[0] - 3.4712:+.4f}',
                                     '3.4675', f'{ours[1]:.4f}', f'{ours[1] - 3.4675:+.4f}'])

    def test_table_leaves_blank_what_was_not_run(self):
        table = subprocess.run([sys.executable, ROOT / 'scripts' / 'paper_table.py', '--runs', 'none'],
                               cwd=self.folder, capture_output=True, text=True,
                               env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'})
        self.assertEqual(table.returncode, 0, table.stderr)
        rows = [line.split() for line in table.stdout.splitlines() if '-bs' in line]
        self.assertEqual(len(rows), 24)
        self.assertEqual(rows[0], ['muon-124m-bs32-64k', '3.4712', '3.4675'])
