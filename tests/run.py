#!/usr/bin/env python3
"""Runs the tests and closes with one line: N passed, N failed, N skipped.

    tests/run.py [--build build] [--check] [--only WORD]

Quick (default): rules for layers and kernels, the unit tests (GoogleTest), the CUDA kernels under the
emulator, the integration tests in tests/integration. --check: the long ones: the unit tests under
AddressSanitizer and UBSan (build/asan), the kernels under the emulator's checkers and in other thread
orders, what nvcc made of them, clang-tidy
and its like (tests/analysis), tests/long, and what tests/integration marks as long.
Every skipped test is named with its reason. Standard library only.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Tally:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0

    def skip(self, name, reason):
        self.skipped += 1
        print(f'skipped {name}: {reason}', flush=True)

    def fail(self, name, text):
        self.failed += 1
        print(f'FAILED {name}\n{text}', flush=True)


def heading(text):
    print(f'--- {text}', flush=True)


def run_script(tally, what, script, *arguments):
    """A checking script of tests/: one test, its output shown when it fails."""
    heading(what)
    result = subprocess.run([sys.executable, f'tests/{script}', *arguments], cwd=ROOT, capture_output=True, text=True)
    if result.returncode == 0:
        tally.passed += 1
    else:
        tally.fail(' '.join((script, *arguments)), result.stdout + result.stderr)


def run_gtest(tally, binary, pattern, environment=None, shards=1, label=''):
    """One GoogleTest program; its tests are dealt to `shards` processes that run side by side."""
    name = f'{binary.relative_to(ROOT) if binary.is_relative_to(ROOT) else binary}{label}'
    heading(f'unit tests: {name}')
    if not binary.exists():
        tally.fail(name, 'not built')
        return
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for shard in range(shards):
            report = pathlib.Path(folder) / f'{shard}.json'
            command = [str(binary), '--gtest_brief=1', f'--gtest_output=json:{report}']
            if pattern:
                command.append(f'--gtest_filter=*{pattern}*')
            more = {**(environment or {}), 'GTEST_TOTAL_SHARDS': str(shards), 'GTEST_SHARD_INDEX': str(shard)}
            running.append((report, subprocess.Popen(command, cwd=ROOT, env={**os.environ, **more})))
        for report, process in running:
            count_gtest(tally, name, report, process.wait())


def count_gtest(tally, program, report, status):
    try:
        suites = json.load(open(report))['testsuites']
    except (ValueError, OSError):
        tally.fail(program, f'crashed with status {status}')
        return
    failures = 0
    for suite in suites:
        for test in suite['testsuite']:
            name = f'{program}: {suite["name"]}.{test["name"]}'
            if test.get('failures'):
                tally.fail(name, '')
                failures += 1
            elif test['result'] == 'SKIPPED':
                tally.skip(name, 'see its message above')
            elif test['status'] == 'RUN':
                tally.passed += 1
    if status and not failures:
        tally.fail(program, f'status {status} although no test failed')


def python_tests(folder):
    """The tests of a folder by name; of tests/integration, some are marked as long (tests/cli.py)."""
    sys.path.insert(0, str(ROOT / 'tests'))
    suite = unittest.defaultTestLoader.discover(str(ROOT / folder), top_level_dir=str(ROOT / folder))

    def tests(group):
        for item in group:
            if isinstance(item, unittest.TestSuite):
                yield from tests(item)
            else:
                yield item
    return {test.id(): test for test in tests(suite)}


def run_python_test(folder, name):
    """Runs one test in a process of the pool: its skip reasons, its failures, its seconds."""
    test, result, start = python_tests(folder)[name], unittest.TestResult(), time.time()
    test.run(result)
    return [reason for _, reason in result.skipped], [text for _, text in result.failures + result.errors], \
        time.time() - start


def is_long(test):
    return getattr(getattr(test, test.id().split('.')[-1], None), 'long', False)


def run_python(tally, folder, pattern, processes=1, long=False):
    heading(f'{folder}{", the long ones" if long else ""}')
    names = [name for name, test in python_tests(folder).items()
             if pattern.lower() in name.lower() and is_long(test) == long]
    with concurrent.futures.ProcessPoolExecutor(processes) as pool:
        running = [(name, pool.submit(run_python_test, folder, name)) for name in names]
        for name, test in running:
            skipped, failures, seconds = test.result()
            for reason in skipped:
                tally.skip(name, reason)
            for text in failures:
                tally.fail(name, text)
            if not skipped and not failures:
                tally.passed += 1
            print(f'{seconds:6.1f} s  {name}', flush=True)


ASAN = {'ASAN_OPTIONS': 'detect_leaks=1:allocator_may_return_null=1',
        'LSAN_OPTIONS': 'suppressions=tests/lsan.supp'}


def run_quick(tally, build, only):
    run_script(tally, 'direction of dependencies', 'check_layers.py')
    run_script(tally, 'rules for kernels', 'check_kernels.py', 'lint')
    run_gtest(tally, build / 'unit_tests', only, shards=4)  # some wait
    if has_cuda_headers(tally):
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / 'kernels'
            run_gtest(tally, build / 'emulated/plain/cuda_tests', only, {'LMO_EMULATOR_LOG': str(log)}, shards=2)
            if not only:
                run_script(tally, 'every kernel was executed', 'check_kernels.py', 'coverage', str(log))
    run_python(tally, 'tests/integration', only, processes=4)  # many wait


def run_long(tally, build, only):
    run_gtest(tally, build / 'asan' / 'unit_tests', only, ASAN, shards=2)
    if has_cuda_headers(tally):
        run_gtest(tally, build / 'emulated/plain/emulator_tests', only, shards=2)
        for variant in ('race', 'asan'):
            for program in ('emulator_tests', 'cuda_tests'):
                run_gtest(tally, build / 'emulated' / variant / program, only, ASAN, shards=2)
        run_conformance(tally, build)
        for order in ('desc', '1', '2'):
            run_gtest(tally, build / 'emulated/plain/cuda_tests', only, {'LMO_EMULATOR_ORDER': order}, shards=2,
                      label=f', thread order {order}')
    if os.environ.get('LMO_NVCC'):
        run_script(tally, 'registers, spills and shared memory of every kernel', 'check_kernels.py', 'budgets', str(build))
        run_script(tally, 'what the kernels were compiled to', 'check_kernels.py', 'ptx', str(build))
    else:
        tally.skip('budgets of the kernels', 'no nvcc here')
    run_python(tally, 'tests/analysis', only, processes=2)
    run_python(tally, 'tests/integration', only, processes=2, long=True)
    run_python(tally, 'tests/long', only, processes=2)


def run_conformance(tally, build):
    """The emulator's instructions against their definition, and against the results of a GPU where some are kept."""
    goldens = sorted((ROOT / 'dev/emulator/golden').glob('*.golden'))
    for variant in ('plain', 'race'):
        program = build / 'emulated' / variant / 'conformance'
        heading(f'instructions of the emulator ({variant})')
        with tempfile.TemporaryDirectory() as folder:
            runs = [['--write', f'{folder}/results'], *(['--compare', str(golden)] for golden in goldens)]
            for arguments in runs:
                result = subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True)
                if result.returncode == 0:
                    tally.passed += 1
                else:
                    tally.fail(f'conformance {variant} {arguments[0]}', result.stdout + result.stderr)


