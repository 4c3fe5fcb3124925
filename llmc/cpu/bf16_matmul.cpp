// See bf16_matmul.h.
#include "llmc/cpu/bf16_matmul.h"

#ifdef LMO_ONEDNN
#include <omp.h>

#include <map>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>
#include <tuple>

namespace lmo::cpu {

namespace {

using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, bool, bool, DType, double, double, int>;

// batch, m, n, k of the product.
std::tuple<int64_t, int64_t, int64_t, int64_t> extents(const Gemm& op) {
    const int rank = op.c.shape.rank();
    return {rank == 3 ? op.c.shape[0] : 1, op.c.shape[rank - 2], op.c.shape[rank - 1],
            op.a.shape[rank - (op.transpose_a ? 2 : 1)]};
}

dnnl::memory::desc dense(int64_t batch, int64_t rows, int64_t columns, bool transposed,
                         dnnl::memory::data_type type) {
    const int64_t size = rows * columns;
    return {{batch, rows, columns},
            type,
            transposed ? dnnl::memory::dims{size, 1, rows} : dnnl::memory::dims{size, columns, 1}};
}

}  // namespace

struct Bf16Matmul::Cache {
    dnnl::engine engine{dnnl::engine::kind::cpu, 0};
    dnnl::stream stream{engine};
    std::map<Key, std::optional<dnnl::matmul>> primitives;

    std::optional<dnnl::matmul> make(const Gemm& op) const {
        const auto [batch, m, n, k] = extents(op);
        const auto bf16 = dnnl::memory::data_type::bf16;
        const auto c_type = op.c.dtype == DType::bf16 ? bf16 : dnnl::memory::data_type::f32;
        dnnl::primitive_attr attributes;
        if (op.alpha != 1.0) attributes.set_output_scales(0, {static_cast<float>(op.alpha)});
        if (op.beta != 0.0) {
            dnnl::post_ops add;
            add.append_sum(static_cast<float>(op.beta));
            attributes.set_post_ops(add);
        }
        try {
            const dnnl::matmul::desc description(dense(batch, m, k, op.transpose_a, bf16),
                                                 dense(batch, k, n, op.transpose_b, bf16),
                                                 dense(batch, m, n, false, c_type));
            return dnnl::matmul({description, attributes, engine});
        } catch (const dnnl::error&) {
            return std::nullopt;
        }
    }
};

Bf16Matmul::Bf16Matmul() : cache_(std::make_unique<Cache>()) {}
Bf16Matmul::~Bf16Matmul() = default;

bool Bf16Matmul::fast() const {
    // The values are sets of bits; a set that includes AMX's may be a later processor's.
    const int amx = static_cast<int>(dnnl::cpu_isa::avx512_core_amx);
    return (static_cast<int>(dnnl::get_effective_cpu_isa()) & amx) == amx;
}

bool Bf16Matmul::run(const Gemm& op, int threads) {
    omp_set_num_threads(threads);
    const auto [batch, m, n, k] = extents(op);
    const Key key{batch,          m,          n,        k,       op.transpose_a,
                  op.transpose_b, op.c.dtype, op.alpha, op.beta, threads};
    auto found = cache_->primitives.find(key);
    if (found == cache_->primitives.end()) {
        found = cache_->primitives.emplace(key, cache_->make(op)).first;
    }
    if (!found->second) return false;
    const auto bf16 = dnnl::memory::data_type::bf16;
    const auto c_type = op.c.dtype == DType::bf16 ? bf16 : dnnl::memory::data_type::f32;
    auto& engine = cache_->engine;
    found->second->execute(
        cache_->stream,
        {{DNNL_ARG_SRC, {dense(batch, m, k, op.transpose_a, bf16), engine, op.a.data}},
         {DNNL_ARG_WEIGHTS, {dense(batch, k, n, op.transpose_b, bf16), engine, op.b.data}},
         {DNNL_ARG_DST, {dense(batch, m, n, false, c_type), engine, op.c.data}}});
    cache_->stream.wait();
    return true;
}

}  // namespace lmo::cpu

#else

namespace lmo::cpu {

struct Bf16Matmul::Cache {};
Bf16Matmul::Bf16Matmul() = default;
Bf16Matmul::~Bf16Matmul() = default;
bool Bf16Matmul::fast() const { return false; }
bool Bf16Matmul::run(const Gemm&, int) { return false; }

}  // namespace lmo::cpu

#endif
