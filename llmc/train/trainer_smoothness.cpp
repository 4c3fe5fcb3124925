// What Trainer does with llmc/smoothness: gradients of the batch that was just trained on, at the
// new weights, and of another batch. Training reads none of it: its bits are those of a run
// without.
#include <cmath>

#include "llmc/train/trainer.h"

namespace lmo {

using nlohmann::ordered_json;

void Trainer::prepare_smoothness() {
    if (config_.smoothness.every == 0 || !ranks_.first()) return;
    if (!backend_.has_fp64()) norm_backend_ = make_cpu_backend(config_.run.threads);
    analyzer_ = std::make_unique<SmoothnessAnalyzer>(
        backend_, norm_backend_ ? *norm_backend_ : backend_,
        matrix_norm(config_.optimizer, parameters_), parameters_,
        block_norms(config_.optimizer, parameters_));
}

// Whether update `step`, counted from 0, is measured.
bool Trainer::smoothness_due(int64_t step) const {
    return config_.smoothness.every > 0 && step % config_.smoothness.every == 0;
}

// Loss of a batch in the order of `seed`; its gradient is in gradients_, which no update reads.
double Trainer::gradient_of_batch(uint64_t seed, int64_t position) {
    return accumulate_gradients(*make_loader(seed, position), true, 0).mean;
}

void Trainer::measure_smoothness() {
    const int64_t update = step_ - 1;
    const int64_t position = update * config_.batch.sequences;
    const double loss = gradient_of_batch(config_.data.seed, position);
    ranks_.on_first("norms", [this] {
        analyzer_->after(weights_.master(), gradients_, weights_.remainders());
    });
    gradient_of_batch(config_.data.seed + 1, position);
    ranks_.on_first("norms", [&] { record_smoothness(update, loss); });
}

void Trainer::record_smoothness(int64_t update, double loss) {
    const SmoothnessSample sample = analyzer_->other_batch(gradients_);
    const double moved = sample.weight_change();
    const auto over_change = [&](double change) {
        return sample.moved() ? ordered_json(change / moved) : ordered_json();
    };
    ordered_json line = {{"type", "smoothness"},
                         {"step", update},
                         {"loss", loss},
                         {"target_loss", config_.smoothness.target_loss},
                         {"delta", loss - config_.smoothness.target_loss},
                         {"ratio", over_change(sample.gradient_change())},
                         {"noise", over_change(sample.noise_change())},
                         {"weight_change", moved},
                         {"gradient_change", sample.gradient_change()},
                         {"layers", ordered_json::object()}};
    for (const SmoothnessSample::Layer& layer : sample.layers) {
        line["layers"][layer.name] = {{"weight_change", layer.weight_change},
                                      {"gradient_change", layer.gradient_change},
                                      {"noise_change", layer.noise_change}};
    }
    for (const SmoothnessSample::Block& block : sample.blocks) {
        line["blocks"][block.name] = {{"weight_change", block.weight_change},
                                      {"gradient", block.gradient},
                                      {"gradient_change", block.gradient_change},
                                      {"other_change", block.other_change}};
    }
    metrics_->write(line);
}

}  // namespace lmo
