// Symmetric kernels with other numbers of stages and other tiles than the trainer takes, for
// dev/bench/newton_schulz alone: fp16, compiled into no other program.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "llmc/cuda/symmetric_choice.h"

namespace lmo::cuda {

// Most dynamic shared memory of a block on compute capability 9.0 (227 KB).
constexpr size_t kMostShared = size_t{227} * 1024;

struct SymmetricStages {
    SymmetricKernel kernel;
    int tile;          // its rows
    int usual, least;  // stages: those of the trainer, and those that it needs
    size_t (*shared_bytes)(int stages);
    std::vector<std::pair<int, void (*)(const SymmetricGemm&, Stream)>> compiled;  // by stages
};

std::vector<SymmetricStages> mma_stages();
std::vector<SymmetricStages> hopper_stages();  // to be run on compute capability 9.0 alone

inline const char* name_of(SymmetricKernel kernel) {
    if (kernel == SymmetricKernel::blas) return "cublasLt";
    if (kernel == SymmetricKernel::mma) return "mma";
    return kernel == SymmetricKernel::narrow ? "narrow" : "wide";
}

// As executed_flops(), for this size of tile.
inline double flops_of(const SymmetricStages& of, int64_t n, int64_t k, int64_t batch) {
    if (of.kernel != SymmetricKernel::mma) return executed_flops(of.kernel, n, k, batch);
    const int64_t tiles = (n + of.tile - 1) / of.tile;
    return static_cast<double>(tiles * (tiles + 1) * of.tile * of.tile) *
           static_cast<double>(k * batch);
}

// Why there is no kernel with so many stages; empty where there is one.
inline std::string missing(const SymmetricStages& of, int stages) {
    if (stages < of.least) return "needs at least " + std::to_string(of.least) + " stages";
    const size_t bytes = of.shared_bytes(stages);
    if (bytes > kMostShared) {
        return std::to_string(bytes) + " bytes of shared memory, a block may have " +
               std::to_string(kMostShared);
    }
    for (const auto& [count, run] : of.compiled) {
        if (count == stages) return "";
    }
    return "not compiled (dev/bench/symmetric_stages*.cu)";
}

}  // namespace lmo::cuda
