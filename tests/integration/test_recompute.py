"""model.recompute, run.graphs, run.dependent_launch: less memory, as planned, or kernels launched otherwise; the same
run bit by bit."""
import json
import shutil

from cli import CliTest, long
from emulated import EmulatedTest

LEVELS = ['none', 'norm+swiglu', 'block']


class Configured:
    def setUp(self):
        super().setUp()
        self.config({'optimizer': {'preset': 'muon', 'lr': 0.02}, 'run': {'steps': 4, 'threads': 1},
                     'checkpoint': {'every': 2, 'keep': 0}, 'eval': {'batches': 1}})


class RecomputeTest(Configured, CliTest):
    def test_same_run_in_less_memory(self):
        totals = []
        for level in LEVELS:
            setting = ('--set', f'model.recompute={level}')
            plan = self.run_cli('plan', '--config', 'config.json', '--json', *setting)
            self.train(*setting, '--set', f'run.dir={level}')
            totals.append(self.metrics(level, 'summary')[0]['memory_bytes'])
            self.assertEqual(json.loads(plan.out)['memory']['total'], totals[-1])
            self.assert_same_run('none', level, 4)
        self.assertEqual(totals, sorted(totals, reverse=True))
        self.assertEqual(len(set(totals)), 3)
        # A run may change it on the way.
        shutil.rmtree(self.checkpoint(4, 'block'))
        self.train('--set', 'model.recompute=none', '--set', 'run.dir=block')
        self.assert_same_run('none', 'block', 4)


class EmulatedRecomputeTest(Configured, EmulatedTest):
    def test_without_graphs(self):
        for graphs in ('true', 'false'):
            self.on_emulator('train', '--config', 'config.json', '--device', 'cuda', '--set', f'run.graphs={graphs}',
                             '--set', f'run.dir=graphs-{graphs}')
        self.assert_same_run('graphs-true', 'graphs-false', 4)

    def test_dependent_launches(self):
        for dependent in ('true', 'false'):
            self.on_emulator('train', '--config', 'config.json', '--device', 'cuda', '--set',
                             f'run.dependent_launch={dependent}', '--set', f'run.dir=dependent-{dependent}')
        self.assert_same_run('dependent-true', 'dependent-false', 4)

    @long
    def test_every_level(self):
        for precision in ('fp32', 'bf16'):
            for level in LEVELS:
                run = f'{precision}-{level}'
                self.on_emulator('train', '--config', 'config.json', '--set', f'model.recompute={level}', '--set',
                                 f'precision.compute={precision}', '--device', 'cuda', '--set', f'run.dir={run}')
                self.assert_same_run(f'{precision}-none', run, 4)
