"""scripts/run_*.sh, shrunk by --set: each trains, says before what it will do, and goes on where it stopped."""
import json
import os
import pathlib
import signal
import subprocess
import time

from cli import ROOT, TINY_MODEL, TRAIN_GPT, CliTest

TINY = {'model': TINY_MODEL, 'batch': {'sequences': 4, 'micro_batch': 2}, 'run.device': 'cpu', 'run.threads': 1,
        'precision.compute': 'fp32', 'eval.batches': 2, 'log.tensorboard': False, 'log.peak_tflops': 1}
SCRIPTS = {'run_llama_124m.sh': 'llama-124m-muon', 'run_llama_210m.sh': 'llama-210m-muon',
           'run_llama_1b.sh': 'llama-1b-muon', 'run_warmup_paper.sh': 'muon-124m-bs32-64k-adaptive'}


class RunScriptsTest(CliTest):
    def command(self, script, **changes):
        settings = {**TINY, 'run.dir': str(self.folder / 'run'), **changes}
        return [ROOT / 'scripts' / script, *(f'--set={key}={json.dumps(value)}' for key, value in settings.items())]

    def environment(self, **variables):
        kept = {key: value for key, value in os.environ.items()
                if key not in ('CONFIG', 'DATA', 'RUN', 'STEPS', 'DEVICE', 'GPUS', 'EXTRA', 'PYTHON', 'PAPER')}
        return {**kept, 'TRAIN_GPT': TRAIN_GPT, 'DATA': str(self.folder / 'data'), **variables}

    def launch(self, script, *arguments, status=0, changes=None, **variables):
        # From another folder: paths count from the repository.
        result = subprocess.run([*self.command(script, **(changes or {})), *arguments], cwd=self.folder, text=True,
                                capture_output=True, env=self.environment(**variables), check=False, timeout=120)
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result

    def run_config(self):
        return json.loads((self.folder / 'run' / 'run_config.json').read_text())

    def test_every_script_has_a_test(self):
        there = {path.name for path in (ROOT / 'scripts').glob('run_*.sh')}
        self.assertEqual(there, {*SCRIPTS, 'run_optimizer_bench.sh'})

    def check_script(self, script):
        first = self.launch(script, STEPS='4', RUN='mine')
        # The plan, the command, then training.
        places = [first.stdout.index(text) for text in ('\nmemory ', 'command ', 'finished: ')]
        self.assertEqual(places, sorted(places), first.stdout)
        self.assertEqual([line['step'] for line in self.metrics(kind='train')], [0, 1, 2, 3])
        config = self.run_config()
        self.assertEqual((config['run']['name'], config['run']['steps']), ('mine', 4))
        source = 'paper' if 'paper' in script else 'run'
        whole = json.loads((ROOT / f'configs/{source}/{SCRIPTS[script]}.json').read_text())
        self.assertEqual(config['optimizer']['lr'], whole['optimizer']['lr'])
        self.assertEqual(config['schedule']['warmup']['target_loss'], whole['schedule']['warmup']['target_loss'])
        second = self.launch(script, STEPS='4', RUN='mine')
        self.assertIn('finished', second.stdout + second.stderr)
        self.assertEqual(len(self.metrics(kind='train')), 4)

    def test_124m(self):
        self.check_script('run_llama_124m.sh')

    def test_210m(self):
        self.check_script('run_llama_210m.sh')

    def test_1b(self):
        self.check_script('run_llama_1b.sh')

    def test_paper(self):
        self.check_script('run_warmup_paper.sh')

    def test_a_run_of_the_paper_is_chosen_by_name(self):
        result = self.launch('run_warmup_paper.sh', '--plan', PAPER='lion-210m-bs32-64k-baseline')
        self.assertIn('lion, lr', result.stdout)
        self.assertIn('configs/paper/lion-210m-bs32-64k-baseline.json', result.stdout)
        result = self.launch('run_warmup_paper.sh', status=2, PAPER='nothing')
        self.assertIn('nsgd-124m-bs256-16k-adaptive', result.stderr)

    def test_the_variables(self):
        result = self.launch('run_llama_124m.sh', '--plan', '--set', 'run.seed=7', CONFIG='configs/run/llama-124m-lion.json',
                             RUN='x y', STEPS='3', DEVICE='cpu', GPUS='2', EXTRA='--set optimizer.lr=0.5')
        self.assertIn('lion, lr 0.5', result.stdout)
        self.assertIn('3 updates', result.stdout)
        last = result.stdout.splitlines()[-1]
        for part in ('run.name=\\"x\\ y\\"', '--device cpu --gpus 2', 'run.seed=7'):
            self.assertIn(part, last)
        self.assertFalse((self.folder / 'run').exists())  # --plan trains nothing

    def test_two_ranks(self):
        self.launch('run_llama_124m.sh', STEPS='2', DEVICE='cpu', GPUS='2')
        self.assertEqual(self.metrics(kind='summary')[0]['ranks'], 2)

    def test_stopped_and_started_again(self):
        command = self.command('run_llama_124m.sh', **{'run.steps': 1500})
        with subprocess.Popen(command, cwd=self.folder, env=self.environment(), stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as process:
            log, end = self.folder / 'run' / 'metrics.jsonl', time.time() + 60
            while time.time() < end and not (log.exists() and log.read_text().count('\n') > 3):
                time.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(60), 3)
        done = len(self.metrics(kind='train'))
        self.assertIn(done, range(3, 1500))
        self.launch('run_llama_124m.sh', changes={'run.steps': 1500})
        self.assertEqual([line['step'] for line in self.metrics(kind='train')], list(range(1500)))

    def fetcher(self, text):
        path = self.folder / 'python'
        path.write_text('#!/bin/sh\necho "$@" >> ' + f"'{self.folder}/asked'\n{text}\n")
        path.chmod(0o755)
        return str(path)

    def test_data_is_fetched_once(self):
        data = self.folder / 'new'
        python = self.fetcher(f"mkdir '{data}' && cp '{self.folder}'/data/*.bin '{data}'")
        for _ in range(2):
            self.launch('run_llama_124m.sh', STEPS='2', DATA=str(data), PYTHON=python)
        self.assertEqual((self.folder / 'asked').read_text(), 'scripts/prepare_data.py fineweb --tokens 1000000 '
                         f'--subset sample-10BT --out {data}\n')
        result = self.launch('run_llama_1b.sh', '--plan', DATA='/absent', changes={
            'model.seq_len': 2048, 'batch.sequences': 256, 'batch.micro_batch': 1})
        self.assertIn('--tokens 20972000000 --subset sample-100BT', result.stdout)

    def test_no_data(self):
        result = self.launch('run_llama_124m.sh', status=2, DATA='/absent', PYTHON=self.fetcher('exit 1'))
        self.assertIn('put token files into /absent', result.stderr)
        self.assertIn('prepare_data.py text', result.stderr)
        self.assertFalse((self.folder / 'run').exists())
        # Files named by --set are the user's business.
        files = {f'data.{part}': [str(self.folder / 'data' / f'{part}.bin')] for part in ('train', 'val')}
        self.launch('run_llama_124m.sh', STEPS='1', DATA='/absent', changes=files)

    def test_wrong_use(self):
        for script in SCRIPTS:
            self.assertIn('--fast', self.launch(script, '--fast', status=2).stderr)
            self.assertIn('STEPS=N', self.launch(script, '--help').stdout)
        self.assertIn('make all', self.launch('run_llama_1b.sh', status=2, TRAIN_GPT='/absent').stderr)
        self.assertIn('optimizer.lrr', self.launch('run_llama_1b.sh', '--set', 'optimizer.lrr=1', status=2).stderr)
        self.assertFalse((self.folder / 'run').exists())

    def test_optimizer_bench(self):
        script, program = ROOT / 'scripts/run_optimizer_bench.sh', self.fetcher('exit 3')
        for arguments, variables, expected in (
                ([], {}, 'configs/run/llama-124m-muon.json --compare'),
                (['--json'], {'CONFIG': 'x.json'}, 'x.json --json')):
            result = subprocess.run([script, *arguments], env=self.environment(TRAIN_GPT=program, **variables), text=True,
                                    capture_output=True, check=False, timeout=60)
            self.assertEqual((result.returncode, result.stdout), (3, ''))
            self.assertIn(f'bench optimizer --config {expected}\n', result.stderr)
            self.assertEqual((self.folder / 'asked').read_text().splitlines()[-1], f'bench optimizer --config {expected}')

    def test_optimizer_bench_shrunk(self):
        (self.folder / 'tiny.json').write_text(json.dumps({'model': TINY_MODEL}))
        command = [ROOT / 'scripts/run_optimizer_bench.sh', '--device=cpu', '--threads=1', '--steps=1', '--preset=muon',
                   '--preset=adamw']
        result = subprocess.run(command, cwd=self.folder, text=True, capture_output=True, check=False, timeout=60,
                                env=self.environment(CONFIG=str(self.folder / 'tiny.json')))
        self.assertEqual(result.returncode, 0, result.stderr)
        for row in ('\nmuon  ', '\nadamw  ', '\njordan  '):
            self.assertIn(row, result.stdout)

    def test_the_1b_model(self):
        result = self.run_cli('plan', '--config', pathlib.Path(ROOT / 'configs/run/llama-1b-muon.json'), '--json',
                              '--peak', '1', '--device', 'cpu')
        plan = json.loads(result.out)
        attention, ffn = 2 * 2048 * 2048 + 2 * 2048 * 256, 3 * 2048 * 5632
        self.assertEqual(plan['parameters'], 22 * (attention + ffn + 2 * 2048) + 2048 + 50304 * 2048)
        self.assertEqual(plan['tokens_per_update'], 1 << 19)
