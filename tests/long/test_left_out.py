"""A run that overflows by itself now and then: every policy of run.on_nonfinite, and kill -9 on top.

The rate is such that the weights grow until an update's numbers leave the range of fp32; nothing in the
program makes it so.
"""
import json
import random
import shutil
import subprocess
import time

from cli import TRAIN_GPT, CliTest

KILLS, STEPS = 12, 200


class LeftOutTest(CliTest):
    def diverging(self):
        """Finds a rate with which a run with `skip` gets to its end, and returns what it left out."""
        for power in range(315, 345):
            self.config({'run': {'steps': STEPS, 'on_nonfinite': 'skip', 'nonfinite_limit': 1000},
                         'model': {'tie_embeddings': False}, 'optimizer': {'lr': 10 ** (power / 40)},
                         'schedule': {'decay': {'type': 'linear'}},
                         'checkpoint': {'every': 25, 'keep': 2}, 'log': {'tensorboard': False}})
            result = self.run_cli('train', '--config', 'config.json', '--set', 'run.dir=skip')
            left_out = [line['step'] for line in self.metrics('skip', 'nonfinite')]
            if result.status == 0 and 3 <= len(left_out) <= 60:
                print(f'rate {10 ** (power / 40):.3g}: left out {left_out} of {STEPS} updates', flush=True)
                return left_out
            shutil.rmtree(self.folder / 'skip')
        self.fail('no rate overflows now and then')

    def train_for(self, seconds):
        """Trains in parts/, killed after so many seconds; whether it was, or had finished before."""
        process = subprocess.Popen(
            [TRAIN_GPT, 'train', '--config', 'config.json', '--set', 'run.dir=parts'], cwd=self.folder,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=seconds)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
        self.assertIn(process.returncode, (0, -9), said)
        return process.returncode != 0

    def everything(self, run):
        timing = ('tokens_per_s', 'mfu', 'step_ms')
        lines = [{key: value for key, value in line.items() if key not in timing}
                 for line in self.metrics(run) if line['type'] != 'summary']
        state = json.loads((self.checkpoint(STEPS, run) / 'state.json').read_text())
        state.pop('config')
        return lines, state, [(self.checkpoint(STEPS, run) / name).read_bytes()
                              for name in ('model.safetensors', 'optimizer.safetensors')]

    def test_policies_and_kills(self):
        left_out = self.diverging()
        result = self.train('--set', 'run.on_nonfinite=stop', '--set', 'run.nonfinite_limit=null', '--set',
                            'run.dir=stop', status=1)
        self.assertIn(f'update {left_out[0]}: the ', result.err)
        self.assertIn('not finite', result.err)

        config = json.loads((self.folder / 'config.json').read_text())
        self.config(config, run={'on_nonfinite': 'rollback'})
        start = time.time()
        result = self.train('--set', 'run.dir=whole')
        longest = (time.time() - start) / 2
        self.assertEqual(result.err.count('; back to'), len(left_out))
        self.assertEqual(self.everything('skip'), self.everything('whole'))

        random.seed(20)
        kills = runs = 0
        while kills < KILLS:
            shutil.rmtree(self.folder / 'parts', ignore_errors=True)
            while kills < KILLS and self.train_for(random.uniform(0, longest)):
                kills += 1
            self.train('--set', 'run.dir=parts')
            self.assertEqual(self.everything('parts'), self.everything('whole'))
            runs += 1
        print(f'{kills} kills in {runs} runs', flush=True)
