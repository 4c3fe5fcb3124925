"""Disks that fail, fill up, are slow or read-only: training goes on with a warning or ends with one clear
error, the checkpoint before stays, and the run that follows ends with the bits of one without faults."""
import concurrent.futures
import errno
import os
import pathlib
import resource
import subprocess
import time

from cli import TRAIN_GPT
from faults import FaultTest

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE)
# Of run.lock's text and removal nothing depends; what stays of them is not worth a warning.
SILENT = {('ftruncate', 'run.lock'), ('pwrite', 'run.lock'), ('unlink', 'run.lock')}


def is_silent(call):
    # What stands under a temporary's name is removed first; where there is nothing, a failure of that means nothing.
    if call.name == 'unlink' and call.path.endswith('.tmp'):
        return True
    return (call.name, pathlib.Path(call.path).name) in SILENT


class EveryCallTest(FaultTest):
    """One by one, every system call of a whole resumed run (start, updates, two saves, end) meets its fault."""

    def setUp(self):
        super().setUp()
        self.prepare('dry')
        result, self.calls = self.faulty('dry')
        self.assertEqual((result.status, result.err), (0, ''), result.out)
        self.assert_same_run('whole', 'dry', self.STEPS)
        counts = {}
        for call in self.calls:
            counts[call.name] = counts.get(call.name, 0) + 1
        for name in ('open', 'write', 'fsync', 'rename', 'mkdir', 'unlink', 'read', 'flock', 'fopen'):
            self.assertGreater(counts.get(name, 0), 0, name)
        self.in_saves = [call for call in self.calls if '/checkpoints/.tmp_step_' in call.path]
        self.assertGreater(len(self.in_saves), 50)
        print(f'{len(self.calls)} calls, {len(self.in_saves)} of them in saves: {counts}', flush=True)

    def check(self, number, count, code):
        run = f'run{number}'
        self.prepare(run)
        result, calls = self.faulty(run, at=number, count=count, errno=code)
        hit = [call for call in calls if call.failed]
        what = f'{hit[:1]} with {os.strerror(code)}, count {count}:\n{result.err}'
        self.assertTrue(hit, what)
        self.assertIn(result.status, (0, 1), what)
        if result.status == 1:
            self.expect_one_error(result)
            self.assertTrue(os.strerror(code) in result.err or run in result.err, what)
        elif not all(map(is_silent, hit)):
            self.assertIn('warning: ', result.err, what)
        try:
            self.expect_recovery(run)
        except AssertionError as error:
            raise AssertionError(what) from error
        subprocess.run(['rm', '-r', run], cwd=self.folder, check=True)
        return result.status

    def check_all(self, count):
        statuses = {0: 0, 1: 0}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for status in pool.map(lambda call: self.check(call.number, count, CODES[call.number % len(CODES)]),
                                   self.calls):
                statuses[status] += 1
        print(f'{len(self.calls)} faults (count {count or "all that follow"}): {statuses[0]} runs went on, '
              f'{statuses[1]} ended with one error', flush=True)
        for status, number in statuses.items():
            self.assertGreater(number, 0, status)

    def test_every_call_fails_once(self):
        self.check_all(1)

    def test_every_call_fails_and_all_after_it(self):
        self.check_all(0)

    def test_killed_before_every_call(self):
        """Of a run of alike writes to one file only the first and the last."""
        chosen = [call for i, call in enumerate(self.calls) if not (
            0 < i < len(self.calls) - 1 and all((call.name, call.path) == (self.calls[i + side].name,
                                                                           self.calls[i + side].path)
                                                for side in (-1, 1)))]

        def kill(call):
            run = f'run{call.number}'
            self.prepare(run)
            self.assertEqual(self.faulty(run, kill_at=call.number)[0].status, -9, call)
            try:
                self.expect_recovery(run)
            except AssertionError as error:
                raise AssertionError(f'killed before {call}') from error
            subprocess.run(['rm', '-r', run], cwd=self.folder, check=True)

        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            list(pool.map(kill, chosen))
        print(f'killed before each of {len(chosen)} calls', flush=True)


