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
        stages_.initialise(weights_.master(), config_.run.seed, weights_.remainders());
        schedule_.restore({});
        spikes_.restore(nullptr);
        left_out_ = {};
        step_ = 0;
        samples_ = 0;
        saved_step_ = -1;
    } else {
        load(checkpoint);
    }
    decisions_ = 0;
    loader_ = make_loader(config_.data.seed, samples_);
}

nlohmann::json Trainer::state() const {
    const ScheduleState& s = schedule_.state();
    return {{"format", 1},
            {"updates", step_},
            {"samples", samples_},
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
            {"ranks", ranks_.size()},
            {"epoch_batch", config_.batch.one_rank_micro_batch},
            {"config", config_.resolved}};
}

// Rank 0 writes; it holds the weights, and gets the states of the others first.
void Trainer::save(bool must_succeed) {
    std::vector<TensorSource> states = state_sources();
    ranks_.on_first("checkpoint", [&] { write_checkpoint(std::move(states), must_succeed); });
    ranks_.broadcast(&saved_step_, sizeof saved_step_, "number of the checkpoint");
    saved_folder_ = ranks_.broadcast(saved_folder_, "name of the checkpoint");
}

void Trainer::write_checkpoint(std::vector<TensorSource> states, bool must_succeed) {
    std::vector<TensorSource> optimizer = weights_.master_sources();
    std::move(states.begin(), states.end(), std::back_inserter(optimizer));
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
    if (!weights_.has_master_sources()) {
        const SafetensorsFile model(checkpoint + "/model.safetensors");
        weights_.set([&](const Parameter& p) { return model.read(p.name, extents(p.shape)); });
    } else {
        weights_.set([&](const Parameter& p) {
            return optimizer.read(p.name + ".master", extents(p.shape));
        });
    }
    const RunState saved = read_run_state(checkpoint);
    for (const StateTensor& state : stages_.states()) {
        copy_in_converted(backend_, state.tensor, saved_state(optimizer, state, saved.ranks));
    }
    restore_state(saved, checkpoint);
    saved_step_ = step_;
    saved_folder_ = checkpoint;
}

void Trainer::restore_state(const RunState& saved, const std::string& checkpoint) {
    if (saved.samples != samples_before(saved.updates)) {
        throw Error(checkpoint + "/state.json: updates, samples and batch.sequences disagree");
    }
    require_same_data_as(checkpoint, saved);
    if (saved.compute != to_string(precision_.compute)) {
        throw Error(checkpoint + ": was trained in " + saved.compute +
                    ", this device would continue in " + to_string(precision_.compute) +
                    "; set precision.compute");
    }
    const int64_t epoch_batch = config_.batch.one_rank_micro_batch;
    if (config_.data.order == OrderType::numpy && saved.epoch_batch > 0 &&
        saved.epoch_batch != epoch_batch) {
        throw UsageError(
            "batch.micro_batch: the epochs of data.compat.order = \"numpy\" are whole "
            "micro-batches, of " +
            std::to_string(saved.epoch_batch) + " sequences in " + checkpoint + ", of " +
            std::to_string(epoch_batch) + " now; set it back to continue");
    }
    if (saved.ranks != ranks_.size()) {
        console_.message("checkpoint of " + std::to_string(saved.ranks) +
                         (saved.ranks == 1 ? " rank" : " ranks") + ", continued on " +
                         std::to_string(ranks_.size()) +
                         ": from here on sums are rounded in another order");
    }
    try {
        spikes_.restore(saved.spike);
        left_out_ = LeftOut::from_json(saved.left_out);
    } catch (const json::exception& e) {
        throw Error(checkpoint + "/state.json: " + e.what());
    }
    schedule_.restore(saved.schedule);
    step_ = saved.updates;
    samples_ = saved.samples;
}

}  // namespace lmo
