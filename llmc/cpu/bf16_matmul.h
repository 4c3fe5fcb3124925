// bf16 matrix products on processors with AMX, by oneDNN: about three times the speed of fp32. Only
// dense operands use the AMX unit, and a primitive is compiled for each shape and kept.
#pragma once

#include <memory>

#include "llmc/device/backend.h"

namespace lmo::cpu {

class Bf16Matmul {
  public:
    Bf16Matmul();
    ~Bf16Matmul();

    // Whether this processor (and this build) computes fast in bf16.
    bool fast() const;
    // Computes op (a, b bf16; c bf16 or f32) with `threads` threads; false when oneDNN has no
    // primitive for it here, and then nothing was done.
    bool run(const Gemm& op, int threads);

  private:
    struct Cache;
    std::unique_ptr<Cache> cache_;
};

}  // namespace lmo::cpu
