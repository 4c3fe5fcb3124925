// The parameter list: name, global shape and role of every trainable tensor, in memory order. It is
// the language that model, optimizer, ranks and checkpoints share; none of them knows the others.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "llmc/core/tensor.h"

namespace lmo {

// matrix: hidden 2-D weights; gain: the 1-D scales of RMSNorm.
enum class Role { matrix, embedding, head, gain };
std::string to_string(Role role);

struct Parameter {
    std::string name;  // Hugging Face name, e.g. "model.layers.0.self_attn.q_proj.weight"
    Shape shape;       // [rows = outputs, columns = inputs], or [n] for a gain
    Role role;
    // Adjacent parameters of equal, non-empty `fused` are one matrix, stacked by rows, wherever a
    // matrix norm is taken with qkv = fused (and in the model's GEMM).
    std::string fused;
    double init_std;  // N(0, init_std^2); 0 means all ones
    // Starts right behind the previous parameter even where that is not a multiple of 64 elements,
    // so that a GEMM reads both as one matrix; to the norms they stay two.
    bool adjacent = false;
    // How far the backward pass must go for its gradient: layer number, 0 the first; -1 when it is
    // there before any layer is reached (head, last norm, a tied embedding).
    int layer = -1;
};

// One matrix (or vector) that a norm acts on: `count` adjacent parameters from `first` on.
struct ParameterBlock {
    std::string name;
    int first, count;
    Shape shape;
    Role role;
    int layer = -1;  // of all its parameters
};

class ParameterList {
  public:
    void add(Parameter parameter);

    int size() const { return static_cast<int>(parameters_.size()); }
    const Parameter& operator[](int index) const { return parameters_[index]; }
    auto begin() const { return parameters_.begin(); }
    auto end() const { return parameters_.end(); }

    int find(const std::string& name) const;  // index, or -1
    int64_t count() const { return count_; }  // elements of all tensors
    // First element of a tensor in a flat buffer. Fused and `adjacent` parameters leave no gap; all
    // others start at a multiple of 64 elements, so the buffer is a little longer than count().
    int64_t offset(int index) const { return offsets_[index]; }
    int64_t buffer_length() const { return length_; }

    // The blocks in memory order; with fuse = false every parameter is its own block.
    std::vector<ParameterBlock> blocks(bool fuse) const;

  private:
    std::vector<Parameter> parameters_;
    std::vector<int64_t> offsets_;
    int64_t count_ = 0, length_ = 0;
};

// One flat tensor laid out by a parameter list: weights, gradients, one optimizer state.
struct ParameterBuffer {
    const ParameterList* list = nullptr;
    Tensor flat;  // [list->buffer_length()]

    Tensor operator[](int index) const {
        return flat.slice(list->offset(index), (*list)[index].shape);
    }
    Tensor operator[](const ParameterBlock& block) const {
        return flat.slice(list->offset(block.first), block.shape);
    }
};

}  // namespace lmo
