#include <algorithm>
#include <cmath>

#include "llmc/core/error.h"
#include "llmc/train/bench_cases.h"

namespace lmo {

namespace {

bool is_finite(const char* bytes, DType dtype) {
    if (dtype == DType::f64) {
        double value;
        std::memcpy(&value, bytes, sizeof value);
        return std::isfinite(value);
    }
    if (dtype == DType::f32) {
        float value;
        std::memcpy(&value, bytes, sizeof value);
        return std::isfinite(value);
    }
    assert(dtype == DType::bf16);
    uint16_t bits;
    std::memcpy(&bits, bytes, sizeof bits);
    return std::isfinite(bf16_to_float(bits));
}

}  // namespace

// The system may promise memory that it does not have, and later kill who uses it.
Tensor BenchMemory::take(DType dtype, const Shape& shape) {
    const double bytes = static_cast<double>(size_of(dtype)) * static_cast<double>(shape.count());
    if (bytes > backend_.free_bytes()) throw Error("not enough memory is free");
    return arena_.take("tensors", dtype, shape);
}

Tensor BenchMemory::input(DType dtype, const Shape& shape) {
    const Tensor tensor = take(dtype, shape);
    noise_.fill(tensor);
    return tensor;
}

Tensor BenchMemory::output(DType dtype, const Shape& shape) {
    outputs_.push_back(take(dtype, shape));
    noise_.poison(outputs_.back());
    return outputs_.back();
}

Tensor BenchMemory::zeros(DType dtype, const Shape& shape) {
    const Tensor tensor = take(dtype, shape);
    backend_.zero(tensor);
    return tensor;
}

Tensor BenchMemory::scalar(double value) {
    const Tensor tensor = take(DType::f64, {1});
    backend_.copy_in(tensor, &value);
    return tensor;
}

Tensor BenchMemory::ids(const std::vector<int32_t>& values) {
    const Tensor tensor = take(DType::i32, {static_cast<int64_t>(values.size())});
    backend_.copy_in(tensor, values.data());
    return tensor;
}

std::vector<Tensor> BenchMemory::inputs(DType dtype, const std::vector<Shape>& shapes) {
    std::vector<Tensor> tensors;
    for (const Shape& shape : shapes) tensors.push_back(input(dtype, shape));
    return tensors;
}

void BenchMemory::check() {
    for (const Tensor& output : outputs_) {
        const int64_t count = std::min<int64_t>(output.count(), 1024);
        std::vector<char> bytes(static_cast<size_t>(count) * size_of(output.dtype));
        for (const int64_t begin : {int64_t{0}, output.count() - count}) {
            backend_.copy_out(bytes.data(), output.slice(begin, {count}));
            for (size_t i = 0; i < bytes.size(); i += size_of(output.dtype)) {
                if (is_finite(&bytes[i], output.dtype)) continue;
                throw Error("left a value unwritten, or wrote one that is not finite");
            }
        }
    }
}

}  // namespace lmo
