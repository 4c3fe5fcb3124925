"""cppcheck on the program and the emulator: no finding but those of cppcheck.supp."""
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CPPCHECK = shutil.which('cppcheck')
OPTIONS = ['--quiet', '--std=c++20', '--language=c++', '--enable=warning,performance,portability,style',
           '--error-exitcode=1', '--suppressions-list=tests/analysis/cppcheck.supp',
           '-I.', '-DLMO_ISA=baseline', '-DLMO_OPENBLAS', '-DLMO_ONEDNN']


@unittest.skipUnless(CPPCHECK, 'cppcheck is not installed (scripts/setup.sh check)')
class CppcheckTest(unittest.TestCase):
    def cppcheck(self, *paths):
        return subprocess.run([CPPCHECK, *OPTIONS, *map(str, paths)], cwd=ROOT, capture_output=True, text=True)

    def test_program(self):
        result = self.cppcheck('llmc', 'train_gpt.cu')
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_emulator(self):
        result = self.cppcheck('dev/emulator', 'dev/config_reference.cpp')
        self.assertEqual(result.returncode, 0, result.stderr)

    def test_finds_a_bug(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'bug.cpp'
            path.write_text('int f() { int values[2] = {1, 2}; return values[2]; }\n')
            result = self.cppcheck(path)
        self.assertEqual(result.returncode, 1)
        self.assertIn('arrayIndexOutOfBounds', result.stderr)
