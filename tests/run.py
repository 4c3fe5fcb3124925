#!/usr/bin/env python3
"""Runs the tests and closes with one line: N passed, N failed, N skipped.

    tests/run.py [--build build] [--check] [--only WORD]

Quick (default): layer rules, the unit tests (GoogleTest), the integration tests in tests/integration.
--check: the long ones: the unit tests under AddressSanitizer and UBSan (build/asan) and tests/long.
Every skipped test is named with its reason. Standard library only.
"""
import argparse
import json
import os
import pathlib
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


def run_layers(tally):
    heading('direction of dependencies')
    result = subprocess.run([sys.executable, 'tests/check_layers.py'], cwd=ROOT, capture_output=True,
                            text=True)
    if result.returncode == 0:
        tally.passed += 1
    else:
        tally.fail('check_layers', result.stdout + result.stderr)


def run_unit(tally, binary, pattern, environment=None):
    heading(f'unit tests: {binary}')
    if not binary.exists():
        tally.fail(str(binary), 'not built')
        return
    with tempfile.NamedTemporaryFile(suffix='.json') as report:
        command = [str(binary), '--gtest_brief=1', f'--gtest_output=json:{report.name}']
        if pattern:
            command.append(f'--gtest_filter=*{pattern}*')
        status = subprocess.run(command, cwd=ROOT, env={**os.environ, **(environment or {})}).returncode
        try:
            suites = json.load(open(report.name))['testsuites']
        except (ValueError, OSError):
            tally.fail(str(binary), f'crashed with status {status}')
            return
    failures = 0
    for suite in suites:
        for test in suite['testsuite']:
            name = f'{suite["name"]}.{test["name"]}'
            if test.get('failures'):
                tally.fail(name, '')
                failures += 1
            elif test['result'] == 'SKIPPED':
                tally.skip(name, 'see its message above')
            elif test['status'] == 'RUN':
                tally.passed += 1
    if status and not failures:
        tally.fail(str(binary), f'status {status} although no test failed')


def run_python(tally, folder, pattern):
    heading(f'{folder}')
    sys.path.insert(0, str(ROOT / 'tests'))
    suite = unittest.defaultTestLoader.discover(str(ROOT / folder), top_level_dir=str(ROOT / folder))

    def tests(group):
        for item in group:
            if isinstance(item, unittest.TestSuite):
                yield from tests(item)
            else:
                yield item

    for test in tests(suite):
        if pattern and pattern.lower() not in test.id().lower():
            continue
        result = unittest.TestResult()
        start = time.time()
        test.run(result)
        for _, reason in result.skipped:
            tally.skip(test.id(), reason)
        for _, text in result.failures + result.errors:
            tally.fail(test.id(), text)
        if result.wasSuccessful() and not result.skipped:
            tally.passed += 1
        print(f'{time.time() - start:6.1f} s  {test.id()}', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--build', default='build', help='build folder')
    parser.add_argument('--check', action='store_true', help='the long tests instead of the quick ones')
    parser.add_argument('--only', default='', help='only tests whose name contains this')
    arguments = parser.parse_args()
    os.chdir(ROOT)
    build = (ROOT / arguments.build).resolve()
    os.environ['TRAIN_GPT'] = str(build / 'train_gpt')
    os.environ['LMO_BUILD'] = str(build)
    # Two programs may run on two cores here: threads that sleep while they wait disturb less.
    os.environ.setdefault('OMP_WAIT_POLICY', 'passive')
    tally, start = Tally(), time.time()
    if arguments.check:
        run_unit(tally, build / 'asan' / 'unit_tests', arguments.only,
                 {'ASAN_OPTIONS': 'detect_leaks=1:allocator_may_return_null=1', 'LSAN_OPTIONS': 'suppressions=tests/lsan.supp'})
        run_python(tally, 'tests/long', arguments.only)
    else:
        run_layers(tally)
        run_unit(tally, build / 'unit_tests', arguments.only)
        run_python(tally, 'tests/integration', arguments.only)
    if os.environ.get('LMO_TEST_COUNTS'):
        with open(os.environ['LMO_TEST_COUNTS'], 'a') as counts:
            counts.write(f'{tally.passed} {tally.failed} {tally.skipped}\n')
    print(f'took {time.time() - start:.0f} s')
    print(f'{tally.passed} passed, {tally.failed} failed, {tally.skipped} skipped')
    return 1 if tally.failed else 0


if __name__ == '__main__':
    sys.exit(main())
