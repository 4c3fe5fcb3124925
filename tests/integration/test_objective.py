"""The choice of delta_star as `train_gpt schedule` shows it, in training, and in scripts/plot_objective.py."""
import json
import os
import shutil
import subprocess
import sys

from cli import ROOT, TRAIN_GPT, CliTest

KAPPA = 1408  # of this model with muon; the choice knows sigma_F and kappa by their product only
MODEL = {'n_layer': 2, 'n_head': 2, 'd_model': 128, 'd_ff': 256, 'vocab_size': 256, 'seq_len': 64}


class ObjectiveTest(CliTest):
    def schedule(self, kappa, *arguments, **warmup):
        self.config({'model': MODEL, 'optimizer': {'preset': 'muon', 'lr': 2e-3},
                     'schedule': {'warmup': {'type': 'adaptive', 'target_loss': 3.0, 'div': 50,
                                             'sigma_F': 1e-3 * kappa / KAPPA, **warmup}}})
        result = self.run_cli('schedule', '--config', 'config.json', '--loss0', 10.4, *arguments)
        self.assertEqual(result.status, 0, result.err)
        return json.loads(result.out) if '--json' in arguments else result.out

    def test_minima_and_warning(self):
        report = self.schedule(22016, '--json')
        self.assertEqual(report['kappa'], KAPPA)
        self.assertEqual([round(minimum['delta_star'], 2) for minimum in report['minima']], [0.59, 2.08])
        objective = report['objective']
        chosen = objective['J'].index(min(objective['J']))
        self.assertEqual(len(objective['J']), 500)
        self.assertEqual(objective['delta_star'][chosen], report['delta_star'])
        self.assertIn('a second choice, delta_star 0.5868, is nearly as good (J 1.02', report['warning'])
        text = self.schedule(22016)
        self.assertIn('delta_star 2.08054    J 0.002974, chosen', text)
        self.assertIn('warning: ' + report['warning'] + '\n', text)
        # One minimum, but just before the jump.
        report = self.schedule(15872, '--json')
        self.assertEqual(len(report['minima']), 1)
        self.assertIn('delta_star would be 2.11 if kappa were 2112', report['warning'])

    def test_a_firm_choice_is_shown_in_silence(self):
        for kappa in (46848, 200000):  # the latter has a minimum at the end, 30 times as high
            self.assertEqual(self.schedule(kappa, '--json')['warning'], '')
            text = self.schedule(kappa)
            self.assertNotIn('warning', text)
            self.assertNotIn('minima', text)
        self.assertEqual(len(self.schedule(200000, '--json')['minima']), 2)

    def test_unweighted_has_no_objective_to_show(self):
        report = self.schedule(22016, '--json', delta_star='unweighted')
        self.assertAlmostEqual(report['delta_star'], 0.29537266 * 7.4, places=5)
        self.assertNotIn('minima', report)

    def test_unweighted_trains_with_adamw_and_resumes_to_the_same_rates(self):
        self.config({'run': {'steps': 12}, 'optimizer': {'preset': 'adamw', 'lr': 0.01},
                     'checkpoint': {'every': 5, 'keep': 0},
                     'schedule': {'warmup': {'type': 'adaptive', 'target_loss': 1.0, 'div': 10,
                                             'delta_star': 'unweighted'}}})
        self.train()
        whole = [(line['step'], line['lr']) for line in self.metrics(kind='train')]
        line = self.metrics(kind='schedule')[0]
        self.assertAlmostEqual(line['delta_star'] / line['delta0'], 0.31418097, places=6)
        for step in (10, 12):
            shutil.rmtree(self.checkpoint(step))
        self.train()
        self.assertEqual([(line['step'], line['lr']) for line in self.metrics(kind='train')], whole)

    def test_plot(self):
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            self.skipTest('matplotlib is not installed')
        script = [sys.executable, str(ROOT / 'scripts' / 'plot_objective.py'), '--points', '3', '--program']
        result = subprocess.run([*script, TRAIN_GPT, '--out', 'plot.png'], cwd=self.folder,
                                capture_output=True, text=True, env=os.environ)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual((self.folder / 'plot.png').read_bytes()[:4], b'\x89PNG')
        result = subprocess.run([*script, 'nothing'], cwd=self.folder, capture_output=True, text=True)
        self.assertEqual(result.returncode, 1)
        self.assertIn("cannot run 'nothing'", result.stderr)
