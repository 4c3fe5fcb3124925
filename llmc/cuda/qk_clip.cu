// QK-clip: the largest attention score of each head, and the rows of the query and key projections
// scaled down where it exceeds a limit.
//
// HeadMaxima reads each value once (4 bytes), a block a head. QkClip goes over the weights as the
// elementwise operations of the optimizer do (tensor_table.cuh), an entry a head: 8 bytes an
// element, 10 with a bf16 copy, 8 with split weights.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/weight_lists.cuh"

namespace lmo::cuda {

namespace {

constexpr int kMaximaThreads = 1024;

__global__ void __launch_bounds__(kMaximaThreads)
    head_maxima_kernel(const float* x, int64_t sequences, int64_t positions, float* out) {
    LMO_SHARED(float, scratch, [kMaximaThreads / 32]);
    wait_for_previous();
    float top = -INFINITY;
    for (int64_t b = 0; b < sequences; ++b) {
        const float* row = x + (b * gridDim.x + blockIdx.x) * positions;
#pragma unroll 4
        for (int64_t t = threadIdx.x; t < positions; t += kMaximaThreads) top = fmaxf(top, row[t]);
    }
    top = block_max<kMaximaThreads>(top, scratch);
    if (threadIdx.x == 0) out[blockIdx.x] = fmaxf(out[blockIdx.x], top);
}

// ---- the weights --------------------------------------------------------------------------------

// Which head an entry is: of the queries, or of the keys (query < 0).
struct Head {
    int query, key;
    bool operator==(const Head&) const = default;
};

struct ClipFactors {
    struct Coefficients {
        float factor;
    };
    const float* maxima;
    int group;  // query heads of a key head
    double limit;

    __device__ double gain(int query) const {
        return maxima[query] > limit ? limit / maxima[query] : 1.0;
    }
    __device__ Coefficients coefficients(const Head& head) const {
        double least = 1.0;
        for (int h = head.key * group; h < (head.key + 1) * group; ++h) {
            least = gain(h) < least ? gain(h) : least;
        }
        const double of_key = sqrt(least);
        return {static_cast<float>(head.query < 0 ? of_key : gain(head.query) / of_key)};
    }
};

template <typename Weights>
struct ClipUpdate : ClipFactors {
    using Lists = typename Weights::template Lists<Head>;

    template <typename... Weight>
    __device__ static void update(const Coefficients& c, Weight&... weight) {
        change([&](float w) { return w * c.factor; }, weight...);
    }
};

// One projection: head_of(h) for each of its heads.
template <typename HeadOf>
void clip(const ClipFactors& factors, const Tensor& weights, const Tensor& copy,
          const Tensor& remainder, int heads, HeadOf head_of, Stream stream) {
    const auto list = [](const Tensor& tensor) {
        return std::span<const Tensor>(&tensor, tensor.empty() ? 0 : 1);
    };
    Apply form;
    form.weights = list(weights);
    form.copies = list(copy);
    form.remainders = list(remainder);
    assert(has_weights(form) && weights.count() % heads == 0);
    const int64_t count = weights.count() / heads;
    for_weights(form, [&](auto type, auto... lists) {
        using Weights = typename decltype(type)::type;
        using Update = ClipUpdate<Weights>;
        launch_update(LMO_KERNEL(update_kernel<ClipUpdate<Weights>>), stream, Update{factors},
                      static_cast<size_t>(heads), [&](size_t h) -> typename Update::Lists::Entry {
                          const int64_t begin = static_cast<int64_t>(h) * count;
                          return {{lists[0].slice(begin, {count}).data...},
                                  count,
                                  head_of(static_cast<int>(h))};
                      });
    });
}

}  // namespace

void CudaBackend::head_maxima(const HeadMaxima& op) {
    assert(op.x.dtype == DType::f32 && op.out.dtype == DType::f32);
    assert(op.x.shape.rank() == 3 && op.out.count() == op.x.shape[1]);
    launch(LMO_KERNEL(head_maxima_kernel), dim3(static_cast<unsigned>(op.x.shape[1])),
           kMaximaThreads, 0, stream_, op.x.as<float>(), op.x.shape[0], op.x.shape[2],
           op.out.as<float>());
}

void CudaBackend::qk_clip(const QkClip& op) {
    assert(op.heads % op.kv_heads == 0);
    assert(op.maxima.dtype == DType::f32 && op.maxima.count() == op.heads);
    const int group = op.heads / op.kv_heads;
    const ClipFactors factors{op.maxima.as<float>(), group, op.limit};
    clip(
        factors, op.q, op.q_copy, op.q_remainder, op.heads,
        [&](int h) {
            return Head{h, h / group};
        },
        stream_);
    clip(
        factors, op.k, op.k_copy, op.k_remainder, op.kv_heads,
        [&](int k) {
            return Head{-1, k};
        },
        stream_);
}

}  // namespace lmo::cuda
