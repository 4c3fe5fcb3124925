"""scripts/sweep.py as a user runs it, on tiny models."""
import importlib.util
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import unittest

from cli import ROOT, TRAIN_GPT, CliTest, long

sys.path.insert(0, str(ROOT / 'scripts'))
from sweeps import plan  # noqa: E402

SWEEP = ROOT / 'scripts' / 'sweep.py'
HAVE_MATPLOTLIB = importlib.util.find_spec('matplotlib') is not None


class SweepTest(CliTest):
    def setUp(self):
        super().setUp()
        self.config(log={'tensorboard': False}, run={'threads': 1})

    def sweep(self, *arguments, status=0, tools=None):
        environment = {**os.environ, 'TRAIN_GPT': TRAIN_GPT}
        if tools is not None:
            environment['PATH'] = f'{tools}{os.pathsep}{environment["PATH"]}' if pathlib.Path(tools).exists() else tools
        result = subprocess.run([sys.executable, SWEEP, *map(str, arguments)], cwd=self.folder, capture_output=True,
                                text=True, timeout=300, env=environment)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result

    def write(self, sweep, name='sweep.json'):
        (self.folder / name).write_text(json.dumps(sweep))
        return name

    def rows(self, name='sweep'):
        return json.loads((self.folder / 'runs' / name / 'results.json').read_text())['runs']

    WARMUPS = {
        'config': 'config.json', 'grid': {'run.seed,data.seed': [0, 1]},
        'cases': {'Muon': {'set': {'optimizer.preset': 'muon'}},
                  'Lion': {'set': {'optimizer.preset': 'lion', 'optimizer.lr': 0.001}}},
        'variants': {
            'cosine': {'set': {'schedule.warmup': {'type': 'cosine'}}, 'grid': {'schedule.warmup.steps': [2, 4]}},
            'adaptive': {'set': {'schedule.warmup': {'type': 'adaptive', 'target_loss': 1.0}}}}}

    def test_cases_variants_and_grids(self):
        self.write(self.WARMUPS)
        said = self.sweep('sweep.json', '--jobs', 2).stdout
        rows = self.rows()
        self.assertEqual(len(rows), 2 * (2 + 1) * 2)
        self.assertEqual(rows[0]['name'], 'Muon-cosine-seed0-steps2')
        for row in rows:
            folder = self.folder / 'runs' / 'sweep' / row['name']
            config = json.loads((folder / 'run_config.json').read_text())
            self.assertEqual(config['optimizer']['preset'], row['case'].lower())
            self.assertEqual([config['run']['seed'], config['data']['seed']], row['seed'] * 2)
            self.assertEqual(config['schedule']['warmup'].get('steps'), row['point'].get('schedule.warmup.steps'))
            self.assertEqual(self.metrics(folder, 'summary')[0]['val_loss'], row['val_loss'])
            if row['variant'] == 'cosine':
                self.assertEqual(row['warmup_end'], row['point']['schedule.warmup.steps'])
        line = next(line for line in said.splitlines() if line.startswith('Lion cosine steps=4'))
        losses = [row['val_loss'] for row in rows if row['case'] == 'Lion' and row['point'].get(
            'schedule.warmup.steps') == 4]
        self.assertEqual(line.replace('*', ' ').split()[3:7], ['2/2', *(f'{value:.4f}' for value in (
            sum(losses) / 2, min(losses), max(losses)))])
        for picture in ('val_loss.png', 'lr.png') if HAVE_MATPLOTLIB else ():
            self.assertTrue((self.folder / 'runs' / 'sweep' / picture).read_bytes().startswith(b'\x89PNG'))
        before = (self.folder / 'runs' / 'sweep' / 'results.json').read_bytes()
        self.assertIn('12 of 12 runs are finished already', self.sweep('sweep.json', '--jobs', 2).stdout)
        self.assertEqual((self.folder / 'runs' / 'sweep' / 'results.json').read_bytes(), before)

    @long
    def test_stopped_and_continued(self):
        grid = ['--config', 'config.json', '--name', 'stopped', '--grid', 'run.seed=0,1,2,3', '--set', 'run.steps=400']
        process = subprocess.Popen([sys.executable, SWEEP, *grid, '--jobs', '2'], cwd=self.folder,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, 'TRAIN_GPT': TRAIN_GPT})
        metrics = self.folder / 'runs' / 'stopped' / 'seed0' / 'metrics.jsonl'
        deadline = time.monotonic() + 60
        while not metrics.exists() or metrics.stat().st_size < 2000:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 3, out + err)
        self.assertIn('the same command goes on', err)
        self.sweep(*grid, '--jobs', 2)
        self.sweep(*grid[:3], 'whole', *grid[4:])
        losses = [[row['val_loss'] for row in self.rows(name)] for name in ('stopped', 'whole')]
        self.assertEqual(*losses)
        self.assertEqual(len(set(losses[0])), 4)

    def test_a_failing_run_is_named_and_the_others_are_done(self):
        result = self.sweep('--config', 'config.json', '--name', 'rates', '--grid', 'optimizer.lr=0.01,1e30',
                            '--set', 'optimizer.preset=muon', status=1)
        self.assertEqual([row['val_loss'] is None for row in self.rows('rates')], [False, True])
        self.assertRegex(result.stderr, r'no result: lr1e\+30: train_gpt: .*not finite')
        # A finished run that the sweep would now train otherwise is refused, not silently kept.
        result = self.sweep('--config', 'config.json', '--name', 'rates', '--grid', 'optimizer.lr=0.01',
                            '--set', 'optimizer.preset=lion', status=1)
        self.assertIn('differs', (self.folder / 'runs' / 'rates' / 'lr0.01.log').read_text())
        self.assertIn('no result: lr0.01', result.stderr)

    def test_slurm(self):
        """sbatch by a stand-in that runs the tasks of the array one after the other."""
        tools = self.folder / 'tools'
        tools.mkdir()
        stand_in = tools / 'sbatch'
        stand_in.write_text('#!/bin/bash\necho "$@" > arguments\nscript=${!#}\n'
                            'last=$(sed -n "s/#SBATCH --array=0-\\([0-9]*\\)%.*/\\1/p" "$script")\n'
                            'for i in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$i bash "$script" >&2; done\necho 77\n')
        stand_in.chmod(0o755)
        grid = ['--config', 'config.json', '--grid', 'run.seed=0,1,2', '--jobs', '2']
        said = self.sweep(*grid, '--slurm', '--partition=gpu --time=10', tools=tools).stdout
        self.assertIn('job 77: 3 runs, 2 at a time', said)
        self.assertTrue((self.folder / 'arguments').read_text().startswith('--parsable --partition=gpu --time=10 '))
        self.sweep(*grid, '--report')
        self.assertEqual([row['val_loss'] is None for row in self.rows('config')], [False] * 3)
        self.assertIn('%2', (self.folder / 'runs' / 'config' / 'sweep.sbatch').read_text())
        self.assertIn('no sbatch', self.sweep(*grid, '--slurm', '', status=2, tools='/nowhere').stderr)

    def test_rates_of_an_adaptive_run_replay_it(self):
        self.config({'schedule': {'warmup': {'type': 'adaptive', 'target_loss': 1.0}, 'decay': {'type': 'cosine'}}},
                    run={'threads': 1, 'steps': 30})
        self.train()
        said = self.sweep('--rates-of', 'run').stdout
        warmup = json.loads(said)['schedule']['warmup']
        self.assertGreater(len(warmup['rates']), 3)
        self.train('--set', 'run.dir="replay"', '--set', f'schedule.warmup={json.dumps(warmup)}')
        one, two = (self.checkpoint(30, run) / 'model.safetensors' for run in ('run', 'replay'))
        self.assertEqual(one.read_bytes(), two.read_bytes())

    def test_errors(self):
        for sweep, words in (
                ({'config': 'none.json'}, 'none.json: no such file'),
                ({'cases': {'a': {}}}, 'no configuration'),
                ({'config': 'config.json', 'grids': {}}, 'unknown key "grids"'),
                ({'config': 'config.json', 'grid': {'run.seed': 3}}, 'run.seed: expected a list of values'),
                ({'config': 'config.json', 'variants': {'a': {'sets': {}}}}, 'variants.a: unknown key "sets"'),
                ({'config': 'config.json', 'grid': {'run.seed': [1, 1]}}, 'two runs would be named "seed1"'),
                ([], 'expected an object')):
            self.write(sweep)
            self.assertIn(words, self.sweep('sweep.json', status=2).stderr)
        (self.folder / 'sweep.json').write_text('{')
        self.assertIn('sweep.json: not JSON', self.sweep('sweep.json', status=2).stderr)
        self.assertIn('no such program', self.sweep('--config', 'config.json', '--program', 'nothing', status=2).stderr)
        self.assertIn('expected KEY=VALUE', self.sweep('--config', 'config.json', '--set', 'x', status=2).stderr)
        self.assertFalse((self.folder / 'runs').exists())

    def test_list_prints_commands_that_train(self):
        said = self.sweep('--config', 'config.json', '--grid', 'optimizer.lr=0.01,0.02', '--list').stdout.splitlines()
        self.assertEqual(len(said), 2)
        subprocess.run(said[1], shell=True, cwd=self.folder, check=True, capture_output=True)
        folder = self.folder / 'runs' / 'config' / 'lr0.02'
        self.assertEqual(json.loads((folder / 'run_config.json').read_text())['optimizer']['lr'], 0.02)


