// What `train_gpt bench kernels` measures: every operation of the border, on the shapes of a model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "llmc/device/arena.h"
#include "llmc/model/llama.h"
#include "llmc/train/measure.h"

namespace lmo {

// The model of a configuration file; without one LLaMA 124M.
LlamaConfig bench_model(const std::string& config);

constexpr double kGpuFlops = 2e13;  // as fast as a GPU, and so are the sizes

// The distinct shapes of the hidden matrices, q, k and v as one, and how many there are of each.
// `wide`: a tall matrix counts as its transpose.
struct MatrixBatch {
    Shape shape;
    int64_t count;
};
std::vector<MatrixBatch> matrix_batches(const ParameterList& parameters, bool wide);

struct BenchSizes {
    LlamaConfig model;
    ModelPrecision precision;
    DType newton_schulz;             // the type inside of it
    bool library_attention = false;  // measured too
    int64_t sequences = 0, positions = 0;
    int64_t chunk_rows = 0;  // rows of logits at a time
    int64_t matrices = 0;    // of one shape that Newton-Schulz takes, at most

    int64_t rows() const { return sequences * positions; }
};

// The tensors of one operation. What it is to write starts as NaN.
class BenchMemory {
  public:
    BenchMemory(Backend& backend, const Noise& noise)
        : backend_(backend), noise_(noise), arena_(backend) {}

    Tensor input(DType dtype, const Shape& shape);   // random
    Tensor output(DType dtype, const Shape& shape);  // checked for NaN by check()
    Tensor zeros(DType dtype, const Shape& shape);
    Tensor scalar(double value);                     // fp64 [1]
    Tensor ids(const std::vector<int32_t>& values);  // i32
    std::vector<Tensor> inputs(DType dtype, const std::vector<Shape>& shapes);

    // Keeps a value, spans of which go into an operation, as long as the memory.
    template <class Value>
    const Value& keep(Value value) {
        const auto kept = std::make_shared<const Value>(std::move(value));
        kept_.push_back(kept);
        return *kept;
    }
    // What issues the operation, with the workspace that it asks for.
    template <class Operation>
    Call call(void (Backend::*run)(const Operation&), Operation operation) {
        if constexpr (requires { operation.workspace; }) {
            operation.workspace = workspace(backend_.workspace_bytes(operation));
        }
        return [this, run, operation] { (backend_.*run)(operation); };
    }
    Tensor workspace(size_t bytes) {
        return take(DType::f32, {static_cast<int64_t>((bytes + 3) / 4)});
    }
    Backend& backend() { return backend_; }

    // Throws an Error where the first or last values of an output are not finite.
    void check();

  private:
    Tensor take(DType dtype, const Shape& shape);

    Backend& backend_;
    const Noise& noise_;
    Arena arena_;
    std::vector<Tensor> outputs_;
    std::vector<std::shared_ptr<const void>> kept_;
};

// `bytes`: what the operation must move by its contract, each tensor read or written once, when it
// is bound by memory; else 0 and `flops`, those of the plain algorithm.
struct BenchCase {
    std::string name, shape;
    DType dtype;
    double bytes, flops;
    std::function<Call(BenchMemory&)> make;
};

std::vector<BenchCase> bench_cases(const BenchSizes& sizes);

// ---- how the list is made -----------------------------------------------------------------------

struct BenchCases {
    explicit BenchCases(const BenchSizes& sizes);

    template <class Make>
    void memory_bound(const std::string& name, const std::string& shape, DType dtype, double bytes,
                      Make make) {
        list.push_back({name, shape, dtype, bytes, 0.0, make});
    }
    template <class Make>
    void compute_bound(const std::string& name, const std::string& shape, DType dtype, double flops,
                       Make make) {
        list.push_back({name, shape, dtype, 0.0, flops, make});
    }

    const BenchSizes& sizes;
    DType compute, residual, master;
    double c, r, m;  // bytes of an element of each
    std::vector<BenchCase> list;
};
void add_model_cases(BenchCases& b);
void add_optimizer_cases(BenchCases& b);
void add_split_cases(BenchCases& b, const std::vector<Shape>& shapes);
void add_lmo_cases(BenchCases& b);

template <class... Extents>
std::string joined(int64_t first, Extents... others) {  // "3x4x5"
    std::string text = std::to_string(first);
    ((text += "x" + std::to_string(others)), ...);
    return text;
}

}  // namespace lmo
