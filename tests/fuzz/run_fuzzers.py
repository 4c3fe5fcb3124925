#!/usr/bin/env python3
"""Runs fuzzers, two at a time, and says what each did.

    tests/fuzz/run_fuzzers.py [--seconds 15] [TARGET...]        default: every target of tests/fuzz

Each starts from tests/fuzz/corpus/TARGET and from what earlier runs found (build/fuzz/found/TARGET). An input that
breaks a promise is kept in build/fuzz/crashes/TARGET, with the line that runs it again. Standard library only.
"""
import argparse
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / os.environ.get('LMO_BUILD', 'build') / 'fuzz'
PROGRAM = BUILD / 'readers'
MEGABYTES = 64  # of one allocation; inputs have at most 64 KiB
SOURCES = ROOT / 'tests' / 'fuzz'


def all_targets():
    return sorted(path.stem for path in SOURCES.glob('*.cpp') if path.stem not in ('fuzz', 'main'))


class Result:
    """What one fuzzer did: `executions`, `edges` of the code that it reached, `text` that ends with a crash, if any."""

    def __init__(self, target, program, status, log, crashes):
        self.target, self.failed = target, status != 0
        done = re.search(r'stat::number_of_executed_units:\s*(\d+)', log)
        edges = re.findall(r'cov: (\d+)', log)
        self.executions = int(done.group(1)) if done else 0
        self.edges = int(edges[-1]) if edges else 0
        self.text = f'{target:12} {self.executions:>9} executions, {self.edges:>5} edges of the code reached'
        if self.failed:
            self.text += f'\n{log[-6000:]}\n{target}: FAILED with status {status}'
            for crash in crashes:
                self.text += f'\nrun it again: FUZZ_TARGET={target} {program} -malloc_limit_mb={MEGABYTES} {crash}'


def fuzz(target, seconds, program=PROGRAM, folder=BUILD):
    """Runs one fuzzer; what it finds goes to `folder`."""
    found, crashes = folder / 'found' / target, folder / 'crashes' / target
    for path in (found, crashes):
        path.mkdir(parents=True, exist_ok=True)
    before = set(crashes.iterdir())
    command = [program, f'-max_total_time={seconds}', f'-artifact_prefix={crashes}/', '-max_len=65536',
               f'-dict={SOURCES / "json.dict"}', f'-malloc_limit_mb={MEGABYTES}', '-timeout=20', '-rss_limit_mb=2048',
               '-print_final_stats=1', '-reload=0', found, SOURCES / 'corpus' / target]
    if target == 'metrics':  # the reader warns of every line that it drops
        command.append('-close_fd_mask=2')
    log = folder / f'{target}.log'
    with open(log, 'w') as out:
        process = subprocess.run(list(map(str, command)), cwd=ROOT, stdout=out, stderr=subprocess.STDOUT,
                                 env={**os.environ, 'FUZZ_TARGET': target}, timeout=seconds + 600)
    return Result(target, program, process.returncode, log.read_text(errors='replace'),
                  sorted(set(crashes.iterdir()) - before))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--seconds', type=int, default=15, help='of each')
    parser.add_argument('--jobs', type=int, default=2, help='at a time')
    parser.add_argument('targets', nargs='*', help='default: all')
    arguments = parser.parse_args()
    if not PROGRAM.exists():
        print(f'{PROGRAM} is not built: is there a clang++ with libFuzzer? scripts/setup.sh check installs it',
              file=sys.stderr)
        return 1
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        results = [pool.submit(fuzz, target, arguments.seconds) for target in arguments.targets or all_targets()]
        for result in results:
            print(result.result().text, flush=True)
    return int(any(result.result().failed for result in results))


if __name__ == '__main__':
    sys.exit(main())
