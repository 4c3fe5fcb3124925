// A whole update of elementwise directions in one launch for a list of tensors: momentum, direction
// and new weights (update_elements.cuh), each element of each list read and written once. Bytes an
// element, fp32 tensors with a bf16 copy of the weights (2 less without one, and with split
// weights):
//
//   stateless   g read, w read and written                  14
//   momentum    and m read and written                      22  Lion, Signum, Scion's sign and RMS
//   Adam        and v read and written                      30
//   frobenius   and a pass over g and m before               8  more (4 without momentum)
//
// The direction is the same for a whole launch, so which one it is costs a branch that no warp
// divides at. Sums of squares have the borders and the order of SumOfSquares.
#include "llmc/cuda/cuda_backend.h"
#include "llmc/cuda/direction_sums.h"
#include "llmc/cuda/parts.cuh"
#include "llmc/cuda/update_elements.cuh"

namespace lmo::cuda {

namespace {

// ---- from direction to weight -------------------------------------------------------------------

struct TensorScalars {
    double radius, decay;
    const double* squares;  // of the direction, where it is normalised, else none
    bool operator==(const TensorScalars&) const = default;
};

struct MoveCoefficients {
    VariedCoefficients step;
    float divisor;
    bool signs, divides;
};

// The new weight from what the momentum made of the gradient.
__device__ __forceinline__ float moved(const MoveCoefficients& c, float w, float x) {
    if (c.signs) SignUpdate::update({}, x);
    if (c.divides) x = x / c.divisor;
    return new_weight(c.step, w, x);
}

struct Move {
    const double* rate;
    double lr_scale, eps;
    bool cautious, signs;

    __device__ MoveCoefficients coefficients(const TensorScalars& s) const {
        const double lr = lr_scale * *rate, root = s.squares ? sqrt(*s.squares) : 1.0;
        return {
            {{static_cast<float>(lr * s.decay), static_cast<float>(lr * s.radius)}, 0.0f, cautious},
            static_cast<float>(root + eps),
            signs,
            s.squares != nullptr};
    }
};

// ---- the three momenta --------------------------------------------------------------------------
// Weights: a form of weight_lists.cuh.

template <typename Momentum>
struct FusedCoefficients {
    typename Momentum::Coefficients momentum;
    MoveCoefficients move;
};

template <typename Weights>
struct FusedStateless {
    using Momentum = StatelessUpdate;
    using Lists = typename Weights::template Lists<TensorScalars, In<float>>;  // g
    using Coefficients = FusedCoefficients<Momentum>;
    Momentum momentum;
    Move move;

    __device__ Coefficients coefficients(const TensorScalars& s) const {
        return {momentum.coefficients({}), move.coefficients(s)};
    }
    template <typename... Weight>
    __device__ static void update(const Coefficients& c, const float& g, Weight&... weight) {
        float x = g;
        Momentum::update(c.momentum, x);
        change([&](float w) { return moved(c.move, w, x); }, weight...);
    }
};

template <typename Weights>
struct FusedMomentum {
    using Momentum = StartedMomentumUpdate;
    using Lists = typename Weights::template Lists<TensorScalars, In<float>, InOut<float>>;  // g, m
    using Coefficients = FusedCoefficients<Momentum>;
    Momentum momentum;
    Move move;

    __device__ Coefficients coefficients(const TensorScalars& s) const {
        return {momentum.coefficients({}), move.coefficients(s)};
    }
    template <typename... Weight>
    __device__ static void update(const Coefficients& c, const float& g, float& m,
                                  Weight&... weight) {
        float x = g;
        Momentum::update(c.momentum, x, m);
        change([&](float w) { return moved(c.move, w, x); }, weight...);
    }
};

template <typename Weights>
struct FusedAdam {
    using Momentum = AdamUpdate;
    // g, m, v
    using Lists =
        typename Weights::template Lists<TensorScalars, In<float>, InOut<float>, InOut<float>>;
    using Coefficients = FusedCoefficients<Momentum>;
    Momentum momentum;
    Move move;

