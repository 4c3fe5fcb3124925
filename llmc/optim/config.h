// What a parameter group of an optimizer is made of: plain data, one struct per stage. Presets in
// configs/optimizer/ are nothing but these values; llmc/train reads them from JSON.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/norm/norm.h"
#include "llmc/optim/estimator.h"
#include "llmc/optim/outer.h"

namespace lmo {

// Which parameters: all of a role, or a name pattern (* and ? as in a shell), or any.
struct GroupMatch {
    std::optional<Role> role;
    std::string name;  // empty: any name
    bool matches(const Parameter& parameter) const;
};
std::string to_string(const GroupMatch& match);  // "role matrix, name "*.q_proj.*"", for messages

// The momentum stage: g the (clipped) gradient, m the state (from zero), u what goes on.
//   none          u = g
//   ema           m = beta m + (1-beta) g,  u = m
//   heavy_ball    m = beta m + g,           u = m
//   nesterov      m = beta m + g,           u = g + beta m           (Moonlight's Muon, SGD)
//   nesterov_ema  m = beta m + (1-beta) g,  u = (1-beta) g + beta m  (Keller Jordan's Muon)
//   lion          u = beta1 m + (1-beta1) g, then m = beta2 m + (1-beta2) g
//   adam          first and second moment, see struct Adam in backend.h
//   gradient      heavy_ball in the gradient's own memory, which is not cleared between updates but
//                 multiplied by beta (ScionLight, arXiv 2502.07529); no clipping
enum class MomentumType { none, ema, heavy_ball, nesterov, nesterov_ema, lion, adam, gradient };
std::string to_string(MomentumType type);
// heavy_ball and nesterov: m = beta m + g, as in torch.optim.SGD.
bool is_sum_momentum(MomentumType type);

struct MomentumConfig {
    MomentumType type = MomentumType::none;
    double beta = 0.0;                  // ema, heavy_ball, nesterov, nesterov_ema, gradient
    double beta1 = 0.0, beta2 = 0.0;    // lion, adam
    double eps = 1e-8;                  // adam
    bool eps_inside = false;            // adam
    bool starts_with_gradient = false;  // at the first update the old m is g, not zero
    double eta_power = 0.0;             // ema: where positive, beta of update k is beta_of()
};

// Radius of the LMO ball: factor * rule(m, n) for a block of m rows and n columns (n = 1: vector).
enum class RadiusRule {
    one,
    sqrt_max_1_ratio,  // sqrt(max(1, m/n))
    sqrt_ratio,        // sqrt(m/n)
    sqrt_max,          // sqrt(max(m, n))
    sqrt_rows,         // sqrt(m)
    sqrt_columns,      // sqrt(n)
    sqrt_count,        // sqrt(m n)
    inverse_columns,   // 1/n
    inverse_sqrt_columns,
};
struct RadiusConfig {
    RadiusRule rule = RadiusRule::one;
    double factor = 1.0;
    double value(const Shape& shape) const;
};

// What is done to the direction: nothing; scaled to unit Frobenius norm, so that a radius like
// 0.2*sqrt(m*n) sets the size of its entries; or NorMuon's rows (RowMomentNormalize in backend.h).
enum class PostType { none, frobenius, row_moment };
struct PostConfig {
    PostType type = PostType::none;
    double beta2 = 0.95, eps = 1e-8;  // row_moment
};

// The length of a step besides rate and radius; see struct StepSizes in backend.h.
struct StepConfig {
    StepRule rule = StepRule::unit;
    double limit = 0.0;         // clipped
    bool together = false;      // clipped, dual: by the sum over blocks of one shape (and layer)
    double l0 = 0.0, l1 = 0.0;  // gluon, for blocks that `layers` does not name
    std::map<std::string, std::pair<double, double>> layers;  // gluon: block -> (L0, L1)
    bool inexact = false;  // spectral directions: shrinks with the error of the orthogonalisation
    bool needs_dual() const { return rule != StepRule::unit; }
    bool is_plain() const { return rule == StepRule::unit && !inexact; }
};

enum class DecayType {
    none,
    decoupled,    // w = (1 - lr weight_decay) w - ...
    constrained,  // w = (1 - lr) w - lr radius dir: stays in the ball of the radius (Scion)
    cautious,     // decoupled, where the update has the sign of the weight
    start,        // w = w + ... + (w_0 - w) / (k + 2) after k updates (SODA)
};
struct DecayConfig {
    DecayType type = DecayType::none;
    std::optional<double> weight_decay;                    // else the optimizer's
    std::vector<Role> roles = {Role::matrix, Role::head};  // the roles that decay
};

// A second direction in turn with the first: LionMuon (arXiv 2605.19811).
struct AlternateConfig {
    int64_t period = 1;  // the first direction at updates 0, period, 2 period, ...
    NormConfig norm;     // the other one's
    RadiusConfig radius;
    double lr_scale = 1.0;
    // Where positive, in place of the period: the first direction for a matrix whose stable rank r
    // (||x||_F^2 / ||x||_2^2, by three steps of the power method) has r^2 <= stable_rank min(m, n).
    double stable_rank = 0.0;
};

struct GroupConfig {
    GroupMatch match;
    MomentumConfig momentum;
    NormConfig norm;
    RadiusConfig radius;
    PostConfig post;
    StepConfig step;
    DecayConfig decay;
    double lr_scale = 1.0;  // this group's rate over the scheduled one
    std::optional<AlternateConfig> alternate;
};

// Which layers an update is of; all parameters that belong to no layer (or lie behind them all) are
// always updated. The others' weights and states rest, and the backward pass stops at the lowest
// chosen layer (Drop-Muon, arXiv 2510.02239).
//   progressive  layers s, s+1, ... with s uniform
//   subset       each layer with `probability`
//   periodic     layer l at updates k with (k + l) mod period = 0
enum class LayerSamplingType { all, progressive, subset, periodic };
struct LayerSamplingConfig {
    LayerSamplingType type = LayerSamplingType::all;
    double probability = 1.0;
    int64_t period = 1;
    uint64_t seed = 0;
};

struct OptimizerConfig {
    std::vector<GroupConfig> groups;  // the first that matches takes the parameter
    double weight_decay = 0.0;
    double clip_norm = 0.0;  // 0: no clipping
    bool fuse_qkv = true;    // q, k, v as one matrix in norms
    // Published: heavy_ball and nesterov momenta start as the weights after their first decay.
    bool momentum_from_weights = false;
    LayerSamplingConfig sampling;
    double qk_clip = 0.0;  // largest attention score that heads are scaled to; 0: not
    EstimatorConfig estimator;
    OuterConfig outer;

    bool keeps_gradients() const;  // a group's momentum lives in them
};

}  // namespace lmo
