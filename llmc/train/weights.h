// The weights of a run on the device: exact masters, and the copies in compute type that the GEMMs
// read (the masters themselves when the types are equal). Or split (core/split_float.h): the bf16
// weights that the GEMMs read and 16-bit remainders, which together are the exact fp32 masters.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"
#include "llmc/io/safetensors.h"
#include "llmc/model/llama.h"

namespace lmo {

class Weights {
  public:
    // `trainable`: with masters; else only what a forward pass reads.
    Weights(Backend& backend, Arena& arena, const ParameterList& parameters,
            const ModelPrecision& precision, bool trainable);

    // These first wait for weights that are on their way. The first three are what an update
    // changes: Apply in device/optimizer_operations.h.
    const ParameterBuffer& master() {  // bf16 where split
        settle();
        return master_;
    }
    const ParameterBuffer& copies() {  // empty when master is compute
        settle();
        return copies_;
    }
    const ParameterBuffer& remainders() {  // empty unless split
        settle();
        return remainders_;
    }
    const ParameterBuffer& compute() {
        settle();
        return copies_.flat.empty() ? master_ : copies_;
    }

    // Weights come from other ranks until `finish` has been called, which the next access does.
    void expect(std::function<void()> finish) { finish_ = std::move(finish); }
    void settle() {
        if (finish_) std::exchange(finish_, nullptr)();
    }

    // The start of a run: random, or tensor by tensor from wherever `read` gets them.
    void initialise(uint64_t seed);
    void set(const std::function<std::vector<double>(const Parameter&)>& read);

    // After the masters were changed from outside: all, or elements [offset, offset + count).
    void refresh_copies();
    void refresh_copies(int64_t offset, int64_t count);

    // The sum of squares of each trainable tensor: finite exactly where all its elements are.
    // Waits. The workspace is that of SumOfSquares over the same tensors.
    std::vector<double> squares(const Tensor& workspace);

    // What a checkpoint stores: the weights in compute type, and "NAME.master" where that is not
    // exact: fp32, of split weights too.
    std::vector<TensorSource> model_sources();
    std::vector<TensorSource> master_sources();
    bool has_master_sources() const { return !copies_.flat.empty() || is_split(); }

  private:
    bool is_split() const { return !remainders_.flat.empty(); }
    void upload(int64_t offset, const std::vector<double>& values);
    std::vector<double> split_squares(const Tensor& workspace) const;
    void read_joined(int parameter, void* host) const;

    Backend& backend_;
    const ParameterList& parameters_;
    ParameterBuffer master_, copies_, remainders_;
    std::vector<Tensor> views_;  // of master_
    Tensor squares_;             // fp64, one each; of split weights one a piece
    Tensor joined_;              // fp32, of a piece of split weights
    std::function<void()> finish_;
};

// Checkpoint entries of device tensors: fetched when they are written.
TensorSource tensor_source(Backend& backend, const std::string& name, const Tensor& tensor);

// Copies host values into a device tensor, converting to its type.
void copy_in_converted(Backend& backend, const Tensor& to, const std::vector<double>& values);

std::vector<int64_t> extents(const Shape& shape);

}  // namespace lmo
