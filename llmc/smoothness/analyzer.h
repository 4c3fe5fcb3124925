// The trajectory analyzer: how fast the gradient changes along the path of training, in the norms
// of the optimizer (arXiv 2602.05813, section 5; dev/docs/smoothness.md).
//
//   K^t = || grad f(x^{t+1}; xi_t) - grad f(x^t; xi_t) ||_*  /  || x^{t+1} - x^t ||
//
// with the same batch xi_t in both gradients. Over several matrices the primal norm is the largest
// and the dual norm the sum. Beside it the noise floor: the same quotient with the difference that
// another batch alone makes, || grad f(x^{t+1}; xi') - grad f(x^{t+1}; xi_t) ||_*. An estimate that
// compares gradients of different batches measures that floor.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/norm/norm.h"

namespace lmo {

struct SmoothnessSample {
    struct Layer {
        std::string name;
        double weight_change, gradient_change, noise_change;  // norms, not quotients
    };
    std::vector<Layer> layers;
    // Every block in the norm of its own group (BlockNorm): what (L0, L1)-smoothness, K = L0 + L1
    // ||grad f(x)||_*, is fitted to (arXiv 2505.13416).
    struct Block {
        std::string name;
        double weight_change;
        double gradient;         // ||grad f(x'; xi)||_*
        double gradient_change;  // of the same batch
        double other_change;  // ||grad f(x'; xi') - grad f(x; xi)||_*: as published, batches differ
    };
    std::vector<Block> blocks;

    double weight_change() const;    // the largest
    double gradient_change() const;  // the sum
    double noise_change() const;     // the sum
    // Whether the weights moved at all (1e-12 or more): else there is no quotient. A norm is NaN
    // where a value is not finite.
    bool moved() const { return weight_change() >= 1e-12; }
};

class SmoothnessAnalyzer {
  public:
    // Measures every matrix of the list (fused q, k, v as one; gains are left out) by `norm`, and
    // each of `blocks` by its own. The buffers live on `backend`; norms are computed in fp64 on
    // `host`, which may be the same one. Takes host memory for three copies of the parameters.
    SmoothnessAnalyzer(Backend& backend, Backend& host, std::unique_ptr<Norm> norm,
                       const ParameterList& parameters, std::vector<BlockNorm> blocks = {});

    // Before an update: the weights, and their gradient over a batch. Waits. Here and below
    // `remainders` belong to bf16 weights that are split (core/split_float.h).
    void before(const ParameterBuffer& weights, const ParameterBuffer& gradients,
                const ParameterBuffer& remainders = {});
    // After it: the new weights, and their gradient over the same batch.
    void after(const ParameterBuffer& weights, const ParameterBuffer& gradients,
               const ParameterBuffer& remainders = {});
    // The gradient at the new weights over another batch; completes the sample.
    SmoothnessSample other_batch(const ParameterBuffer& gradients);

  private:
    using Values = std::vector<std::vector<double>>;  // of each parameter

    Values to_host(const ParameterBuffer& buffer, const ParameterBuffer& remainders = {}) const;
    double primal(const Norm& norm, const std::vector<double>& x, const Shape& shape) const;
    double dual(const Norm& norm, const std::vector<double>& x, const Shape& shape) const;

    Backend& backend_;
    Backend& host_;
    std::unique_ptr<Norm> norm_;
    std::vector<ParameterBlock> matrices_;
    std::vector<BlockNorm> blocks_;
    Values weights_, first_gradients_, gradients_;  // gradients_: at the new weights
    SmoothnessSample sample_;
};

}  // namespace lmo
