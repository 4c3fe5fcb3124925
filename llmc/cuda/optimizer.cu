// The optimizer's elementwise operations over lists of tensors, several hundred tensors a launch
// (tensor_table.cuh). All are bound by memory traffic; bytes an element, fp32 tensors:
//
//   momentum  x, m read and written         16  (8 without state)
//   adam      x, m, v read and written      24  Kingma & Ba 2015, algorithm 1 and section 2
//   sign      x read and written             8
//   frobenius x read, then both             12
//   apply     w read and written, x read    12  (14 with a bf16 copy, 16 with an fp32 one, 12 with
//                                               split weights; 4 more where it reads starts)
//   join      both halves read, w written    8
//
// Scalars are fp64 and come from device memory; one thread of a block turns them into fp32
// coefficients. The order of the operations on an element is the CPU backend's, with each fused
// multiply-add written out, so that the bits do not depend on what a compiler fuses.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/update_elements.cuh"

namespace lmo::cuda {

namespace {

// ---- norms --------------------------------------------------------------------------------------

// The sum of a tensor's squares.
struct SquaresOf {
    const double* squares;
    bool operator==(const SquaresOf&) const = default;
};

struct NormalizeUpdate {
    using Lists = TensorLists<SquaresOf, InOut<float>>;  // x
    struct Coefficients {
        float divisor;
    };
    double eps;

    __device__ Coefficients coefficients(const SquaresOf& of) const {
        return {static_cast<float>(sqrt(*of.squares) + eps)};
    }
    __device__ static void update(const Coefficients& c, float& x) { x = x / c.divisor; }
};

// ---- the new weights ----------------------------------------------------------------------------

struct StepScalars {
    double radius, decay;
    bool operator==(const StepScalars&) const = default;
};

// Weights: a form of weight_lists.cuh.
template <typename Weights>
struct WeightUpdate {
    using Lists = typename Weights::template Lists<StepScalars, In<float>>;  // x
    using Coefficients = StepCoefficients;
    const double* rate;
    double lr_scale;

    __device__ Coefficients coefficients(const StepScalars& s) const {
        const double lr = lr_scale * *rate;
        return {static_cast<float>(lr * s.decay), static_cast<float>(lr * s.radius)};
    }
    template <typename... Weight>
    __device__ static void update(const Coefficients& c, const float& x, Weight&... weight) {
        change([&](float w) { return new_weight(c, w, x); }, weight...);
    }
};

struct JoinUpdate {
    using Lists = TensorLists<NoScalars, In<bf16>, In<int16_t>, Out<float>>;
    using Coefficients = NoCoefficients;

    __device__ static void update(const Coefficients&, const bf16& high, const int16_t& low,
                                  float& w) {
        w = join(high, low);
    }
};

// ---- weights with more to it: sizes from the device, cautious decay, a pull to the start --------

struct SizedScalars {
    double radius, decay;
    const double* size;  // or none: 1
    bool operator==(const SizedScalars&) const = default;
};

struct VariedStep {
    using Coefficients = VariedCoefficients;
    const double *rate, *step;
    double lr_scale;
    bool cautious;

    __device__ Coefficients coefficients(const SizedScalars& s) const {
        const double lr = lr_scale * *rate, size = s.size ? *s.size : 1.0;
        const double pull = step ? 1.0 / (*step + 2.0) : 0.0;
        return {{static_cast<float>(lr * s.decay), static_cast<float>(lr * s.radius * size)},
                static_cast<float>(pull),
                cautious};
    }
};

template <typename Weights>
struct VariedWeightUpdate : VariedStep {
    using Lists = typename Weights::template Lists<SizedScalars, In<float>>;  // x

    template <typename... Weight>
    __device__ static void update(const Coefficients& c, const float& x, Weight&... weight) {
        change([&](float w) { return new_weight(c, w, x); }, weight...);
    }
};

template <typename Weights>
struct PulledWeightUpdate : VariedStep {
    using Lists = typename Weights::template Lists<SizedScalars, In<float>, In<float>>;  // x, start

