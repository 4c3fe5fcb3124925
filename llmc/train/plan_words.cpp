#include "llmc/train/plan_words.h"

#include "llmc/core/json.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

std::string text_of(const ordered_json& value) {
    return value.is_string() ? value.get<std::string>() : value_text(value);
}

// "nesterov, beta 0.95": type and settings; what is off, not given or auto is left out.
std::string stage_in_words(const ordered_json& stage) {
    std::string text = text_of(stage["type"]);
    for (const auto& [key, value] : stage.items()) {
        if (key == "type" || value.is_null() || value == false || value == "auto") continue;
        text += ", " + key;
        if (value.is_object() && value.contains("type")) {
            text += " (" + stage_in_words(value) + ")";
        } else if (value != true) {
            text += " " + text_of(value);
        }
    }
    return text;
}

std::string line(const std::string& name, const std::string& text) {
    return "    " + name + std::string(name.size() < 11 ? 11 - name.size() : 1, ' ') + text;
}

// A stage of that type does nothing.
bool is_off(const std::string& name, const ordered_json& stage) {
    if (name == "momentum" || name == "norm") return false;
    if (name == "step") return stage_in_words(stage) == "schedule";
    return stage["type"] == "none";
}

void add_group(std::vector<std::string>& lines, const ordered_json& group,
               const ordered_json& weight_decay) {
    std::string match;
    for (const auto& [key, value] : group["match"].items()) {
        if (!value.is_null()) match += (match.empty() ? "  " : ", ") + key + " " + text_of(value);
    }
    lines.push_back(match);
    for (const std::string name :
         {"momentum", "norm", "radius", "post", "step", "decay", "alternate", "lr_scale"}) {
        if (!group.contains(name)) continue;
        ordered_json stage = group[name];
        if (!stage.is_object()) {
            if (stage != 1.0) lines.push_back(line(name, text_of(stage)));
            continue;
        }
        if (is_off(name, stage)) continue;
        const auto own = stage.find("weight_decay");
        if (name == "decay" && own != stage.end() && own->is_null()) *own = weight_decay;
        lines.push_back(line(name, stage_in_words(stage)));
    }
}

}  // namespace

std::vector<std::string> optimizer_in_words(const Config& config) {
    const ordered_json& optimizer = config.resolved["optimizer"];
    std::vector<std::string> lines;
    const auto add_positive = [&](const char* key, const std::string& text) {
        if (optimizer.contains(key) && optimizer[key].is_number() && optimizer[key] > 0.0) {
            lines.push_back("  " + text + " " + optimizer[key].dump());
        }
    };
    add_positive("clip_norm", "gradients clipped to the norm");
    add_positive("qk_clip", "heads scaled down to attention scores of");
    if (optimizer.contains("sampling") && optimizer["sampling"]["type"] != "all") {
        lines.push_back("  layers of an update: " + stage_in_words(optimizer["sampling"]));
    }
    const auto add_stage = [&](const char* key, const char* off, const char* text) {
        if (!optimizer.contains(key) || optimizer[key]["type"] == off) return;
        lines.push_back("  " + std::string(text) + ": " + stage_in_words(optimizer[key]));
    };
    add_stage("estimator", "plain", "gradient estimator");
    add_stage("communication", "mean", "communication");
    add_stage("outer", "none", "outer step");
    for (const ordered_json& group : optimizer["groups"]) {
        add_group(lines, group, optimizer["weight_decay"]);
    }
    return lines;
}

}  // namespace lmo
