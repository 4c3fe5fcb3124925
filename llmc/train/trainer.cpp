#include "llmc/train/trainer.h"

#include <algorithm>

#include "llmc/core/timer.h"
#include "llmc/device/reissued_graph.h"
#include "llmc/io/checkpoint.h"
#include "llmc/io/files.h"
#include "llmc/io/run_lock.h"
#include "llmc/model/generate.h"
#include "llmc/train/commands.h"
#include "llmc/train/data_fingerprint.h"
#include "llmc/train/device.h"
#include "llmc/train/measure.h"
#include "llmc/train/rank_setup.h"
#include "llmc/train/resume.h"

namespace lmo {

using nlohmann::json;
using nlohmann::ordered_json;

ExitStatus train(Config config, const std::string& resume, Ranks& ranks) {
    ranks.set_timeout(config.run.rank_timeout);
    require_same_on_all(config, ranks);
    cut_over_ranks(config, ranks.size());
    std::optional<RunLock> lock;
    std::string checkpoint;
    ranks.on_first("look for a checkpoint", [&] {
        lock.emplace(config.run.dir);
        checkpoint = find_checkpoint(config, resume, ranks.size());
    });
    checkpoint = ranks.broadcast(checkpoint, "name of the checkpoint");
    const std::unique_ptr<Backend> backend = make_rank_backend(config, ranks);
    // Connections take memory of the devices: they come first.
    const std::unique_ptr<Collectives> collectives = make_collectives(*backend, ranks);
    const ModelPrecision precision = choose_precision(config, *backend);
    require_attention(config.model, precision, *backend);
    require_memory(
        *backend, config.model, precision, config.batch.micro_batch,
        memory_of_stages(*backend, config, precision.master, ranks.rank(), ranks.size()));
    Trainer trainer(config, *backend, checkpoint, ranks, *collectives);
    try {
        const ExitStatus status = trainer.run();
        ranks.barrier("end");
        return status;
    } catch (...) {
        collectives->abort();  // before memory is released, which waits for the device
        throw;
    }
}

Trainer::Trainer(const Config& config, Backend& backend, const std::string& checkpoint,
                 Ranks& ranks, Collectives& collectives)
    : config_(config),
      backend_(backend),
      ranks_(ranks),
      collectives_(collectives),
      arena_(backend),
      parameters_(llama_parameters(config.model)),
      precision_(choose_precision(config, backend)),
      train_set_(config.data.train, config.data.format, config.model.seq_len,
                 config.model.vocab_size),
      validation_set_(config.data.val, config.data.format, config.model.seq_len,
                      config.model.vocab_size),
      data_({{"train", data_fingerprint(train_set_)}, {"val", data_fingerprint(validation_set_)}}),
      batch_(arena_, config.batch.micro_batch, config.model.seq_len),
      model_(backend, arena_, config.model, parameters_, precision_, config.batch.micro_batch,
             true),
      weights_(backend, arena_, parameters_, precision_, true),
      gradients_{&parameters_,
                 arena_.take("gradients", precision_.master, {parameters_.buffer_length()})},
      drifting_(ranks_drift(config, ranks.size())),
      alone_(ranks_work_alone(config, ranks.size())),
      sharding_(make_sharding(config, parameters_, ranks.size())),
      stages_(backend, arena_, config, parameters_, precision_.master, sharding_, ranks.rank(),
              ranks.size()),
      overlap_(make_overlap()),
      optimizer_(stages_.optimizer),
      schedule_(with_measured_gap(config), warmup_kappa(config.optimizer, parameters_)),
      spikes_(config.log.spike, parameters_.size()),
      validation_samples_(validation_set_, config.data.order, config.data.seed,
                          config.batch.one_rank_micro_batch),
      console_(config.run.steps, !ranks.first()) {
    if (config.log.update_norms && ranks.first()) {
        update_norms_.emplace(backend, arena_, parameters_, precision_.master, precision_.split);
    }
    arena_.workspace();  // all users have said what they need; fixed before anything is captured
    optimizer_.bind_gradients(gradients_);
    micro_steps_.resize(2 * (static_cast<size_t>(config.model.n_layer) + 1));
    if (optimizer_.repeats()) {
        update_ = recorded([this] { step_optimizer(); });
    }
    if (config_.eval.sample) {
        tokenizer_ = make_tokenizer(config_.data.tokenizer);
        prompt_ = encode_prompt(*tokenizer_, *config_.eval.sample, config_.model.vocab_size,
                                "eval.sample");
    }
    require_same_start();
    start(checkpoint);
    if (checkpoint.empty()) initial_squares_ = weights_.squares(arena_.workspace());
    prepare_smoothness();
}

ExitStatus Trainer::run() {
    print_run_summary(console_, config_, backend_, arena_, parameters_, precision_, train_set_,
                      validation_set_);
    if (ranks_.size() > 1) {
        console_.message(
            "ranks      " + std::to_string(ranks_.size()) + ", each " +
            std::to_string(micro_batches()) + " x " + std::to_string(config_.batch.micro_batch) +
            " sequences of an update, and " +
            (drifting_ ? "rates and weights of its own"
             : alone_ ? "updates of its own, and " + std::to_string(config_.optimizer.outer.every) +
                            " between two meetings"
                      : "the steps of " + sharding_.describe()) +
            "; by " + collectives_.describe());
    }
    if (ranks_.first()) clean_up();
    if (step_ >= config_.run.steps) {
        console_.message("this run is finished: " + std::to_string(step_) +
                         " updates done; give it another run.dir to train again");
        return ExitStatus::finished;
    }
    if (ranks_.first()) {
        write_file_atomically(config_.run.dir + "/run_config.json",
                              config_.resolved.dump(2) + "\n");
        metrics_ = std::make_unique<MetricsLog>(config_.run.dir, step_, config_.log.tensorboard);
    }
    peak_flops_ = config_.log.peak_tflops > 0.0 ? config_.log.peak_tflops * 1e12
                                                : measure_peak_flops(backend_, precision_.compute);
    ranks_.sum(&peak_flops_, 1, "speed of all ranks");
    if (step_ > 0) console_.message("resumed after " + std::to_string(step_) + " updates");
    console_.header();

    while (step_ < config_.run.steps) {
        try {
            advance();
            // A signal may reach one rank alone; all of them stop after the same update.
            const bool stop = at_meeting() && ranks_.any(signals_.received(), "stop signals") &&
                              step_ < config_.run.steps;
            outputs(stop);
            if (stop) return ExitStatus::stopped;
        } catch (const NotFinite& found) {
            if (config_.run.on_nonfinite != OnNonfinite::rollback) give_up(found, "");
            roll_back(found);
        }
    }
    console_.finish();
    console_.message(summary_);
    return ExitStatus::finished;
}

// One update of the run, applied or left out.
void Trainer::advance() {
    if (const Trouble* trouble = left_out_.find(step_)) return leave_out_again(*trouble);
    try {
        log_update(update());
        if (smoothness_due(step_ - 1)) measure_smoothness();
    } catch (const NotFinite& found) {
        if (config_.run.on_nonfinite != OnNonfinite::skip) throw;
        skip(found);
    }
}

// What is due after an update.
void Trainer::outputs(bool stop) {
    const bool last = step_ == config_.run.steps;
    const bool saves = due(config_.checkpoint.every) || last || stop;
    if (saves) require_finite_weights(newest_applied());
    if (due(config_.eval.every) || last) evaluate();
    // Before the last checkpoint: what is killed after that one has its summary.
    if (last) log_summary();
    if (saves) save(last || stop);
    if (!stop) return;
    console_.finish();
    console_.message("stopped after " + std::to_string(step_) +
                     " updates, checkpoint written; run the same command to continue");
}

// One update: gradients of the global batch, the rate from its loss, the step. Nothing has changed
// but the gradients and the position in the data when it throws NotFinite; where the weights are
// the reason, they too.
Trainer::Update Trainer::update() {
    Timer timer;
    Update result;
    // The analyzer wants all gradients.
    const bool measured = smoothness_due(step_);
    sent_up_ = 0;
    const int64_t lowest = measured ? 0 : optimizer_.lowest_layer(applied());
    const BatchLoss loss = stages_.estimator ? estimate_gradients(lowest)
                                             : accumulate_gradients(*loader_, measured, lowest);
    result.loss = loss.mean;
    result.gradient_norm = alone_ ? loss.gradient_norm : gradient_norm();
    require_finite(result.loss, result.gradient_norm);
    result.seconds = timer.seconds();
    const ParameterBuffer &master = weights_.master(), &remainders = weights_.remainders();
    if (analyzer_ && smoothness_due(step_)) analyzer_->before(master, gradients_, remainders);
    const bool watched = update_norms_ && logged(step_);
    if (watched) update_norms_->before(master, remainders, arena_.workspace());
    timer.restart();
    result.first = applied() == 0;
    result.rate = schedule_.next(step_, loss.followed);
    result.rate.rate = inner_rate(result.rate.rate);
    remember_decisions(result);
    if (result.first && config_.optimizer.momentum_from_weights) {
        optimizer_.start_momentum_from(master, result.rate.rate, remainders);
    }
    apply_step(result.rate.rate);
    // Who rolls back must know which update broke the weights; else the next loss will tell.
    if (config_.run.on_nonfinite == OnNonfinite::rollback) require_finite_weights(step_);
    backend_.synchronize();
    result.seconds += timer.seconds();
    if (watched) {
        weights_.settle();
        update_norms_->after(master, remainders, arena_.workspace());
    }
    result.spike = spikes_.observe(result.loss, optimizer_.gradient_norms());
    const int64_t used = samples_of(step_);
    samples_ += used;
    samples_here_ += used;
    ++step_;
    ++updates_here_;
    training_seconds_ += result.seconds;
    return result;
}

// As a graph of the device, or for debugging one operation after another at every launch.
std::unique_ptr<Graph> Trainer::recorded(const std::function<void()>& body) {
    if (config_.run.graphs) return backend_.capture(body);
    return std::make_unique<ReissuedGraph>(body);
}

// The micro-step whose backward pass ends with layer `lowest`, recorded when first needed; `small`:
// of a small batch, whose mean its gradient is a part of.
Graph& Trainer::micro_step(int64_t lowest, bool small) {
    const int64_t index = small ? lowest + config_.model.n_layer + 1 : lowest;
    std::unique_ptr<Graph>& graph = micro_steps_[static_cast<size_t>(index)];
    if (!graph) {
        int64_t sequences = small ? config_.optimizer.estimator.small : config_.batch.sequences;
        if (alone_) sequences /= ranks_.size();  // a mean of its own
        const double tokens =
            static_cast<double>(sequences) * static_cast<double>(config_.model.seq_len);
        const StepSections sections = overlap_ ? overlap_->sections(backend_) : StepSections{};
        graph = recorded([this, lowest, tokens, sections, weights = weights_.compute()] {
            model_.forward_backward(weights, gradients_, batch_.tokens, batch_.targets,
                                    1.0 / tokens, batch_.loss, lowest, sections);
        });
    }
    return *graph;
}

// The step along the gradients, and what follows it.
void Trainer::apply_step(double rate) {
    const ParameterBuffer& master = weights_.master();
    optimizer_.set_scalars(rate, applied());
    if (stages_.estimator) stages_.estimator->remember(master);
    if (stages_.feedback) stages_.feedback->before_step(master);
    if (stages_.outer) stages_.outer->before(master);
    if (update_) {
        update_->launch();
    } else {
        step_optimizer();
    }
    if (stages_.outer) take_outer_step();
    sent_down_ = 0;
    if (meets_after_this_update()) share_weights();
    if (config_.optimizer.qk_clip == 0.0) return;
    share_head_maxima();
    model_.clip_heads(master, weights_.copies(), config_.optimizer.qk_clip, weights_.remainders());
}

void Trainer::step_optimizer() {
    optimizer_.step(weights_.master(), weights_.copies(), gradients_, weights_.remainders());
}

double Trainer::issue_gradients(const NextBatch& next, int64_t count, int64_t lowest, bool small) {
    optimizer_.clear(gradients_);
    backend_.zero(batch_.loss);
    if (config_.model.head_maxima) backend_.zero(model_.head_maxima());
    Graph& graph = micro_step(lowest, small);
    double before_last = 0.0;
    for (int64_t done = 0; done < count; ++done) {
        const HostBatch& host = next();
        backend_.copy_in(batch_.tokens, host.inputs.data());
        backend_.copy_in(batch_.targets, host.targets.data());
        if (done > 0 && done + 1 == count && config_.schedule.compat.last_micro_batch) {
            backend_.copy_out(&before_last, batch_.loss);
        }
        // One by one, more operations than the device takes in would wait for weights here.
        if (!config_.run.graphs) weights_.settle();
        graph.launch();
        weights_.settle();  // it reads them as they come
    }
    computed_ += count * config_.batch.micro_batch * ranks_.size();
    return before_last;
}

Trainer::LocalLoss Trainer::local_loss(double before_last) {
    double loss = 0.0;
    backend_.copy_out(&loss, batch_.loss);
    // A rank that works alone has means of its own.
    const double part = alone_ ? 1.0 / static_cast<double>(ranks_.size()) : 1.0;
    return {part * loss, part * (loss - before_last), decisions_, 0.0};
}

// Mean loss over all micro-batches of all ranks; leaves the gradient of it in gradients_.
Trainer::BatchLoss Trainer::accumulate_gradients(Loader& loader, bool everywhere, int64_t lowest) {
    computed_ = 0;
    const double before_last = issue_gradients(
        [&]() -> const HostBatch& { return loader.next(); }, micro_batches(), lowest, false);
    const bool overlaps = overlap_ && !everywhere;
    if (overlaps) sum_behind_backward();
    LocalLoss loss = local_loss(before_last);
    if (!overlaps) sum_gradients(everywhere);
    if (alone_) loss.gradient_norm = gradient_norm();
    return combine(loss);
}

void Trainer::evaluate() {
    const auto result_of = [this](Ranks& ranks) {
        return validate(backend_, model_, weights_.compute(), batch_, validation_samples_,
                        config_.batch.one_rank_micro_batch, config_.eval.batches,
                        config_.batch.micro_batch, ranks);
    };
    ValidationResult result{};
    if (drifting_) {  // the weights that are saved
        Ranks alone;
        ranks_.on_first("validation", [&] { result = result_of(alone); });
        ranks_.broadcast(&result, sizeof result, "validation loss");
    } else {
        result = result_of(ranks_);
    }
    validation_loss_ = result.loss;
    require_finite_validation(result.loss);
    record({{"type", "val"}, {"step", step_}, {"loss", result.loss}, {"tokens", result.tokens}});
    char text[64];
    std::snprintf(text, sizeof text, "validation loss %.4f after %lld updates", result.loss,
                  static_cast<long long>(step_));
    console_.message(text);
    if (config_.eval.sample) ranks_.on_first("sample of text", [this] { sample(); });
}

void Trainer::sample() {
    std::vector<int32_t> ids = prompt_;
    SamplingConfig sampling;
    sampling.temperature = 0.8;
    sampling.seed = config_.run.seed;
    generate(backend_, model_, config_.model, weights_.compute(), ids, 200, sampling, batch_.tokens,
             [](int32_t) {});
    const std::string text = tokenizer_->decode(ids);
    record({{"type", "sample"}, {"step", step_}, {"text", text}});
    console_.text("sample: " + text + "\n");
}

}  // namespace lmo
