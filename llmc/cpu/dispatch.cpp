// Chooses the instruction set of the kernels when the program starts.
#include "llmc/cpu/bf16_tiles.h"
#include "llmc/cpu/kernels.h"

namespace lmo::cpu {

namespace avx512bf16 {
extern const Bf16Tiles tiles;
}

namespace {

using AddKernels = void (*)(Kernels&);

Kernels make_table(const char* isa, std::initializer_list<AddKernels> parts) {
    Kernels table{};
    table.isa = isa;
    for (const AddKernels add : parts) add(table);
    return table;
}

}  // namespace

std::vector<Kernels> supported_kernels() {
    std::vector<Kernels> tables;
    tables.push_back(
        make_table("baseline", {baseline::add_element_kernels, baseline::add_gemm_kernels,
                                baseline::add_attention_kernels, baseline::add_model_kernels}));
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2")) {
        return tables;
    }
    tables.push_back(make_table("AVX2", {avx2::add_element_kernels, avx2::add_gemm_kernels,
                                         avx2::add_attention_kernels, avx2::add_model_kernels}));
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512cd")) {
        return tables;
    }
    tables.push_back(
        make_table("AVX-512", {avx512::add_element_kernels, avx512::add_gemm_kernels,
                               avx512::add_attention_kernels, avx512::add_model_kernels}));
#endif
    return tables;
}

const Bf16Tiles* bf16_tiles() {
#if defined(__x86_64__)
    if (std::string(supported_kernels().back().isa) == "AVX-512" &&
        __builtin_cpu_supports("avx512bf16")) {
        return &avx512bf16::tiles;
    }
#endif
    return nullptr;
}

}  // namespace lmo::cpu
