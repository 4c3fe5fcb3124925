"""scripts/compare_runs.py and run_folder.py: figures by hand, runs that tell little, and real ones."""
import importlib.util
import json
import math
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

from cli import ROOT, CliTest

sys.path.insert(0, str(ROOT / 'scripts'))
import compare_runs  # noqa: E402
import run_folder  # noqa: E402

HAVE_MATPLOTLIB = importlib.util.find_spec('matplotlib') is not None
PYTHON = os.environ.get('PYTHON') or sys.executable


def train_line(step, **more):
    return {'type': 'train', 'step': step, 'tokens': 100 * (step + 1), 'loss': 5.0 - step, 'lr': 0.1,
            'phase': 'constant', 'grad_norm': 1.0, 'tokens_per_s': 50.0, 'step_ms': 2000.0, **more}


class CompareRunsTest(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix='lmo-test-'))
        self.addCleanup(shutil.rmtree, self.root, ignore_errors=True)

    def make(self, name, lines, config=None):
        folder = self.root / name
        folder.mkdir()
        (folder / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        if config:
            (folder / 'run_config.json').write_text(json.dumps(config))
        return str(folder)

    def compare(self, *arguments):
        return subprocess.run([PYTHON, ROOT / 'scripts' / 'compare_runs.py', *arguments], capture_output=True,
                              text=True, check=False)

    def test_figures(self):
        # Every second update has a line, one validation loss is not finite, and the run was continued once:
        # its summary knows the last part alone.
        lines = [train_line(0), train_line(2), {'type': 'val', 'step': 2, 'loss': 2.5}, train_line(4),
                 {'type': 'val', 'step': 4, 'loss': None}, {'type': 'val', 'step': 5, 'loss': 3.0},
                 {'type': 'summary', 'steps': 5, 'seconds': 2.0, 'tokens_per_s': 999.0, 'memory_bytes': 3 << 20}]
        config = {'optimizer': {'preset': 'muon', 'lr': 0.02}, 'run': {'name': 'x'}}
        of = compare_runs.figures(run_folder.Run(self.make('a', lines, config)))
        self.assertEqual(of, {'name': 'x', 'finished': True, 'steps': 5, 'tokens': 500.0, 'val_loss': 3.0,
                              'best_val_loss': 2.5, 'tokens_per_s': 50.0, 'seconds': 10.0, 'memory_bytes': 3 << 20,
                              'optimizer': 'muon', 'lr': 0.02})
        curves = compare_runs.curves(run_folder.Run(str(self.root / 'a')))
        self.assertEqual([x for x, _ in curves['tokens'][0]], [100, 300, 500])
        self.assertEqual([x for x, _ in curves['tokens'][1]], [200, 400, 500])
        self.assertEqual([round(x * 3600, 9) for x, _ in curves['hours'][0]], [2, 6, 10])
        self.assertEqual([round(x * 3600, 9) for x, _ in curves['hours'][1]], [2, 6, 10])
        self.assertTrue(math.isnan(curves['hours'][1][1][1]))

    def test_the_table(self):
        config = {'run': {'name': 'one', 'dir': 'p'}, 'optimizer': {'lr': 0.1, 'groups': [1]}, 'batch': {'sequences': 4}}
        other = {'run': {'name': 'two', 'dir': 'q'}, 'optimizer': {'lr': 0.1, 'groups': [2] * 40}, 'batch': {'sequences': 8}}
        runs = [self.make('a', [train_line(0)], config), self.make('b', [train_line(0)], other),
                self.make('c', [{'type': 'val', 'step': 0, 'loss': 3.25}]), self.make('d', [train_line(0)], config)]
        result = self.compare(*runs, '--diff')
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        heading, one, two, of_two, three, of_three, _, of_four = result.stdout.splitlines()[:8]
        self.assertTrue(heading.startswith('run'))
        self.assertEqual(one.split(), [runs[0], 'groups', '0.1', '1*', '100', '-', '-', '50', '0:02', '-'])
        self.assertTrue(two.startswith('two '), two)
        self.assertTrue(of_two.startswith('    optimizer.groups [1] -> [2, 2,'))
        self.assertTrue(of_two.endswith('... (+1 more)'), of_two)
        self.assertEqual(three.split(), ['c', '-', '-', '0*', '-', '3.2500', '3.2500', '-', '-', '-'])
        self.assertEqual(of_three, '    no configuration to compare')
        self.assertEqual(of_four, '    same configuration')
        self.assertIn('\n  batch.sequences: 4 -> 8\n', result.stdout)
        lines = [json.loads(line) for line in self.compare(*runs, '--json').stdout.splitlines()]
        self.assertEqual([line['steps'] for line in lines], [1, 1, 0, 1])

    @unittest.skipUnless(HAVE_MATPLOTLIB, 'python3-matplotlib is not installed')
    def test_the_picture(self):
        lines = [train_line(step) for step in range(5)]
        runs = [self.make('a', lines + [{'type': 'val', 'step': 5, 'loss': 1.5}]), self.make('b', lines[:1]),
                self.make('c', [{'type': 'val', 'step': 0, 'loss': 3.25}])]
        picture = self.root / 'both.png'
        result = self.compare(*runs, '--plot', picture)
        self.assertEqual((result.returncode, result.stderr), (0, ''))
        self.assertEqual(result.stdout.splitlines()[-1], str(picture))
        self.assertEqual(picture.read_bytes()[:8], b'\x89PNG\r\n\x1a\n')

    def test_errors(self):
        good = self.make('good', [train_line(0)])
        for bad, text in ((str(self.root / 'absent'), 'give the folder of a run'),
                          (self.make('empty', []), 'no train or val lines yet'),
                          (self.make('odd', [{'type': 'train'}]), "metrics.jsonl' line 1")):
            result = self.compare(good, bad)
            self.assertEqual((result.returncode, len(result.stderr.splitlines())), (1, 1), result.stderr)
            self.assertIn(text, result.stderr)

    def test_units(self):
        self.assertEqual([run_folder.clock(s) for s in (0, 59.6, 3599, 3600, 90061)],
                         ['0:00', '1:00', '59:59', '1:00:00', '25:01:01'])
        self.assertEqual([run_folder.counted(n) for n in (7, 999.9, 885888, 1071998976, 2.1e10)],
                         ['7', '1k', '886k', '1.07G', '21G'])
        self.assertEqual([run_folder.in_bytes(n) for n in (5, 2048, 173771528, 41 << 30)],
                         ['5 B', '2.0 KiB', '165.7 MiB', '41.0 GiB'])


class CompareRealRunsTest(CliTest):
    def test_time_of_a_continued_run(self):
        self.config(run={'steps': 6}, eval={'every': 3})
        self.train()
        self.config(name='two.json', run={'steps': 6, 'dir': 'two'}, optimizer={'lr': 0.02}, checkpoint={'every': 2})
        self.train(config='two.json')
        # As after a kill: continued from the second checkpoint, whose summary knows four updates.
        shutil.rmtree(self.folder / 'two/checkpoints/step_00000006')
        self.train(config='two.json')
        runs = [run_folder.Run(str(self.folder / name)) for name in ('run', 'two')]
        for run in runs:
            of = compare_runs.figures(run)
            self.assertEqual((of['steps'], of['tokens'], of['finished']), (6, 6 * 4 * 16, True))
            milliseconds = [line['step_ms'] for line in self.metrics(pathlib.Path(run.folder).name, 'train')]
            self.assertAlmostEqual(of['seconds'], sum(milliseconds) / 1e3, places=9)
        self.assertAlmostEqual(runs[0].seconds()[-1][1], runs[0].last('summary')['seconds'], delta=0.05)
        self.assertLess(runs[1].last('summary')['seconds'], runs[1].seconds()[-1][1])
        self.assertEqual([key for key, _, _ in run_folder.differences(*runs)],
                         ['optimizer.lr', 'eval.every', 'checkpoint.every'])


if __name__ == '__main__':
    unittest.main()