    __device__ Coefficients coefficients(const TensorScalars& s) const {
        return {momentum.coefficients({}), move.coefficients(s)};
    }
    template <typename... Weight>
    __device__ static void update(const Coefficients& c, const float& g, float& m, float& v,
                                  Weight&... weight) {
        float x = g;
        Momentum::update(c.momentum, x, m, v);
        change([&](float w) { return moved(c.move, w, x); }, weight...);
    }
};

// ---- sums of squares of directions that are nowhere ---------------------------------------------

// parts[block] = the sum over a chunk of the squares of what the momentum makes of g.
__global__ void __launch_bounds__(kPartThreads)
    stateless_squares_kernel(const StatelessUpdate op, const __grid_constant__ SquaresTable table,
                             double* parts) {
    LMO_SHARED(double, scratch, [kPartThreads / 32]);
    const Part part = part_of(table);
    const float* g = static_cast<const float*>(table.entries[part.index].data[0]) + part.begin;
    wait_for_previous();
    const StatelessUpdate::Coefficients c = op.coefficients({});
    const double sum = thread_sum<kPartThreads>(g, part.count, static_cast<int>(threadIdx.x),
                                                [&](double before, double value) {
                                                    float x = static_cast<float>(value);
                                                    StatelessUpdate::update(c, x);
                                                    return plus_square(before, to_double(x));
                                                });
    const double total = block_sum<kPartThreads>(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

__global__ void __launch_bounds__(kPartThreads)
    momentum_squares_kernel(const StartedMomentumUpdate op,
                            const __grid_constant__ PairsTable table, double* parts) {
    LMO_SHARED(double, scratch, [kPartThreads / 32]);
    const Part part = part_of(table);
    const auto& data = table.entries[part.index].data;
    const float* g = static_cast<const float*>(data[0]) + part.begin;
    const float* m = static_cast<const float*>(data[1]) + part.begin;
    wait_for_previous();
    const StartedMomentumUpdate::Coefficients c = op.coefficients({});
    const double sum = thread_sum_of_pairs<kPartThreads>(
        g, m, part.count, static_cast<int>(threadIdx.x), [&](double before, float x, float old) {
            StartedMomentumUpdate::update(c, x, old);
            return plus_square(before, to_double(x));
        });
    const double total = block_sum<kPartThreads>(sum, scratch);
    if (threadIdx.x == 0) parts[blockIdx.x] = total;
}

// ---- the operation ------------------------------------------------------------------------------

AdamUpdate adam_update(const Adam& op) {
    return {op.factor.as<double>(), op.step.as<double>(), op.beta1, op.beta2, op.eps,
            op.eps_inside};
}

}  // namespace

void sum_directions(const Momentum& op, double* sums, double* parts, Stream stream) {
    if (op.momentum.empty()) {
        for_each_table<SquaresTable>(
            op.x.size(), kPartChunk,
            [&](size_t i) -> SquaresTable::Entry {
                return {{op.x[i].data}, op.x[i].count(), {}};
            },
            [&](const SquaresTable& table, size_t first) {
                launch(LMO_KERNEL(stateless_squares_kernel), table.blocks, kPartThreads, 0, stream,
                       stateless_update(op), table, parts);
                add_parts(table, parts, sums + first, stream);
            });
        return;
    }
    for_each_table<PairsTable>(
        op.x.size(), kPartChunk,
        [&](size_t i) -> PairsTable::Entry {
            return {{op.x[i].data, op.momentum[i].data}, op.x[i].count(), {}};
        },
        [&](const PairsTable& table, size_t first) {
            launch(LMO_KERNEL(momentum_squares_kernel), table.blocks, kPartThreads, 0, stream,
                   started_update(op), table, parts);
            add_parts(table, parts, sums + first, stream);
        });
}

namespace {

// Launches Fused<form of the weights> over the gradients, `states` and weights. squares: of each
// tensor's direction, or none.
template <template <typename> class Fused, typename MomentumStage, typename... States>
void update(const FusedUpdate& op, const MomentumStage& momentum, const double* squares,
            Stream stream, const States&... states) {
    const Apply& apply = op.apply;
    const std::span<const Tensor> gradients = op.gradients();
    const Move move{apply.rate.as<double>(), apply.lr_scale, op.direction.eps, apply.cautious,
                    op.direction.type == FusedDirection::Type::sign};
    for_weights(apply, [&](auto form, const auto&... weights) {
        using Weights = typename decltype(form)::type;
        using Update = Fused<Weights>;
        launch_update(LMO_KERNEL(update_kernel<Fused<Weights>>), stream, Update{momentum, move},
                      gradients.size(), [&](size_t i) -> typename Update::Lists::Entry {
                          return {
                              {gradients[i].data, states[i].data..., weights[i].data...},
                              gradients[i].count(),
                              {apply.radius[i], apply.decay[i], squares ? squares + i : nullptr}};
                      });
    });
}

int64_t sums_bytes(const FusedUpdate& op) {
    return div_up<int64_t>(static_cast<int64_t>(op.gradients().size() * sizeof(double)), 256) * 256;
}

bool fits_together(const FusedUpdate& op) {
    const std::span<const Tensor> g = op.gradients();
    const Apply& apply = op.apply;
    return all_float(g) && has_weights(apply) && same_counts(g, apply.weights) &&
           apply.radius.size() == g.size() && apply.decay.size() == g.size() && apply.x.empty() &&
           apply.size.empty() && apply.starts.empty();
}

}  // namespace

size_t CudaBackend::workspace_bytes(const FusedUpdate& op) const {
    if (op.direction.type != FusedDirection::Type::frobenius) return 0;
    return static_cast<size_t>(sums_bytes(op)) + parts_bytes(op.gradients());
}

void CudaBackend::fused_update(const FusedUpdate& op) {
    assert(fits_together(op));
    if (op.gradients().empty()) return;
    const bool normalised = op.direction.type == FusedDirection::Type::frobenius;
    if (const Adam* adam = std::get_if<Adam>(&op.momentum)) {
        assert(!normalised && all_float(adam->first) && all_float(adam->second));
        assert(same_counts(adam->x, adam->first) && same_counts(adam->x, adam->second));
        return update<FusedAdam>(op, adam_update(*adam), nullptr, stream_, adam->first,
                                 adam->second);
    }
    const Momentum& momentum = std::get<Momentum>(op.momentum);
    double* squares = nullptr;
    if (normalised) {
        assert(op.workspace.bytes() >= workspace_bytes(op));
        squares = op.workspace.as<double>();
        double* const parts = reinterpret_cast<double*>(op.workspace.as<char>() + sums_bytes(op));
        sum_directions(momentum, squares, parts, stream_);
    }
    if (momentum.momentum.empty()) {
        return update<FusedStateless>(op, stateless_update(momentum), squares, stream_);
    }
    assert(all_float(momentum.momentum) && same_counts(momentum.x, momentum.momentum));
    update<FusedMomentum>(op, started_update(momentum), squares, stream_, momentum.momentum);
}

}  // namespace lmo::cuda
