"""N updates equal k updates, a stop, and N - k more: bit by bit."""
import hashlib
import json
import os
import signal
import subprocess
import time

from cli import ROOT, TRAIN_GPT, CliTest

WARMUP = {'type': 'adaptive', 'target_loss': 3.0, 'div': 20, 'max_fraction': 0.6}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class ResumeTest(CliTest):
    def check_stop_and_resume(self, changes, stop_at, steps=8):
        """The second run is a copy of the first up to `stop_at`: its later checkpoints are removed."""
        changes = dict(changes)
        changes.setdefault('checkpoint', {'every': stop_at, 'keep': 0})
        changes.setdefault('eval', {'every': 2, 'batches': 2})
        self.config(changes)
        self.train('--set', f'run.steps={steps}', '--set', 'run.dir=whole')
        self.train('--set', f'run.steps={steps}', '--set', 'run.dir=parts')
        for folder in (self.folder / 'parts' / 'checkpoints').iterdir():
            if folder.name > f'step_{stop_at:08d}':
                subprocess.run(['rm', '-r', folder], check=True)
        result = self.train('--set', f'run.steps={steps}', '--set', 'run.dir=parts')
        self.assertIn(f'resumed after {stop_at} updates', result.out)
        self.assert_same_run('whole', 'parts', steps)

    def test_every_preset(self):
        for preset in ('adamw', 'muon', 'muon-kj', 'lion', 'signum', 'nsgd'):
            with self.subTest(preset):
                subprocess.run(['rm', '-rf', 'whole', 'parts'], cwd=self.folder, check=True)
                self.check_stop_and_resume(
                    {'optimizer': {'preset': preset, 'lr': 0.003, 'clip_norm': 0.5, 'weight_decay': 0.1},
                     'schedule': {'warmup': {'type': 'linear', 'steps': 3}, 'decay': {'type': 'cosine'}}},
                    stop_at=3)

    def test_in_adaptive_warmup_and_in_decay(self):
        for stop_at in (2, 14):
            with self.subTest(stop_at=stop_at):
                subprocess.run(['rm', '-rf', 'whole', 'parts'], cwd=self.folder, check=True)
                self.check_stop_and_resume(
                    {'optimizer': {'preset': 'muon', 'lr': 0.02},
                     'schedule': {'warmup': WARMUP, 'decay': {'type': 'cosine'}}},
                    stop_at=stop_at, steps=16)
        phases = [line['phase'] for line in self.metrics('whole', 'train')]
        self.assertEqual(phases[2], 'warmup')
        self.assertEqual(phases[14], 'decay')

    def test_with_every_published_behaviour(self):
        compat = str(ROOT / 'configs' / 'compat' / 'official-nsgd.json')
        for stop_at in (1, 3, 14):
            with self.subTest(stop_at=stop_at):
                subprocess.run(['rm', '-rf', 'whole', 'parts'], cwd=self.folder, check=True)
                self.check_stop_and_resume(
                    {'include': compat, 'optimizer': {'preset': 'nsgd', 'lr': 0.2},
                     'schedule': {'warmup': {'target_loss': 1.95, 'div': 4},
                                  'decay': {'type': 'cosine'}}},
                    stop_at=stop_at, steps=16)
        phases = [line['phase'] for line in self.metrics('whole', 'train')]
        self.assertEqual(phases[3], 'warmup')
        self.assertEqual(phases[14], 'decay')

    def test_one_thread(self):
        self.check_stop_and_resume({'run': {'threads': 1}}, stop_at=5)

    def test_bf16_weights_keep_exact_masters(self):
        self.check_stop_and_resume({'precision': {'compute': 'bf16'}}, stop_at=4)

    def test_fp64(self):
        self.check_stop_and_resume({'precision': {'compute': 'fp64'}}, stop_at=4)

    def test_signals_save_and_exit_with_3(self):
        self.config(run={'steps': 300}, checkpoint={'keep': 0})
        self.train('--set', 'run.dir=whole')
        for number in (signal.SIGTERM, signal.SIGINT):
            process = subprocess.Popen(
                [TRAIN_GPT, 'train', '--config', 'config.json', '--set', 'run.dir=parts'],
                cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            metrics = self.folder / 'parts' / 'metrics.jsonl'
            before = metrics.stat().st_size if metrics.exists() else 0
            while not metrics.exists() or metrics.stat().st_size < before + 500:
                self.assertIsNone(process.poll(), 'finished before the signal could be sent')
                time.sleep(0.005)
            process.send_signal(number)
            output = process.communicate(timeout=60)[0]
            self.assertEqual(process.returncode, 3, output)
            self.assertIn('checkpoint written', output)
        self.train('--set', 'run.dir=parts')
        self.assert_same_run('whole', 'parts', 300)

    def test_accumulation_only_rounds(self):
        """One batch of 4 or 4 batches of 1: the same losses up to rounding."""
        self.config()
        losses = []
        for micro in (4, 1):
            self.train('--set', f'batch.micro_batch={micro}', '--set', f'run.dir=run{micro}')
            losses.append([line['loss'] for line in self.metrics(f'run{micro}', 'train')])
        for one, four in zip(*losses):
            self.assertAlmostEqual(one, four, delta=2e-5)

    def test_finished_run_is_left_alone(self):
        self.config()
        self.train()
        before = digest(self.folder / 'run' / 'metrics.jsonl')
        self.assertIn('finished', self.train().out)
        self.assertEqual(before, digest(self.folder / 'run' / 'metrics.jsonl'))

    def test_other_config_is_refused_by_name(self):
        self.config(checkpoint={'every': 4, 'keep': 0})
        self.train()
        result = self.train('--set', 'optimizer.lr=0.02', status=2)
        self.assertIn('optimizer.lr', result.err)
        self.assertIn('0.01', result.err)
        self.assertIn('0.02', result.err)
        # What may differ does not hinder.
        self.train('--set', 'run.name=other', '--set', 'log.every=2', '--set', 'eval.batches=1')

    def test_resume_never_and_named(self):
        self.config(checkpoint={'every': 4, 'keep': 0})
        self.train('--resume', 'never')
        self.assertIn('run.dir', self.train('--resume', 'never', status=2).err)
        self.train('--resume', 'run/checkpoints/step_00000004')
        self.assertIn('no such folder', self.train('--resume', 'nowhere', status=2).err)
        os.mkdir(self.folder / 'empty')
        self.assertIn('empty', self.train('--resume', 'empty', status=2).err)

    def test_damaged_checkpoint_is_passed_over(self):
        self.config(checkpoint={'every': 2, 'keep': 0})
        self.train('--set', 'run.dir=whole')
        self.train()
        damaged = self.checkpoint(8) / 'model.safetensors'
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(content)
        result = self.train()
        self.assertIn('step_00000008', result.err)
        self.assertIn('resumed after 6 updates', result.out)
        self.assert_same_run('whole', 'run', 8)
