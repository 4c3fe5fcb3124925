// train_gpt plan: what a configuration will take and do, without training, data or a device.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <map>

#include "llmc/core/json.h"
#include "llmc/io/console.h"
#include "llmc/io/files.h"
#include "llmc/train/commands.h"
#include "llmc/train/device.h"
#include "llmc/train/measure.h"
#include "llmc/train/overlap.h"
#include "llmc/train/plan_print.h"
#include "llmc/train/resume.h"
#include "llmc/train/scaling.h"
#include "llmc/train/stages.h"
#include "llmc/train/update_norms.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

// The device that the plan is for. The CUDA backend wants a GPU: without one the CPU's workspace
// stands in for the GPU's, everything else is the same on both.
struct Device {
    std::unique_ptr<Backend> backend;
    ModelPrecision precision;
    bool stand_in = false;

    Device(const Config& config, const std::string& name) {
        try {
            backend = make_backend(name, config.run.threads);
        } catch (const Error&) {
            if (name != "cuda") throw;
            backend = make_cpu_backend(config.run.threads);
            stand_in = true;
        }
        Config chosen = config;
        const bool automatic = config.compute == ComputeChoice::automatic;
        if (stand_in && automatic) chosen.compute = ComputeChoice::bf16;
        precision = choose_precision(chosen, *backend);
        if (!stand_in) require_attention(config.model, precision, *backend);
    }
};

// Who updates what, and what that takes.
struct Ownership {
    Sharding sharding;
    // Bytes of each kind of optimizer state of the rank that has most of them.
    std::map<std::string, size_t> states;
    ordered_json groups = ordered_json::array();  // the same for each group: {"match", "bytes"}
    int heaviest = 0;                             // that rank
    std::vector<size_t> bytes;                    // of states, of each rank

    Ownership(const Config& config, const Device& device, const ParameterList& parameters,
              int ranks)
        : sharding(make_sharding(config, parameters, ranks)) {
        Arena plan;
        const UpdateStages all(*device.backend, plan, config, parameters, device.precision.master,
                               sharding, -1, ranks);
        std::vector<std::map<std::string, size_t>> kinds(sharding.shares.size());
        bytes.resize(kinds.size(), 0);
        std::vector<std::vector<size_t>> by_group(
            kinds.size(), std::vector<size_t>(config.optimizer.groups.size(), 0));
        for (const StateTensor& state : all.states()) {
            if (state.in_gradients) continue;
            const size_t dot = state.name.rfind('.');
            const int parameter = parameters.find(state.name.substr(0, dot));
            const auto add = [&](size_t rank, size_t size) {
                kinds[rank][state.name.substr(dot + 1)] += size;
                bytes[rank] += size;
                by_group[rank][group_of(config, parameters[parameter])] += size;
            };
            if (state.spread != Spread::owner) {
                for (size_t rank = 0; rank < kinds.size(); ++rank) add(rank, state.tensor.bytes());
                continue;
            }
            const std::vector<Piece>& parts = sharding.parts[static_cast<size_t>(parameter)];
            for (const Piece& part : parts) {
                const size_t cut = static_cast<size_t>(part.count) * size_of(state.tensor.dtype);
                add(static_cast<size_t>(part.owner),
                    parts.size() == 1 ? state.tensor.bytes() : cut);
            }
        }
        if (config.log.update_norms) {  // rank 0 keeps the old weights
            Arena copy;
            const UpdateNorms counted(*device.backend, copy, parameters, device.precision.master,
                                      device.precision.split);
            bytes[0] += copy.total();
        }
        heaviest = static_cast<int>(std::max_element(bytes.begin(), bytes.end()) - bytes.begin());
        states = kinds[static_cast<size_t>(heaviest)];
        for (size_t i = 0; i < config.optimizer.groups.size(); ++i) {
            groups.push_back({{"match", to_string(config.optimizer.groups[i].match)},
                              {"bytes", by_group[static_cast<size_t>(heaviest)][i]}});
        }
    }

