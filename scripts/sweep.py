#!/usr/bin/env python3
"""Trains all combinations of configuration values and shows the results.

    scripts/sweep.py SWEEP.json --jobs 2   a sweep in a file (dev/docs/sweeps.md)
    scripts/sweep.py --config configs/run/quickstart.json --name rates \\
        --grid optimizer.lr=0.003,0.01,0.03 --grid run.seed,data.seed=0,1,2

Runs go to runs/NAME/RUN, each a run folder of train_gpt; beside them
results.json, table.txt and, where matplotlib is found, val_loss.png and lr.png.
The same command again goes on where the last one stopped: finished runs are
kept, started ones continue from their newest checkpoint. On Slurm,
--slurm "OPTIONS OF SBATCH" submits the runs as a job array, and --report
collects them later.

Exit status: 0 all runs finished, 1 some failed (the others are done), 2 a wrong
sweep, 3 stopped.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

from run_folder import clock
from sweeps import report
from sweeps.plan import SweepError, command_line_sweep, plan_runs, read_sweep

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Stopped(Exception):
    """A signal asked us to end."""


class Runner:
    """Trains runs, some of them at a time. A signal to us ends the runs as one to them would: with a
    checkpoint."""

    def __init__(self, program, folder, jobs, options=()):
        self.program, self.folder, self.jobs, self.options = program, folder, jobs, options
        self.lock = threading.Lock()
        self.children, self.stopped = set(), False

    def stop(self, *_):
        self.stopped = True
        for child in list(self.children):
            child.send_signal(signal.SIGTERM)

    def command(self, run):
        settings = {**run.settings, 'run.name': run.name, 'run.dir': str(self.folder / run.name)}
        sets = [part for key, value in settings.items() for part in ('--set', f'{key}={json.dumps(value)}')]
        return [str(self.program), 'train', '--config', str(run.config), *self.options, *sets]

    def train(self, run):
        """Exit status of the run; what it says goes to RUN.log."""
        with self.lock:
            if self.stopped:
                return 3
            log = open(self.folder / f'{run.name}.log', 'w', encoding='utf-8')
            child = subprocess.Popen(self.command(run), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                     start_new_session=True)
            self.children.add(child)
        with log:
            status = child.wait()
        self.children.discard(child)
        return status

    def train_all(self, runs):
        """Trains what is not finished and says how long the rest will take."""
        todo = [run for run in runs if not report.is_finished(self.folder / run.name)]
        done = len(runs) - len(todo)
        if done:
            print(f'{done} of {len(runs)} runs are finished already')
        # Finished ones too are checked: their configuration must be that of the sweep.
        checked = [run for run in runs if run not in todo]
        start, statuses = time.monotonic(), {}
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            futures = {pool.submit(self.train, run): run for run in checked + todo}
            for future in concurrent.futures.as_completed(futures):
                run = futures[future]
                statuses[run.name] = future.result()
                if run in checked and statuses[run.name] == 0:
                    continue
                done += run not in checked
                self.show(run, statuses[run.name], done, len(runs), len(todo), time.monotonic() - start)
        if self.stopped:
            raise Stopped
        return statuses

    def show(self, run, status, done, total, todo, seconds):
        result = report.read_run(self.folder / run.name)
        text = f'{result["val_loss"]:.4f}' if status == 0 else report.last_words(self.folder / f'{run.name}.log')
        left = seconds / max(1, todo - (total - done)) * (total - done)
        print(f'{done:4d}/{total}  {run.name:<40s} {text}   {clock(left)} left', flush=True)


def find_program(given):
    program = given or os.environ.get('TRAIN_GPT') or ROOT / 'build' / 'train_gpt'
    if not os.access(program, os.X_OK):
        raise SweepError(f'{program}: no such program; build it with make all, or name it by --program')
    return pathlib.Path(program).resolve()


def default_threads(runs, jobs):
    """Side by side, each run gets its part of the cores, unless the sweep says otherwise. The number of
    threads is part of a run: the order of its sums depends on it."""
    for run in runs:
        if jobs > 1 and 'run.threads' not in run.settings:
            run.settings['run.threads'] = max(1, len(os.sched_getaffinity(0)) // jobs)


def submit(arguments, folder, count):
    """One job array; each of its tasks is this script with --only."""
    if shutil.which('sbatch') is None:
        raise SweepError('--slurm: no sbatch on this machine; start the sweep where Slurm is, or leave it out')
    again = [sys.executable, str(pathlib.Path(__file__).resolve()), *arguments.rest]
    script = folder / 'sweep.sbatch'
    script.write_text(f'#!/bin/bash\n#SBATCH --job-name={folder.name}\n#SBATCH --array=0-{count - 1}%{arguments.jobs}\n'
                      f'#SBATCH --output={folder}/slurm-%a.log\n#SBATCH --chdir={os.getcwd()}\n'
                      f'exec {shlex.join(again)} --only "$SLURM_ARRAY_TASK_ID"\n')
    answer = subprocess.run(['sbatch', '--parsable', *shlex.split(arguments.slurm), str(script)],
                            capture_output=True, text=True)
    if answer.returncode != 0:
        raise SweepError(f'sbatch {script}: {answer.stderr.strip() or answer.returncode}', 1)
    print(f'job {answer.stdout.strip()}: {count} runs, {arguments.jobs} at a time; logs in {folder}\n'
          f'afterwards: {shlex.join(again)} --report')


def finish(sweep, runs, folder, statuses):
    """Writes the results and returns the exit status."""
    rows = report.collect(runs, folder)
    for row in rows:
        if statuses.get(row['name'], 0):  # what lies there is not of this sweep
            row['val_loss'] = None
    report.write(sweep, rows, folder)
    print((folder / 'table.txt').read_text(), end='')
    for picture in report.draw(sweep, rows, folder):
        print(picture)
    failed = [row for row in rows if row['val_loss'] is None]
    for row in failed:
        known = statuses.get(row['name'], 0)
        why = report.last_words(folder / f'{row["name"]}.log') if known else 'not trained yet'
        print(f'no result: {row["name"]}: {why}', file=sys.stderr)
    return 1 if failed else 0


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('sweep', nargs='?', metavar='SWEEP.json', help='what to train; or --config and --grid')
    parser.add_argument('--config', metavar='FILE', help='configuration that all runs start from')
    parser.add_argument('--grid', action='append', default=[], metavar='KEY[,KEY]=VALUE,...',
                        help='values of a key (or of several keys, set to the same); may be repeated')
    parser.add_argument('--set', action='append', default=[], metavar='KEY=VALUE', help='for all runs')
    parser.add_argument('--name', help='name of the sweep (default: that of its file)')
    parser.add_argument('--out', type=pathlib.Path, metavar='DIR', help='default: runs/NAME')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='runs at a time (default: 1)')
    parser.add_argument('--slurm', metavar='OPTIONS', help='submit a job array with these options of sbatch')
    parser.add_argument('--only', type=int, metavar='I', help='train run I of the list, and report nothing')
    parser.add_argument('--list', action='store_true', help='print the commands of all runs, and train nothing')
    parser.add_argument('--report', action='store_true', help='collect what is there, and train nothing')
    parser.add_argument('--rates-of', type=pathlib.Path, metavar='RUN',
                        help='print the warm-up of a run, rate by rate, as a configuration to include; nothing else')
    parser.add_argument('--program', metavar='FILE', help='default: $TRAIN_GPT or build/train_gpt')
    arguments = parser.parse_args(argv)
    if arguments.rates_of is None and (arguments.sweep is None) == (arguments.config is None):
        parser.error('give a SWEEP.json, or --config FILE with --grid')
    if arguments.jobs < 1:
        parser.error('--jobs: expected at least 1')
    if arguments.slurm is not None:
        at = argv.index('--slurm') if '--slurm' in argv else next(
            i for i, word in enumerate(argv) if word.startswith('--slurm='))
        arguments.rest = argv[:at] + argv[at + (1 if '=' in argv[at] else 2):]
    return arguments


def run(arguments):
    if arguments.rates_of is not None:
        print(json.dumps({'schedule': {'warmup': {'type': 'rates', 'rates': report.warmup_rates(arguments.rates_of)}}}))
        return 0
    if arguments.sweep is not None:
        sweep = read_sweep(pathlib.Path(arguments.sweep), arguments.set, arguments.grid, arguments.name)
    else:
        sweep = command_line_sweep(pathlib.Path(arguments.config), arguments.set, arguments.grid, arguments.name)
    runs = plan_runs(sweep)
    folder = arguments.out or pathlib.Path('runs') / sweep.name
    default_threads(runs, arguments.jobs)
    runner = Runner(find_program(arguments.program), folder, arguments.jobs)
    if arguments.list:
        for run_ in runs:
            print(shlex.join(runner.command(run_)))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.report:
        return finish(sweep, runs, folder, {})
    if arguments.slurm is not None:
        submit(arguments, folder, len(runs))
        return 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runner.stop)
    if arguments.only is not None:
        if not 0 <= arguments.only < len(runs):
            raise SweepError(f'--only {arguments.only}: expected 0 to {len(runs) - 1}')
        return runner.train(runs[arguments.only])
    print(f'{len(runs)} runs, {arguments.jobs} at a time, in {folder}', flush=True)
    return finish(sweep, runs, folder, runner.train_all(runs))


def main(argv):
    try:
        return run(parse(argv))
    except SweepError as error:
        print(f'sweep.py: {error}', file=sys.stderr)
        return error.status
    except Stopped:
        print('sweep.py: stopped; the same command goes on from here', file=sys.stderr)
        return 3
    except OSError as error:
        print(f'sweep.py: {error.filename or ""}: {error.strerror or error}', file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
