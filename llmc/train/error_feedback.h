// EF21-Muon's communication (arXiv 2510.00643), for any optimizer. Every rank is a worker, and the
// owner of a block is its server. With u_j what rank j's momentum makes of its part of the
// gradient:
//   up    R_j = C(u_j - G_j), G_j += R_j, and on the owner G += sum_j R_j: the optimizer steps by G
//   down  X takes the step, S = C(X - W), W += S on all ranks: gradients are taken at W
// The first update sends u_j whole. Without compression G is the sum of all u_j and W is X.
// Momentum that is not linear in the gradient (Adam's) runs behind G, on the owner.
#pragma once

#include <vector>

#include "llmc/dist/ranks.h"
#include "llmc/optim/worker_momentum.h"
#include "llmc/train/config_stages.h"
#include "llmc/train/sharding.h"

namespace lmo {

class ErrorFeedback {
  public:
    // Memory of `rank`; of all owners where it is negative.
    ErrorFeedback(Backend& backend, Arena& arena, const CommunicationConfig& communication,
                  const OptimizerConfig& optimizer, const ParameterList& parameters, DType master,
                  const Sharding& sharding, int rank);

    void initialise(const ParameterBuffer& weights, uint64_t seed);

    // gradients of this rank -> u_j.
    void smooth(const ParameterBuffer& gradients, int64_t applied);

    // Whether u_j goes up compressed. Where not, u_j is to be summed to the owners in between.
    bool compresses_up(int64_t applied) const { return up_ && applied > 0; }
    void before_sum(const ParameterBuffer& gradients);
    void after_sum(const ParameterBuffer& gradients);
    // u_j -> G, on the owners.
    void send_up(const ParameterBuffer& gradients, Ranks& ranks);
    // 1 - ||C(x) - x||^2 / ||x||^2 of all that this rank compressed in the last send_up().
    double kept() const { return kept_.total > 0.0 ? 1.0 - kept_.error / kept_.total : 1.0; }

    bool compresses_down() const { return down_; }
    // The owner's weights become X; the step follows.
    void before_step(const ParameterBuffer& weights);
    // The weights become W + S on all ranks.
    void send_down(const ParameterBuffer& weights, Ranks& ranks);

    std::vector<StateTensor> states() const;

  private:
    struct Block {
        ParameterBlock block;
        int owner;
        bool owned;
        Compressor up, down;
        Tensor sent, received, server, up_factor, down_factor;
    };
    void take(Arena& arena, Block& block, const ParameterList& parameters, DType master);
    void add_states(const ParameterBlock& block, const Tensor& tensor,
                    const ParameterList& parameters, const char* name, Spread spread);
    template <typename T>
    void send_up_typed(const ParameterBuffer& gradients, Ranks& ranks);
    template <typename T>
    void send_down_typed(const ParameterBuffer& weights, Ranks& ranks);
    size_t end_of_round(size_t begin, bool up) const;

    Backend& backend_;
    bool up_, down_;  // whether anything is compressed
    DType master_;
    WorkerMomentum momentum_;
    std::vector<Block> blocks_;
    std::vector<StateTensor> states_;
    Kept kept_;
};

// Bytes of messages that an update of all blocks sends from one rank to another: what goes up to
// the owners, and what comes down from them.
struct MessageBytes {
    double up = 0.0, down = 0.0;
};
MessageBytes message_bytes(const CommunicationConfig& communication,
                           const OptimizerConfig& optimizer, const ParameterList& parameters,
                           DType master);

}  // namespace lmo
