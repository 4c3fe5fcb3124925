// What `train_gpt bench optimizer` measures: whole updates by a preset, and Newton-Schulz alone.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "llmc/norm/norm.h"
#include "llmc/optim/optimizer.h"
#include "llmc/train/bench_cases.h"
#include "llmc/train/measure.h"
#include "llmc/train/weights.h"

namespace lmo {

// "768x768x12,2304x768": rows x columns, and how many (1). Throws UsageError.
std::vector<MatrixBatch> parse_shapes(const std::string& text);
// Parameters of the role `matrix` alone.
ParameterList matrix_parameters(const std::vector<MatrixBatch>& shapes);

// The optimizer that a training configuration with this preset (a name or a file) has, with weight
// decay and clipping. Throws UsageError.
OptimizerConfig preset_optimizer(const std::string& preset);

// Normally distributed, the same in every run.
std::vector<float> normal_values(int64_t count);

// Median, least and most of some times.
Timing timing_of(std::vector<double> seconds);

// Weights and gradients that all presets share.
struct BenchParameters {
    BenchParameters(Backend& backend, const Noise& noise, ParameterList parameters,
                    const ModelPrecision& precision);

    ParameterList list;
    ModelPrecision precision;
    Arena arena;
    Weights weights;
    ParameterBuffer gradients;
};

struct UpdateTime {
    double update, norm;  // seconds: of the update, of the gradients' norm before it
};

// Updates as Trainer makes them, with new random gradients each time.
class PresetUpdates {
  public:
    // Throws UsageError when the preset does not suit the parameters, Error for lack of memory.
    PresetUpdates(Backend& backend, const Noise& noise, BenchParameters& parameters,
                  const OptimizerConfig& config);

    UpdateTime update();
    // Throws an Error where a weight is not finite.
    void check();

    int64_t state_bytes() const;
    // What an update must move: gradients, states twice, weights twice, their copies unless split.
    double traffic() const;
    const DirectionFlops& flops() const { return flops_; }

  private:
    void step();

    Backend& backend_;
    const Noise& noise_;
    BenchParameters& parameters_;
    Arena arena_;
    Optimizer optimizer_;
    std::unique_ptr<Graph> graph_;  // where every update is the same
    DirectionFlops flops_;
    int64_t updates_ = 0;
};

struct NewtonSchulzTime {
    Timing timing;
    double flops, executed;
    // Of the result for the first matrix: max |sigma - 1| and the root of the mean of its square
    // over its singular values; not measured (-1) beyond kLargestMeasured.
    double largest = -1.0, rms = -1.0;
};
constexpr int64_t kLargestMeasured = 2048;  // shorter side; eigenvalues take its third power

// `batch` matrices of normally distributed elements at once, `repeats` times. `host` has fp64.
NewtonSchulzTime measure_newton_schulz(Backend& backend, Backend& host, const NewtonSchulzSet& set,
                                       const MatrixBatch& batch, int repeats);

}  // namespace lmo
