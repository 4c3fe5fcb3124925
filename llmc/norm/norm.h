// A norm as one object. For a group of weights a norm fixes the steepest-descent direction (the
// linear minimisation oracle, LMO), how large the dual norm can be against the primal one (kappa,
// the scale of the adaptive warm-up), and what the direction costs.
//
// For the whole network the norm is the maximum over its tensors, the dual norm the sum.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/backend.h"

namespace lmo {

enum class NormType { none, sign, frobenius, spectral, rms, row, column, schatten };
std::string to_string(NormType type);

// A Newton-Schulz coefficient set cut or extended to a number of steps, with the normalisation that
// belongs to it (algorithms of the sets: see newton_schulz.h).
struct NewtonSchulzSet {
    std::vector<NewtonSchulzStep> steps;
    double norm_scale = 1.0, eps = 1e-7;
    NewtonSchulzForm form = NewtonSchulzForm::automatic;
    std::vector<int> restarts = {};   // of the gram form
    std::optional<DType> inner = {};  // f16, bf16 or f32; none: what the backend prefers
};

struct NormConfig {
    NormType type = NormType::none;
    NewtonSchulzSet newton_schulz;  // spectral only
    double p = 2.0;                 // schatten only: >= 1, may be infinite
};

// Where a tensor may be cut so that the direction of the whole is those of its parts.
enum class Cut { nowhere, between_rows, anywhere };

class Norm {
  public:
    virtual ~Norm() = default;
    virtual NormType type() const = 0;
    virtual Cut cut() const { return Cut::nowhere; }

    // Throws UsageError naming `tensor` when the norm is not defined for the shape.
    virtual void check(const std::string& tensor, const Shape& shape) const = 0;
    // Replaces each x by dir(x) / scale, with dir(x) = -LMO(x) = argmax over ||z|| <= 1 of <x, z>.
    // Neighbours of one shape are computed together. The memory of `x` must outlive a graph that
    // captures this.
    virtual void direction(Backend& backend, std::span<const Tensor> x,
                           const Tensor& workspace) const = 0;
    // The same as what a FusedUpdate does on its way; none where it cannot.
    virtual std::optional<FusedDirection> fused() const { return {}; }
    // Momentum, direction and `apply` (without x) to the same bits in fewer passes, in the memory
    // of workspace_bytes; returns false, with nothing done, where there is no such operation.
    virtual bool update(Backend&, const Momentum&, const Apply&, const Tensor&) const {
        return false;
    }
    virtual double scale(const Shape&) const { return 1.0; }
    virtual size_t workspace_bytes(const Backend& backend, std::span<const Tensor> x) const = 0;
    // ||x|| and the dual norm ||x||_* of a row-major tensor that was measured: exact, in fp64, and
    // without Newton-Schulz. `host` is a backend with fp64.
    virtual double primal(Backend& host, std::span<const double> x, const Shape& shape) const = 0;
    virtual double dual(Backend& host, std::span<const double> x, const Shape& shape) const = 0;
    // sup ||g||_* / ||g|| over tensors g of this shape.
    virtual double kappa(const Shape& shape) const = 0;
    // Floating-point operations of one direction.
    virtual double flops(const Shape& shape) const = 0;
    // Those that the backend does for one of many directions of this shape.
    virtual double executed_flops(const Backend&, const Shape& shape) const { return flops(shape); }
};

std::unique_ptr<Norm> make_norm(const NormConfig& config);

// A block of an optimizer and the norm that it is stepped along, ||x|| / radius: its unit ball
// holds the steps of length 1 of the rate.
struct BlockNorm {
    ParameterBlock block;
    std::shared_ptr<const Norm> norm;
    double radius;
};

}  // namespace lmo
