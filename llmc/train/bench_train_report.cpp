// How `train_gpt bench train` tells what it measured: JSON lines or a table.
#include <omp.h>

#include <cinttypes>
#include <cstdio>

#include "llmc/io/console.h"
#include "llmc/train/bench_train.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

double flops(const Gemm& gemm) {
    const Shape &a = gemm.a.shape, &c = gemm.c.shape;
    const int64_t k = a[a.rank() - (gemm.transpose_a ? 2 : 1)];
    return 2.0 * static_cast<double>(c.count()) * static_cast<double>(k);
}

double flops(const std::vector<TimedGemm>& gemms) {
    double sum = 0.0;
    for (const TimedGemm& g : gemms) sum += flops(g.gemm) * static_cast<double>(g.time.calls);
    return sum;
}

// "256x768x2304 nt": C is 256 x 768, summed over 2304; B is transposed.
std::string describe(const Gemm& gemm) {
    const Shape &a = gemm.a.shape, &c = gemm.c.shape;
    std::string text;
    for (int axis = 0; axis < c.rank(); ++axis) text += std::to_string(c[axis]) + "x";
    return text + std::to_string(a[a.rank() - (gemm.transpose_a ? 2 : 1)]) + " " +
           (gemm.transpose_a ? "t" : "n") + (gemm.transpose_b ? "t" : "n");
}

void print_line(const ordered_json& line) { std::printf("%s\n", line.dump().c_str()); }

void print_part(const TrainReport& r, const std::string& name, double seconds, int64_t calls,
                const ordered_json& more = ordered_json::object()) {
    ordered_json line = {{"what", "train." + name},
                         {"shape", r.shape()},
                         {"dtype", r.dtype},
                         {"ms", seconds * 1e3},
                         {"share", seconds / r.step.seconds},
                         {"calls", calls}};
    line.update(more);
    line["device"] = r.device;
    print_line(line);
}

void print_gemm(const TrainReport& r, const TimedGemm& in_step, const TimedGemm& alone) {
    const double rate =
        flops(in_step.gemm) * static_cast<double>(in_step.time.calls) / in_step.time.seconds;
    print_line({{"what", "train.gemm.shape"},
                {"shape", describe(in_step.gemm)},
                {"dtype", to_string(in_step.gemm.a.dtype)},
                {"dtype_out", to_string(in_step.gemm.c.dtype)},
                {"beta", in_step.gemm.beta},
                {"calls", in_step.time.calls},
                {"ms", in_step.time.seconds * 1e3},
                {"library_ms", alone.time.seconds * 1e3},
                {"tflops", rate * 1e-12},
                {"ceiling_share", rate / r.peak_flops},
                {"device", r.device}});
}

// Both ways of launching, in turns; null where the device has one.
ordered_json launches(const TrainReport& r) {
    if (!r.plain_launches || !r.dependent_launches) return nullptr;
    return {{"plain_ms", *r.plain_launches * 1e3}, {"dependent_ms", *r.dependent_launches * 1e3}};
}

ordered_json whole(const TrainReport& r) {
    const auto ms = [&](Part part) { return r.step[part].seconds * 1e3; };
    const int threads = r.config.run.threads;
    return {{"what", "train"},
            {"config", r.options.config},
            {"preset", r.preset()},
            {"sequences", r.config.batch.sequences},
            {"seq_len", r.config.model.seq_len},
            {"dtype", r.dtype},
            {"threads", threads > 0 ? threads : omp_get_num_procs()},
            {"tokens_per_s", r.tokens_per_second()},
            {"ms", r.seconds * 1e3},
            {"ms_min", r.fastest * 1e3},
            {"ms_max", r.slowest * 1e3},
            {"graphs", r.graphs},
            {"dependent_launch", r.config.run.dependent_launch},
            {"launches", launches(r)},
            {"phases_ms", r.step.seconds * 1e3},
            {"phases_share", r.phases_share()},
            {"gemm_ms", ms(Part::gemm)},
            {"gemm_library_ms", r.step.alone() * 1e3},
            {"attention_ms", ms(Part::attention)},
            {"classifier_ms", ms(Part::classifier)},
            {"elementwise_ms", ms(Part::elementwise)},
            {"optimizer_ms", ms(Part::optimizer)},
            {"data_ms", ms(Part::data)},
            {"other_ms", r.step.other() * 1e3},
            {"tflops", r.model_flops() * 1e-12},
            {"peak_tflops", r.peak_flops * 1e-12},
            {"mfu", r.mfu()},
            {"peak_memory_bytes", r.peak_bytes > 0 ? ordered_json(r.peak_bytes) : nullptr},
            {"planned_bytes", r.planned_bytes},
            {"device", r.device}};
}

}  // namespace