def has_cuda_headers(tally):
    if os.environ.get('LMO_CUDA_HEADERS', 'yes'):
        return True
    tally.skip('CUDA kernels under the emulator', 'no headers of a CUDA toolkit here (cublasLt.h)')
    return False


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--build', default='build', help='build folder')
    parser.add_argument('--check', action='store_true', help='the long tests instead of the quick ones')
    parser.add_argument('--only', default='', help='only tests whose name contains this')
    arguments = parser.parse_args()
    os.chdir(ROOT)
    # A shell starts what runs in its background with Ctrl-C ignored; tests that send it inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    build = (ROOT / arguments.build).resolve()
    os.environ['TRAIN_GPT'] = str(build / 'train_gpt')
    os.environ['LMO_BUILD'] = str(build)
    # Two programs may run on two cores here: threads that sleep while they wait disturb less.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    tally, start = Tally(), time.time()
    (run_long if arguments.check else run_quick)(tally, build, arguments.only)
    if os.environ.get('LMO_TEST_COUNTS'):
        with open(os.environ['LMO_TEST_COUNTS'], 'a') as counts:
            counts.write(f'{tally.passed} {tally.failed} {tally.skipped}\n')
    print(f'took {time.time() - start:.0f} s')
    print(f'{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped')
    return 1 if tally.failed else 0


if __name__ == '__main__':
    sys.exit(main())
