// The CPU backend's memory, order and description; the operations are in the other files.
#include "llmc/cpu/cpu_backend.h"

#include <omp.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>

#include "llmc/core/error.h"
#include "llmc/device/reissued_graph.h"

namespace lmo::cpu {

namespace {

constexpr int64_t far_bytes = 64 << 20;  // more than the caches keep until it is read again

constexpr size_t alignment = 256, huge_page = size_t(2) << 20;

// Blocks of some MiB start on a huge page and ask for huge pages as far as they fill them, so that
// they take no more memory: fewer page faults, and one TLB entry where there were 512.
void* aligned_memory(size_t bytes) {
    if (bytes > SIZE_MAX - huge_page) return nullptr;
    const size_t boundary = bytes < huge_page ? alignment : huge_page;
    const size_t size = (bytes + alignment - 1) / alignment * alignment;
    void* memory = nullptr;
    if (posix_memalign(&memory, boundary, size ? size : alignment) != 0) return nullptr;
#ifdef MADV_HUGEPAGE
    // A kernel without them says no, and ordinary pages do.
    if (bytes >= huge_page) (void)madvise(memory, size / huge_page * huge_page, MADV_HUGEPAGE);
#endif
    return memory;
}

}  // namespace

// omp_get_num_procs counts the cores that this process may use.
CpuBackend::CpuBackend(int threads)
    : threads_(threads > 0 ? threads : omp_get_num_procs()),
      kernels_(supported_kernels().back()),
      blas_(kernels_, threads_) {
    omp_set_dynamic(0);            // exactly as many threads as asked for
    omp_set_max_active_levels(1);  // and never more inside of them
}

std::string CpuBackend::describe() const {
    return "CPU, " + std::to_string(threads_) + (threads_ == 1 ? " thread, " : " threads, ") +
           kernels_.isa + ", " + blas_.describe() +
           (bf16_matmul_.fast() ? ", bf16 GEMM on AMX" : "");
}

DType CpuBackend::preferred_compute() const {
    return bf16_matmul_.fast() ? DType::bf16 : DType::f32;
}

void* CpuBackend::allocate(size_t bytes) {
    void* memory = aligned_memory(bytes);
    if (!memory) {
        throw Error("out of memory: " + std::to_string(bytes >> 20) +
                    " MiB asked for and not available; use a smaller model or batch.micro_batch");
    }
    return memory;
}

// What the machine has free, the limit of a container included; infinite where it does not say.
double CpuBackend::free_bytes() const {
    double kibibytes = 0, limit = 0;
    std::ifstream info("/proc/meminfo"), container("/sys/fs/cgroup/memory.max");
    std::string key, rest;
    double value;
    while (info >> key >> value && std::getline(info, rest)) {
        if (key == "MemAvailable:" || key == "SwapFree:") kibibytes += value;
    }
    double free = kibibytes > 0 ? 1024 * kibibytes : std::numeric_limits<double>::infinity();
    if (container >> limit) free = std::min(free, limit);  // "max" is no number
    return free;
}

void CpuBackend::release(void* memory) { std::free(memory); }

void CpuBackend::mark(size_t moment) {
    if (moments_.size() <= moment) moments_.resize(moment + 1);
    moments_[moment] = std::chrono::steady_clock::now();
}

double CpuBackend::seconds_between(size_t from, size_t to) {
    return std::chrono::duration<double>(moments_[to] - moments_[from]).count();
}

void CpuBackend::copy_in(const Tensor& to, const void* host) {
    if (to.count() > 0) std::memcpy(to.data, host, to.bytes());  // else both may be null
}

void CpuBackend::copy_out(void* host, const Tensor& from) {
    if (from.count() > 0) std::memcpy(host, from.data, from.bytes());
}

void CpuBackend::copy(const Tensor& to, const Tensor& from) {
    assert(to.count() == from.count());
    if (to.dtype != from.dtype)
        return convert(to.dtype, to.data, from.dtype, from.data, to.count());
    const int64_t size = static_cast<int64_t>(size_of(to.dtype));
    parallel_blocks(threads_, to.count(), element_block, [&](int64_t begin, int64_t end) {
        std::memmove(to.as<char>() + begin * size, from.as<char>() + begin * size,
                     static_cast<size_t>((end - begin) * size));
    });
}

void CpuBackend::zero(const Tensor& tensor) {
    const int64_t bytes = static_cast<int64_t>(tensor.bytes());
    parallel_blocks(threads_, bytes, 8 * element_block, [&](int64_t begin, int64_t end) {
        char* to = tensor.as<char>() + begin;
        bytes < far_bytes ? void(std::memset(to, 0, static_cast<size_t>(end - begin)))
                          : kernels_.zero_far(to, end - begin);
    });
}

void CpuBackend::convert(DType to_type, void* to, DType from_type, const void* from,
                         int64_t count) const {
    const auto is_float = [](DType type) {
        return type == DType::f64 || type == DType::f32 || type == DType::bf16;
    };
    assert(is_float(to_type) && is_float(from_type));
    (void)is_float;
    const int64_t to_size = static_cast<int64_t>(size_of(to_type));
    const int64_t from_size = static_cast<int64_t>(size_of(from_type));
    parallel_blocks(threads_, count, element_block, [&](int64_t begin, int64_t end) {
        kernels_.convert(to_type, static_cast<char*>(to) + begin * to_size, from_type,
                         static_cast<const char*>(from) + begin * from_size, end - begin);
    });
}

// Operations run at once here, so there is nothing to record.
std::unique_ptr<Graph> CpuBackend::capture(std::function<void()> body) {
    return std::make_unique<ReissuedGraph>(std::move(body));
}

}  // namespace lmo::cpu

namespace lmo {

std::unique_ptr<Backend> make_cpu_backend(int threads) {
    return std::make_unique<cpu::CpuBackend>(threads);
}

}  // namespace lmo
