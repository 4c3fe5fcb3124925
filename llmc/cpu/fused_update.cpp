// Updates in one pass over memory: the loops of the operations one after another over pieces that
// stay in the first cache, with the directions in a buffer. As the loops are the same, so are the
// bits.
#include <cmath>

#include "llmc/cpu/cpu_backend.h"
#include "llmc/cpu/pieces.h"

namespace lmo::cpu {

namespace {

// The momentum of a piece: directions to x, the new state in place or to `new_m`.
void run(const Kernels& kernels, const Momentum& op, MomentumRange r, const Piece& piece, void* x,
         void* new_m = nullptr) {
    r.type = op.x[piece.index].dtype;
    r.g = at(op.x[piece.index], piece.begin);
    r.x = x;
    if (!op.momentum.empty()) {
        void* const m = at(op.momentum[piece.index], piece.begin);
        r.m = m;
        r.new_m = new_m ? new_m : m;
    }
    kernels.momentum(r, 0, piece.count);
}

void run(const Kernels& kernels, const Adam& op, AdamRange r, const Piece& piece, void* x) {
    r.type = op.x[piece.index].dtype;
    r.g = at(op.x[piece.index], piece.begin);
    r.x = x;
    r.m = at(op.first[piece.index], piece.begin);
    r.v = at(op.second[piece.index], piece.begin);
    kernels.adam(r, 0, piece.count);
}

// sums[i] = the sum of squares of the directions of tensor i, in the order of SumOfSquares, with
// `parts` for its parts. Momenta stay as they are.
void sum_directions(const Kernels& kernels, int threads, const Momentum& op, double* parts,
                    double* sums) {
    const MomentumRange scalars = scalars_of(op);
    parallel_lists(threads, op.x, [&](size_t i, int64_t begin, int64_t end, int64_t block) {
        Buffer x, new_m;
        double lanes[square_lanes] = {}, sum = 0;
        for_pieces(i, begin, end, [&](const Piece& piece) {
            run(kernels, op, scalars, piece, x.memory, new_m.memory);
            kernels.add_squares(op.x[i].dtype, x.memory, 0, piece.count, lanes);
        });
        for (const double lane : lanes) sum += lane;
        parts[block] = sum;
    });
    for (const Tensor& x : op.x) {
        double total = 0;
        for (int64_t b = block_count(x.count(), element_block); b > 0; --b) total += *parts++;
        *sums++ = total;
    }
}

// `squares`: of the directions, where they are normalised.
template <typename Op>
void update(const Kernels& kernels, int threads, const Op& momentum, const FusedUpdate& op,
            const double* squares) {
    const auto scalars = scalars_of(momentum);
    parallel_lists(threads, momentum.x, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        Buffer x;
        const ApplyRange step = scalars_of(op.apply, i);
        const double divisor = squares ? std::sqrt(squares[i]) + op.direction.eps : 1.0;
        for_pieces(i, begin, end, [&](const Piece& piece) {
            run(kernels, momentum, scalars, piece, x.memory);
            if (op.direction.type == FusedDirection::Type::sign) {
                kernels.sign(step.type, x.memory, 0, piece.count);
            }
            if (squares) kernels.divide(step.type, x.memory, x.memory, divisor, 0, piece.count);
            apply_piece(kernels, op.apply, step, piece, x.memory);
        });
    });
}

}  // namespace

size_t CpuBackend::workspace_bytes(const FusedUpdate& op) const {
    if (op.direction.type != FusedDirection::Type::frobenius) return 0;
    return workspace_bytes(FrobeniusNormalize{op.gradients(), op.direction.eps, {}});
}

void CpuBackend::fused_update(const FusedUpdate& op) {
    const std::span<const Tensor> gradients = op.gradients();
    assert(op.apply.weights.size() == gradients.size() && op.apply.x.empty());
    assert(op.apply.radius.size() == gradients.size());
    assert(op.apply.decay.size() == gradients.size());
    assert(op.apply.copies.empty() || op.apply.copies.size() == gradients.size());
    assert(op.apply.size.empty() && op.apply.starts.empty());
    assert(!op.apply.is_split() || op.apply.remainders.size() == gradients.size());
    const bool normalised = op.direction.type == FusedDirection::Type::frobenius;
    if (const Adam* adam = std::get_if<Adam>(&op.momentum)) {
        assert(!normalised);
        return update(kernels_, threads_, *adam, op, nullptr);
    }
    const Momentum& momentum = std::get<Momentum>(op.momentum);
    if (starts(momentum)) {
        for (const Tensor& m : momentum.momentum) zero(m);
    }
    double* squares = nullptr;
    if (normalised) {
        Scratch scratch(op.workspace);
        squares = scratch.take<double>(int64_t(gradients.size()));
        int64_t blocks = 0;
        for (const Tensor& x : gradients) blocks += block_count(x.count(), element_block);
        sum_directions(kernels_, threads_, momentum, scratch.take<double>(blocks), squares);
    }
    update(kernels_, threads_, momentum, op, squares);
}

}  // namespace lmo::cpu