class PlanTest(unittest.TestCase):
    def test_sweeps_that_come_with_the_program(self):
        for path in (ROOT / 'configs' / 'sweeps').glob('*.json'):
            runs = plan.plan_runs(plan.read_sweep(path))
            self.assertGreater(len(runs), 1)
            for run in runs:
                sets = [part for key, value in run.settings.items() for part in ('--set', f'{key}={json.dumps(value)}')]
                said = subprocess.run([TRAIN_GPT, 'schedule', '--config', run.config, *sets, '--json'],
                                      capture_output=True, text=True)
                self.assertEqual(said.returncode, 0, said.stderr)

    def test_order_of_precedence(self):
        part = plan.Part
        sweep = plan.Sweep('s', part(config=pathlib.Path('a'), set={'k': 1, 'l': 1}, grid={'m': [5]}),
                           [part('case', set={'k': 2})], [part('variant', pathlib.Path('b'), {'k': 3}, {'n.o': ['x']})])
        run, = plan.plan_runs(sweep)
        self.assertEqual((run.config, run.settings), (pathlib.Path('b'), {'k': 3, 'l': 1, 'm': 5, 'n.o': 'x'}))
        self.assertEqual((run.name, run.point, run.seed), ('case-variant-m5-x', {'m': 5, 'n.o': 'x'}, ()))


if __name__ == '__main__':
    unittest.main()
