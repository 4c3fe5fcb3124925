// All stages of an update with their memory: the optimizer, and what a configuration puts around
// it. Built the same way for a run, for a plan, and to know the states of other ranks.
#pragma once

#include <optional>
#include <vector>

#include "llmc/optim/optimizer.h"
#include "llmc/train/config.h"
#include "llmc/train/device.h"
#include "llmc/train/error_feedback.h"
#include "llmc/train/sharding.h"

namespace lmo {

// Who owns the blocks of a run, or slices of them.
Sharding make_sharding(const Config& config, const ParameterList& parameters, int ranks);

// What they take of the memory of `rank`, and log.update_norms with them, for plan_memory(). The
// arguments must outlive it.
TakeMemory memory_of_stages(Backend& backend, const Config& config, DType master, int rank,
                            int ranks);

struct UpdateStages {
    // Of one rank; a negative one: of all owners.
    UpdateStages(Backend& backend, Arena& arena, const Config& config,
                 const ParameterList& parameters, DType master, const Sharding& sharding, int rank,
                 int ranks);

    Optimizer optimizer;
    std::optional<Estimator> estimator;     // none: plain
    std::optional<OuterStage> outer;        // none: none
    std::optional<ErrorFeedback> feedback;  // communication ef21

    // Of all stages, with what several ranks do with them.
    std::vector<StateTensor> states() const;
    void initialise(const ParameterBuffer& weights, uint64_t seed,
                    const ParameterBuffer& remainders = {});

  private:
    // Every rank has an optimizer and an estimator of its own: one that continues the run of several
    // takes the mean of theirs.
    bool alone_;
};

}  // namespace lmo
