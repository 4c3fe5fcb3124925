// metrics.jsonl, one JSON object a line, and the same scalars as TensorBoard events.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace lmo {

class MetricsLog {
  public:
    // Appends to run_dir/metrics.jsonl. Of an existing file, lines that belong to updates from
    // `resume_step` on are dropped first (lines with step >= it, "val" and "sample" with step > it,
    // any "summary"; a torn last line too): the log reads as if the run had never been
    // interrupted. A run that starts from 0 begins an empty log.
    MetricsLog(const std::string& run_dir, int64_t resume_step, bool tensorboard);
    ~MetricsLog();  // says how many lines were never written

    // Writes one line (one write() call); a number that is not finite becomes null. Numbers of
    // lines that have a step also go to TensorBoard under "train/loss", "val/loss", ...; those in
    // an object "tensors", by name of the tensor, as one histogram for each kind of tensor, which
    // is the last part of the name without ".weight" ("update_norms/q_proj"), or as a scalar where
    // the kind has one tensor. A full disk is reported once on stderr and does not stop training:
    // lines wait in memory and are written as soon as there is room (TensorBoard's are lost).
    void write(const nlohmann::ordered_json& line);

    // On disk when it returns, so that a checkpoint never outlives the lines before it.
    void sync();

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace lmo
