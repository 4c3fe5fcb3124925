// What a parameter group of an optimizer is made of: plain data, one struct per stage. Presets in
// configs/optimizer/ are nothing but these values; llmc/train reads them from JSON.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/norm/norm.h"

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
enum class MomentumType { none, ema, heavy_ball, nesterov, nesterov_ema, lion, adam };
std::string to_string(MomentumType type);
// heavy_ball and nesterov: m = beta m + g, as in torch.optim.SGD.
bool is_sum_momentum(MomentumType type);

struct MomentumConfig {
    MomentumType type = MomentumType::none;
    double beta = 0.0;                // ema, heavy_ball, nesterov, nesterov_ema
    double beta1 = 0.0, beta2 = 0.0;  // lion, adam
    double eps = 1e-8;                // adam
    bool eps_inside = false;          // adam
};

// Radius of the LMO ball: factor * rule(m, n) for a block of m rows and n columns (n = 1: vector).
enum class RadiusRule { one, sqrt_max_1_ratio, sqrt_ratio, sqrt_max };
struct RadiusConfig {
    RadiusRule rule = RadiusRule::one;  // 1, sqrt(max(1, m/n)), sqrt(m/n), sqrt(max(m, n))
    double factor = 1.0;
    double value(const Shape& shape) const;
};

enum class DecayType { none, decoupled };
struct DecayConfig {
    DecayType type = DecayType::none;
    std::optional<double> weight_decay;                    // else the optimizer's
    std::vector<Role> roles = {Role::matrix, Role::head};  // the roles that decay
};

struct GroupConfig {
    GroupMatch match;
    MomentumConfig momentum;
    NormConfig norm;
    RadiusConfig radius;
    DecayConfig decay;
    double lr_scale = 1.0;  // this group's rate over the scheduled one
};

struct OptimizerConfig {
    std::vector<GroupConfig> groups;  // the first that matches takes the parameter
    double weight_decay = 0.0;
    double clip_norm = 0.0;  // 0: no clipping
    bool fuse_qkv = true;    // q, k, v as one matrix in norms
    // Published: heavy_ball and nesterov momenta start as the weights after their first decay.
    bool momentum_from_weights = false;
};

}  // namespace lmo
