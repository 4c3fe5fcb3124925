// One training run: the loop, its checkpoints and its metrics.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "llmc/core/error.h"
#include "llmc/data/loader.h"
#include "llmc/data/tokenizer.h"
#include "llmc/device/arena.h"
#include "llmc/dist/collectives.h"
#include "llmc/dist/ranks.h"
#include "llmc/io/console.h"
#include "llmc/io/metrics.h"
#include "llmc/schedule/schedule.h"
#include "llmc/smoothness/analyzer.h"
#include "llmc/train/config.h"
#include "llmc/train/overlap.h"
#include "llmc/train/run_state.h"
#include "llmc/train/sharding.h"
#include "llmc/train/signals.h"
#include "llmc/train/spike.h"
#include "llmc/train/stages.h"
#include "llmc/train/update_norms.h"
#include "llmc/train/validation.h"
#include "llmc/train/weights.h"

namespace lmo {

// `resume`: "auto" (continue if the run folder has a checkpoint), "never" (refuse a used run
// folder), or a checkpoint or run folder to continue from. Every rank calls it, with the same
// configuration; rank 0 writes the run folder and speaks. Returns finished or stopped; throws
// Error.
ExitStatus train(Config config, const std::string& resume, Ranks& ranks);

class Trainer {
  public:
    // Takes all memory, and starts the weights: from `checkpoint` if not empty, else from init.from
    // or at random.
    Trainer(const Config& config, Backend& backend, const std::string& checkpoint, Ranks& ranks,
            Collectives& collectives);

    ExitStatus run();

  private:
    struct Update {  // what one update found out
        double loss, gradient_norm, seconds;
        RateStep rate;
        bool first;  // none was applied before
        std::optional<Spike> spike;
    };

    void advance();
    void outputs(bool stop);
    Update update();
    struct BatchLoss {  // of the global batch
        double mean;
        double followed;       // what an adaptive schedule is to follow
        double gradient_norm;  // of ranks that work alone: root of the mean square over them
    };
    // `everywhere`: on several ranks too the gradients are complete, not those alone that this one
    // owns.
    // The backward pass ends with layer `lowest`.
    BatchLoss accumulate_gradients(Loader& loader, bool everywhere, int64_t lowest);
    std::unique_ptr<Graph> recorded(const std::function<void()>& body);
    std::optional<Overlap> make_overlap() const;
    Graph& micro_step(int64_t lowest, bool small);
    void apply_step(double rate);
    void step_optimizer();

    struct LocalLoss {
        double mean_part;      // of the global mean: the parts of the ranks add up to it
        double last_part;      // what the last micro-batch adds to that
        uint64_t fingerprint;  // of all decisions so far
        double gradient_norm;  // of a rank that works alone
    };
    // Issues the gradient at these weights of `count` micro-batches, which `next` gives one by one;
    // returns what its loss will be without the last one, where that is asked for. The loss itself
    // waits for all of it.
    using NextBatch = std::function<const HostBatch&()>;
    double issue_gradients(const NextBatch& next, int64_t count, int64_t lowest, bool small);
    LocalLoss local_loss(double before_last);

    // What several ranks do (trainer_ranks.cpp).
    std::unique_ptr<Loader> make_loader(uint64_t seed, int64_t position);
    int64_t micro_batches(bool small = false) const;  // of this rank in a batch
    BatchLoss combine(const LocalLoss& local);
    void sum_gradients(bool everywhere);
    void sum_over_ranks(const Tensor& flat, bool everywhere);
    void sum_behind_backward();
    double gradient_norm();
    void add_up_owned(std::vector<double>& sums);
    void share_weights();
    void average_weights();
    void share_head_maxima();
    std::vector<TensorSource> state_sources();
    std::vector<double> saved_state(const SafetensorsFile& file, const StateTensor& state,
                                    int64_t saved_ranks) const;
    void remember_decisions(const Update& update);
    void require_same_start();
    void require_same_weights(const std::vector<double>& squares);
    void add_traffic(nlohmann::ordered_json& line);
    void record(const nlohmann::ordered_json& line);

    // Estimators, outer stage and what an update uses up (trainer_stages.cpp).
    BatchLoss estimate_gradients(int64_t lowest);
    void clip_estimate(bool corrected);
    double global_norm(const ParameterBuffer& buffer);
    int64_t samples_of(int64_t update) const;
    int64_t samples_before(int64_t update) const;
    double inner_rate(double rate) const;
    void take_outer_step();
    // Whether the ranks have the same weights, now and after this update.
    bool at_meeting() const { return !alone_ || step_ == config_.run.steps || meets(step_); }
    bool meets_after_this_update() const {
        return !alone_ || step_ + 1 == config_.run.steps || meets(step_ + 1);
    }
    bool meets(int64_t updates) const { return updates % config_.optimizer.outer.every == 0; }

