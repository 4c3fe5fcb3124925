#include "llmc/train/weights.h"

#include <algorithm>

#include "llmc/core/split_float.h"

namespace lmo {

namespace {

constexpr int64_t kJoinedPiece = 1 << 20;  // elements

int64_t pieces_of(const Parameter& parameter) {
    return (parameter.shape.count() + kJoinedPiece - 1) / kJoinedPiece;
}

}  // namespace

Weights::Weights(Backend& backend, Arena& arena, const ParameterList& parameters,
                 const ModelPrecision& precision, bool trainable)
    : backend_(backend), parameters_(parameters) {
    const Shape all = {parameters.buffer_length()};
    const bool split = trainable && precision.split;
    const bool separate = precision.master != precision.compute && !split;
    assert(!split || (precision.compute == DType::bf16 && precision.master == DType::f32));
    // Without masters, or where they are split, the one buffer holds compute type.
    const DType kept = trainable && !split ? precision.master : precision.compute;
    master_ = {&parameters_, arena.take("weights", kept, all)};
    if (trainable && separate) {
        copies_ = {&parameters_, arena.take("weights (compute copy)", precision.compute, all)};
    }
    if (split) {
        remainders_ = {&parameters_, arena.take("weights (remainders)", DType::i16, all)};
        joined_ = arena.take("weights (remainders)", DType::f32,
                             {std::min(kJoinedPiece, parameters_.buffer_length())});
    }
    int64_t sums = split ? 0 : parameters_.size();
    if (split) {
        for (const Parameter& parameter : parameters_) sums += pieces_of(parameter);
    }
    if (trainable) squares_ = arena.take("weights", DType::f64, {sums});
    if (master_.flat.empty()) return;
    for (int i = 0; i < parameters_.size(); ++i) views_.push_back(master_[i]);
    // The gaps between blocks are never used, but buffer-wide copies read them.
    backend_.zero(master_.flat);
    if (split) backend_.zero(remainders_.flat);
}

void Weights::upload(int64_t offset, const std::vector<double>& values) {
    const Shape shape = {static_cast<int64_t>(values.size())};
    if (!is_split()) return copy_in_converted(backend_, master_.flat.slice(offset, shape), values);
    std::vector<uint16_t> high(values.size());
    std::vector<int16_t> low(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
        const SplitFloat halves = split_float(static_cast<float>(values[i]));
        high[i] = halves.high;
        low[i] = halves.low;
    }
    backend_.copy_in(master_.flat.slice(offset, shape), high.data());
    backend_.copy_in(remainders_.flat.slice(offset, shape), low.data());
}

void Weights::refresh_copies() { refresh_copies(0, master_.flat.count()); }

void Weights::refresh_copies(int64_t offset, int64_t count) {
    if (copies_.flat.empty()) return;
    backend_.copy(copies_.flat.slice(offset, {count}), master_.flat.slice(offset, {count}));
}

void Weights::initialise(uint64_t seed) {
    settle();
    for (int i = 0; i < parameters_.size(); ++i) {
        upload(parameters_.offset(i), initial_values(parameters_, i, seed));
    }
    refresh_copies();
}

void Weights::set(const std::function<std::vector<double>(const Parameter&)>& read) {
    settle();
    for (int i = 0; i < parameters_.size(); ++i) {
        upload(parameters_.offset(i), read(parameters_[i]));
    }
    refresh_copies();
}

std::vector<double> Weights::squares(const Tensor& workspace) {
    settle();
    if (is_split()) return split_squares(workspace);
    backend_.sum_of_squares({views_, squares_, workspace});
    std::vector<double> result(views_.size());
    backend_.copy_out(result.data(), squares_);
    return result;
}

// Piece by piece, so that the weights are never there a second time.
std::vector<double> Weights::split_squares(const Tensor& workspace) const {
    int64_t slot = 0;
    for (int i = 0; i < parameters_.size(); ++i) {
        const int64_t begin = parameters_.offset(i), end = begin + parameters_[i].shape.count();
        for (int64_t at = begin; at < end; at += kJoinedPiece) {
            const Shape shape = {std::min(kJoinedPiece, end - at)};
            const Tensor high = master_.flat.slice(at, shape);
            const Tensor low = remainders_.flat.slice(at, shape), piece = joined_.slice(0, shape);
            backend_.join_weights({{&high, 1}, {&low, 1}, {&piece, 1}});
            backend_.sum_of_squares({{&piece, 1}, squares_.slice(slot++, {1}), workspace});
        }
    }
    std::vector<double> parts(static_cast<size_t>(slot));
    backend_.copy_out(parts.data(), squares_);
    std::vector<double> result;
    auto part = parts.begin();
    for (const Parameter& parameter : parameters_) {
        result.push_back(0.0);
        for (int64_t n = pieces_of(parameter); n > 0; --n) result.back() += *part++;
    }
    return result;
}

void Weights::read_joined(int parameter, void* host) const {
    const Tensor upper = master_[parameter], lower = remainders_[parameter];
    std::vector<uint16_t> high(static_cast<size_t>(upper.count()));
    std::vector<int16_t> low(high.size());
    backend_.copy_out(high.data(), upper);
    backend_.copy_out(low.data(), lower);
    float* const to = static_cast<float*>(host);
    for (size_t i = 0; i < high.size(); ++i) to[i] = join_float({high[i], low[i]});
}

std::vector<TensorSource> Weights::model_sources() {
    std::vector<TensorSource> sources;
    for (int i = 0; i < parameters_.size(); ++i) {
        sources.push_back(tensor_source(backend_, parameters_[i].name, compute()[i]));
    }
    return sources;
}

std::vector<TensorSource> Weights::master_sources() {
    settle();
    std::vector<TensorSource> sources;
    if (!has_master_sources()) return sources;
    for (int i = 0; i < parameters_.size(); ++i) {
        const std::string name = parameters_[i].name + ".master";
        if (is_split()) {
            sources.push_back({name, DType::f32, extents(parameters_[i].shape),
                               [this, i](void* host) { read_joined(i, host); }});
        } else {
            sources.push_back(tensor_source(backend_, name, master_[i]));
        }
    }
    return sources;
}

TensorSource tensor_source(Backend& backend, const std::string& name, const Tensor& tensor) {
    return {name, tensor.dtype, extents(tensor.shape),
            [&backend, tensor](void* host) { backend.copy_out(host, tensor); }};
}

namespace {

template <typename T, typename Convert>
void copy_in_as(Backend& backend, const Tensor& to, const std::vector<double>& values,
                Convert convert) {
    std::vector<T> host(values.size());
    std::transform(values.begin(), values.end(), host.begin(), convert);
    backend.copy_in(to, host.data());
}

}  // namespace

void copy_in_converted(Backend& backend, const Tensor& to, const std::vector<double>& values) {
    assert(to.count() == static_cast<int64_t>(values.size()));
    switch (to.dtype) {
        case DType::f64:
            backend.copy_in(to, values.data());
            break;
        case DType::f32:
            copy_in_as<float>(backend, to, values, [](double v) { return static_cast<float>(v); });
            break;
        case DType::bf16:
            copy_in_as<uint16_t>(backend, to, values,
                                 [](double v) { return float_to_bf16(static_cast<float>(v)); });
            break;
        default:
            assert(!"weights are fp64, fp32 or bf16");
    }
}

std::vector<int64_t> extents(const Shape& shape) {
    std::vector<int64_t> result;
    for (int axis = 0; axis < shape.rank(); ++axis) result.push_back(shape[axis]);
    return result;
}

}  // namespace lmo
