"""Every built-in preset trains: resumed bit by bit, memory as planned; and what a user can get wrong with them."""
import json
import shutil

from cli import ROOT, CliTest

PRESETS = sorted(path.stem for path in (ROOT / 'configs' / 'optimizer').glob('*.json'))
# Rates that suit the tiny model.
RATES = {'adamw': 0.01, 'muon': 0.02, 'muon-kj': 0.02, 'lion': 0.003, 'signum': 0.003, 'nsgd': 0.05, 'scion': 2e-4,
         'scion-unconstrained': 2e-4, 'scion-light': 2e-4, 'soda': 2e-4, 'gluon': 1.0, 'clipped-scion': 0.01,
         'lionmuon': 0.02, 'normuon': 0.02, 'muon-clip': 0.02, 'schatten': 0.02, 'inexact-muon': 0.02,
         'drop-muon': 0.02, 'ef21-muon': 0.02, 'muon-igt': 0.02, 'nsgd-storm': 0.1, 'nsgd-hessian': 0.1}


class FamilyTest(CliTest):
    def configure(self, preset, **changes):
        self.config({'optimizer': {'preset': preset, 'lr': RATES[preset], 'weight_decay': 0.1},
                     'run': {'steps': 6, 'threads': 1}, 'model': {'n_layer': 3}, 'checkpoint': {'every': 3, 'keep': 0},
                     'eval': {'every': 3, 'batches': 1}}, **changes)

    def test_every_preset_learns_resumes_and_is_planned(self):
        self.assertEqual(set(PRESETS), set(RATES))
        for preset in PRESETS:
            with self.subTest(preset):
                self.configure(preset)
                whole, parts = preset, preset + '-parts'
                planned = self.run_cli('plan', '--config', 'config.json', '--json')
                self.assertEqual(planned.status, 0, planned.err)
                self.train('--set', f'run.dir={whole}')
                summary = self.metrics(whole, 'summary')[0]
                self.assertEqual(json.loads(planned.out)['memory']['total'], summary['memory_bytes'])
                shutil.copytree(self.folder / whole, self.folder / parts)
                shutil.rmtree(self.checkpoint(6, parts))
                self.assertIn('resumed after 3 updates', self.train('--set', f'run.dir={parts}').out)
                self.assert_same_run(whole, parts, 6)
                losses = [line['loss'] for line in self.metrics(whole, 'train')]
                self.assertLess(losses[-1], losses[0])

    def test_stages_of_the_mixture_resume(self):
        """What no preset has: sampling of single layers, starts, moments of rows, two directions by rank."""
        path = ROOT / 'tests' / 'data' / 'optimizer_mixture2.json'
        self.configure('muon', optimizer={'preset': str(path), 'clip_norm': 1.0})
        self.train('--set', 'run.dir=whole')
        shutil.copytree(self.folder / 'whole', self.folder / 'parts')
        shutil.rmtree(self.checkpoint(6, 'parts'))
        self.train('--set', 'run.dir=parts')
        self.assert_same_run('whole', 'parts', 6)

    def test_heads_are_clipped(self):
        """A limit that no score reaches is no clip; one that all reach changes queries and keys alone at first."""
        self.configure('muon')
        self.train('--set', 'run.dir=muon')
        weights = {}
        for limit in (1e30, 1e-3):
            self.train('--set', 'optimizer.preset=muon-clip', '--set', f'optimizer.qk_clip={limit}',
                       '--set', f'run.dir=clip{limit}')
            weights[limit] = (self.checkpoint(6, f'clip{limit}') / 'model.safetensors').read_bytes()
        self.assertTrue(weights[1e30] == (self.checkpoint(6, 'muon') / 'model.safetensors').read_bytes())
        self.assertFalse(weights[1e30] == weights[1e-3])
        losses = [[line['loss'] for line in self.metrics(run, 'train')] for run in ('muon', 'clip0.001')]
        self.assertEqual(losses[0][0], losses[1][0])

    # -- mistakes ------------------------------------------------------------------------------------

    def expect(self, *words, changes=(), status=2):
        result = self.train(*(part for change in changes for part in ('--set', change)), status=status)
        for word in words:
            self.assertIn(word, result.err)
        self.assertEqual(result.err.count('train_gpt: '), 1, result.err)

    def test_momentum_in_gradients(self):
        self.configure('scion-light')
        for change, value in (('optimizer.clip_norm', '0.5'), ('smoothness.every', '2'), ('run.on_nonfinite', 'skip')):
            self.expect(change, value, 'momentum.type is "gradient"', changes=[f'{change}={value}'])
        # Gradients of layers that rest would be added to the momentum.
        for sampling in ('{"type": "subset", "probability": 0.5}', '{"type": "periodic", "period": 2}'):
            self.expect('optimizer.sampling.type', 'momentum.type is "gradient"',
                        changes=[f'optimizer.sampling={sampling}'])
        self.train('--set', 'optimizer.sampling={"type": "progressive"}')

    def gluon(self, step):
        groups = [{'match': {'role': 'matrix'}, 'norm': {'type': 'spectral', 'coefficients': 'jordan'},
                   'step': {'type': 'gluon', **step}}, {'match': {'role': 'any'}}]
        return 'optimizer.groups=' + json.dumps(groups)

    def test_gluon_without_constants(self):
        self.configure('muon')
        self.expect('optimizer.groups[0].step.L1', 'L0 > 0', changes=[self.gluon({})])
        self.expect('optimizer.groups[0]', 'step.layers', 'model.layers.7.mlp.up_proj.weight', 'does not take',
                    changes=[self.gluon({'layers': {'model.layers.7.mlp.up_proj.weight': [0, 1]}})])
        self.expect('step.layers', changes=[self.gluon({'layers': {'model.layers.0.mlp.up_proj.weight': [0, 0]}})])

    def test_gluon_constants_of_a_file(self):
        self.configure('muon')
        self.expect('step.fit', 'none.json', changes=[self.gluon({'fit': 'none.json'})])
        for name, content, words in (('broken', '{"layers": ', ['broken.json']),
                                     ('other', '{"L0": 1}', ['other.json', '"layers"', 'smoothness']),
                                     ('empty', '{"layers": {}}', ['empty.json', '"layers"']),
                                     ('text', '{"layers": {"a": {"L0": "x", "L1": 1}}}', ['text.json', 'layers.a']),
                                     ('number', '{"layers": {"a": 3}}', ['number.json', 'layers.a']),
                                     ('minus', '{"layers": {"a": {"L0": -1, "L1": 1}}}', ['minus.json', 'layers.a']),
                                     ('stranger', '{"layers": {"a": {"L0": 1, "L1": 1}}}', ['step.layers', ' a,'])):
            with self.subTest(name):
                (self.folder / f'{name}.json').write_text(content)
                self.expect(*words, changes=[self.gluon({'fit': f'{name}.json'})])
