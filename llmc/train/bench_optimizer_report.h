// The lines and tables of `train_gpt bench optimizer`.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "llmc/train/bench_optimizer.h"

namespace lmo {

constexpr int kSetSteps = 5;  // of Newton-Schulz: as the sets are published and used

struct PresetRow {
    std::string preset, error;
    std::string master = "fp32";  // or "split"
    Timing update{}, norm{};
    double bytes = 0, state = 0;  // state: bytes of a parameter
    DirectionFlops flops;
    double copy_share = 0, gemm_share = 0;  // gemm: of what was executed
};

struct SetRow {
    std::string set, shape, error;
    NewtonSchulzForm form = NewtonSchulzForm::standard;
    NewtonSchulzTime time{};
    double share = 0;  // of what was executed
};

struct PeerRow {
    std::string peer, preset;
    std::vector<double> theirs, ours, ratios;  // of the rounds
};

class OptimizerReport {
  public:
    // `json`: each add() prints a JSON line, and there are no tables.
    OptimizerReport(std::string device, bool json) : device_(std::move(device)), json_(json) {}

    void add(const std::string& what, const Ceiling& ceiling, DType dtype);
    void add(const PresetRow& row, const std::string& shape);
    void add(const SetRow& row, DType inner);
    void add(const PeerRow& row, const std::string& shape, const std::string& torch);

    // `what`: the parameters.
    void print_tables(const std::string& what, const std::string& torch) const;
    int failed() const;
    int size() const { return static_cast<int>(presets_.size() + sets_.size()); }

  private:
    void print(nlohmann::ordered_json line) const;
    void print_presets() const;
    void print_sets() const;
    void print_peers(const std::string& torch) const;

    std::string device_, ceilings_;
    bool json_;
    std::vector<PresetRow> presets_;
    std::vector<SetRow> sets_;
    std::vector<PeerRow> peers_;
};

}  // namespace lmo
