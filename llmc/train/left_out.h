// Updates that are left out of a run because a number of theirs was not finite: what
// run.on_nonfinite skips or rolls back over (dev/docs/nonfinite.md).
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "llmc/core/error.h"

namespace lmo {

enum class OnNonfinite { stop, skip, rollback };

// "nan", "inf" or "-inf": alike everywhere, as the sign of a NaN is not.
std::string nonfinite_text(double value);

struct Trouble {
    std::string what;    // "loss", "gradient norm", "weights" or "validation loss"
    std::string value;   // nonfinite_text
    std::string tensor;  // the one nearest the output that is not finite; empty: none is
};

// What a number that is not finite is thrown as. what() says where it was found and in which
// tensor, and leaves it to the catcher to say what becomes of the run.
class NotFinite : public Error {
  public:
    // `update`: the one to leave out; -1 when no update is to blame.
    NotFinite(const std::string& found, int64_t update, const Trouble& trouble);

    const int64_t update;
    const Trouble trouble;
};

class LeftOut {
  public:
    void add(int64_t update, const Trouble& trouble) { updates_.emplace(update, trouble); }
    const Trouble* find(int64_t update) const;  // nullptr: not left out

    int64_t before(int64_t update) const;  // how many of the updates below `update`
    int64_t from(int64_t update) const;    // how many of `update` and those above it
    int64_t in_a_row_before(int64_t update) const;

    // The "left_out" of state.json: a list of {"step", "what", "value", "tensor"}.
    nlohmann::json to_json() const;
    static LeftOut from_json(const nlohmann::ordered_json& list);

  private:
    std::map<int64_t, Trouble> updates_;
};

// The line of metrics.jsonl about one of them.
nlohmann::ordered_json metrics_line(int64_t update, const Trouble& trouble);

}  // namespace lmo
