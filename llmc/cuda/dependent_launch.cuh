// How a kernel that was launched early, while the one ahead of it still runs, waits for it.
//
// With programmatic dependent launch (stream.h) blocks of a kernel start as soon as all blocks of
// the kernel ahead have called wait_for_previous() or ended: what a launch costs (1 to 2 us between
// kernels) and what a kernel does before it touches memory then hide behind the last blocks of the
// one before. griddepcontrol.wait returns when all work ahead has ended and its writes are visible.
// Hence the one rule, which tests/check_kernels.py and the emulator enforce: every thread of every
// kernel waits, before it reads or writes global memory and before it ends. A kernel has then ended
// only after all those before it, however many of them were started early.
#pragma once

namespace lmo::cuda {

#ifndef LMO_EMULATE_CUDA
// Waits for the work ahead in the stream, then lets the next kernel's blocks start, which wait in
// turn. Costs nothing where the kernel was launched in the ordinary way, and is nothing before
// sm_90.
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;\n" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;\n" ::: "memory");
#endif
}
#else
using emulator::wait_for_previous;
#endif

}  // namespace lmo::cuda