class SurroundingsTest(FaultTest):
    def test_read_only_folder(self):
        for run in ('start', 'new'):
            for code in (errno.EROFS, errno.EACCES):
                result, calls = self.faulty(run, at=1, count=0, errno=code)
                self.expect_one_error(result, run, os.strerror(code))
                self.assertEqual(result.err.count('\n'), 1, result.err)
                self.assertTrue(calls[0].failed)
        self.assertFalse((self.folder / 'new').exists())
        self.expect_recovery('start')

    def test_disk_that_fills_up(self):
        """A disk of so many bytes cuts writes short; with more room the run goes on."""
        size = sum(path.stat().st_size for path in self.checkpoint(4, 'whole').iterdir())
        statuses = set()
        for room in (0, 100, 1900, 2500, size // 2, size, size + 3000, 2 * size, 2 * size + 4000, 10 * size):
            run = f'run{room}'
            self.prepare(run)
            result, _ = self.faulty(run, room=room)
            statuses.add(result.status)
            if result.status == 0:
                self.assertEqual((room, result.err), (10 * size, ''))
            else:
                self.expect_one_error(result, os.strerror(errno.ENOSPC), 'free some space')
            self.expect_recovery(run)
        self.assertEqual(statuses, {0, 1})

    def test_small_disk(self):
        """The same with a real file system that is full, where this user may mount one."""
        script = (f'mkdir disk && mount -t tmpfs -o size=400k lmo disk && cp -r start disk/run && '
                  f'head -c 1M /dev/zero > disk/filler; {TRAIN_GPT} train --config config.json '
                  f'--set run.dir=disk/run; echo status $?; rm disk/filler; {TRAIN_GPT} train '
                  f'--config config.json --set run.dir=disk/run; echo status $?; cp -r disk/run run')
        result = subprocess.run(['unshare', '--mount', 'sh', '-c', script], cwd=self.folder, text=True,
                                capture_output=True)
        if 'mount:' in result.stderr or 'unshare:' in result.stderr:
            self.skipTest('file systems cannot be mounted here')
        self.assertIn('No space left on device', result.stderr)
        self.assertIn('status 1', result.stdout)
        self.assertIn('status 0', result.stdout.splitlines()[-1])
        self.assert_same_run('whole', 'run', self.STEPS)

    def test_metrics_that_cannot_be_written(self):
        """Training goes on and says which file lacks lines; after a while of failing none is lost."""
        self.prepare('all')
        result, calls = self.faulty('all', folder=self.folder / 'all' / 'metrics.jsonl', call='write', at=1, count=0,
                                    errno=errno.ENOSPC)
        self.assertEqual(result.status, 0, result.err)
        # Updates 2 to 5, evaluations after 4 and 6, the summary.
        self.assertRegex(result.err, r"all/metrics.jsonl': No space left on device; training goes on")
        self.assertIn('lacks 7 lines', result.err)
        self.assertEqual(result.err.count('warning'), 2, result.err)
        self.assertEqual((self.checkpoint(6, 'all') / 'model.safetensors').read_bytes(),
                         (self.checkpoint(6, 'whole') / 'model.safetensors').read_bytes())
        self.prepare('some')
        result, calls = self.faulty('some', folder=self.folder / 'some' / 'metrics.jsonl', call='write', at=1, count=4,
                                    errno=errno.ENOSPC)
        self.assertEqual((result.status, result.err.count('warning')), (0, 1), result.err)
        self.assert_same_run('whole', 'some', 6)
        for call in ('open', 'fsync'):
            self.prepare(call)
            result, _ = self.faulty(call, folder=self.folder / call / 'metrics.jsonl', call=call, at=1, count=0,
                                    errno=errno.EIO)
            self.assertIn('metrics.jsonl', result.err)
            self.assertEqual(result.status, 1 if call == 'open' else 0)
            self.expect_recovery(call)

    def test_slow_disk(self):
        self.prepare('slow')
        start = time.time()
        result, calls = self.faulty('slow', sleep_us=30000)
        self.assertEqual((result.status, result.err), (0, ''))
        self.assertGreater(time.time() - start, 0.03 * len(calls))
        self.assert_same_run('whole', 'slow', self.STEPS)

    def test_clock_that_runs_backwards(self):
        """Results do not depend on the wall clock, and neither does the order of event files."""
        self.prepare('back')
        result, _ = self.faulty('back', '--set', 'run.steps=6', clock_back=86400)
        self.assertEqual((result.status, result.err), (0, ''))
        self.assert_same_run('whole', 'back', self.STEPS)
        files = sorted((self.folder / 'back').glob('events.*'))
        self.assertEqual(len(files), 2)
        self.assertEqual(files, sorted(files, key=lambda path: path.stat().st_mtime_ns))

    def test_few_file_descriptors(self):
        """From the fewest with which the system can load the program."""
        statuses = []
        for most in range(4, 24):
            run = f'run{most}'
            self.prepare(run)
            result = self.run_cli('train', '--config', 'config.json', '--set', f'run.dir={run}',
                                  preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)))
            statuses.append(result.status)
            if result.status != 0:
                self.assertIn('oo many open files', result.err)
                self.expect_one_error(result)
            self.expect_recovery(run)
        self.assertEqual(statuses, sorted(statuses, reverse=True))  # enough is enough
        self.assertEqual({0, 1}, set(statuses), statuses)

    def test_data_that_cannot_be_read(self):
        _, calls = self.faulty('dry', folder=self.folder / 'data')
        self.assertGreater(len(calls), 5)
        for call in calls:
            run = f'run{call.number}'
            self.prepare(run)
            result, _ = self.faulty(run, folder=self.folder / 'data', at=call.number, errno=errno.EIO)
            self.expect_one_error(result, 'data/', '.bin', os.strerror(errno.EIO))
            self.expect_recovery(run)

    def test_file_system_without_locks(self):
        for code in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            run = f'run{code}'
            self.prepare(run)
            result, _ = self.faulty(run, call='flock', at=1, errno=code)
            self.assertEqual(result.status, 0, result.err)
            self.assertIn('cannot lock files', result.err)
            self.assert_same_run('whole', run, self.STEPS)
