"""train_gpt with system calls that fail: what tests/faults.cpp is told, and what it saw."""
import os
import pathlib
import shutil

from cli import ROOT, CliTest

LIBRARY = pathlib.Path(os.environ.get('LMO_BUILD', str(ROOT / 'build'))) / 'faults.so'


class Call:
    """A line of FAULT_LOG."""

    def __init__(self, line):
        number, self.name, self.path = line.split(' ', 2)
        self.number, self.failed = int(number.rstrip('!')), number.endswith('!')

    def __repr__(self):
        return f'call {self.number}: {self.name} {self.path}'


class FaultTest(CliTest):
    """`whole` is a run of STEPS updates without faults, `start` the same run after its first checkpoint."""
    STEPS, EVERY = 6, 2

    def setUp(self):
        super().setUp()
        self.folder = self.folder.resolve()
        self.config({'run': {'steps': self.STEPS, 'threads': 1}, 'model': {'n_layer': 1, 'd_model': 16, 'd_ff': 16},
                     'batch': {'sequences': 2, 'micro_batch': 1}, 'checkpoint': {'every': self.EVERY, 'keep': 1},
                     'optimizer': {'preset': 'muon'}, 'eval': {'every': 2, 'batches': 1}})
        self.train('--set', 'run.dir=whole', '--set', 'checkpoint.keep=0')
        shutil.copytree(self.folder / 'whole', self.folder / 'start')
        for step in range(2 * self.EVERY, self.STEPS + 1, self.EVERY):
            shutil.rmtree(self.checkpoint(step, 'start'))

    def prepare(self, run):
        shutil.copytree(self.folder / 'start', self.folder / run)

    def faulty(self, run, *arguments, folder=None, **faults):
        """Trains in `run` with faults (at=3 is FAULT_AT=3); the result, and the calls that counted."""
        log = self.folder / f'{run}.log'
        environment = {f'FAULT_{name.upper()}': str(value) for name, value in faults.items()}
        environment.update(LD_PRELOAD=str(LIBRARY), FAULT_FOLDER=str(folder or self.folder / run),
                           FAULT_LOG=str(log))
        result = self.run_cli('train', '--config', 'config.json', '--set', f'run.dir={run}', *arguments,
                              environment=environment)
        calls = [Call(line) for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return result, calls

    def unfinished(self, run):
        return [path.name for path in (self.folder / run).rglob('*')
                if '.tmp' in path.name or path.name.endswith('.old')]

    def expect_one_error(self, result, *words):
        """Status 1, one message of the program, every word in it."""
        self.assertEqual(result.status, 1, result.out + result.err)
        self.assertEqual(result.err.count('train_gpt: '), 1, result.err)
        message = result.err[result.err.index('train_gpt: '):]
        for word in words:
            self.assertIn(word, message)
        for word in ('terminate', 'exception', 'basic_'):
            self.assertNotIn(word, result.err)

    def expect_recovery(self, run):
        """Without faults the run goes on from a complete checkpoint to the bits of `whole`."""
        result = self.train('--set', f'run.dir={run}')
        self.assertRegex(result.out, 'resumed after [2-9] updates|this run is finished')
        self.assertEqual(result.err, '')
        self.assert_same_run('whole', run, self.STEPS)
        self.assertEqual(self.metrics(run)[-1]['type'], 'summary')
        self.assertEqual(self.unfinished(run), [])
