// train_gpt smoothness: fits K0, K1 and K_rho to what a run measured with smoothness.every.
#include <algorithm>
#include <cstdio>

#include "llmc/io/files.h"
#include "llmc/smoothness/fit.h"
#include "llmc/train/commands.h"
#include "llmc/train/json_merge.h"

namespace lmo {

namespace {

// What the run wrote: one point a measurement, for the whole network and for each of its matrices.
struct Measurements {
    struct Series {
        std::string name;
        std::vector<SmoothnessPoint> points;
        std::vector<double> noise;  // the ratio that another batch alone makes
    };
    std::vector<Series> series;  // the first one is the whole network
    double target_loss = 0.0;

    Series& of(const std::string& name) {
        for (Series& s : series) {
            if (s.name == name) return s;
        }
        return series.emplace_back(Series{name, {}, {}});
    }
};

constexpr const char* kTotal = "total";

void add_line(Measurements& all, const Json& line) {
    if (line.at("ratio").is_null()) return;  // the weights did not move, or a value is not finite
    const auto step = line.at("step").get<int64_t>();
    const auto delta = line.at("delta").get<double>();
    all.target_loss = line.at("target_loss").get<double>();
    const auto add = [&](const std::string& name, double ratio, double noise) {
        Measurements::Series& series = all.of(name);
        series.points.push_back({step, delta, ratio});
        series.noise.push_back(noise);
    };
    add(kTotal, line.at("ratio").get<double>(), line.at("noise").get<double>());
    for (const auto& [name, layer] : line.at("layers").items()) {
        const auto moved = layer.at("weight_change").get<double>();
        if (moved < 1e-12) continue;
        add(name, layer.at("gradient_change").get<double>() / moved,
            layer.at("noise_change").get<double>() / moved);
    }
}

// add(line) for each measurement that the run wrote.
template <typename Add>
void for_each_measurement(const std::string& folder, Add add) {
    const std::string path = folder + "/metrics.jsonl";
    const std::string text = read_file(path);
    int64_t number = 1;
    bool any = false;
    for (size_t begin = 0; begin < text.size(); ++number) {
        const size_t end = text.find('\n', begin);
        if (end == std::string::npos) break;  // the run may be writing it just now
        const std::string where = path + ", line " + std::to_string(number);
        const Json line = parse_config(text.substr(begin, end - begin), where);
        begin = end + 1;
        try {
            if (line.at("type") != "smoothness") continue;
            add(line);
            any = true;
        } catch (const nlohmann::json::exception& error) {
            throw Error(where + ": not a line of metrics (" + error.what() + ")");
        }
    }
    if (!any) {
        throw Error(path +
                    ": holds no measurement of the smoothness; train with --set "
                    "smoothness.every=K (K updates between two measurements)");
    }
}

Measurements read_measurements(const std::string& folder) {
    Measurements all;
    for_each_measurement(folder, [&](const Json& line) { add_line(all, line); });
    if (all.series.empty()) {
        throw Error(folder +
                    "/metrics.jsonl: in no measurement of the smoothness did the weights "
                    "move by finite changes");
    }
    return all;
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

Json report_of(const Measurements::Series& series, const SmoothnessFitOptions& options) {
    std::vector<double> ratios;
    for (const SmoothnessPoint& p : series.points) ratios.push_back(p.ratio);
    const SmoothnessFit fit = fit_smoothness(series.points, options);
    const auto star = fit.delta_star();
    return {{"name", series.name},
            {"median_ratio", median(ratios)},
            {"median_noise", median(series.noise)},
            {"K0", fit.K0},
            {"K1", fit.K1},
            {"K_rho", fit.K_rho},
            {"rho", fit.rho},
            {"r2", fit.r2},
            {"share_above", fit.share_above},
            {"points", fit.points},
            {"delta_star", star ? Json(*star) : Json()}};
}

// "0.self_attn.q_proj" of "model.layers.0.self_attn.q_proj.weight", cut to 24 characters.
std::string short_name(std::string name) {
    for (const std::string start : {"model.", "layers."}) {
        if (name.rfind(start, 0) == 0) name.erase(0, start.size());
    }
    if (name.ends_with(".weight")) name.erase(name.size() - 7);
    return name.size() > 24 ? "..." + name.substr(name.size() - 21) : name;
}

void print_table(const Json& report) {
    std::printf("%-24s %8s %8s %8s %8s %8s %4s %5s\n", "matrix", "median K", "noise", "K0", "K1",
                "K_rho", "rho", "R^2");
    for (const Json& row : report["fits"]) {
        std::printf("%-24s %8.3g %8.3g %8.3g %8.3g %8.3g %4.3g %5.2f\n",
                    short_name(row["name"]).c_str(), row["median_ratio"].get<double>(),
                    row["median_noise"].get<double>(), row["K0"].get<double>(),
                    row["K1"].get<double>(), row["K_rho"].get<double>(), row["rho"].get<double>(),
                    row["r2"].get<double>());
    }
    const Json& total = report["fits"][0];
    std::printf("\n%lld measurements fitted, %.0f %% of them above the curve\n",
                static_cast<long long>(total["points"].get<int64_t>()),
                100.0 * total["share_above"].get<double>());
    if (total["delta_star"].is_null()) {
        std::printf("delta / K(delta) has no peak (K0 or K_rho is not positive)\n");
    } else {
        std::printf("delta / K(delta) peaks at a gap of %.6g\n", total["delta_star"].get<double>());
    }
}

// ---- L0 and L1 of every block -------------------------------------------------------------------

struct BlockSeries {
    std::string name;
    std::vector<LayerPoint> same, other;  // by the same batch, and by another one
};

std::vector<BlockSeries> read_blocks(const SmoothnessOptions& options) {
    std::vector<BlockSeries> all;
    for_each_measurement(options.run, [&](const Json& line) {
        const auto step = line.at("step").get<int64_t>();
        if (step < options.first_step || step > options.last_step) return;
        for (const auto& item : line.at("blocks").items()) {
            const std::string& name = item.key();
            const Json& block = item.value();
            const Json& moved = block.at("weight_change");
            const Json &change = block.at("gradient_change"), &other = block.at("other_change");
            if (moved.is_null() || change.is_null() || other.is_null()) continue;  // not finite
            if (moved.get<double>() < 1e-12) continue;
            auto series =
                std::find_if(all.begin(), all.end(), [&](const auto& s) { return s.name == name; });
            if (series == all.end()) series = all.insert(all.end(), BlockSeries{name, {}, {}});
            const auto dual = block.at("gradient").get<double>();
            series->same.push_back({dual, change.get<double>() / moved.get<double>()});
            series->other.push_back({dual, other.get<double>() / moved.get<double>()});
        }
    });
    return all;
}

void report_layers(const SmoothnessOptions& options) {
    Json report = {{"run", options.run}, {"layers", Json::object()}};
    for (const BlockSeries& series : read_blocks(options)) {
        try {
            const LayerFit same = fit_layer(series.same), other = fit_layer(series.other);
            report["layers"][series.name] = {{"L0", same.L0},
                                             {"L1", same.L1},
                                             {"L0_other", other.L0},
                                             {"L1_other", other.L1},
                                             {"points", series.same.size()}};
        } catch (const Error& error) {
            throw Error(options.run + ": " + series.name + ": " + error.what());
        }
    }
    if (report["layers"].empty()) {
        throw Error(options.run + "/metrics.jsonl: no measurement of blocks in this window");
    }
    if (!options.out.empty()) write_file_atomically(options.out, report.dump(2) + "\n");
    if (options.json) {
        std::printf("%s\n", report.dump().c_str());
        return;
    }
    std::printf("%-24s %6s  %10s %10s  %10s %10s\n", "", "", "same batch", "", "another", "");
    std::printf("%-24s %6s  %10s %10s  %10s %10s\n", "block", "points", "L0", "L1", "L0", "L1");
    for (const auto& [name, fit] : report["layers"].items()) {
        std::printf("%-24s %6lld  %10.4g %10.4g  %10.4g %10.4g\n", short_name(name).c_str(),
                    static_cast<long long>(fit["points"].get<int64_t>()), fit["L0"].get<double>(),
                    fit["L1"].get<double>(), fit["L0_other"].get<double>(),
                    fit["L1_other"].get<double>());
    }
}

}  // namespace

void run_smoothness(const SmoothnessOptions& options) {
    if (options.layers) {
        report_layers(options);
        return flush_output();
    }
    const Measurements all = read_measurements(options.run);
    SmoothnessFitOptions fit;
    fit.rho = options.rho;
    fit.first_step = options.first_step;
    fit.last_step = options.last_step;
    Json report = {{"run", options.run}, {"target_loss", all.target_loss}, {"fits", Json::array()}};
    for (const Measurements::Series& series : all.series) {
        try {
            report["fits"].push_back(report_of(series, fit));
        } catch (const Error& error) {
            throw Error(options.run + ": " + series.name + ": " + error.what());
        }
    }
    if (!options.out.empty()) write_file_atomically(options.out, report.dump(2) + "\n");
    if (options.json) {
        std::printf("%s\n", report.dump().c_str());
    } else {
        print_table(report);
    }
    flush_output();
}

ScheduleConfig with_measured_gap(const Config& config) {
    ScheduleConfig schedule = config.schedule;
    if (config.smoothness_fit.empty()) return schedule;
    const std::string where = "schedule.warmup.fit: " + config.smoothness_fit;
    const Json report = read_json_object(config.smoothness_fit, "schedule.warmup.fit");
    try {
        const auto target = report.at("target_loss").get<double>();
        if (target != schedule.warmup.target_loss) {
            throw UsageError(where + " was fitted for the target loss " + Json(target).dump() +
                             ", but schedule.warmup.target_loss is " +
                             Json(schedule.warmup.target_loss).dump() +
                             ": measure with that target, or train with this one");
        }
        const Json& star = report.at("fits").at(0).at("delta_star");
        if (star.is_null()) {
            throw UsageError(where +
                             ": delta / K(delta) of this fit has no peak (K0 or K_rho is not "
                             "positive): fit another window, or give delta_star a number");
        }
        schedule.warmup.delta_star = star.get<double>();
    } catch (const nlohmann::json::exception& error) {
        throw UsageError(where + ": expected a file that `train_gpt smoothness --out` wrote (" +
                         error.what() + ")");
    }
    return schedule;
}

}  // namespace lmo
