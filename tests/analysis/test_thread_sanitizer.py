"""The threads of the program under ThreadSanitizer: the loader's, and a whole run that a signal stops.

build/tsan is compiled without OpenMP: libgomp is not instrumented, so its barriers would look like races."""
import os
import pathlib
import signal
import subprocess
import time

from cli import CliTest

BUILD = pathlib.Path(os.environ.get('LMO_BUILD', 'build'))
PROGRAM, UNIT_TESTS = BUILD / 'tsan' / 'train_gpt', BUILD / 'tsan' / 'unit_tests'
FOUND = 66
# GCC 12's ThreadSanitizer cannot place its shadow where the kernel spreads addresses widely.
FIXED_ADDRESSES = ['setarch', '-R'] if subprocess.run(['setarch', '-R', 'true'], capture_output=True).returncode == 0 \
    else []
ENVIRONMENT = {**os.environ, 'OMP_WAIT_POLICY': 'passive', 'OMP_NUM_THREADS': '1',
               'TSAN_OPTIONS': f'exitcode={FOUND}:halt_on_error=0'}
RACE = '''
#include <thread>
int main() {
    int count = 0;
    std::thread other([&] { ++count; });
    ++count;
    other.join();
}
'''


class ThreadSanitizerTest(CliTest):
    def start(self, *command, **options):
        return subprocess.Popen([*FIXED_ADDRESSES, *map(str, command)], cwd=self.folder, env=ENVIRONMENT,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)

    def finish(self, process, status):
        output, _ = process.communicate(timeout=300)
        self.assertEqual(process.returncode, status, output)
        self.assertNotIn('ThreadSanitizer', output)
        return output

    def test_finds_a_race(self):
        (self.folder / 'race.cpp').write_text(RACE)
        subprocess.run([os.environ.get('CXX', 'g++'), '-std=c++20', '-fsanitize=thread', '-g', 'race.cpp', '-o', 'race'],
                       cwd=self.folder, check=True)
        process = self.start('./race')
        output, _ = process.communicate(timeout=60)
        self.assertEqual(process.returncode, FOUND, output)
        self.assertIn('data race', output)

    def test_loader(self):
        output = self.finish(self.start(UNIT_TESTS, '--gtest_filter=*Loader*'), 0)
        self.assertIn('[  PASSED  ]', output)

    def test_run_that_is_stopped_and_resumed(self):
        self.config({'run': {'steps': 300, 'threads': 1}, 'log': {'tensorboard': True}})
        command = (PROGRAM, 'train', '--config', 'config.json')
        process = self.start(*command)
        metrics = self.folder / 'run' / 'metrics.jsonl'
        while not metrics.exists() or metrics.stat().st_size < 500:
            self.assertIsNone(process.poll(), 'finished before the signal could be sent')
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        self.assertIn('checkpoint written', self.finish(process, 3))
        self.assertIn('resumed after', self.finish(self.start(*command), 0))
