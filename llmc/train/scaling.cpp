#include "llmc/train/scaling.h"

#include <algorithm>

namespace lmo {

nlohmann::ordered_json predict_scaling(const UpdateCost& cost, double link, int64_t ranks) {
    const double n = static_cast<double>(ranks);
    const double gradients = cost.gradients / n, directions = cost.directions * cost.busiest_share;
    const double up = std::max(cost.up, cost.busiest_up) / link,
                 down = std::max(cost.down, cost.busiest_down) / link;
    const double alone = cost.gradients + cost.directions;
    const double seconds = gradients + up + directions + down;
    const double pass = gradients / cost.micro_batches;
    const auto shown = [&](double bytes, double bare, double hides) {
        return bare / link + std::max(0.0, (bytes - bare) / link - hides);
    };
    const double exposed = shown(cost.up, cost.last_up, pass * 2.0 / 3.0) +
                           shown(cost.down, cost.first_down, pass / 3.0);
    const double overlapped = cost.overlaps ? gradients + directions + exposed : seconds;
    return {{"link_bytes_per_s", link},
            {"gradients_s", gradients},
            {"directions_s", directions},
            {"up_s", up},
            {"down_s", down},
            {"seconds", seconds},
            {"efficiency", alone / (n * seconds)},
            {"overlapped_seconds", overlapped},
            {"overlapped_efficiency", alone / (n * overlapped)}};
}

}  // namespace lmo
