#include "llmc/train/config_stages.h"

#include <algorithm>

#include "llmc/train/named.h"
#include "llmc/train/schema.h"

namespace lmo {

namespace {

CompressorConfig read_compressor(const Json& json) {
    CompressorConfig result;
    result.type = named<CompressorType>(json.at("type"), {{"identity", CompressorType::identity},
                                                          {"topk", CompressorType::topk},
                                                          {"columns", CompressorType::columns},
                                                          {"rank", CompressorType::rank},
                                                          {"natural", CompressorType::natural}});
    result.fraction = json.value("fraction", result.fraction);
    result.rank = json.value("rank", result.rank);
    result.natural = json.value("natural", result.natural);
    return result;
}

// The momentum of the group that takes the matrices.
const MomentumConfig* matrix_momentum(const std::vector<GroupConfig>& groups) {
    for (const GroupConfig& group : groups) {
        if (!group.match.role || *group.match.role == Role::matrix) return &group.momentum;
    }
    return nullptr;
}

// Keys that a choice leaves one value.
class Rules {
  public:
    Rules(const Json& resolved, const Provenance& origin) : resolved_(resolved), origin_(origin) {}

    // `key`, where it is there, has a value that `holds` accepts.
    template <typename Holds>
    void need(const std::string& key, const std::string& expected, Holds holds) const {
        const Json* value = find_value(resolved_, key);
        if (value != nullptr && !holds(*value)) reject(origin_, key, *value, expected + why);
    }
    void need(const std::string& key, const Json& only) const {
        need(key, only.dump(), [&](const Json& value) { return value == only; });
    }
    std::string why;  // ", as ..."

