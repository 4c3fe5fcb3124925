// The outer stage: every K updates an anchor takes one step towards where these updates have led,
// and training goes on from there.
//   lookahead  anchor += rate (x - anchor), x = anchor              (Zhang et al. 2019)
//   rapp       the same, and each of the K updates starts from the anchor: x = anchor + step(g(x)),
//              the approximated proximal point of arXiv 2310.13459's linear interpolation
// With momentum mu on D = anchor - x: v = mu v + D, anchor -= rate (v, or D + mu v for Nesterov's);
// on several ranks that worked apart x is their mean: Local SGD and DiLoCo (arXiv 2311.08105).
#pragma once

#include <utility>
#include <vector>

#include "llmc/core/parameter.h"
#include "llmc/device/arena.h"
#include "llmc/optim/state.h"

namespace lmo {

enum class OuterType { none, lookahead, rapp };

struct OuterConfig {
    OuterType type = OuterType::none;
    int64_t every = 1;  // updates
    double rate = 0.5, momentum = 0.0;
    bool nesterov = false;
};

class OuterStage {
  public:
    // Anchors (and their momentum) of the owned elements.
    OuterStage(Backend& backend, Arena& arena, const OuterConfig& config,
               const ParameterList& parameters, DType master,
               const OwnedElements& owned = {});

    bool due(int64_t applied) const { return applied % config_.every == 0; }

    void initialise(const ParameterBuffer& weights);
    // Before an update: rapp's start.
    void before(const ParameterBuffer& weights);
    // The outer step, of the owned weights.
    void step(const ParameterBuffer& weights);

    const std::vector<StateTensor>& states() const { return states_; }

  private:
    std::vector<Tensor> owned_views(const ParameterBuffer& weights) const;

    Backend& backend_;
    OuterConfig config_;
    std::vector<std::pair<int, Slice>> owned_;  // parameters and what is owned of them
    std::vector<Tensor> anchors_, velocities_;
    std::vector<StateTensor> states_;
};

}  // namespace lmo
