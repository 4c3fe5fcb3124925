// Saving and loading a run: what Trainer does with llmc/io/checkpoint.h.
#include <algorithm>
#include <cmath>

#include "llmc/io/checkpoint.h"
#include "llmc/train/data_fingerprint.h"
#include "llmc/train/hf.h"
#include "llmc/train/run_state.h"
#include "llmc/train/trainer.h"

namespace lmo {

using nlohmann::json;

void Trainer::load_initial_weights() {
    if (config_.init_from.empty()) {
        weights_.initialise(config_.run.seed);
        return;
    }
    require_same_model(read_hf_config(config_.init_from), config_.model, config_.init_from);
    const WeightFolder folder(config_.init_from);
    weights_.set([&](const Parameter& p) {
        std::vector<double> values = folder.read(p.name, extents(p.shape));
        for (size_t i = 0; i < values.size(); ++i) {
            if (std::isfinite(values[i])) continue;
            throw Error("init.from: " + config_.init_from + ": tensor '" + p.name + "', element " +
                        std::to_string(i) + " is " + std::to_string(values[i]) +
                        "; expected finite weights");
        }
        return values;
    });
}

void Trainer::start(const std::string& checkpoint) {
    if (checkpoint.empty()) {
        load_initial_weights();
        optimizer_.initialise();
        schedule_.restore({});
        spikes_.restore(nullptr);
        left_out_ = {};
        step_ = 0;
        saved_step_ = -1;
    } else {
        load(checkpoint);
    }
    loader_ = std::make_unique<Loader>(train_set_, config_.data.seed, config_.batch.micro_batch,
                                       step_ * config_.batch.sequences, config_.data.order);
}

nlohmann::json Trainer::state() const {
    const ScheduleState& s = schedule_.state();
    return {{"format", 1},
            {"updates", step_},
            {"samples", step_ * config_.batch.sequences},
            {"train_sequences", train_set_.sequences()},
            {"data", data_},
            {"schedule",
             {{"started", s.started},
              {"loss0", s.loss0},
              {"delta0", s.delta0},
              {"delta_star", s.delta_star},
              {"smoothed_loss", s.smoothed_loss},
              {"previous_loss", s.previous_loss},
              {"switched_at", s.switched_at},
              {"peak", s.peak}}},
            {"spike", spikes_.state()},
            {"left_out", left_out_.to_json()},
            {"seeds", {{"run", config_.run.seed}, {"data", config_.data.seed}}},
            {"compute", to_string(precision_.compute)},
            {"config", config_.resolved}};
}

void Trainer::save(bool must_succeed) {
    std::vector<TensorSource> optimizer = weights_.master_sources();
    for (const StateTensor& tensor : optimizer_.states()) {
        optimizer.push_back(tensor_source(backend_, tensor.name, tensor.tensor));
    }
    const json model_config = to_hf_config(config_.model, precision_.compute);
    const json run_state = state();
    metrics_->sync();
    try {
        std::vector<std::string> warnings;
        saved_folder_ =
            save_checkpoint(config_.run.dir, step_,
                            {weights_.model_sources(), optimizer, &model_config, &run_state},
                            config_.checkpoint.keep, &warnings);
        saved_step_ = step_;
        for (const std::string& warning : warnings) console_.warning(warning);
    } catch (const Error& error) {
        if (must_succeed) throw;
        console_.warning(std::string("no checkpoint after ") + std::to_string(step_) +
                         " updates: " + error.what() + "; training goes on, " +
                         (saved_step_ >= 0
                              ? "the one after " + std::to_string(saved_step_) + " updates is kept"
                              : "there is no earlier one"));
    }
}

void Trainer::clean_up() {
    std::vector<std::string> warnings;
    remove_temporaries(config_.run.dir, &warnings);
    for (const std::string& warning : warnings) console_.warning(warning);
}

void Trainer::require_same_data_as(const std::string& checkpoint, const RunState& saved) {
    if (saved.train_sequences != train_set_.sequences()) {
        throw Error("data.train now holds " + std::to_string(train_set_.sequences()) +
                    " sequences, but " + std::to_string(saved.train_sequences) + " when " +
                    checkpoint +
                    " was written, and the order of samples depends on it; restore the files "
                    "to continue, or choose another run.dir");
    }
    if (saved.data.is_null()) {
        console_.warning(checkpoint +
                         " was written by an older version, without fingerprints of the data "
                         "files: nobody can tell whether they are still the same");
        return;
    }
    for (const char* part : {"train", "val"}) {
        require_same_data(std::string("data.") + part, saved.data.at(part), data_.at(part),
                          checkpoint);
    }
}

void Trainer::load(const std::string& checkpoint) {
    const SafetensorsFile optimizer(checkpoint + "/optimizer.safetensors");
    if (weights_.copies().flat.empty()) {
        const SafetensorsFile model(checkpoint + "/model.safetensors");
        weights_.set([&](const Parameter& p) { return model.read(p.name, extents(p.shape)); });
    } else {
        weights_.set([&](const Parameter& p) {
            return optimizer.read(p.name + ".master", extents(p.shape));
        });
    }
    for (const StateTensor& state : optimizer_.states()) {
        copy_in_converted(backend_, state.tensor,
                          optimizer.read(state.name, extents(state.tensor.shape)));
    }
    restore_state(read_run_state(checkpoint), checkpoint);
    saved_step_ = step_;
    saved_folder_ = checkpoint;
}

void Trainer::restore_state(const RunState& saved, const std::string& checkpoint) {
    if (saved.samples % config_.batch.sequences != 0 ||
        saved.samples / config_.batch.sequences != saved.updates) {
        throw Error(checkpoint + "/state.json: updates, samples and batch.sequences disagree");
    }
    require_same_data_as(checkpoint, saved);
    if (saved.compute != to_string(precision_.compute)) {
        throw Error(checkpoint + ": was trained in " + saved.compute +
                    ", this device would continue in " + to_string(precision_.compute) +
                    "; set precision.compute");
    }
    try {
        spikes_.restore(saved.spike);
        left_out_ = LeftOut::from_json(saved.left_out);
    } catch (const json::exception& e) {
        throw Error(checkpoint + "/state.json: " + e.what());
    }
    schedule_.restore(saved.schedule);
    step_ = saved.updates;
}

}  // namespace lmo
