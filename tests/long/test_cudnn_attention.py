"""llmc/cuda/cudnn_attention.cpp against a library that takes every graph and computes nothing; no GPU is needed."""
import os
import pathlib
import re
import subprocess

from cli import ROOT, TRAIN_GPT, CliTest

OBJECT = pathlib.Path(os.environ.get('LMO_BUILD', ROOT / 'build')) / 'llmc/cuda/cudnn_attention.o'
B, T, H, K, D = 2, 100, 4, 2, 64
ROW = (H + 2 * K) * D
MEBIBYTE = 1 << 20
Q, KEYS, VALUES, OUT, LSE, DOUT, DQ, DK, DV = range(1, 10)
PROGRAM = '''#include <cstdio>
#include "llmc/core/error.h"
#include "llmc/cuda/cudnn_attention.h"
using namespace lmo;
Tensor at(int64_t mebibytes, DType type, Shape shape) { return {reinterpret_cast<void*>(mebibytes << 20), type, shape}; }
int main() {
    cudaDeviceProp device{};
    device.major = 9;
    const Shape qkv{%(B)d, %(T)d, %(ROW)d}, out{%(B)d, %(T)d, %(H)d * %(D)d};
    AttentionForward f{at(1, DType::bf16, qkv), at(2, DType::bf16, out), at(3, DType::f32, {%(B)d, %(H)d, %(T)d}),
                       %(H)d, %(K)d, at(4, DType::f32, {100000}), {}, true};
    const AttentionBackward b{f.qkv, f.out, f.lse, at(5, DType::bf16, out), at(6, DType::bf16, qkv),
                              %(H)d, %(K)d, f.workspace, true};
    try {
        const auto cudnn = cuda::open_cudnn_attention(device, nullptr);
        std::printf("bytes %%zu\\n", cudnn->workspace_bytes(f));
        cudnn->forward(f);
        std::printf("bytes %%zu\\n", cudnn->workspace_bytes(b));
        cudnn->backward(b);
        cudnn->forward(f);
    } catch (const Error& error) {
        std::puts(error.what());
        return 1;
    }
}
''' % globals()


class CudnnAttentionTest(CliTest):
    def setUp(self):
        super().setUp()
        if not OBJECT.exists():
            self.skipTest('attention by cuDNN is not built: no nvcc, or no headers of cudnn-frontend (scripts/setup.sh cudnn)')
        self.include = os.path.dirname(os.environ['LMO_CUDA_HEADERS'])
        (self.folder / 'library').mkdir()
        (self.folder / 'program.cpp').write_text(PROGRAM)
        self.compile('-shared', '-fPIC', ROOT / 'tests/long/cudnn_stand_in.cpp', '-o', 'library/libcudnn.so.9')
        self.compile('program.cpp', OBJECT, *(ROOT / f'llmc/core/{name}.cpp' for name in ('dtype', 'tensor', 'text')),
                     '-ldl', '-o', 'program')

    def compile(self, *arguments):
        subprocess.run([*os.environ.get('CXX', 'g++').split(), '-std=c++20', f'-I{ROOT}', '-isystem', self.include, *arguments],
                       cwd=self.folder, check=True, timeout=100)

    def run_program(self, status, **environment):
        result = subprocess.run(['./program'], cwd=self.folder, text=True, capture_output=True, check=False, timeout=60,
                                env={**os.environ, 'LD_LIBRARY_PATH': str(self.folder / 'library'), **environment})
        self.assertEqual(result.returncode, status, result.stdout + result.stderr)
        return result.stdout.splitlines()

    def test_graphs_and_what_they_run_on(self):
        lines = self.run_program(0)
        cuts = [i for i, line in enumerate(lines) if line.startswith('run')]
        self.assertEqual((len(cuts), cuts[-1]), (3, len(lines) - 1))  # the last call finds its plan
        rows = f'stride {T * ROW} {D} {ROW} 1'
        kept = f'dim {B} {H} {T} {D} stride {T * H * D} {D} {H * D} 1'
        queries, keys = f'dim {B} {H} {T} {D} {rows}', f'dim {B} {K} {T} {D} {rows}'
        transposed = f'dim {B} {K} {D} {T} stride {T * ROW} {D} 1 {ROW}'
        lse = f'dim {B} {H} {T} 1 stride {H * T} {T} 1 1'
        forward = {Q: queries, KEYS: transposed, VALUES: keys, OUT: kept, LSE: lse}
        backward = {**forward, VALUES: transposed, DOUT: kept, DQ: queries, DK: keys, DV: keys}
        qkv, dqkv = MEBIBYTE, 6 * MEBIBYTE
        places = {Q: qkv, KEYS: qkv + 2 * H * D, VALUES: qkv + 2 * (H + K) * D, OUT: 2 * MEBIBYTE, LSE: 3 * MEBIBYTE,
                  DOUT: 5 * MEBIBYTE, DQ: dqkv, DK: dqkv + 2 * H * D, DV: dqkv + 2 * (H + K) * D}
        for tensors, part in ((forward, lines[:cuts[0] + 1]), (backward, lines[cuts[0] + 1:cuts[1] + 1])):
            found = dict(re.match(r'tensor uid (\d+) (.*)', line).groups() for line in part if line.startswith('tensor'))
            self.assertEqual({uid: found.get(str(uid)) for uid in tensors}, tensors)
            uids, pointers = (list(map(int, text.split())) for text in
                              re.match(r'run uids ([\d ]+) at ([\d ]+) workspace', part[-1]).groups())
            given = dict(zip(uids, pointers))
            self.assertEqual({uid: given[uid] for uid in tensors}, {uid: places[uid] for uid in tensors})
            # What the library asks for, behind what the frontend does.
            asked = next(int(line.split()[1]) for line in part if line.startswith('bytes'))
            behind = int(part[-1].split()[-1]) - 4 * MEBIBYTE
            self.assertEqual(asked, 1234 + behind)

    def test_what_is_refused(self):
        self.assertEqual(self.run_program(1, STAND_IN_VERSION='90500'), ['cuDNN 9.5.0 is too old: 9.6.0 or newer is needed'])
        self.assertRegex(self.run_program(1, STAND_IN_REFUSES='open')[-1], r'^opening cuDNN [\d.]+: refused by the stand-in$')
        self.assertRegex(self.run_program(1, STAND_IN_REFUSES='plans')[-1],
                         r'^cuDNN [\d.]+ refuses attention, forward, of B 2, T 100, heads 4/2, head size 64: .*refused by the '
                         r'stand-in.*; use model.attention = "own"$')

    def test_no_library(self):
        (self.folder / 'library' / 'libcudnn.so.9').write_text('not a library')
        self.assertRegex(self.run_program(1)[-1], r'^cannot load libcudnn.so.9: .*; install cuDNN 9, or name its folder')
        (self.folder / 'library' / 'libcudart.so.13').write_text('not a library')
        self.assertRegex(self.run_program(1)[-1], r'^cannot load libcudart.so.13: .*; install the CUDA 13 runtime')

    def test_the_program_starts_without_it(self):
        needed = subprocess.run(['readelf', '-d', TRAIN_GPT], text=True, capture_output=True, check=True).stdout
        self.assertIn('NEEDED', needed)
        self.assertNotIn('cudnn', needed)
        self.assertIn(b'CUDNN_FRONTEND_CUDART_LIB_NAME', pathlib.Path(TRAIN_GPT).read_bytes())  # but it can load it
