// PyTorch beside us: dev/bench/optimizer_torch.py as a process that measures one round of updates
// whenever it is asked to, so that both sides take turns.
#pragma once

#include <sys/types.h>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace lmo {

struct PeerTime {
    std::string peer, preset;  // which of our presets it computes the same as
    double seconds;            // of one update
};

class TorchPeers {
  public:
    // Starts PYTHON (default python3) with these arguments. Throws an Error when it has no PyTorch.
    explicit TorchPeers(const std::vector<std::string>& arguments);
    ~TorchPeers();
    TorchPeers(const TorchPeers&) = delete;
    TorchPeers& operator=(const TorchPeers&) = delete;

    // {"torch": version, "presets": those that it knows, ...}
    const nlohmann::ordered_json& setup() const { return setup_; }
    // Makes the parameters, [{"shape": [rows, columns], "matrix": whether Muon takes it}, ...], and
    // the peers of these presets, compiles and warms up. Returns why peers were left out, "NAME:
    // REASON".
    std::vector<std::string> prepare(const nlohmann::ordered_json& blocks,
                                     const std::vector<std::string>& presets);
    std::vector<PeerTime> round();

  private:
    nlohmann::ordered_json ask(const std::string& question);
    nlohmann::ordered_json answer();
    void finish();

    std::string python_;
    pid_t process_ = -1;
    std::FILE *to_ = nullptr, *from_ = nullptr;
    nlohmann::ordered_json setup_;
};

}  // namespace lmo
