// Cases of updates of split weights (core/split_float.h), beside those of fp32 weights with a copy
// in bench_cases_optimizer.cpp. Bytes count each tensor once for each time that it has to be read
// or written:
//
//   apply.split                w twice in both halves, x
//   fused_update.lion_split    g, m twice, w twice in both halves; .adamw_split also v twice
//   join_weights               both halves, fp32
#include "llmc/train/bench_cases.h"

namespace lmo {

namespace {

constexpr double kFloat = 4, kHalves = 4;  // bytes of an element: fp32, both halves

struct SplitLists {
    const std::vector<Tensor>&high, &low;

    SplitLists(BenchMemory& memory, const std::vector<Shape>& shapes)
        : high(memory.keep(memory.inputs(DType::bf16, shapes))),
          low(memory.keep(zeros(memory, DType::i16, shapes))) {}

    static std::vector<Tensor> zeros(BenchMemory& memory, DType type,
                                     const std::vector<Shape>& shapes) {
        std::vector<Tensor> tensors;
        for (const Shape& shape : shapes) tensors.push_back(memory.zeros(type, shape));
        return tensors;
    }
};

Apply step(BenchMemory& memory, const std::vector<Shape>& shapes) {
    const SplitLists lists(memory, shapes);
    Apply op{lists.high,
             {},
             {},
             memory.scalar(1e-6),
             1.0,
             memory.keep(std::vector<double>(shapes.size(), 1.0)),
             memory.keep(std::vector<double>(shapes.size(), 0.1))};
    op.remainders = lists.low;
    return op;
}

}  // namespace

void add_split_cases(BenchCases& b, const std::vector<Shape>& shapes) {
    int64_t elements = 0;
    for (const Shape& shape : shapes) elements += shape.count();
    const double count = static_cast<double>(elements);
    const std::string what = std::to_string(elements) + " in " + std::to_string(shapes.size());
    const auto inputs = [=](BenchMemory& memory) -> const std::vector<Tensor>& {
        return memory.keep(memory.inputs(DType::f32, shapes));
    };
    const auto add = [&](const std::string& name, double bytes, auto make) {
        b.memory_bound(name, what, DType::f32, count * bytes, make);
    };
    add("apply.split", kFloat + 2 * kHalves, [=](BenchMemory& memory) {
        Apply op = step(memory, shapes);
        op.x = inputs(memory);
        return memory.call(&Backend::apply, op);
    });
    add("fused_update.lion_split", 3 * kFloat + 2 * kHalves, [=](BenchMemory& memory) {
        const Momentum momentum{
            inputs(memory), inputs(memory), memory.scalar(1.0), 0.9, 0.1, 0.99, 0.01};
        return memory.call(
            &Backend::fused_update,
            FusedUpdate{momentum, {FusedDirection::Type::sign}, step(memory, shapes)});
    });
    add("fused_update.adamw_split", 5 * kFloat + 2 * kHalves, [=](BenchMemory& memory) {
        const Adam adam{inputs(memory),
                        inputs(memory),
                        memory.keep(SplitLists::zeros(memory, DType::f32, shapes)),
                        memory.scalar(1.0),
                        memory.scalar(10.0),
                        0.9,
                        0.95,
                        1e-8};
        return memory.call(&Backend::fused_update, FusedUpdate{adam, {}, step(memory, shapes)});
    });
    add("join_weights", kHalves + kFloat, [=](BenchMemory& memory) {
        const SplitLists lists(memory, shapes);
        std::vector<Tensor> out;
        for (const Shape& shape : shapes) out.push_back(memory.output(DType::f32, shape));
        return memory.call(&Backend::join_weights,
                           JoinWeights{lists.high, lists.low, memory.keep(out)});
    });
}

}  // namespace lmo
