// Losses, gradients and weights that are not finite: what Trainer does about them. The rules are in
// dev/docs/nonfinite.md.
//
// Everything here is a function of the run alone. An interrupted run that goes on from a checkpoint
// meets the same numbers again and leaves out the same updates; those that a checkpoint knows of
// already are in its state.json.
#include <algorithm>
#include <cmath>

#include "llmc/io/checkpoint.h"
#include "llmc/train/trainer.h"

namespace lmo {

namespace {

// Index of the last number that is not finite, or -1: of gradients, the one nearest the output,
// where the backward pass, which hands a NaN on to all layers below, met it first.
int last_not_finite(const std::vector<double>& values) {
    int index = static_cast<int>(values.size()) - 1;
    while (index >= 0 && std::isfinite(values[static_cast<size_t>(index)])) --index;
    return index;
}

std::string update_text(int64_t update) { return "update " + std::to_string(update); }

}  // namespace

void Trainer::require_finite(double loss, double gradient_norm) {
    if (std::isfinite(loss) && std::isfinite(gradient_norm)) return;
    // Broken weights are no fault of this update, and leaving it out would mend nothing.
    require_finite_weights(newest_applied());
    const int tensor = last_not_finite(optimizer_.gradient_norms());
    const std::string name = tensor < 0 ? "" : parameters_[tensor].name;
    if (!std::isfinite(loss)) {
        throw NotFinite(update_text(step_) + ": the loss is", step_,
                        {"loss", nonfinite_text(loss), name});
    }
    throw NotFinite(update_text(step_) + ": the norm of the gradient is", step_,
                    {"gradient norm", nonfinite_text(gradient_norm), name});
}

void Trainer::require_finite_weights(int64_t culprit) {
    const std::vector<double> squares = weights_.squares(arena_.workspace());
    require_same_weights(squares);
    const int tensor = last_not_finite(squares);
    if (tensor < 0) return;
    throw NotFinite((culprit < 0 ? "start" : "after " + update_text(culprit)) + ": the weights are",
                    culprit,
                    {"weights", nonfinite_text(squares[static_cast<size_t>(tensor)]),
                     parameters_[tensor].name});
}

void Trainer::require_finite_validation(double loss) {
    if (std::isfinite(loss)) return;
    require_finite_weights(newest_applied());
    throw NotFinite("after " + std::to_string(step_) + " updates: the validation loss is",
                    newest_applied(), {"validation loss", nonfinite_text(loss), ""});
}

int64_t Trainer::newest_applied() const {
    int64_t update = step_ - 1;
    while (left_out_.find(update) != nullptr) --update;
    return update;
}

// The batch is used up and the update counts; nothing else has changed.
void Trainer::skip(const NotFinite& found) {
    if (found.update != step_) throw found;  // the weights
    const int64_t limit = config_.run.nonfinite_limit, before = left_out_.in_a_row_before(step_);
    if (before >= limit) {
        give_up(found, "it would be left out, but so were the " + std::to_string(before) +
                           " updates before it (run.nonfinite_limit)");
    }
    left_out_.add(step_, found.trouble);
    record(metrics_line(step_, found.trouble));
    console_.warning(std::string(found.what()) + "; left out, " + std::to_string(before + 1) +
                     " in a row of at most " + std::to_string(limit) + " (run.nonfinite_limit)");
    samples_ += samples_of(step_);
    ++step_;
}

// On the way to where the run was before a rollback.
void Trainer::leave_out_again(const Trouble& trouble) {
    const int64_t used = samples_of(step_), at_once = ranks_.size() * config_.batch.micro_batch;
    for (int64_t done = 0; done < used / at_once; ++done) loader_->next();
    record(metrics_line(step_, trouble));
    samples_ += used;
    ++step_;
}

void Trainer::roll_back(const NotFinite& found) {
    const int64_t limit = config_.run.nonfinite_limit;
    const int64_t point = std::max<int64_t>(saved_step_, 0);
    if (found.update < point) give_up(found, "no update since the checkpoint can be left out");
    // A checkpoint may hold nothing but updates left out, and is no progress then.
    const int64_t before = std::max(left_out_.from(point), left_out_.in_a_row_before(found.update));
    if (before >= limit) {
        give_up(found, std::to_string(before) +
                           " updates in a row or since the checkpoint are left out already "
                           "(run.nonfinite_limit)");
    }
    LeftOut left_out = left_out_;
    left_out.add(found.update, found.trouble);
    std::string checkpoint;
    ranks_.on_first("look for a checkpoint", [&] { checkpoint = rollback_point(); });
    checkpoint = ranks_.broadcast(checkpoint, "name of the checkpoint");
    if (checkpoint.empty() && saved_step_ >= 0) {
        give_up(found, "no complete checkpoint is left to go back to");
    }
    console_.warning(std::string(found.what()) + "; back to " +
                     (checkpoint.empty() ? "the initial weights" : checkpoint) + ", leaving out " +
                     update_text(found.update) + ", " + std::to_string(before + 1) +
                     " of at most " + std::to_string(limit) + " (run.nonfinite_limit)");
    start(checkpoint);
    if (checkpoint.empty() && weights_.squares(arena_.workspace()) != initial_squares_) {
        throw Error("init.from: " + config_.init_from +
                    ": holds other weights than at the start of this run, so there is nothing to "
                    "roll back to; restore the folder and run the same command again");
    }
    left_out_ = left_out;
    if (!ranks_.first()) return;
    metrics_.reset();  // the file is closed before it is cut
    metrics_ = std::make_unique<MetricsLog>(config_.run.dir, step_, config_.log.tensorboard);
}

// The newest checkpoint, or should it be damaged by now, one before it; empty: none.
std::string Trainer::rollback_point() {
    if (saved_step_ < 0 || checkpoint_is_valid(saved_folder_, nullptr)) return saved_folder_;
    std::vector<std::string> warnings;
    const auto newest = newest_checkpoint(config_.run.dir, &warnings, saved_step_);
    for (const std::string& warning : warnings) console_.warning(warning);
    return newest.value_or("");
}

void Trainer::give_up(const NotFinite& found, const std::string& why) const {
    std::string text = std::string(found.what()) + "; " + (why.empty() ? "" : why + "; ") +
                       "training stops and these weights are not saved. ";
    if (saved_step_ >= 0) {
        text += "The checkpoint after " + std::to_string(saved_step_) + " updates is kept. ";
    }
    throw Error(text + "Try a smaller optimizer.lr, a longer warm-up or optimizer.clip_norm" +
                (config_.run.on_nonfinite == OnNonfinite::stop
                     ? ", or run.on_nonfinite \"skip\" or \"rollback\""
                     : ""));
}

}  // namespace lmo
