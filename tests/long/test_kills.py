"""kill -9 at any moment costs time and nothing else: the run ends with the bits of one never killed.

LMO_KILLS=N sets the number of kills (200 without it), dealt to the configurations below.
"""
import collections
import json
import os
import random
import shutil
import subprocess
import time

from cli import TRAIN_GPT, CliTest, write_tokens

KILLS = int(os.environ.get('LMO_KILLS', '200'))
STEPS, EVAL_EVERY = 60, 3
ADAPTIVE = {'warmup': {'type': 'adaptive', 'target_loss': 3.4, 'div': 20, 'max_fraction': 0.6},
            'decay': {'type': 'cosine'}}
CONFIGS = {
    'adamw, 4 micro-batches': {
        'optimizer': {'preset': 'adamw', 'lr': 0.01, 'clip_norm': 1.0, 'weight_decay': 0.1},
        'batch': {'micro_batch': 1},
        'schedule': {'warmup': {'type': 'linear', 'steps': 20}, 'decay': {'type': 'cosine'}}},
    'muon, bf16': {
        'optimizer': {'preset': 'muon', 'lr': 0.01}, 'batch': {'micro_batch': 4}, 'precision': {'compute': 'bf16'},
        'schedule': {'warmup': {'type': 'cosine', 'steps': 20}, 'decay': {'type': 'wsd', 'fraction': 0.3}}},
    'muon, adaptive warm-up, analyzer': {
        'optimizer': {'preset': 'muon', 'lr': 0.02}, 'schedule': ADAPTIVE, 'smoothness': {'every': 4}},
    'adamw, adaptive warm-up, 2 micro-batches': {
        'optimizer': {'preset': 'adamw', 'lr': 0.01}, 'batch': {'micro_batch': 2}, 'schedule': ADAPTIVE},
}


class KillTest(CliTest):
    def setUp(self):
        super().setUp()
        # Evaluations that take about as long as the updates and saves between them.
        write_tokens(self.folder / 'data' / 'val.bin', 30000, seed=2)

    def train_for(self, seconds, after_a_line):
        """Trains in parts/, killed after so many seconds, counted from the start or from its first new line of
        metrics; whether it was killed (it may have finished before)."""
        before = len(self.lines())
        with open(self.folder / 'output', 'w') as output:
            process = subprocess.Popen([TRAIN_GPT, 'train', '--config', 'config.json', '--set', 'run.dir=parts'],
                                       cwd=self.folder, stdout=output, stderr=subprocess.STDOUT)
            while after_a_line and process.poll() is None and len(self.lines()) <= before:
                time.sleep(0.002)
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        said = (self.folder / 'output').read_text()
        self.assertIn(process.returncode, (0, -9), said)
        # What has the name of a checkpoint is one, however the run before ended.
        for word in ('passed over', 'warning', 'train_gpt: '):
            self.assertNotIn(word, said)
        return process.returncode != 0

    def unfinished(self):
        """Names that no run without a kill leaves, each with the time of its last change."""
        return {(path.name, path.stat().st_mtime_ns) for path in (self.folder / 'parts').rglob('*')
                if '.tmp' in path.name or path.name.endswith('.old')}

    def lines(self):
        path = self.folder / 'parts' / 'metrics.jsonl'
        text = path.read_text() if path.exists() else ''
        return [json.loads(line) for line in text[:text.rfind('\n') + 1].splitlines()]

    def saved(self):
        names = [path.name for path in (self.folder / 'parts').glob('checkpoints/step_????????')]
        return max((int(name[5:]) for name in names), default=0)

    def moment(self, before):
        """What a killed run was doing, by what it left; `before`: what was there when it began."""
        if self.unfinished() - before['unfinished']:
            return 'save'
        done, last = 0, None  # updates that the log knows
        for line in self.lines():
            if line['type'] in ('train', 'val'):
                done, last = line['step'] + (line['type'] == 'train'), line['type']
        if done <= before['saved']:
            return 'start'
        if last == 'train' and done % EVAL_EVERY == 0:
            return 'evaluation'
        # A checkpoint follows each update; between its last rename and the next line is an update.
        return 'update' if self.saved() == done else 'between an update and its save'

    def kill_runs(self, kills, counts):
        """Runs killed at random moments, `kills` in all; each run that gets to its end is compared."""
        shutil.rmtree(self.folder / 'whole', ignore_errors=True)
        start = time.time()
        self.train('--set', 'run.dir=whole')
        longest = min(0.4 * (time.time() - start), 1)
        while kills > 0:
            shutil.rmtree(self.folder / 'parts', ignore_errors=True)
            while kills > 0:
                before = {'unfinished': self.unfinished(), 'saved': self.saved()}
                if not self.train_for(random.uniform(0, longest), after_a_line=random.random() < 0.7):
                    break
                kills -= 1
                counts[self.moment(before)] += 1
                # Those of this run, and of the one before if this had no time to remove them.
                self.assertLessEqual(len(self.unfinished()), 4, self.unfinished())
            self.train('--set', 'run.dir=parts')
            self.assert_same_run('whole', 'parts', STEPS)
            self.assertEqual(self.unfinished(), set())
            self.assertFalse((self.folder / 'parts' / 'run.lock').exists())
            counts['run'] += 1

    def test_kills(self):
        random.seed(20)
        counts, start = collections.Counter(), time.time()
        for number, (name, changes) in enumerate(CONFIGS.items()):
            with self.subTest(name):
                # A checkpoint after every update, so that many a kill meets a save.
                self.config({'run': {'steps': STEPS}, 'checkpoint': {'every': 1, 'keep': 2},
                             'eval': {'every': EVAL_EVERY, 'batches': 200},
                             'log': {'peak_tflops': 0}, **changes})  # a start that takes time
                self.kill_runs((KILLS + number) // len(CONFIGS), counts)
        print(f'{KILLS} kills in {counts.pop("run")} runs, {time.time() - start:.0f} s: '
              + ', '.join(f'{number} in {what}' for what, number in counts.most_common()), flush=True)
        self.assertEqual(sum(counts.values()), KILLS)
        for what in ('save', 'update', 'evaluation', 'start'):
            self.assertGreater(counts[what], 0, what)
