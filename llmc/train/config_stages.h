// The stages around an optimizer's groups, from a resolved configuration: estimator, outer stage,
// communication; and which of them go together.
#pragma once

#include "llmc/dist/compressor.h"
#include "llmc/optim/config.h"
#include "llmc/train/json_merge.h"

namespace lmo {

// What ranks tell each other.
enum class CommunicationType {
    mean,   // gradients, at every update
    ef21,   // compressed changes of what their momentum makes of them (error_feedback.h)
    local,  // nothing but weights, at every step of the outer stage
};

struct CommunicationConfig {
    CommunicationType type = CommunicationType::mean;
    CompressorConfig up, down;  // ef21
    double inner_power = 0.0;   // local: rate of the j-th update since the ranks met, (j+1)^-p
};

CommunicationConfig read_communication(const Json& resolved);
EstimatorConfig read_estimator(const Json& resolved, const std::vector<GroupConfig>& groups,
                               const Provenance& origin);
OuterConfig read_outer(const Json& resolved);

// Throws UsageError for what does not go together, naming the key to change.
void require_stages(const Json& resolved, const OptimizerConfig& optimizer,
                    const CommunicationConfig& communication, const Provenance& origin);

}  // namespace lmo