double TrainReport::gemm_flops() const { return flops(step.gemms) / step[Part::gemm].seconds; }

void print_json(const TrainReport& r) {
    for (int i = 0; i < kParts; ++i) {
        const Part part = static_cast<Part>(i);
        ordered_json more = ordered_json::object();
        if (part == Part::gemm) {
            more = {{"tflops", r.gemm_flops() * 1e-12},
                    {"ceiling_share", r.gemm_flops() / r.peak_flops}};
        }
        print_part(r, to_string(part), r.step[part].seconds, r.step[part].calls, more);
    }
    print_part(r, "other", r.step.other(), 0);
    print_part(r, "gemm_library", r.step.alone(), r.step[Part::gemm].calls,
               {{"ratio", r.gemm_ratio()}});
    for (size_t i = 0; i < r.step.gemms.size(); ++i) {
        print_gemm(r, r.step.gemms[i], r.step.gemms_alone[i]);
    }
    print_line(whole(r));
}

void print_table(const TrainReport& r) {
    const std::string preset =
        r.preset().is_string() ? r.preset().get<std::string>() : "own groups";
    std::printf("%s\n%s, %s\n%s, %s tokens a step; the median of %" PRId64 " steps after %" PRId64
                "\n\n",
                r.device.c_str(), r.options.config.c_str(), preset.c_str(), r.dtype.c_str(),
                r.shape().c_str(), r.options.steps, r.options.warmup);
    std::printf("%-26s %7s %10s %8s %9s\n", "part", "calls", "ms", "share", "GFLOP/s");
    const auto row = [&](const std::string& name, double seconds) {
        std::printf("%-26s %7s %10.2f %6.1f %%\n", name.c_str(), "", seconds * 1e3,
                    100.0 * seconds / r.step.seconds);
    };
    for (int i = 0; i < kParts; ++i) {
        const PartTime& part = r.step.parts[i];
        std::printf("%-26s %7" PRId64 " %10.2f %6.1f %%", to_string(static_cast<Part>(i)).c_str(),
                    part.calls, part.seconds * 1e3, 100.0 * part.seconds / r.step.seconds);
        if (static_cast<Part>(i) == Part::gemm) std::printf(" %9.1f", r.gemm_flops() * 1e-9);
        std::printf("\n");
    }
    row("other", r.step.other());
    row("step", r.step.seconds);
    if (r.graphs) row("step by graphs", r.seconds);
    if (r.plain_launches && r.dependent_launches) {
        row("plain launches", *r.plain_launches);
        row("dependent launches", *r.dependent_launches);
    }
    row("fastest step", r.fastest);

    std::printf("\n%-26s %7s %10s %8s %9s %7s\n", "gemm (m x n x k)", "calls", "ms", "alone",
                "GFLOP/s", "ratio");
    const auto gemm_row = [](const std::string& name, int64_t calls, double seconds, double alone,
                             double work) {
        std::printf("%-26s %7" PRId64 " %10.2f %8.2f %9.1f %7.2f\n", name.c_str(), calls,
                    seconds * 1e3, alone * 1e3, work / seconds * 1e-9, seconds / alone);
    };
    for (size_t i = 0; i < r.step.gemms.size(); ++i) {
        const TimedGemm& g = r.step.gemms[i];
        gemm_row(describe(g.gemm), g.time.calls, g.time.seconds, r.step.gemms_alone[i].time.seconds,
                 flops(g.gemm) * static_cast<double>(g.time.calls));
    }
    gemm_row("all", r.step[Part::gemm].calls, r.step[Part::gemm].seconds, r.step.alone(),
             flops(r.step.gemms));

    std::printf("\n%.0f tokens/s; %.1f GFLOP/s, %.1f %% of %.1f measured for a large GEMM\n",
                r.tokens_per_second(), r.model_flops() * 1e-9, 100.0 * r.mfu(),
                r.peak_flops * 1e-9);
    std::printf("memory: planned %s", format_bytes(static_cast<double>(r.planned_bytes)).c_str());
    if (r.peak_bytes > 0) {
        std::printf(", at most held %s (%+.1f %%)",
                    format_bytes(static_cast<double>(r.peak_bytes)).c_str(),
                    100.0 * static_cast<double>(r.peak_bytes - r.planned_bytes) /
                        static_cast<double>(r.planned_bytes));
    }
    std::printf("\n");
}

}  // namespace lmo