  private:
    const Json& resolved_;
    const Provenance& origin_;
};

void require_estimator(const Rules& rules, const OptimizerConfig& optimizer) {
    rules.need("smoothness.every", 0);
    rules.need("schedule.compat.loss_source", "\"mean\" or \"rank0\"",
               [](const Json& value) { return value != "local"; });
    if (optimizer.estimator.type == EstimatorType::plain) return;
    rules.need("optimizer.sampling.type", "all");
    if (optimizer.estimator.type != EstimatorType::page) return;
    rules.need("run.on_nonfinite", "stop");
    const int64_t small = optimizer.estimator.small;
    rules.need("batch.sequences",
               "a multiple of optimizer.estimator.small = " + std::to_string(small),
               [&](const Json& value) { return value.get<int64_t>() % small == 0; });
}

// Stages that move whole fp32 weights.
void require_split_master(const Rules& rules) {
    rules.need("optimizer.estimator.type", "plain");
    rules.need("optimizer.estimator.clip", 0.0);
    rules.need("optimizer.outer.type", "none");
    rules.need("optimizer.communication.type", "mean");
}

void require_error_feedback(const Rules& rules) {
    rules.need("optimizer.clip_norm", 0.0);
    rules.need("optimizer.qk_clip", 0.0);
    rules.need("optimizer.sampling.type", "all");
    rules.need("optimizer.compat.momentum_init", "zero");
    rules.need("smoothness.every", 0);
    rules.need("schedule.compat.loss_source", "\"mean\" or \"rank0\"",
               [](const Json& value) { return value != "local"; });
    rules.need("run.on_nonfinite", "\"stop\" or \"rollback\"",
               [](const Json& value) { return value != "skip"; });
    rules.need("optimizer.estimator.type", "\"plain\", \"igt\", \"storm\" or \"hessian\"",
               [](const Json& value) { return value != "page"; });
}

void require_local(const Rules& rules, const OptimizerConfig& optimizer) {
    rules.need("optimizer.outer.type", "lookahead");
    rules.need("run.on_nonfinite", "stop");
    rules.need("smoothness.every", 0);
    rules.need("optimizer.qk_clip", 0.0);
    rules.need("schedule.compat.loss_source", "mean");
    const int64_t every = optimizer.outer.every;
    for (const char* key : {"eval.every", "checkpoint.every"}) {
        rules.need(key, "a multiple of optimizer.outer.every = " + std::to_string(every),
                   [&](const Json& value) { return value.get<int64_t>() % every == 0; });
    }
}

}  // namespace

CommunicationConfig read_communication(const Json& resolved) {
    const Json& json = resolved.at("optimizer").at("communication");
    CommunicationConfig result;
    result.type = named<CommunicationType>(json.at("type"), {{"mean", CommunicationType::mean},
                                                             {"ef21", CommunicationType::ef21},
                                                             {"local", CommunicationType::local}});
    if (result.type == CommunicationType::ef21) {
        result.up = read_compressor(json.at("up"));
        result.down = read_compressor(json.at("down"));
    }
    result.inner_power = json.value("inner_power", result.inner_power);
    return result;
}

EstimatorConfig read_estimator(const Json& resolved, const std::vector<GroupConfig>& groups,
                               const Provenance& origin) {
    const Json& json = resolved.at("optimizer").at("estimator");
    EstimatorConfig result;
    result.type = named<EstimatorType>(json.at("type"), {{"plain", EstimatorType::plain},
                                                         {"igt", EstimatorType::igt},
                                                         {"storm", EstimatorType::storm},
                                                         {"hessian", EstimatorType::hessian},
                                                         {"page", EstimatorType::page}});
    result.scale = json.value("scale", result.scale);
    result.same_batch = json.value("batch", "own") == "same";
    result.central = json.value("difference", "central") == "central";
    result.step = json.value("step", result.step);
    result.clip = json.value("clip", result.clip);
    result.clip_correction = json.value("clip_correction", result.clip_correction);
    result.small = json.value("small", result.small);
    const auto given = [&](const char* key) { return json.contains(key) && !json[key].is_null(); };
    if (given("probability")) result.probability = json["probability"];
    result.seed = resolved.at("run").at("seed");
    if (!json.contains("beta")) return result;
    if (given("beta")) {
        result.beta = json["beta"];
        return result;
    }
    const MomentumConfig* momentum = matrix_momentum(groups);
    if (momentum == nullptr || momentum->type != MomentumType::ema) {
        reject(origin, "optimizer.estimator.beta", Json(),
               "a number >= 0 and < 1, as the group of the matrices has no momentum.type = "
               "\"ema\" to take it from");
    }
    result.beta = momentum->beta;
    result.eta_power = momentum->eta_power;
    return result;
}

OuterConfig read_outer(const Json& resolved) {
    const Json& json = resolved.at("optimizer").at("outer");
    OuterConfig result;
    result.type = named<OuterType>(json.at("type"), {{"none", OuterType::none},
                                                     {"lookahead", OuterType::lookahead},
                                                     {"rapp", OuterType::rapp}});
    result.every = json.value("every", result.every);
    result.rate = json.value("rate", result.rate);
    result.momentum = json.value("momentum", result.momentum);
    result.nesterov = json.value("nesterov", result.nesterov);
    return result;
}

void require_stages(const Json& resolved, const OptimizerConfig& optimizer,
                    const CommunicationConfig& communication, const Provenance& origin) {
    Rules rules(resolved, origin);
    const Json* master = find_value(resolved, "precision.master");
    if (master != nullptr && *master == "split") {
        rules.why = ", as precision.master is \"split\"";
        require_split_master(rules);
    }
    const std::string kept = "momentum.type \"gradient\", which a group has";
    const auto refuse_kept = [&](const std::string& key) {
        if (!optimizer.keeps_gradients()) return;
        reject(origin, key, *find_value(resolved, key), "another one with " + kept);
    };
    if (!optimizer.estimator.is_plain()) {
        const std::string key = "optimizer.estimator.type";
        rules.why = ", as " + key + " is " + find_value(resolved, key)->dump();
        if (optimizer.estimator.type == EstimatorType::plain) {
            rules.why = ", as optimizer.estimator.clip is above 0";
        }
        refuse_kept(key);
        require_estimator(rules, optimizer);
    }
    const std::string key = "optimizer.communication.type";
    rules.why = ", as " + key + " is " + find_value(resolved, key)->dump();
    switch (communication.type) {
        case CommunicationType::mean:
            return;
        case CommunicationType::ef21:
            refuse_kept(key);
            return require_error_feedback(rules);
        case CommunicationType::local:
            refuse_kept(key);
            return require_local(rules, optimizer);
    }
}

}  // namespace lmo