    template <typename... Weight>
    __device__ static void update(const Coefficients& c, const float& x, const float& start,
                                  Weight&... weight) {
        change([&](float w) { return fmaf(c.pull, start - w, new_weight(c, w, x)); }, weight...);
    }
};

// ---- workspace of FrobeniusNormalize: the sums, then what SumOfSquares needs --------------------

int64_t sums_bytes(const FrobeniusNormalize& op) {
    return div_up<int64_t>(static_cast<int64_t>(op.x.size() * sizeof(double)), 256) * 256;
}

// Apply with sizes, cautious decay or starts.
void apply_varied(const Apply& op, Stream stream) {
    const int64_t count = static_cast<int64_t>(op.x.size());
    assert(op.size.empty() || (op.size.dtype == DType::f64 && op.size.count() == count));
    const bool pulled = !op.starts.empty();
    assert(!pulled || (all_float(op.starts) && same_counts(op.weights, op.starts)));
    assert(!pulled || op.step.dtype == DType::f64);
    const VariedStep step{op.rate.as<double>(), pulled ? op.step.as<double>() : nullptr,
                          op.lr_scale, op.cautious};
    const auto scalars = [&](size_t i) -> SizedScalars {
        const double* size = op.size.empty() ? nullptr : op.size.as<double>() + i;
        return {op.radius[i], op.decay[i], size};
    };
    const auto run = [&](auto type, const char* name, auto kernel, auto... lists) {
        using Update = typename decltype(type)::type;
        launch_update(name, kernel, stream, Update{step}, op.x.size(),
                      [&](size_t i) -> typename Update::Lists::Entry {
                          return {{op.x[i].data, lists[i].data...}, op.x[i].count(), scalars(i)};
                      });
    };
    for_weights(op, [&](auto form, auto... weights) {
        using Weights = typename decltype(form)::type;
        pulled ? run(Type<PulledWeightUpdate<Weights>>(),
                     LMO_KERNEL(update_kernel<PulledWeightUpdate<Weights>>), op.starts, weights...)
               : run(Type<VariedWeightUpdate<Weights>>(),
                     LMO_KERNEL(update_kernel<VariedWeightUpdate<Weights>>), weights...);
    });
}

}  // namespace

void CudaBackend::momentum(const Momentum& op) {
    assert(all_float(op.x) && all_float(op.momentum));
    assert(op.momentum.empty() || same_counts(op.x, op.momentum));
    const double* factor = op.factor.as<double>();
    if (op.momentum.empty()) {
        const StatelessUpdate update{factor, op.u_g};
        launch_update(LMO_KERNEL(update_kernel<StatelessUpdate>), stream_, update, op.x.size(),
                      [&](size_t i) -> StatelessUpdate::Lists::Entry {
                          return {{op.x[i].data}, op.x[i].count(), {}};
                      });
        return;
    }
    const MomentumUpdate update{factor, op.u_m, op.u_g, op.m_m, op.m_g};
    const auto entry_of = [&](size_t i) -> MomentumUpdate::Lists::Entry {
        return {{op.x[i].data, op.momentum[i].data}, op.x[i].count(), {}};
    };
    if (op.step.empty()) {
        launch_update(LMO_KERNEL(update_kernel<MomentumUpdate>), stream_, update, op.x.size(),
                      entry_of);
    } else {
        assert(op.step.dtype == DType::f64);
        launch_update(LMO_KERNEL(update_kernel<StartedMomentumUpdate>), stream_,
                      StartedMomentumUpdate{update, op.step.as<double>()}, op.x.size(), entry_of);
    }
}

void CudaBackend::adam(const Adam& op) {
    assert(all_float(op.x) && all_float(op.first) && all_float(op.second));
    assert(same_counts(op.x, op.first) && same_counts(op.x, op.second));
    const AdamUpdate update{
        op.factor.as<double>(), op.step.as<double>(), op.beta1, op.beta2, op.eps, op.eps_inside};
    launch_update(
        LMO_KERNEL(update_kernel<AdamUpdate>), stream_, update, op.x.size(),
        [&](size_t i) -> AdamUpdate::Lists::Entry {
            return {{op.x[i].data, op.first[i].data, op.second[i].data}, op.x[i].count(), {}};
        });
}

void CudaBackend::sign(const Sign& op) {
    assert(all_float(op.x));
    launch_update(LMO_KERNEL(update_kernel<SignUpdate>), stream_, SignUpdate{}, op.x.size(),
                  [&](size_t i) -> SignUpdate::Lists::Entry {
                      return {{op.x[i].data}, op.x[i].count(), {}};
                  });
}

size_t CudaBackend::workspace_bytes(const FrobeniusNormalize& op) const {
    return static_cast<size_t>(sums_bytes(op)) + workspace_bytes(SumOfSquares{op.x, {}, {}});
}

void CudaBackend::frobenius_normalize(const FrobeniusNormalize& op) {
    const int64_t count = static_cast<int64_t>(op.x.size()), sums = sums_bytes(op);
    if (count == 0) return;
    assert(op.workspace.bytes() >= workspace_bytes(op));
    char* workspace = op.workspace.as<char>();
    const Tensor squares{workspace, DType::f64, {count}};
    const int64_t rest = static_cast<int64_t>(op.workspace.bytes()) - sums;
    sum_of_squares({op.x, squares, {workspace + sums, DType::u16, {rest / 2}}});
    launch_update(LMO_KERNEL(update_kernel<NormalizeUpdate>), stream_, NormalizeUpdate{op.eps},
                  op.x.size(), [&](size_t i) -> NormalizeUpdate::Lists::Entry {
                      return {{op.x[i].data}, op.x[i].count(), {squares.as<double>() + i}};
                  });
}

void CudaBackend::apply(const Apply& op) {
    assert(has_weights(op) && all_float(op.x) && same_counts(op.weights, op.x));
    assert(op.radius.size() == op.x.size() && op.decay.size() == op.x.size());
    if (!op.size.empty() || op.cautious || !op.starts.empty()) return apply_varied(op, stream_);
    for_weights(op, [&](auto form, auto... weights) {
        using Weights = typename decltype(form)::type;
        using Update = WeightUpdate<Weights>;
        launch_update(LMO_KERNEL(update_kernel<WeightUpdate<Weights>>), stream_,
                      Update{op.rate.as<double>(), op.lr_scale}, op.x.size(),
                      [&](size_t i) -> typename Update::Lists::Entry {
                          return {{op.x[i].data, weights[i].data...},
                                  op.x[i].count(),
                                  {op.radius[i], op.decay[i]}};
                      });
    });
}

void CudaBackend::join_weights(const JoinWeights& op) {
    assert(all_of_type(op.high, DType::bf16) && all_of_type(op.low, DType::i16));
    assert(all_float(op.out));
    assert(same_counts(op.high, op.low) && same_counts(op.high, op.out));
    launch_update(
        LMO_KERNEL(update_kernel<JoinUpdate>), stream_, JoinUpdate{}, op.out.size(),
        [&](size_t i) -> JoinUpdate::Lists::Entry {
            return {{op.high[i].data, op.low[i].data, op.out[i].data}, op.out[i].count(), {}};
        });
}

}  // namespace lmo::cuda
