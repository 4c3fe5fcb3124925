// How an update's time would grow with the ranks: a model of arithmetic and links, for plan.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>

namespace lmo {

// What an update takes on one rank that does all of it, and what ranks send. Seconds and bytes.
struct UpdateCost {
    double gradients = 0.0;       // forward and backward of the whole batch
    double directions = 0.0;      // Newton-Schulz of all blocks
    double busiest_share = 1.0;   // of the directions: the rank that has most of them
    double up = 0.0, down = 0.0;  // bytes that a rank sends, on average
    double busiest_up = 0.0, busiest_down = 0.0;  // received and sent by the owner with most
    double micro_batches = 1.0;                   // of a rank: the last and the first hide bytes
    bool overlaps = true;                         // else everything is one after the other
    // The parts of `up` and `down` that nothing hides: what the backward pass completes last, and
    // what the forward pass reads first.
    double last_up = 0.0, first_down = 0.0;
};

// {"link_bytes_per_s", "gradients_s", "directions_s", "up_s", "down_s",
//  "seconds", "efficiency", "overlapped_seconds", "overlapped_efficiency"}
//
// One after the other: gradients, then what goes up to the owners, directions, what comes down;
// every rank sends to each owner, so the owner of the largest block waits for all of it.
// Overlapped, as ranks on GPUs are: sums are made on the way (rings); what goes up is hidden behind
// the backward pass (2/3 of the gradients) of the last micro-batch and what comes down behind the
// forward pass of the first, as far as these last, but for last_up and first_down. Efficiency: the
// time of one rank over ranks times theirs. Bytes that move at `link` bytes/s into and out of a
// rank at once; no latency, no elementwise operations.
nlohmann::ordered_json predict_scaling(const UpdateCost& cost, double link, int64_t ranks);

}  // namespace lmo
