// How long operations take on a backend, seen from the border: the same code for every device.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "llmc/device/arena.h"

namespace lmo {

// Issues one operation, the same at every call.
using Call = std::function<void()>;

struct Timing {
    double seconds, fastest, slowest;  // of one call: median, least and most of the windows
};

struct TimingLimits {
    double window = 0.04;  // a window repeats the calls until it lasts that long
    int windows = 7;       // at most; fewer when `total` is over
    double total = 1.0;    // seconds, about
};

// The calls are issued in turn, as one captured graph, and a window is one launch of it. They are
// issued once before, for what a first call does besides its work.
Timing measure(Backend& backend, const std::vector<Call>& calls, const TimingLimits& limits = {});

// Values for measurements. Random ones, as the power that a device takes, and so its speed, depends
// on them; NaN in what is to be written, so that a value left out is found.
class Noise {
  public:
    explicit Noise(Backend& backend);

    void fill(const Tensor& tensor) const { repeat(tensor, noise_); }  // in (-1, 1)
    void poison(const Tensor& tensor) const { repeat(tensor, poison_); }

  private:
    void repeat(const Tensor& to, const Tensor& pool) const;

    Backend& backend_;
    Arena arena_;
    Tensor noise_, poison_;
};

// What an operation can reach at most here: the fastest window counts. The sizes grow with the
// speed of the device.
struct Ceiling {
    std::string shape;
    Timing timing;
    double bytes, flops;  // of one call; one is 0

    double rate() const { return (bytes + flops) / timing.fastest; }
};
Ceiling copy_ceiling(Backend& backend, const Noise& noise);
Ceiling gemm_ceiling(Backend& backend, const Noise& noise, DType compute);

// FLOP/s of the device's own matrix product in `compute` type (about 0.3 s): the peak that MFU is
// quoted against where no table knows the device.
double measure_peak_flops(Backend& backend, DType compute);

}  // namespace lmo
