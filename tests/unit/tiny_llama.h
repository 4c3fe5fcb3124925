// A small model with its buffers on a backend, driven from the host in fp64: for tests.
#pragma once

#include <cassert>
#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "llmc/core/random.h"
#include "llmc/device/arena.h"
#include "llmc/model/llama.h"

namespace lmo {

inline constexpr ModelPrecision kFp64{DType::f64, DType::f64, DType::f64};
inline constexpr ModelPrecision kFp32{DType::f32, DType::f32, DType::f32};
inline constexpr ModelPrecision kBf16{DType::bf16, DType::f32, DType::f32};
inline constexpr ModelPrecision kBf16Residual{DType::bf16, DType::bf16, DType::f32};

// Sequences [B, T] of ids, on the host.
struct Ids {
    int64_t sequences, positions;
    std::vector<int32_t> values;
};

inline Ids random_ids(int64_t sequences, int64_t positions, int64_t vocabulary, uint64_t seed) {
    Ids ids{sequences, positions, {}};
    for (int64_t i = 0; i < sequences * positions; ++i) {
        const uint64_t bits = random_bits(seed, 99, static_cast<uint64_t>(i));
        ids.values.push_back(static_cast<int32_t>(bits % static_cast<uint64_t>(vocabulary)));
    }
    return ids;
}

// Weights far from the linear regime of attention and SwiGLU, gains around one.
inline std::vector<double> lively_weights(const ParameterList& list, uint64_t seed) {
    std::vector<double> flat(static_cast<size_t>(list.buffer_length()), 0.0);
    for (int p = 0; p < list.size(); ++p) {
        const bool gain = list[p].role == Role::gain;
        const double std = gain ? 0.3 : 1.5 / std::sqrt(static_cast<double>(list[p].shape[1]));
        for (int64_t i = 0; i < list[p].shape.count(); ++i) {
            flat[static_cast<size_t>(list.offset(p) + i)] =
                gain +
                std * random_normal(seed, static_cast<uint64_t>(p), static_cast<uint64_t>(i));
        }
    }
    return flat;
}

class TinyLlama {
  public:
    TinyLlama(const LlamaConfig& model, const ModelPrecision& types, int64_t batch,
              bool training = true, int64_t max_logits = int64_t{1} << 23, int threads = 1)
        : config(model),
          list(llama_parameters(model)),
          precision(types),
          backend(make_cpu_backend(threads)),
          arena(*backend),
          llama(*backend, arena, config, list, precision, batch, training, max_logits) {
        const Shape shape{list.buffer_length()}, ids{batch * config.seq_len};
        master_ = {&list, arena.take("weights", precision.master, shape)};
        weights = {&list, arena.take("weights", precision.compute, shape)};
        gradients_ = {&list, arena.take("gradients", precision.master, shape)};
        tokens = arena.take("tokens", DType::i32, ids);
        targets_ = arena.take("tokens", DType::i32, ids);
        loss_sum_ = arena.take("loss", DType::f64, {1});
        backend->zero(gradients_.flat);
    }

    void set_weights(const std::vector<double>& flat) {
        write(master_.flat, flat);
        backend->copy(weights.flat, master_.flat);
    }
    void zero_gradients() { backend->zero(gradients_.flat); }
    std::vector<double> gradients() { return read(gradients_.flat); }

    // The loss of this call alone; gradients accumulate.
    double forward_backward(const Ids& ids, const Ids& goals, double scale = 1.0,
                            int64_t lowest = 0, const StepSections& sections = {}) {
        backend->zero(loss_sum_);
        llama.forward_backward(weights, gradients_, put(tokens, ids), put(targets_, goals), scale,
                               loss_sum_, lowest, sections);
        return read(loss_sum_)[0];
    }
    double evaluate(const Ids& ids, const Ids& goals, double scale = 1.0) {
        backend->zero(loss_sum_);
        llama.evaluate(weights, put(tokens, ids), put(targets_, goals), scale, loss_sum_);
        return read(loss_sum_)[0];
    }
    std::vector<double> last_logits(const Ids& ids) {
        return read(llama.last_logits(weights, put(tokens, ids)));
    }

    std::vector<double> next_logits(int32_t id, int64_t position) {
        return read(llama.next_logits(weights, put(tokens, {1, 1, {id}}), position));
    }

    std::vector<double> read(const Tensor& tensor) {
        const size_t count = static_cast<size_t>(tensor.count());
        if (tensor.dtype == DType::f64) return read_as<double>(tensor, [](double x) { return x; });
        if (tensor.dtype == DType::f32) return read_as<float>(tensor, [](float x) { return x; });
        assert(tensor.dtype == DType::bf16 && count > 0);
        return read_as<uint16_t>(tensor, bf16_to_float);
    }

    LlamaConfig config;
    ParameterList list;
    ModelPrecision precision;
    std::unique_ptr<Backend> backend;
    Arena arena;
    Llama llama;
    ParameterBuffer weights;  // compute type
    Tensor tokens;            // [batch * seq_len]

  private:
    Tensor put(const Tensor& place, const Ids& ids) {
        const Tensor tensor = place.slice(0, {ids.sequences, ids.positions});
        backend->copy_in(tensor, ids.values.data());
        return tensor;
    }
    void write(const Tensor& tensor, const std::vector<double>& values) {
        const std::vector<float> narrow(values.begin(), values.end());
        const bool wide = tensor.dtype == DType::f64;
        backend->copy_in(tensor, wide ? static_cast<const void*>(values.data()) : narrow.data());
    }
    template <class Element, class Convert>
    std::vector<double> read_as(const Tensor& tensor, Convert convert) {
        std::vector<Element> raw(static_cast<size_t>(tensor.count()));
        backend->copy_out(raw.data(), tensor);
        std::vector<double> values;
        for (Element x : raw) values.push_back(convert(x));
        return values;
    }

    ParameterBuffer master_, gradients_;
    Tensor targets_, loss_sum_;
};

}  // namespace lmo
