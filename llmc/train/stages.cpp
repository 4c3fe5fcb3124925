#include "llmc/train/stages.h"

#include "llmc/train/update_norms.h"

namespace lmo {

namespace {

OwnedBlocks blocks_of(const Sharding& sharding, int rank, bool all) {
    return all || rank < 0 ? OwnedBlocks() : sharding.owned_by(rank);
}

OwnedElements elements_of(const Sharding& sharding, int rank, bool all) {
    if (all || rank < 0) return {};
    return [&sharding, rank](int parameter) { return sharding.part(parameter, rank); };
}

bool has_feedback(const Config& config) {
    return config.communication.type == CommunicationType::ef21;
}

}  // namespace

Sharding make_sharding(const Config& config, const ParameterList& parameters, int ranks) {
    // Messages of error feedback are made of whole blocks. Where ranks work alone, what is owned
    // are the steps of the outer stage, which are elementwise.
    const CommunicationType type = config.communication.type;
    const CutBlocks cut = type == CommunicationType::ef21    ? CutBlocks::none
                          : type == CommunicationType::local ? CutBlocks::all
                                                             : CutBlocks::by_update;
    return Sharding(config.optimizer, parameters, ranks_drift(config, ranks) ? 1 : ranks, cut);
}

TakeMemory memory_of_stages(Backend& backend, const Config& config, DType master, int rank,
                            int ranks) {
    return [&backend, &config, master, rank, ranks](Arena& plan) {
        const ParameterList parameters = llama_parameters(config.model);
        const Sharding sharding = make_sharding(config, parameters, ranks);
        const UpdateStages counted(backend, plan, config, parameters, master, sharding, rank,
                                   ranks);
        if (config.log.update_norms && rank == 0) {
            UpdateNorms(backend, plan, parameters, master, config.split_master);
        }
    };
}

UpdateStages::UpdateStages(Backend& backend, Arena& arena, const Config& config,
                           const ParameterList& parameters, DType master, const Sharding& sharding,
                           int rank, int ranks)
    : optimizer(backend, arena,
                has_feedback(config) ? without_worker_momentum(config.optimizer) : config.optimizer,
                parameters, master, blocks_of(sharding, rank, optimizer_is_whole(config, ranks))),
      alone_(config.communication.type == CommunicationType::local) {
    const bool whole = optimizer_is_whole(config, ranks);
    if (!config.optimizer.estimator.is_plain()) {
        estimator.emplace(backend, arena, config.optimizer.estimator, parameters, master,
                          elements_of(sharding, rank, whole));
    }
    if (config.optimizer.outer.type != OuterType::none) {
        outer.emplace(backend, arena, config.optimizer.outer, parameters, master,
                      elements_of(sharding, rank, ranks_drift(config, ranks)));
    }
    if (has_feedback(config)) {
        feedback.emplace(backend, arena, config.communication, config.optimizer, parameters, master,
                         sharding, rank);
    }
}

std::vector<StateTensor> UpdateStages::states() const {
    std::vector<StateTensor> all = optimizer.states();
    const auto add = [&](const std::vector<StateTensor>& states) {
        all.insert(all.end(), states.begin(), states.end());
    };
    if (estimator) add(estimator->states());
    if (alone_) {
        for (StateTensor& state : all) state.spread = Spread::each;
    }
    if (outer) add(outer->states());
    if (feedback) add(feedback->states());
    return all;
}

void UpdateStages::initialise(const ParameterBuffer& weights, uint64_t seed,
                              const ParameterBuffer& remainders) {
    optimizer.initialise(weights, remainders);
    if (estimator) estimator->initialise(weights);
    if (outer) outer->initialise(weights);
    if (feedback) feedback->initialise(weights, seed);
}

}  // namespace lmo
