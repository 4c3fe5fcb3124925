#include "llmc/train/weights.h"

#include <algorithm>

namespace lmo {

Weights::Weights(Backend& backend, Arena& arena, const ParameterList& parameters,
                 const ModelPrecision& precision, bool trainable)
    : backend_(backend), parameters_(parameters) {
    const Shape all = {parameters.buffer_length()};
    const bool separate = precision.master != precision.compute;
    // Without masters the one buffer holds compute type.
    const DType kept = trainable ? precision.master : precision.compute;
    master_ = {&parameters_, arena.take("weights", kept, all)};
    if (trainable && separate) {
        copies_ = {&parameters_, arena.take("weights (compute copy)", precision.compute, all)};
    }
    if (trainable) squares_ = arena.take("weights", DType::f64, {parameters_.size()});
    if (master_.flat.empty()) return;
    for (int i = 0; i < parameters_.size(); ++i) views_.push_back(master_[i]);
    // The gaps between blocks are never used, but buffer-wide copies read them.
    backend_.zero(master_.flat);
}

void Weights::upload(int64_t offset, const std::vector<double>& values) {
    copy_in_converted(backend_, master_.flat.slice(offset, {static_cast<int64_t>(values.size())}),
                      values);
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
    backend_.sum_of_squares({views_, squares_, workspace});
    std::vector<double> result(views_.size());
    backend_.copy_out(result.data(), squares_);
    return result;
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
    if (copies_.flat.empty()) return sources;
    for (int i = 0; i < parameters_.size(); ++i) {
        sources.push_back(tensor_source(backend_, parameters_[i].name + ".master", master_[i]));
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
