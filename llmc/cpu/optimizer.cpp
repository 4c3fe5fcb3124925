// The optimizer's elementwise operations over lists of tensors. Scalars are computed in double.
#include <cmath>

#include "llmc/cpu/cpu_backend.h"
#include "llmc/cpu/pieces.h"

namespace lmo::cpu {

namespace {

// The clip factor; an empty tensor means 1.
double factor_of(const Tensor& factor) { return factor.empty() ? 1.0 : *factor.as<double>(); }

}  // namespace

bool starts(const Momentum& op) { return !op.step.empty() && *op.step.as<double>() == 0; }

MomentumRange scalars_of(const Momentum& op) {
    MomentumRange range{};
    range.factor = factor_of(op.factor);
    const bool first = starts(op);  // m is g
    range.u_m = first ? 0.0 : op.u_m;
    range.u_g = first ? op.u_m + op.u_g : op.u_g;
    range.m_m = first ? 0.0 : op.m_m;
    range.m_g = first ? op.m_m + op.m_g : op.m_g;
    return range;
}

AdamRange scalars_of(const Adam& op) {
    const double t = *op.step.as<double>() + 1;
    const double correction1 = 1 - std::pow(op.beta1, t), correction2 = 1 - std::pow(op.beta2, t);
    AdamRange range{};
    range.factor = factor_of(op.factor);
    range.beta1 = op.beta1;
    range.beta2 = op.beta2;
    range.eps = op.eps;
    range.m_scale = (op.eps_inside ? std::sqrt(correction2) : 1.0) / correction1;
    range.v_scale = op.eps_inside ? 1.0 : 1.0 / correction2;
    return range;
}

ApplyRange scalars_of(const Apply& op, size_t index) {
    const double lr = op.lr_scale * *op.rate.as<double>();
    const double size = op.size.empty() ? 1.0 : op.size.as<double>()[index];
    ApplyRange range{};
    range.type = op.is_split() ? DType::f32 : op.weights[index].dtype;
    range.copy_type = op.copies.empty() ? range.type : op.copies[index].dtype;
    range.decay = lr * op.decay[index];
    range.step = lr * op.radius[index] * size;
    range.cautious = op.cautious;
    range.pull = op.starts.empty() ? 0.0 : 1.0 / (*op.step.as<double>() + 2.0);
    return range;
}

void CpuBackend::momentum(const Momentum& op) {
    assert(op.momentum.empty() || op.momentum.size() == op.x.size());
    if (starts(op)) {
        for (const Tensor& m : op.momentum) zero(m);  // whatever is there, it does not count
    }
    const MomentumRange scalars = scalars_of(op);
    parallel_lists(threads_, op.x, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        MomentumRange r = scalars;
        r.type = op.x[i].dtype;
        r.g = r.x = op.x[i].data;
        r.m = r.new_m = op.momentum.empty() ? nullptr : op.momentum[i].data;
        kernels_.momentum(r, begin, end);
    });
}

void CpuBackend::adam(const Adam& op) {
    assert(op.first.size() == op.x.size() && op.second.size() == op.x.size());
    const AdamRange scalars = scalars_of(op);
    parallel_lists(threads_, op.x, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        AdamRange r = scalars;
        r.type = op.x[i].dtype;
        r.g = r.x = op.x[i].data;
        r.m = op.first[i].data;
        r.v = op.second[i].data;
        kernels_.adam(r, begin, end);
    });
}

void CpuBackend::sign(const Sign& op) {
    parallel_lists(threads_, op.x, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        kernels_.sign(op.x[i].dtype, op.x[i].data, begin, end);
    });
}

size_t CpuBackend::workspace_bytes(const FrobeniusNormalize& op) const {
    Scratch scratch;
    scratch.take<double>(int64_t(op.x.size()));
    return scratch.bytes() + workspace_bytes(SumOfSquares{op.x, {}, {}});
}

void CpuBackend::frobenius_normalize(const FrobeniusNormalize& op) {
    Scratch scratch(op.workspace);
    const int64_t count = int64_t(op.x.size());
    const Tensor squares{scratch.take<double>(count), DType::f64, {count}};
    const int64_t rest = int64_t(workspace_bytes(SumOfSquares{op.x, {}, {}}));
    sum_of_squares({op.x, squares, {scratch.take<char>(rest), DType::f32, {rest / 4}}});
    parallel_lists(threads_, op.x, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        const double norm = std::sqrt(squares.as<double>()[i]);
        kernels_.divide(op.x[i].dtype, op.x[i].data, op.x[i].data, norm + op.eps, begin, end);
    });
}

// Split weights are joined for the step of fp32 ones, so that the bits are theirs.
void apply_piece(const Kernels& kernels, const Apply& op, ApplyRange r, const Piece& piece,
                 const void* x) {
    alignas(64) float joined[kPiece];
    uint16_t* high = nullptr;
    int16_t* low = nullptr;
    r.x = x;
    r.w = at(op.weights[piece.index], piece.begin);
    r.copy = op.copies.empty() ? nullptr : at(op.copies[piece.index], piece.begin);
    r.start = op.starts.empty() ? nullptr : at(op.starts[piece.index], piece.begin);
    if (op.is_split()) {
        assert(op.weights[piece.index].dtype == DType::bf16 && op.copies.empty());
        assert(op.remainders[piece.index].dtype == DType::i16);
        high = static_cast<uint16_t*>(r.w);
        low = op.remainders[piece.index].as<int16_t>() + piece.begin;
        kernels.join(high, low, joined, piece.count);
        r.w = joined;
    }
    kernels.apply(r, 0, piece.count);
    if (high) kernels.split(joined, high, low, piece.count);
}

void CpuBackend::apply(const Apply& op) {
    assert(op.x.size() == op.weights.size() && op.radius.size() == op.weights.size());
    assert(op.decay.size() == op.weights.size());
    assert(op.copies.empty() || op.copies.size() == op.weights.size());
    assert(op.size.empty() || op.size.count() == int64_t(op.weights.size()));
    assert(op.starts.empty() || op.starts.size() == op.weights.size());
    assert(!op.is_split() || op.remainders.size() == op.weights.size());
    parallel_lists(threads_, op.weights, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        assert(op.copies.empty() || op.copies[i].count() == op.weights[i].count());
        ApplyRange r = scalars_of(op, i);
        if (op.is_split()) {
            return for_pieces(i, begin, end, [&](const Piece& piece) {
                apply_piece(kernels_, op, r, piece, at(op.x[i], piece.begin));
            });
        }
        r.w = op.weights[i].data;
        r.x = op.x[i].data;
        r.copy = op.copies.empty() ? nullptr : op.copies[i].data;
        r.start = op.starts.empty() ? nullptr : op.starts[i].data;
        kernels_.apply(r, begin, end);
    });
}

void CpuBackend::join_weights(const JoinWeights& op) {
    assert(op.low.size() == op.high.size() && op.out.size() == op.high.size());
    parallel_lists(threads_, op.out, [&](size_t i, int64_t begin, int64_t end, int64_t) {
        assert(op.high[i].dtype == DType::bf16 && op.low[i].dtype == DType::i16);
        assert(op.out[i].dtype == DType::f32);
        kernels_.join(op.high[i].as<uint16_t>() + begin, op.low[i].as<int16_t>() + begin,
                      op.out[i].as<float>() + begin, end - begin);
    });
}

}  // namespace lmo::cpu
