#include "llmc/optim/worker_momentum.h"

#include "llmc/optim/group.h"

namespace lmo {

namespace {

bool runs_on_worker(MomentumType type) {
    return type != MomentumType::none && type != MomentumType::adam &&
           type != MomentumType::gradient;
}

}  // namespace

WorkerMomentum::WorkerMomentum(Backend& backend, Arena& arena, const OptimizerConfig& config,
                               const ParameterList& parameters, DType master)
    : backend_(backend), applied_(arena.take("optimizer state", DType::f64, {1})) {
    std::vector<bool> taken(static_cast<size_t>(parameters.size()), false);
    for (const GroupConfig& group : config.groups) {
        Part part{group.momentum, {}, {}};
        for (int i = 0; i < parameters.size(); ++i) {
            if (taken[static_cast<size_t>(i)] || !group.match.matches(parameters[i])) continue;
            taken[static_cast<size_t>(i)] = true;
            if (!runs_on_worker(group.momentum.type)) continue;
            part.parameters.push_back(i);
            part.states.push_back(arena.take("optimizer state", master, parameters[i].shape));
            states_.push_back(
                {parameters[i].name + ".momentum", part.states.back(), false, Spread::share});
        }
        if (!part.parameters.empty()) parts_.push_back(std::move(part));
    }
}

void WorkerMomentum::initialise() {
    for (const StateTensor& state : states_) backend_.zero(state.tensor);
}

void WorkerMomentum::run(const ParameterBuffer& gradients, int64_t applied) {
    const double done = static_cast<double>(applied);
    backend_.copy_in(applied_, &done);
    for (const Part& part : parts_) {
        std::vector<Tensor> g;
        for (const int i : part.parameters) g.push_back(gradients[i]);
        const MomentumWeights w = momentum_weights(part.momentum, applied);
        Momentum operation{g, part.states, {}, w.u_m, w.u_g, w.m_m, w.m_g};
        if (part.momentum.starts_with_gradient) operation.step = applied_;
        backend_.momentum(operation);
    }
}

OptimizerConfig without_worker_momentum(OptimizerConfig config) {
    for (GroupConfig& group : config.groups) {
        if (runs_on_worker(group.momentum.type)) group.momentum = {};
    }
    return config;
}

}  // namespace lmo
