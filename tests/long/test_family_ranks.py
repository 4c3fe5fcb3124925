"""Every built-in preset on two ranks trains as on one, and goes on from the other's checkpoint."""
import json
import pathlib
import shutil
import sys

from cli import ROOT

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'integration'))
from test_family import PRESETS, FamilyTest as Family  # noqa: E402


class FamilyRanksTest(Family):
    def ranks(self, count, run):
        more = ('--gpus', count, '--device', 'cpu') if count > 1 else ()
        self.train('--set', f'run.dir={run}', *more)

    def assert_close(self, one, other):
        for kind in ('train', 'val'):
            a, b = self.metrics(one, kind), self.metrics(other, kind)
            self.assertEqual(len(a), len(b))
            for first, second in zip(a, b):
                self.assertLess(abs(first['loss'] / second['loss'] - 1), 1e-5, (first, second))

    def compare(self, preset, **optimizer):
        self.configure('muon' if preset.endswith('.json') else preset, model={'tie_embeddings': False, 'vocab_size': 67},
                       batch={'micro_batch': None}, optimizer={'preset': preset, **optimizer})
        for run in ('one', 'two'):
            shutil.rmtree(self.folder / run, ignore_errors=True)
        self.ranks(1, 'one')
        self.ranks(2, 'two')
        self.assert_close('one', 'two')
        shutil.rmtree(self.checkpoint(6, 'one'))
        self.ranks(2, 'one')  # from the checkpoint of one rank on
        self.assert_close('one', 'two')

    def test_every_preset(self):
        for preset in PRESETS:
            with self.subTest(preset):
                # Compressed, what ranks send depends on their number.
                whole = {'communication': {'type': 'ef21'}} if preset == 'ef21-muon' else {}
                self.compare(preset, clip_norm=0 if preset == 'scion-light' or whole else 0.5, **whole)

    def test_stages_that_no_preset_has(self):
        mixture = json.loads((ROOT / 'tests' / 'data' / 'optimizer_mixture2.json').read_text())
        # One shape on several ranks: what is summed over its blocks is of all of them.
        together = {'groups': [{'match': {'role': 'matrix'}, 'norm': {'type': 'frobenius'},
                                'step': {'type': 'clipped', 'limit': 0.05, 'together': True}},
                               {'match': {'role': 'any'}}]}
        for name, preset in (('mixture', mixture), ('together', together)):
            with self.subTest(name):
                (self.folder / f'{name}.json').write_text(json.dumps(preset))
                self.compare(str(self.folder / f'{name}.json'), lr=0.05)


# The tests of the base class run where it is at home.
for name in [key for key in dir(Family) if key.startswith('test_')]:
    if name not in vars(FamilyRanksTest):
        setattr(FamilyRanksTest, name, None)
del Family