    // The first that matches: some group does.
    static size_t group_of(const Config& config, const Parameter& parameter) {
        size_t i = 0;
        while (!config.optimizer.groups[i].match.matches(parameter)) ++i;
        return i;
    }

    ordered_json to_json() const {
        ordered_json ranks = ordered_json::array();
        for (size_t rank = 0; rank < bytes.size(); ++rank) {
            const Sharding::Share& share = sharding.shares[rank];
            ranks.push_back({{"blocks", share.blocks},
                             {"slices", share.slices},
                             {"elements", share.elements},
                             {"state_bytes", bytes[rank]},
                             {"cost", share.cost}});
        }
        return ranks;
    }
};

// Of the rank that takes most.
size_t bytes_of(const Config& config, const Device& device, const Ownership& ownership,
                int64_t micro_batch, Arena& plan) {
    const int ranks = static_cast<int>(ownership.sharding.shares.size());
    plan_memory(*device.backend, plan, config.model, device.precision, micro_batch,
                memory_of_stages(*device.backend, config, device.precision.master,
                                 ownership.heaviest, ranks));
    return plan.total();
}

// The largest number up to `most` for which `fits` holds; it holds up to some number. 0: for none.
int64_t largest(int64_t most, const std::function<bool(int64_t)>& fits) {
    int64_t good = 0, bad = most + 1;
    while (bad - good > 1) {
        const int64_t middle = good + (bad - good) / 2;
        (fits(middle) ? good : bad) = middle;
    }
    return good;
}

// Of the whole run's micro-batches: the largest that fits, and the largest that divides the batch
// too.
ordered_json micro_batches(const Config& config, const Device& device, const Ownership& ownership,
                           double bytes, int64_t sequences) {
    const auto fits = [&](int64_t micro_batch) {
        Arena plan;
        return static_cast<double>(bytes_of(config, device, ownership, micro_batch, plan)) <= bytes;
    };
    int64_t even = largest(sequences, fits);
    while (even > 0 && sequences % even != 0) --even;
    constexpr int64_t kMost = 1 << 20;
    return {
        {"memory", bytes}, {"largest_micro_batch", largest(kMost, fits)}, {"of_this_batch", even}};
}

// What a rank sends in an update, on average over ranks and updates.
struct Traffic {
    double up = 0.0, down = 0.0;                  // gradients to the owners, new weights to all
    double whole_up = 0.0, whole_down = 0.0;      // the same without compression, at every update
    double busiest_up = 0.0, busiest_down = 0.0;  // received and sent by the rank that has most
};

Traffic traffic_of(const Config& config, const Device& device, const Ownership& ownership,
                   const ParameterList& parameters, int64_t ranks) {
    const double n = static_cast<double>(ranks), others = (n - 1) / n;
    const DType master = device.precision.master;
    const double element = static_cast<double>(size_of(master));
    const double count = static_cast<double>(parameters.count());
    if (ranks == 1) return {};
    if (ranks_drift(config, static_cast<int>(ranks))) {  // all sums on all ranks
        const double all = 2.0 * others * count * element;
        return {all, 0.0, all, 0.0, all, 0.0};
    }
    const ExchangePlan plan = exchange_plan(ownership.sharding.pieces, static_cast<int>(ranks));
    const double mean = plan.mean * element, busiest = plan.busiest * element;
    Traffic traffic{mean, mean, mean, mean, busiest, busiest};
    switch (config.communication.type) {
        case CommunicationType::mean:
            // What is clipped by its own norm is summed by itself.
            if (config.optimizer.estimator.corrects() && config.optimizer.estimator.clips()) {
                traffic.up *= 2;
                traffic.busiest_up *= 2;
            }
            break;
        case CommunicationType::ef21: {
            // Messages go to owners and from them, in the same part of the whole as all bytes.
            const MessageBytes bytes =
                message_bytes(config.communication, config.optimizer, parameters, master);
            double most = 0.0;
            for (const Sharding::Share& share : ownership.sharding.shares) {
                most = std::max(most, static_cast<double>(share.elements));
            }
            if (config.communication.up.type != CompressorType::identity) {
                traffic.up = others * bytes.up;
                traffic.busiest_up = (n - 1) * bytes.up * most / count;
            }
            if (config.communication.down.type != CompressorType::identity) {
                traffic.down = others * bytes.down;
                traffic.busiest_down = (n - 1) * bytes.down * most / count;
            }
            break;
        }
        case CommunicationType::local: {
            const double every = static_cast<double>(config.optimizer.outer.every);
            traffic = {mean / every, mean / every, mean, mean, busiest / every, busiest / every};
        }
    }
    return traffic;
}

