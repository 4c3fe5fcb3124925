// Choosing a device, and how fast it can be.
#pragma once

#include <memory>
#include <string>

#include "llmc/device/backend.h"
#include "llmc/model/llama.h"
#include "llmc/train/config.h"

namespace lmo {

// "auto", "cpu" or "cuda". Throws UsageError for a device that this build or machine does not have.
std::unique_ptr<Backend> make_backend(const std::string& device, int threads);

ModelPrecision choose_precision(const Config& config, const Backend& backend);

// FLOP/s of the device's own matrix product in `compute` type, measured (about 0.2 s): the peak
// that MFU is quoted against where no table knows the device.
double measure_peak_flops(Backend& backend, DType compute);

}  // namespace lmo
