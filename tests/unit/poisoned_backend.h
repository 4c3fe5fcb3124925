// A backend that damages what a training run computes, at chosen updates: the program itself has no
// hook for it. An update is known by the tokens of one of its micro-batches, so that the damage
// comes again when a rollback or a resumed run repeats it.
#pragma once

#include <cstring>
#include <functional>
#include <vector>

#include "llmc/device/timed_backend.h"

namespace lmo {

struct Poison {
    enum class Where { gradient, loss, weight, micro_gradient };
    Where where;
    double value;
    std::vector<int32_t> tokens;  // inputs of the micro-batch
    int tensor = 0;  // gradient: index in the parameter list; weight: in the first group
    bool once = false;
};

class PoisonedBackend : public TimedBackend {
  public:
    explicit PoisonedBackend(Backend& inner) : TimedBackend(inner), inner_(inner) {}

    std::vector<Poison> poisons;
    // Called before the tokens of a batch are copied.
    std::function<void(const std::vector<int32_t>&)> on_batch;

    // Training measures the device first, which no test needs: with no room it stops at once.
    double free_bytes() const override { return 1.0; }
    void gemm(const Gemm& op) override {
        if (op.c.shape != Shape{256, 256}) TimedBackend::gemm(op);
    }

    void copy_in(const Tensor& to, const void* host) override {
        TimedBackend::copy_in(to, host);
        if (to.dtype != DType::i32) return;
        std::vector<int32_t> tokens(static_cast<size_t>(to.count()));
        std::memcpy(tokens.data(), host, to.bytes());
        if (on_batch) on_batch(tokens);
        for (const Poison& poison : poisons) {
            if (poison.tokens == tokens) armed_.push_back(poison);
        }
        std::erase_if(poisons, [&](const Poison& p) { return p.once && p.tokens == tokens; });
    }
    void embedding_backward(const EmbeddingBackward& op) override {
        TimedBackend::embedding_backward(op);
        damage(Poison::Where::micro_gradient, [&](const Poison&) { return op.dtable; });
    }
    void sum(const Sum& op) override {
        TimedBackend::sum(op);
        damage(Poison::Where::loss, [&](const Poison&) { return op.out; });
    }
    void sum_of_squares(const SumOfSquares& op) override {
        damage(Poison::Where::gradient,
               [&](const Poison& p) { return op.tensors[static_cast<size_t>(p.tensor)]; });
        TimedBackend::sum_of_squares(op);
    }
    void apply(const Apply& op) override {
        TimedBackend::apply(op);
        damage_weight(op);
    }
    void fused_update(const FusedUpdate& op) override {
        TimedBackend::fused_update(op);
        damage_weight(op.apply);
    }
    void spectral_update(const SpectralUpdate& op) override {
        TimedBackend::spectral_update(op);
        damage_weight(op.apply);
    }

  private:
    void damage_weight(const Apply& op) {
        damage(Poison::Where::weight,
               [&](const Poison& p) { return op.weights[static_cast<size_t>(p.tensor)]; });
    }
    // Writes the value of each armed poison of this kind into the last element of its tensor.
    template <typename Target>
    void damage(Poison::Where where, Target target) {
        for (const Poison& poison : armed_) {
            if (poison.where != where) continue;
            const Tensor whole = target(poison);
            const Tensor element = whole.slice(whole.count() - 1, {1});
            const float narrow = static_cast<float>(poison.value);
            inner_.copy_in(element, element.dtype == DType::f64
                                        ? static_cast<const void*>(&poison.value)
                                        : static_cast<const void*>(&narrow));
        }
        std::erase_if(armed_, [&](const Poison& poison) { return poison.where == where; });
    }

    Backend& inner_;
    std::vector<Poison> armed_;
};

}  // namespace lmo
