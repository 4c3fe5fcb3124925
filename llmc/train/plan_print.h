#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "llmc/model/llama.h"
#include "llmc/train/config.h"

namespace lmo {

// The device that a plan is for.
struct PlanDevice {
    std::string name;
    ModelPrecision precision;
    bool stand_in;  // there is none here: the CPU's workspace is in its place
};

void print_plan(const nlohmann::ordered_json& plan, const Config& config, const PlanDevice& device);

}  // namespace lmo
