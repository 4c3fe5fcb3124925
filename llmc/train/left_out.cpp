#include "llmc/train/left_out.h"

#include <cmath>
#include <iterator>

namespace lmo {

using nlohmann::json;
using nlohmann::ordered_json;

std::string nonfinite_text(double value) {
    if (std::isnan(value)) return "nan";
    return value > 0 ? "inf" : "-inf";
}

NotFinite::NotFinite(const std::string& found, int64_t update, const Trouble& trouble)
    : Error(found + " not finite (" + trouble.value +
            (trouble.tensor.empty() ? "" : ", in " + trouble.tensor) + ")"),
      update(update),
      trouble(trouble) {}

const Trouble* LeftOut::find(int64_t update) const {
    const auto found = updates_.find(update);
    return found == updates_.end() ? nullptr : &found->second;
}

int64_t LeftOut::before(int64_t update) const {
    return std::distance(updates_.begin(), updates_.lower_bound(update));
}

int64_t LeftOut::from(int64_t update) const {
    return std::distance(updates_.lower_bound(update), updates_.end());
}

int64_t LeftOut::in_a_row_before(int64_t update) const {
    int64_t count = 0;
    while (find(update - 1 - count) != nullptr) ++count;
    return count;
}

namespace {

ordered_json describe(int64_t update, const Trouble& trouble) {
    ordered_json line = {{"step", update}, {"what", trouble.what}, {"value", trouble.value}};
    line["tensor"] = trouble.tensor.empty() ? ordered_json() : ordered_json(trouble.tensor);
    return line;
}

}  // namespace

json LeftOut::to_json() const {
    json list = json::array();
    for (const auto& [update, trouble] : updates_) list.push_back(json(describe(update, trouble)));
    return list;
}

LeftOut LeftOut::from_json(const ordered_json& list) {
    LeftOut result;
    for (const auto& entry : list) {
        const ordered_json& tensor = entry.at("tensor");
        result.add(entry.at("step"), {entry.at("what"), entry.at("value"),
                                      tensor.is_null() ? "" : tensor.get<std::string>()});
    }
    return result;
}

ordered_json metrics_line(int64_t update, const Trouble& trouble) {
    ordered_json line = {{"type", "nonfinite"}};
    line.update(describe(update, trouble));
    return line;
}

}  // namespace lmo
