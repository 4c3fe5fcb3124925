"""The commands that the documentation shows are run, shrunk, in a folder that looks like the repository.

Taken are lines of code blocks that start with build/train_gpt, mpirun, make, python3 or a script (variables may
come before). SHRINK says what is added to a command so that it ends in a moment, NOT_RUN what is not run
and why; of those the script, its options and make's targets must still exist.
"""
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unittest

from cli import ROOT, TRAIN_GPT, CliTest, long, write_tokens
from test_upload_wandb import FAKE

PYTHON = os.environ.get('PYTHON') or sys.executable
PAGES = ['README.md', *sorted(str(path.relative_to(ROOT)) for folder in ('dev/docs', 'configs')
                              for path in (ROOT / folder).rglob('*.md'))]
COMMAND = re.compile(r'((\w+=\S+\s+)*)(build/train_gpt|mpirun|make|(python3 )?(scripts|dev/\w+)/\S+\.(py|sh))(\s|$)')
MODEL = {'n_layer': 1, 'n_head': 2, 'd_model': 16, 'd_ff': 16, 'vocab_size': 256, 'seq_len': 16}
SMALL = ['--set', f'model={json.dumps(MODEL)}', '--set', 'batch={"sequences": 2}', '--set', 'run.threads=1',
         '--set', 'log.tensorboard=false',
         '--set', 'log.peak_tflops=1']

# The first pattern found in a command decides what is added to it.
SHRINK = [
    (r'train_gpt bench train', [*SMALL, '--steps', '1', '--warmup', '0']),
    (r'train_gpt train .*configs/paper', [*SMALL, '--set', 'run.steps=3']),
    (r'train_gpt train .*update_norms', [*SMALL, '--set', 'run.steps=30']),
    (r'train_gpt train', SMALL),
    (r'scripts/run_\w+\.sh', ['--plan']),                      # test_launch.py trains with them
    (r'scripts/sweep\.py', ['--list']),                        # test_sweep.py trains with it
]
NOT_RUN = [
    (r'^make ', 'builds, installs packages, or runs these tests; the target must exist'),
    (r'prepare_data\.py (python-docs|austen|fineweb)', 'fetches packages or data; test_prepare_data.py has them'),
    (r'check_hf\.py', 'needs torch and transformers'),
    (r'_study\.py run', 'trains for hours'),
    (r'_study\.py report', 'writes the page; test_study.py compares it with the results'),
    (r'estimator_rates\.py', 'takes a minute; test_study.py compares the page with the results'),
    (r'plot_objective\.py', 'test_objective.py draws with it'),
    (r'run_optimizer_bench\.sh', 'test_launch.py has it'),
]
# Names that stand for something of the reader's.
STANDS_FOR = {'SWEEP.json': 'configs/sweeps/quickstart-warmup.json'}


def commands(page):
    """The commands of a page, in order."""
    lines, fenced = [], False
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith('```'):
            fenced = not fenced
        elif fenced or line.startswith('    '):
            lines.append(line.strip())
    text = '\n'.join(lines).replace('\\\n', ' ')
    found = (re.sub(r'\s+#.*', '', line).strip() for line in text.splitlines())
    return [' '.join(line.split()) for line in found if COMMAND.match(line)]