// Epochs of a run, where its data can be read: a plan needs none.
ordered_json epochs(const Config& config) {
    if (config.data.train.empty()) return nullptr;
    try {
        const Dataset set(config.data.train, config.data.format, config.model.seq_len,
                          config.model.vocab_size);
        const int64_t large = config.batch.sequences;
        return static_cast<double>(config.run.steps) * static_cast<double>(large) *
               config.optimizer.estimator.batches(large) / static_cast<double>(set.sequences());
    } catch (const Error&) {
        return nullptr;
    }
}

ordered_json time_of(const PlanOptions& options, const Config& config, const Device& device,
                     double flops_per_update, int64_t ranks) {
    double peak = options.peak.value_or(config.log.peak_tflops) * 1e12;
    const bool measured = peak == 0.0;
    if (measured && !device.stand_in) {
        peak = measure_peak_flops(*device.backend, device.precision.compute);
    }
    if (peak == 0.0) return nullptr;
    const double seconds = flops_per_update / (peak * options.mfu * static_cast<double>(ranks));
    return {{"peak_flops", peak},
            {"measured", measured},
            {"mfu", options.mfu},
            {"seconds_per_update", seconds},
            {"seconds", seconds * static_cast<double>(config.run.steps)}};
}

// The time of an update over links of `options.link`.
ordered_json scaling_of(const PlanOptions& options, const Config& config, const Device& device,
                        const Ownership& ownership, const ParameterList& parameters,
                        const Traffic& traffic, double flops, double flops_per_second) {
    UpdateCost cost;
    cost.gradients = flops / flops_per_second;
    cost.directions =
        direction_flops(*device.backend, config.optimizer, parameters).plain / flops_per_second;
    cost.up = traffic.up;
    cost.down = traffic.down;
    cost.busiest_up = traffic.busiest_up;
    cost.busiest_down = traffic.busiest_down;
    cost.micro_batches = static_cast<double>(config.batch.sequences) /
                         static_cast<double>(options.ranks * config.batch.micro_batch);
    const Overlap overlap(parameters, config.model.n_layer, ownership.sharding.pieces,
                          bucket_elements(config, device.precision.master));
    const auto share_of = [&](const Bucket& bucket) {
        double elements = 0.0;
        for (const Piece& piece : bucket.pieces) elements += static_cast<double>(piece.count);
        return elements / static_cast<double>(parameters.count());
    };
    cost.overlaps = config.communication.type == CommunicationType::mean;
    cost.last_up = cost.up * share_of(overlap.gradients.back());
    cost.first_down = cost.down * share_of(overlap.weights.front());
    if (!optimizer_is_whole(config, static_cast<int>(options.ranks))) {
        cost.busiest_share = 0.0;
        for (const Sharding::Share& share : ownership.sharding.shares) {
            cost.busiest_share = std::max(cost.busiest_share, share.cost);
        }
    }
    return predict_scaling(cost, *options.link * 1e9, options.ranks);
}

