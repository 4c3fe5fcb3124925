"""kill -9 at any moment costs time and nothing else: the run ends with the bits of one never killed.

LMO_KILLS=N sets the number of kills (60 without it).
"""
import os
import random
import shutil
import subprocess
import time

from cli import TRAIN_GPT, CliTest

KILLS = int(os.environ.get('LMO_KILLS', '60'))
STEPS = 200


class KillTest(CliTest):
    def train_for(self, seconds):
        """Trains in parts/, killed after so many seconds; whether it was, or had finished before."""
        process = subprocess.Popen(
            [TRAIN_GPT, 'train', '--config', 'config.json', '--set', 'run.dir=parts'], cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            output = process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            output = process.communicate()[0]
        self.assertIn(process.returncode, (0, -9), output)
        # What has the name of a checkpoint is one, however the run before ended.
        self.assertNotIn('passed over', output)
        return process.returncode != 0

    def unfinished(self):
        names = [path.name for path in (self.folder / 'parts').rglob('*')]
        return [name for name in names if '.tmp' in name or name.endswith('.old')]

    def lines(self, run):
        timing = ('tokens_per_s', 'mfu', 'step_ms')
        return [{key: value for key, value in line.items() if key not in timing}
                for line in self.metrics(run) if line['type'] != 'summary']

    def assert_same_run(self):
        for name in ('model.safetensors', 'optimizer.safetensors'):
            self.assertEqual((self.checkpoint(STEPS, 'whole') / name).read_bytes(),
                             (self.checkpoint(STEPS, 'parts') / name).read_bytes(), name)
        self.assertEqual(self.lines('whole'), self.lines('parts'))
        self.assertEqual(self.unfinished(), [])

    def test_kills(self):
        # A checkpoint after every update, so that many a kill meets a save.
        self.config({'run': {'steps': STEPS}, 'checkpoint': {'every': 1, 'keep': 2}, 'eval': {'every': 7},
                     'optimizer': {'preset': 'muon', 'lr': 0.01, 'clip_norm': 1.0},
                     'schedule': {'warmup': {'type': 'linear', 'steps': 20}, 'decay': {'type': 'cosine'}}})
        start = time.time()
        self.train('--set', 'run.dir=whole')
        longest = (time.time() - start) / 2
        random.seed(20)
        kills = in_saves = runs = 0
        while kills < KILLS:
            shutil.rmtree(self.folder / 'parts', ignore_errors=True)
            while kills < KILLS and self.train_for(random.uniform(0, longest)):
                kills += 1
                in_saves += bool(self.unfinished())
                self.assertLessEqual(len(self.unfinished()), 8, self.unfinished())
            self.train('--set', 'run.dir=parts')
            self.assert_same_run()
            runs += 1
        print(f'{kills} kills in {runs} runs, {in_saves} of them in the middle of a save')
        self.assertGreater(in_saves, 0)