class DocsTest(CliTest):
    def setUp(self):
        super().setUp()
        for name in ('scripts', 'configs', 'dev/reference', 'dev/study', 'dev/results'):
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).symlink_to(ROOT / name)
        for name in ('build', 'my_texts', 'data/austen', 'data/fineweb', 'dev/docs/figures', 'fake', 'bin'):
            (self.folder / name).mkdir(parents=True)
        (self.folder / 'build/train_gpt').symlink_to(TRAIN_GPT)
        # The Python that has matplotlib, for scripts that ask for python3 too.
        (self.folder / 'bin/python3').write_text(f'#!/bin/sh\nexec {shlex.quote(PYTHON)} "$@"\n')
        (self.folder / 'bin/python3').chmod(0o755)
        (self.folder / 'fake/wandb.py').write_text(FAKE)
        (self.folder / 'my_texts/a.txt').write_text('It is a truth universally acknowledged.\n\n' * 800)
        for name in ('austen/train', 'austen/val', 'fineweb/a_train_1', 'fineweb/a_val_1'):
            write_tokens(self.folder / 'data' / f'{name}.bin', 3000, 256)

    def add_runs(self):
        """What README.md makes, and two runs of the reader's."""
        result = self.run_cli('train', '--config', 'configs/run/quickstart.json', '--device', 'cpu', *SMALL)
        self.assertEqual(result.status, 0, result.err)
        for name in ('A', 'B'):
            shutil.copytree(self.folder / 'runs/quickstart', self.folder / 'runs' / name)

    def run_command(self, command):
        for name, meant in STANDS_FOR.items():
            command = command.replace(name, meant)
        added = next((more for pattern, more in SHRINK if re.search(pattern, command)), [])
        environment = {**os.environ, 'PATH': f'{self.folder}/bin:{os.environ["PATH"]}', 
                       'PYTHONPATH': str(self.folder / 'fake'), 'CALLS': str(self.folder / 'calls'),
                       'OMPI_ALLOW_RUN_AS_ROOT': '1', 'OMPI_ALLOW_RUN_AS_ROOT_CONFIRM': '1',
                       'OMPI_MCA_rmaps_base_oversubscribe': '1'}
        return subprocess.run(['bash', '-c', f'{command} {shlex.join(added)}'], cwd=self.folder, env=environment,
                              capture_output=True, text=True, timeout=120, check=False)

    def check_exists(self, command):
        """Of a command that is not run: its script and options, or make's targets and variables."""
        words = [word for word in shlex.split(command) if word != 'python3']
        if words[0] == 'make':
            makefile = (ROOT / 'Makefile').read_text()
            for word in words[1:]:
                name, _, value = word.partition('=')
                self.assertRegex(makefile, rf'\b{name}\b' if value else rf'(?m)^{name}:', command)
            return
        self.assertTrue((ROOT / words[0]).is_file(), command)
        text = (ROOT / words[0]).read_text()
        if words[0].startswith('dev/study'):  # the command line of both studies
            text += (ROOT / 'dev/study/study.py').read_text()
        for word in words[1:]:
            if word.startswith('--'):
                self.assertIn(f'"{word}"', text.replace("'", '"'), command)

    def check_page(self, page):
        if page != 'README.md':
            self.add_runs()
        for command in commands(page):
            with self.subTest(command):
                if any(re.search(pattern, command) for pattern, _ in NOT_RUN):
                    self.check_exists(command)
                else:
                    if command.startswith('mpirun') and not shutil.which('mpirun'):
                        self.skipTest(f'{command}: no mpirun here')
                    result = self.run_command(command)
                    self.assertEqual(result.returncode, 0, f'{command}\n{result.stdout[-2000:]}{result.stderr[-2000:]}')

    def test_there_are_commands(self):
        found = [command for page in PAGES for command in commands(page)]
        self.assertGreater(len(found), 30)
        for pattern in [pattern for pattern, _ in SHRINK]:
            self.assertTrue(any(re.search(pattern, command) for command in found), f'nothing is like {pattern}')

    def test_a_wrong_command_fails(self):
        for command in ('build/train_gpt train --config configs/run/quickstart.json --set run.nam=x',
                        'python3 scripts/compare_runs.py runs/A --dif'):
            self.assertNotEqual(self.run_command(command).returncode, 0)
        for command in ('make fuz', 'make fuzz SECOND=3', 'scripts/prepare_data.py austen --fast', 'scripts/no.py'):
            with self.assertRaises(AssertionError):
                self.check_exists(command)

    def test_the_table_of_commands(self):
        """README.md's table names options that there are."""
        rows = re.findall(r'^\| `(\w+(?: (?:train|kernels|optimizer)\b)?)((?:\s[^`]*)?)` \|', (ROOT / 'README.md').read_text(), re.M)
        self.assertGreaterEqual(len(rows), 8)
        for command, options in rows:
            said = self.run_cli(*command.split(), '--help')
            self.assertEqual(said.status, 0, command)
            for option in re.findall(r'--[\w-]+', options):
                self.assertRegex(said.out, rf'{option}\b', command)

    def test_links(self):
        """Pages and files that the documentation links to are there."""
        for page in PAGES:
            for target in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', (ROOT / page).read_text()):
                self.assertTrue(((ROOT / page).parent / target).exists(), f'{page} links to {target}')

    def test_files_that_are_named(self):
        """Configurations, scripts and programs of ours that the documentation names in its text."""
        for page in PAGES:
            text = (ROOT / page).read_text()
            for name in re.findall(r'(?<![\w/.])((?:configs|scripts|dev/\w+|tests/\w+)/[\w/.-]+\.(?:json|py|sh|md|cpp|slurm))\b',
                                   text):
                if not re.search('[A-Z]{4}', name.rpartition('/')[2].partition('.')[0].replace('README', '')):  # NAME.json
                    self.assertTrue((ROOT / name).exists(), f'{page} names {name}')


def add_test(page):
    name = re.sub(r'\W+', '_', page.removesuffix('.md')).lower()
    def test(self):
        self.check_page(page)
    setattr(DocsTest, f'test_commands_of_{name}', test if page == 'README.md' else long(test))


for with_commands in PAGES:
    if commands(with_commands):
        add_test(with_commands)

if __name__ == '__main__':
    unittest.main()
