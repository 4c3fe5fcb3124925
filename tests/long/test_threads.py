"""Any number of threads computes the same up to rounding, and with each a resumed run is exact."""
import shutil

from cli import CliTest

STEPS = 30


class ThreadTest(CliTest):
    def losses(self, run):
        return [line['loss'] for line in self.metrics(run, 'train') + self.metrics(run, 'val')]

    def check(self, compute, tolerance):
        self.config({'run': {'steps': STEPS}, 'precision': {'compute': compute},
                     'optimizer': {'preset': 'muon', 'lr': 0.003}, 'checkpoint': {'every': 10, 'keep': 0}})
        losses = {}
        for threads in (1, 2, 3):
            settings = ['--set', f'run.threads={threads}', '--set']
            self.train(*settings, 'run.dir=whole')
            losses[threads] = self.losses('whole')
            shutil.copytree(self.folder / 'whole', self.folder / 'parts')
            for step in (20, 30):
                shutil.rmtree(self.checkpoint(step, 'parts'))
            self.assertIn('resumed after 10 updates', self.train(*settings, 'run.dir=parts').out)
            for name in ('model.safetensors', 'optimizer.safetensors'):
                self.assertEqual((self.checkpoint(STEPS, 'whole') / name).read_bytes(),
                                 (self.checkpoint(STEPS, 'parts') / name).read_bytes(),
                                 f'{name} with {threads} threads')
            for run in ('whole', 'parts'):
                shutil.rmtree(self.folder / run)
        for threads in (2, 3):
            for one, several in zip(losses[1], losses[threads]):
                self.assertAlmostEqual(one, several, delta=tolerance)

    def test_fp64(self):
        self.check('fp64', 1e-10)

    def test_fp32(self):
        self.check('fp32', 1e-3)

    def test_bf16(self):
        self.check('bf16', 5e-2)
