"""smoothness.every from the command line to the plot: it measures, and training does not notice."""
import json
import os
import shutil
import subprocess
import sys

from cli import ROOT, CliTest

STEPS = 12
ADAPTIVE = {'type': 'adaptive', 'target_loss': 0.5, 'div': 10}


class SmoothnessTest(CliTest):
    def measured_run(self, preset='muon', run='run', every=1):
        self.config({'run': {'steps': STEPS, 'dir': run}, 'optimizer': {'preset': preset, 'lr': 0.02},
                     'schedule': {'warmup': ADAPTIVE, 'decay': {'type': 'cosine'}},
                     'smoothness': {'every': every}, 'checkpoint': {'every': 5, 'keep': 0}})
        return self.train()

    def fit(self, *arguments):
        result = self.run_cli('smoothness', '--run', 'run', '--json', *arguments)
        self.assertEqual(result.status, 0, result.err)
        return json.loads(result.out)

    def test_measures_and_training_does_not_notice(self):
        for preset in ('muon', 'lion', 'nsgd', 'adamw'):
            self.measured_run(preset, f'with-{preset}', every=3)
            self.measured_run(preset, f'without-{preset}', every=0)
            for name in ('model.safetensors', 'optimizer.safetensors'):
                self.assertEqual((self.checkpoint(STEPS, f'with-{preset}') / name).read_bytes(),
                                 (self.checkpoint(STEPS, f'without-{preset}') / name).read_bytes(), name)
            self.assertEqual(self.metrics(f'without-{preset}', 'smoothness'), [])
            lines = self.metrics(f'with-{preset}', 'smoothness')
            self.assertEqual([line['step'] for line in lines], [0, 3, 6, 9])
            losses = {line['step']: line['loss'] for line in self.metrics(f'with-{preset}', 'train')}
            for line in lines:
                self.assertAlmostEqual(line['delta'], line['loss'] - 0.5, places=12)
                # The loss of the batch of that update, a step later.
                self.assertLess(abs(line['loss'] - losses[line['step']]), 0.5)
                changes = [layer['weight_change'] for layer in line['layers'].values()]
                self.assertEqual(line['weight_change'], max(changes))
                self.assertEqual(len(changes), 2 * 5 + 1)  # 2 layers of qkv, o, gate, up, down; the embedding
                self.assertGreater(line['ratio'], 0)
                self.assertGreater(line['noise'], 0)

    def test_weight_change_of_a_sign_step_is_the_rate(self):
        self.config({'run': {'steps': 4}, 'optimizer': {'preset': 'signum', 'lr': 0.003, 'weight_decay': 0.0},
                     'smoothness': {'every': 1}})
        self.train()
        rates = {line['step']: line['lr'] for line in self.metrics(kind='train')}
        for line in self.metrics(kind='smoothness'):
            self.assertAlmostEqual(line['weight_change'] / rates[line['step']], 1.0, places=4)

    def test_resumed_measurements_are_the_same(self):
        self.measured_run()
        whole = self.metrics(kind='smoothness')
        for step in (10, STEPS):
            shutil.rmtree(self.checkpoint(step))
        self.train()  # from update 5 on
        self.assertEqual(self.metrics(kind='smoothness'), whole)

    def test_fit_feeds_the_schedule(self):
        self.measured_run()
        report = self.fit('--out', 'fit.json')
        self.assertEqual(report, json.loads((self.folder / 'fit.json').read_text()))
        self.assertEqual(report['fits'][0]['name'], 'total')
        self.assertEqual(len(report['fits']), 1 + 11)
        report['fits'][0]['delta_star'] = 1.25  # whatever it was: what follows is about its use
        (self.folder / 'fit.json').write_text(json.dumps(report))
        changes = {**ADAPTIVE, 'delta_star': 'measured', 'fit': 'fit.json'}
        self.config({'optimizer': {'preset': 'muon'}, 'schedule': {'warmup': changes}}, name='measured.json')
        result = self.run_cli('schedule', '--config', 'measured.json', '--json')
        self.assertEqual(json.loads(result.out)['delta_star'], 1.25, result.err)
        self.train('--set', 'run.dir=driven', config='measured.json')
        self.assertEqual(self.metrics('driven', 'schedule')[0]['delta_star'], 1.25)

        def refused(part, **fit):
            (self.folder / 'fit.json').write_text(json.dumps({**report, **fit}))
            result = self.run_cli('schedule', '--config', 'measured.json')
            self.assertEqual(result.status, 2)
            self.assertIn(part, result.err)

        refused('fitted for the target loss 0.75', target_loss=0.75)
        refused('has no peak', fits=[{**report['fits'][0], 'delta_star': None}])
        refused('expected a file that', fits=[])

    def test_what_cannot_be_fitted(self):
        for arguments, part in ((['--run', 'nowhere'], 'nowhere/metrics.jsonl'),
                                (['--run', 'run', '--last', '2'], 'expected at least 4')):
            if 'run' in arguments:
                self.measured_run()
            result = self.run_cli('smoothness', *arguments)
            self.assertEqual(result.status, 1)
            self.assertIn(part, result.err)
        self.measured_run(run='unmeasured', every=0)
        result = self.run_cli('smoothness', '--run', 'unmeasured')
        self.assertEqual(result.status, 1)
        self.assertIn('smoothness.every', result.err)

    def test_plot(self):
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            self.skipTest('matplotlib is not installed')
        self.measured_run()
        self.fit('--out', 'fit.json')
        script = str(ROOT / 'scripts' / 'plot_smoothness.py')
        result = subprocess.run([sys.executable, script, 'run', '--fit', 'fit.json'], cwd=self.folder,
                                capture_output=True, text=True, env=os.environ)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual((self.folder / 'run' / 'smoothness.png').read_bytes()[:4], b'\x89PNG')
        result = subprocess.run([sys.executable, script, 'data'], cwd=self.folder, capture_output=True, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn('metrics.jsonl', result.stderr)