ordered_json make_plan(const Config& config, const PlanOptions& options, const Device& device,
                       const ParameterList& parameters) {
    const int64_t ranks = options.ranks, micro_batch = config.batch.micro_batch;
    const int64_t share = config.batch.sequences / ranks;
    const Ownership ownership(config, device, parameters, static_cast<int>(ranks));
    Arena memory;
    bytes_of(config, device, ownership, micro_batch, memory);
    const int64_t tokens = config.batch.sequences * config.model.seq_len;
    const EstimatorConfig& estimator = config.optimizer.estimator;
    const int64_t sequences = config.batch.sequences;
    const double flops = flops_per_token(config.model),
                 update = flops * estimator.gradients(sequences) * static_cast<double>(tokens);
    const double free = options.memory ? *options.memory * 0x1p30 : device.backend->free_bytes();
    ordered_json parts = ordered_json::object();
    for (const auto& [part, bytes] : memory.parts()) parts[part] = bytes;
    const Traffic traffic = traffic_of(config, device, ownership, parameters, ranks);
    ordered_json plan = {
        {"parameters", parameters.count()},
        {"compute", to_string(device.precision.compute)},
        {"ranks", ranks},
        {"communication", config.resolved["optimizer"]["communication"]["type"]},
        {"micro_batch", micro_batch},
        {"micro_batches", share / micro_batch},
        {"memory", {{"total", memory.total()}, {"parts", parts}}},
        {"optimizer_state", ownership.states},
        {"optimizer_state_by_group", ownership.groups},
        {"fits", micro_batches(config, device, ownership, free, share)},
        {"tokens_per_update", tokens},
        {"flops_per_token", flops},
        {"gradients_per_update", estimator.gradients(sequences)},
        {"flops_per_update", update},
        {"bytes_sent_per_update", traffic.up + traffic.down},
        {"up_bytes_per_update", traffic.up},
        {"down_bytes_per_update", traffic.down},
        {"uncompressed_bytes_per_update", traffic.whole_up + traffic.whole_down},
    };
    if (config.run.steps > 0) {
        const double steps = static_cast<double>(config.run.steps);
        plan.update({{"updates", config.run.steps},
                     {"tokens", steps * estimator.batches(sequences) * static_cast<double>(tokens)},
                     {"flops", steps * update},
                     {"epochs", epochs(config)}});
    }
    if (!optimizer_is_whole(config, static_cast<int>(ranks))) {
        plan["ownership"] = ownership.to_json();
        plan["steps_of_each_rank"] = ownership.sharding.describe();
    }
    // A block that is computed again costs another forward pass, a third of both.
    const double again = config.model.recompute == Recompute::block ? 4.0 / 3.0 : 1.0;
    const double work = again * update;
    plan["time"] = time_of(options, config, device, work, ranks);
    plan["scaling"] = nullptr;
    if (options.link && ranks > 1 && !plan["time"].is_null()) {
        const double speed = plan["time"]["peak_flops"].get<double>() * options.mfu;
        plan["scaling"] =
            scaling_of(options, config, device, ownership, parameters, traffic, work, speed);
    }
    return plan;
}

}  // namespace

void run_plan(Config config, const PlanOptions& options) {
    if (config.batch.sequences < 1) {
        throw UsageError(
            "batch.sequences is missing: a plan is about a batch; give it in the file, or "
            "by --set batch.sequences=N");
    }
    cut_over_ranks(config, static_cast<int>(options.ranks));
    const Device device(config, options.device.empty() ? config.run.device : options.device);
    Arena whole;  // refuses absurd sizes before anything is done by tensor
    plan_memory(*device.backend, whole, config.model, device.precision, config.batch.micro_batch,
                memory_of_stages(*device.backend, config, device.precision.master, 0, 1));
    const ordered_json plan = make_plan(config, options, device, llama_parameters(config.model));
    if (!options.json) {
        return print_plan(plan, config,
                          {device.stand_in ? "cuda" : device.backend->describe(), device.precision,
                           device.stand_in});
    }
    std::printf("%s\n", plan.dump().c_str());
    flush_output();
}

}  // namespace lmo
