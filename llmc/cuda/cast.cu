// Conversion between element types, f64, f32, f16 and bf16: rounds once, to nearest even (from
// double to the 16-bit types through float, as the CPU does); NaN stays NaN. Reads and writes each
// element once: from + to bytes an element, 6 for fp32 to bf16.
#include "llmc/core/error.h"
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/tensor_table.cuh"

namespace lmo::cuda {

namespace {

template <typename From, typename To>
struct Conversion {
    using Lists = TensorLists<NoScalars, In<From>, Out<To>>;
    using Coefficients = NoCoefficients;

    __device__ static void update(const Coefficients&, const From& from, To& to) {
        float single;
        if constexpr (std::is_same_v<From, double>) {
            single = static_cast<float>(from);
        } else {
            single = to_float(from);
        }
        if constexpr (std::is_same_v<To, double>) {
            to = single;
        } else {
            to = from_float<To>(single);
        }
    }
};

template <typename F>
void for_real_type(DType dtype, F&& f) {
    switch (dtype) {
        case DType::f64:
            return f(Type<double>());
        case DType::f32:
            return f(Type<float>());
        case DType::f16:
            return f(Type<fp16>());
        case DType::bf16:
            return f(Type<bf16>());
        default:
            throw Error("CUDA: no conversion of " + to_string(dtype));
    }
}

}  // namespace

bool kernels_wait() {
    cudaFuncAttributes compiled{};
    const auto kernel = update_kernel<Conversion<float, bf16>>;
    check(cudaFuncGetAttributes(&compiled, reinterpret_cast<const void*>(kernel)),
          "asking how a kernel was compiled");
    return compiled.ptxVersion >= 90;
}

void CudaBackend::convert(const Tensor& to, const Tensor& from) {
    for_real_type(from.dtype, [&](auto from_type) {
        for_real_type(to.dtype, [&](auto to_type) {
            using From = typename decltype(from_type)::type;
            using To = typename decltype(to_type)::type;
            if constexpr (!std::is_same_v<From, To>) {
                using Update = Conversion<From, To>;
                launch_update(LMO_KERNEL(update_kernel<Conversion<From, To>>), stream_, Update{}, 1,
                              [&](size_t) -> typename Update::Lists::Entry {
                                  return {{from.data, to.data}, from.count(), {}};
                              });
            }
        });
    });
}

}  // namespace lmo::cuda
