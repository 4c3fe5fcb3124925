"""tests/check_kernels.py itself: each rule complains about what it is for, and about nothing else."""
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import check_kernels  # noqa: E402

GOOD = '''// Launched by <<<>>>, printf and __shared__ are words of this comment.
template <typename T>
__global__ void __launch_bounds__(kThreads, blocks(1, 2)) scale_kernel(T* to, T by) {
    LMO_SHARED(float, sums, [2]);
    wait_for_previous();
    const char* text = "asm volatile new";  /* __CUDA_ARCH__ */
    __syncthreads();
}
void scale() { launch(LMO_KERNEL(scale_kernel<T,
                                              4>), 1, 32, 0, stream); }
'''
BAD = {
    'scale_kernel<<<1, 2>>>(x);': '<<<>>>',
    '__shared__ float x[2];': '__shared__',
    'asm volatile("bar.sync 0;");': 'PTX outside',
    'const unsigned m = __activemask();': '__activemask',
    'namespace cg = cooperative_groups;': 'cooperative groups',
    '#if __CUDA_ARCH__ >= 900': 'preprocessor',
    'float* p = new float[3];': 'malloc',
    'void* p = malloc(3);': 'malloc',
    'printf("x");': 'printf',
    'std::thread t;': 'threads of the host',
    'x = *reinterpret_cast<const float4*>(p);': 'wide access',
    'x = *reinterpret_cast<uint2 *>(p);': 'wide access',
    'while (*static_cast<volatile int*>(flag) == 0) {}': 'volatile',
    '__syncthreads(); x = 1; __syncthreads();': 'two barriers',
    '__global__ void lonely_kernel(int x) {\n    wait_for_previous();\n}': 'launched by nobody',
    '__global__ void scale(float* x) {\n    wait_for_previous();\n}': 'end in _kernel',
    '__global__ void scale_kernel(int* other) {\n    wait_for_previous();\n}': 'has the name of another one',
    'void f() { launch(LMO_KERNEL(lazy_kernel), 1); }\n__global__ void lazy_kernel() {\n}': 'wait_for_previous',
    'void f() { launch(LMO_KERNEL(if_kernel), 1); }\n__global__ void if_kernel() {\n    if (x)\n        wait_for_previous();\n}':
        'wait_for_previous',
}
MANGLED = '_ZN3lmo4cuda45_GLOBAL__N__ae2ec09b_12_attention_cu_f83cb7ac9my_kernelILi64EEEvPf'
PTXAS = '''ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{name}' for 'sm_80'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {spills} bytes spill stores, {spills} bytes spill loads
ptxas info    : Used {registers} registers, used 1 barriers, {shared} bytes smem, 408 bytes cmem[0]
'''


class CheckKernelsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def source(self, text, name='x.cu'):
        path = self.folder / name
        path.write_text(text)
        return path

    def test_a_good_file(self):
        self.assertEqual(list(check_kernels.lint([self.source(GOOD)])), [])

    def test_each_rule(self):
        for line, expected in BAD.items():
            with self.subTest(line):
                found = list(check_kernels.lint([self.source(GOOD + line + '\n')]))
                self.assertEqual(len(found), 1, found)
                self.assertIn(expected, found[0])
        self.assertEqual(list(check_kernels.lint([self.source(GOOD + 'asm volatile("x");', 'ptx.cuh')])), [])

    def test_coverage(self):
        files = [self.source(GOOD)]
        log = self.source('other_kernel\nscale_kernel<T, 4>\n', 'log')
        self.assertEqual(list(check_kernels.coverage(files, [log])), [])
        log.write_text('scale_kernel<T, 8>\n')
        self.assertIn('x.cu:9: scale_kernel<T, 4> was never executed', list(check_kernels.coverage(files, [log]))[0])
        log.write_text('other_kernel\n')
        self.assertIn('kernel scale_kernel was never executed', list(check_kernels.coverage(files, [log]))[0])

    def report(self, **numbers):
        reports = self.folder / 'cuda' / 'llmc' / 'cuda'
        reports.mkdir(parents=True, exist_ok=True)
        (reports / 'attention.ptxas').write_text(PTXAS.format(name=MANGLED, **numbers))
        return check_kernels.ptxas_reports(self.folder)['attention.cu my_kernel<64>']['sm_80']

    def test_budgets(self):
        numbers = self.report(registers=90, shared=128, stack=0, spills=0)
        self.assertEqual(numbers, {'registers': 90, 'shared': 128, 'stack': 0, 'spills': 0})
        budget = {'registers': 90, 'shared': 128}

        def complaints(**changes):
            report = self.report(**{**numbers, **changes})
            return ' '.join(check_kernels.over_budget('my_kernel', report, budget, strict=True))
        self.assertEqual(complaints(), '')
        self.assertEqual(complaints(registers=89), '')
        self.assertIn('91 registers, allowed are 90', complaints(registers=91))
        self.assertIn('129 bytes of shared memory', complaints(shared=129))
        self.assertIn('16 bytes of spills', complaints(spills=8))
        self.assertIn('a stack frame of 8 bytes', complaints(stack=8))

    def test_ptx(self):
        def expect(facts, *lines):
            other = {check_kernels.WAITS, check_kernels.AN_ACCESS}
            self.assertEqual(check_kernels.ptx_facts('\n'.join(lines)) - other, facts)
        expect({'wide loads', 'wide stores'}, 'ld.global.v4.u32 {%r1}, [%rd1];', 'st.global.v2.u64 [%rd1], {%rd2};')
        expect({'wide loads'}, 'ld.global.nc.L1::no_allocate.v4.f32 {%f1}, [%rd1];')
        expect({'wide stores'}, 'st.global.wb.v4.u32 [%rd1], {%r1};')
        expect(set(), 'ld.shared.v4.u32 {%r1}, [%r2];', 'st.global.v2.u32 [%rd1], {%r2};', 'ld.param.v4.u32 {}, [];')
        expect({'tensor cores'}, 'mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {};')
        expect({'local memory'}, 'st.local.u32 [%r1], %r2;')
        expect({'tensor cores'}, 'wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {};')
        expect({'wide loads'}, 'cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [], [];')
        expect({'wide stores'}, 'cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [], [];')

    def test_waits_come_before_accesses(self):
        wait, access = 'griddepcontrol.wait;', 'ld.global.u32 %r1, [%rd1];'
        for lines, waits in (([wait, access], True), ([access, wait], False), ([access], False),
                             (['ld.param.u64 %rd1, [p];', 'st.shared.u32 [%r1], 0;', wait, access], True),
                             (['cp.async.cg.shared.global [%r1], [%rd1], 16;', wait], False)):
            self.assertEqual(check_kernels.WAITS in check_kernels.ptx_facts('\n'.join(lines)), waits, lines)

    def test_ptx_of_kernels(self):
        # Braces of assembler in the source do not end a kernel.
        path = self.folder / 'cuda' / 'llmc' / 'cuda' / 'x.ptx'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('.visible .entry a_kernel(\n.param .u64 p\n)\n{\n{\n.reg .pred done;\n}\n'
                        'st.global.v4.u32 [%rd1], {%r1};\n}\n.visible .entry b_kernel()\n{\nret;\n}\n')
        self.assertEqual(check_kernels.ptx_reports(self.folder),
                         {'x.cu a_kernel': {'wide stores', check_kernels.AN_ACCESS}, 'x.cu b_kernel': set()})

    def test_names(self):
        internal = 'void lmo::cuda::(anonymous namespace)::'
        names = {internal + 'f_kernel<__nv_bfloat16, (int)8, (bool)1>(float*)': 'f_kernel<bf16, 8, true>',
                 'lmo::cuda::g_kernel(int, float (*)(int))': 'g_kernel',
                 internal + 'u_kernel<lmo::cuda::C<float, __half> >(x)': 'u_kernel<C<float, fp16>>'}
        for long, short in names.items():
            self.assertEqual(check_kernels.short_name(long), short)


if __name__ == '__main__':
    unittest.main()
