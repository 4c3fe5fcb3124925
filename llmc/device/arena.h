// All device memory of a run, taken once at the start and accounted for by part. A counting arena
// (no backend) hands out views without memory, so a plan is made by the same code that runs.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "llmc/device/backend.h"

namespace lmo {

class Arena {
  public:
    Arena() = default;                                        // counts only
    explicit Arena(Backend& backend) : backend_(&backend) {}  // allocates
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    // A new tensor, its contents undefined. `part` names the line of the memory plan it counts for:
    // "weights", "gradients", "optimizer state", "activations/attention", "workspace", ...
    Tensor take(const std::string& part, DType dtype, Shape shape);

    // One scratch block that everybody shares, because operations run one after another: first all
    // users say what they need, then each gets the same block.
    void reserve_workspace(size_t bytes);
    Tensor workspace();  // fixed at the first call

    const std::map<std::string, size_t>& parts() const { return parts_; }  // bytes
    size_t total() const;

  private:
    Backend* backend_ = nullptr;
    std::vector<void*> blocks_;
    std::map<std::string, size_t> parts_;
    size_t workspace_bytes_ = 0;
    bool workspace_fixed_ = false;
    Tensor workspace_;
};

}  // namespace lmo