    // Numbers that are not finite (trainer_nonfinite.cpp). The first three throw NotFinite.
    void require_finite(double loss, double gradient_norm);
    void require_finite_weights(int64_t culprit);
    void require_finite_validation(double loss);
    int64_t newest_applied() const;  // update, or -1
    int64_t applied() const { return step_ - left_out_.before(step_); }
    void skip(const NotFinite& found);
    void leave_out_again(const Trouble& trouble);
    void roll_back(const NotFinite& found);
    std::string rollback_point();
    [[noreturn]] void give_up(const NotFinite& found, const std::string& why) const;

    // What is told, to metrics and people (trainer_log.cpp).
    void log_update(const Update& update);
    void log_spike(const Spike& spike, double loss);
    void log_schedule();
    void evaluate();
    bool smoothness_due(int64_t step) const;
    void prepare_smoothness();
    void measure_smoothness();
    void record_smoothness(int64_t update, double loss);
    double gradient_of_batch(uint64_t seed, int64_t position);
    void sample();
    void log_summary();

    void clean_up();
    // From a checkpoint, or from the initial weights if it is empty; the loader too.
    void start(const std::string& checkpoint);
    void load(const std::string& checkpoint);
    void restore_state(const RunState& saved, const std::string& checkpoint);
    void load_initial_weights();
    // A failed save is a warning while training goes on, an Error when nothing follows it.
    void save(bool must_succeed);
    void write_checkpoint(std::vector<TensorSource> states, bool must_succeed);
    nlohmann::json state() const;
    void require_same_data_as(const std::string& checkpoint, const RunState& saved);
    // Whether update `step`, counted from 0, has lines of metrics.
    bool logged(int64_t step) const {
        return step % config_.log.every == 0 || step + 1 == config_.run.steps;
    }
    bool due(int64_t every) const { return every > 0 && step_ % every == 0; }

    const Config& config_;
    Backend& backend_;
    Ranks& ranks_;
    Collectives& collectives_;
    Arena arena_;
    ParameterList parameters_;
    ModelPrecision precision_;
    Dataset train_set_, validation_set_;
    nlohmann::ordered_json data_;  // fingerprints of their files
    BatchTensors batch_;
    Llama model_;
    Weights weights_;
    ParameterBuffer gradients_;
    const bool drifting_;  // schedule.compat.loss_source "local" on several ranks
    const bool alone_;     // optimizer.communication.type "local" on several ranks
    Sharding sharding_;
    UpdateStages stages_;
    std::optional<Overlap> overlap_;           // of communication, where there can be any
    Optimizer& optimizer_;                     // of them
    std::optional<UpdateNorms> update_norms_;  // of rank 0, where log.update_norms asks for them
    Schedule schedule_;
    SpikeDetector spikes_;
    LeftOut left_out_;
    std::vector<std::unique_ptr<Graph>> micro_steps_;  // by the lowest layer of their gradients
    std::unique_ptr<Graph> update_;                    // where every update is the same
    std::unique_ptr<Loader> loader_;
    SampleStream validation_samples_;
    std::unique_ptr<Tokenizer> tokenizer_;  // where texts are sampled, with their prompt
    std::vector<int32_t> prompt_;
    std::unique_ptr<Backend> norm_backend_;         // for the analyzer, where backend_ has no fp64
    std::unique_ptr<SmoothnessAnalyzer> analyzer_;  // of rank 0, where smoothness.every is not 0
    std::unique_ptr<MetricsLog> metrics_;           // of rank 0
    Console console_;
    StopSignals signals_;

    uint64_t decisions_ = 0;               // fingerprint of rates and norms, alike on all ranks
    std::vector<double> initial_squares_;  // of the initial weights, for rollback to recognise them
    double peak_flops_ = 0.0;

    int64_t step_ = 0;                     // updates done, those left out included
    int64_t samples_ = 0;                  // of the data that they used up
    int64_t computed_ = 0;                 // sequences whose gradients the last update took
    int64_t sent_up_ = 0, sent_down_ = 0;  // bytes of this rank in the last update
    int64_t saved_step_ = -1;              // of the newest checkpoint, which is
    std::string saved_folder_;
    double validation_loss_ = 0.0;
    std::string summary_;            // the last line for people
    double training_seconds_ = 0.0;  // updates only, of this process
    int64_t updates_here_ = 0;       // of this process, repeated ones included
    int64_t samples_here_ = 0;       // that these used up
};

}  // namespace lmo
