"""clang-tidy on each source file of the program and of the emulator: no finding (the checks: .clang-tidy)."""
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CLANG_TIDY = shutil.which('clang-tidy')
CUDA_HEADERS = os.environ.get('LMO_CUDA_HEADERS', '')
# It would visit 40000 lines of cudnn-frontend's headers for every check, for more than five minutes.
TOO_LONG = ROOT / 'llmc/cuda/cudnn_attention.cpp'


def flags():
    """As in the Makefile, with all that is optional and found; a kernel file stands for its three builds."""
    result = ['-xc++', '-std=c++20', '-I.', '-fopenmp', '-Wall', '-Wextra', '-Wshadow', '-Wreserved-identifier',
              '-Wcomma', '-Wconditional-uninitialized', '-Wloop-analysis', '-Wnon-virtual-dtor',
              '-Wunreachable-code-aggressive', '-DLMO_ISA=baseline']
    for openblas in pathlib.Path('/usr/include').glob('*/openblas-openmp'):
        result += ['-DLMO_OPENBLAS', f'-isystem{openblas}']
    if pathlib.Path('/usr/include/oneapi/dnnl/dnnl.h').exists():
        result.append('-DLMO_ONEDNN')
    if CUDA_HEADERS:
        result.append(f'-isystem{pathlib.Path(CUDA_HEADERS.split()[0]).parent}')
    return result


def tidy(path):
    only = ['-march=x86-64-v4', '-mavx512bf16'] if path.name == 'bf16_tiles.cpp' else []
    return subprocess.run([CLANG_TIDY, '--quiet', f'--config-file={ROOT}/.clang-tidy', str(path), '--', *flags(), *only],
                          cwd=ROOT, capture_output=True, text=True)


@unittest.skipUnless(CLANG_TIDY, 'clang-tidy is not installed (scripts/setup.sh check)')
class ClangTidyTest(unittest.TestCase):
    def test_finds_a_bug(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'bug.cpp'
            path.write_text('#include <string>\n#include <utility>\nvoid take(std::string);\n'
                            'size_t f(std::string s) { take(std::move(s)); return s.size(); }\n')
            result = tidy(path)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn('bugprone-use-after-move', result.stdout)


def add_test(path):
    needs_cuda = path.parent.name == 'cuda'

    @unittest.skipIf(needs_cuda and not CUDA_HEADERS, 'no headers of a CUDA toolkit here')
    def test(self):
        result = tidy(path)
        self.assertEqual(result.returncode, 0, f'{result.stdout}\n{result.stderr}')
    setattr(ClangTidyTest, f'test_{str(path).replace("/", "_").replace(".", "_")}', test)


for source in (*sorted(ROOT.glob('llmc/*/*.cpp')), ROOT / 'train_gpt.cu'):
    if source != TOO_LONG:
        add_test(source.relative_to(ROOT))
