"""llmc/cuda/cublaslt_on_demand.cpp against a library that tells what it is called with; no GPU is needed."""
import os
import re
import subprocess
import unittest

from cli import ROOT, TRAIN_GPT, CliTest

# What the program below calls, with arguments that are all different.
CALLS = {'cublasLtCreate': 1, 'cublasLtDestroy': 1, 'cublasLtGetVersion': 0, 'cublasLtGetStatusName': 1,
         'cublasLtGetStatusString': 1, 'cublasLtMatmulDescCreate': 3, 'cublasLtMatmulDescDestroy': 1,
         'cublasLtMatmulDescSetAttribute': 4, 'cublasLtMatrixLayoutCreate': 5, 'cublasLtMatrixLayoutDestroy': 1,
         'cublasLtMatrixLayoutSetAttribute': 4, 'cublasLtMatmulPreferenceCreate': 1, 'cublasLtMatmulPreferenceDestroy': 1,
         'cublasLtMatmulPreferenceSetAttribute': 4, 'cublasLtMatmulAlgoGetHeuristic': 10, 'cublasLtMatmul': 16}
PROGRAM = '''#include <cublasLt.h>
#include <cstdio>
#include "llmc/core/error.h"
struct Any {
    long value;
    template <typename T> operator T() const { return (T)value; }
};
int main() {
    try {
        CALLS
    } catch (const lmo::Error& error) {
        std::puts(error.what());
        return 1;
    }
}
'''


@unittest.skipUnless(os.environ.get('LMO_CUDA_HEADERS'), 'no headers of a CUDA toolkit')
class OnDemandTest(CliTest):
    def setUp(self):
        super().setUp()
        self.include = os.path.dirname(os.environ['LMO_CUDA_HEADERS'])
        with open(f'{self.include}/cublas_api.h', encoding='utf-8') as header:
            major = re.search(r'define CUBLAS_VER_MAJOR (\d+)', header.read()).group(1)
        self.library = f'libcublasLt.so.{major}'
        (self.folder / 'library').mkdir()

    def compile(self, *arguments):
        subprocess.run([os.environ.get('CXX', 'g++'), '-std=c++20', f'-I{ROOT}', '-isystem', self.include, *arguments],
                       cwd=self.folder, check=True, timeout=100)

    def make_library(self, functions):
        """All arguments of the functions are integers or pointers, which are passed alike."""
        text = '#include <cstdio>\n'
        for name, count in functions.items():
            arguments = ', '.join(f'long a{i}' for i in range(count))
            printed = ''.join(f', (int)a{i}' for i in range(count))
            text += f'extern "C" long {name}({arguments}) {{ std::printf("{name}{" %d" * count}\\n"{printed}); return 0; }}\n'
        (self.folder / 'library.cpp').write_text(text)
        self.compile('-shared', '-fPIC', 'library.cpp', '-o', f'library/{self.library}')

    def run_program(self):
        return subprocess.run(['./program'], cwd=self.folder, text=True, capture_output=True, check=False, timeout=60,
                              env={**os.environ, 'LD_LIBRARY_PATH': str(self.folder / 'library')})

    def test_every_function_gets_its_arguments(self):
        source = (ROOT / 'llmc/cuda/cublaslt_on_demand.cpp').read_text()
        self.assertEqual(set(re.findall(r'^ON_DEMAND\([^,]*, (\w+)', source, re.M)), set(CALLS))
        numbers, calls, expected = iter(range(1, 100)), [], []
        for name, count in CALLS.items():
            arguments = [next(numbers) for _ in range(count)]
            calls.append(f'{name}({", ".join(f"Any{{{number}}}" for number in arguments)});')
            expected.append(' '.join(map(str, [name, *arguments])))
        (self.folder / 'program.cpp').write_text(PROGRAM.replace('CALLS', '\n        '.join(calls)))
        self.compile('program.cpp', ROOT / 'llmc/cuda/cublaslt_on_demand.cpp', ROOT / 'llmc/core/text.cpp', '-ldl', '-o', 'program')
        self.make_library(CALLS)
        result = self.run_program()
        self.assertEqual((result.returncode, result.stdout.splitlines()), (0, expected), result.stderr)
        self.make_library({name: count for name, count in CALLS.items() if name != 'cublasLtGetVersion'})
        result = self.run_program()
        self.assertEqual((result.returncode, result.stdout.splitlines()[-1]), (1, 'CUDA: cublasLt has no cublasLtGetVersion'))
        (self.folder / 'library' / self.library).write_text('not a library')
        result = self.run_program()
        self.assertEqual(result.returncode, 1)
        self.assertRegex(result.stdout, rf'^CUDA: cannot load {self.library}: .*; install cuBLAS of CUDA \d+, or name its folder')

    def test_the_program_starts_without_it(self):
        needed = subprocess.run(['readelf', '-d', TRAIN_GPT], text=True, capture_output=True, check=True).stdout
        self.assertIn('NEEDED', needed)
        self.assertNotIn('cublas', needed)
        self.assertNotIn('nccl', needed)
