// The targets as one libFuzzer program; FUZZ_TARGET in the environment names the one to run. On top of what the target asks
// for and the sanitizers see: an input may cost only so much memory, in one piece (-malloc_limit_mb)
// and in all, freed or not; so a size in a header that is believed is found, and so is quadratic work.
#include <sanitizer/allocator_interface.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/fuzz/fuzz.h"

namespace {

const lmo::fuzz::Target* target = nullptr;
std::atomic<size_t> allocated{0};

void count(const volatile void*, size_t bytes) { allocated += bytes; }

constexpr size_t kMostBytes = size_t{64} << 20, kMostPerByte = 4096;

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
    const char* name = std::getenv("FUZZ_TARGET");
    for (const lmo::fuzz::Target& known : lmo::fuzz::kTargets) {
        if (name && std::strcmp(name, known.name) == 0) target = &known;
    }
    if (!target) {
        std::fputs("FUZZ_TARGET should name a file of tests/fuzz, as in FUZZ_TARGET=config\n", stderr);
        std::exit(2);
    }
    return __sanitizer_install_malloc_and_free_hooks(count, [](const volatile void*) {}) == 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    allocated = 0;
    target->run({reinterpret_cast<const char*>(data), size});
    if (allocated > kMostBytes + kMostPerByte * size) {
        std::fprintf(stderr, "%zu bytes were allocated for an input of %zu\n", allocated.load(), size);
        std::abort();
    }
    return 0;
}
