#include "llmc/train/bench_optimizer.h"

#include <algorithm>
#include <cmath>

#include "llmc/core/error.h"
#include "llmc/core/random.h"
#include "llmc/core/timer.h"
#include "llmc/norm/singular_values.h"
#include "llmc/train/config.h"

namespace lmo {

namespace {

constexpr double kRate = 1e-4;  // weights stay as large as they are
constexpr double kWeightDecay = 0.1;

// An extent from 1 to kLargestExtent; 0: not one.
constexpr int64_t kLargestExtent = 1 << 20;
int64_t read_extent(const std::string& text) {
    int64_t value = 0;
    for (const char digit : text) {
        if (digit < '0' || digit > '9' || value > kLargestExtent) return 0;
        value = 10 * value + (digit - '0');
    }
    return value > kLargestExtent ? 0 : value;
}

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    for (size_t begin = 0; begin <= text.size(); begin += parts.back().size() + 1) {
        parts.push_back(text.substr(begin, text.find(separator, begin) - begin));
    }
    return parts;
}

MatrixBatch parse_shape(const std::string& text) {
    std::vector<int64_t> extents;
    for (const std::string& part : split(text, 'x')) extents.push_back(read_extent(part));
    if (extents.size() == 2) extents.push_back(1);
    if (extents.size() != 3 || std::find(extents.begin(), extents.end(), 0) != extents.end()) {
        throw UsageError("--shapes: \"" + text +
                         "\": expected ROWSxCOLUMNS or ROWSxCOLUMNSxCOUNT, each from 1 to " +
                         std::to_string(kLargestExtent) + ", as in 768x768x12,2304x768");
    }
    return {{extents[0], extents[1]}, extents[2]};
}

double launch(Backend& backend, Graph& graph) {
    const Timer timer;
    graph.launch();
    backend.synchronize();
    return timer.seconds();
}

// The system may promise memory that it does not have, and later kill who uses it.
void require(const Backend& backend, const Arena& plan) {
    if (static_cast<double>(plan.total()) > backend.free_bytes()) {
        throw Error("not enough memory is free");
    }
}

// The arena, when an optimizer's memory is there.
Arena& if_it_fits(Arena& arena, Backend& backend, const BenchParameters& parameters,
                  const OptimizerConfig& config) {
    Arena plan;
    const Optimizer counted(backend, plan, config, parameters.list, parameters.precision.master);
    plan.workspace();
    require(backend, plan);
    return arena;
}

}  // namespace

// ---- what to measure ----------------------------------------------------------------------------

std::vector<MatrixBatch> parse_shapes(const std::string& text) {
    std::vector<MatrixBatch> shapes;
    for (const std::string& part : split(text, ',')) shapes.push_back(parse_shape(part));
    return shapes;
}

ParameterList matrix_parameters(const std::vector<MatrixBatch>& shapes) {
    ParameterList list;
    for (const MatrixBatch& batch : shapes) {
        for (int64_t i = 0; i < batch.count; ++i) {
            list.add({.name = "matrix." + std::to_string(list.size()),
                      .shape = batch.shape,
                      .role = Role::matrix,
                      .fused = "",
                      .init_std = 1.0});
        }
    }
    return list;
}

OptimizerConfig preset_optimizer(const std::string& preset) {
    // A model has to be there; its sizes do not matter to the groups.
    return config_from_json(
               {{"model",
                 {{"n_layer", 1},
                  {"n_head", 1},
                  {"d_model", 8},
                  {"d_ff", 8},
                  {"vocab_size", 8},
                  {"seq_len", 8}}},
                {"optimizer", {{"preset", preset}, {"lr", kRate}, {"weight_decay", kWeightDecay}}}},
               "--preset", ConfigUse::schedule)
        .optimizer;
}

std::vector<float> normal_values(int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); ++i) {
        values[i] = static_cast<float>(random_normal(3, 0, i));
    }
    return values;
}

Timing timing_of(std::vector<double> seconds) {
    std::sort(seconds.begin(), seconds.end());
    const size_t n = seconds.size();
    return {0.5 * (seconds[(n - 1) / 2] + seconds[n / 2]), seconds.front(), seconds.back()};
}

// ---- whole updates ------------------------------------------------------------------------------

BenchParameters::BenchParameters(Backend& backend, const Noise& noise, ParameterList parameters,
                                 const ModelPrecision& precision)
    : list(std::move(parameters)),
      precision(precision),
      arena(backend),
      weights(backend, arena, list, precision, true),
      gradients{&list, arena.take("gradients", precision.master, {list.buffer_length()})} {
    noise.fill(weights.master().flat);
    weights.refresh_copies();
}

PresetUpdates::PresetUpdates(Backend& backend, const Noise& noise, BenchParameters& parameters,
                             const OptimizerConfig& config)
    : backend_(backend),
      noise_(noise),
      parameters_(parameters),
      arena_(backend),
      optimizer_(backend, if_it_fits(arena_, backend, parameters, config), config, parameters.list,
                 parameters.precision.master),
      flops_(direction_flops(backend, config, parameters.list)) {
    arena_.workspace();  // fixed before anything is captured
    optimizer_.bind_gradients(parameters.gradients);
    optimizer_.initialise(parameters.weights.master(), parameters.weights.remainders());
    if (optimizer_.repeats()) graph_ = backend.capture([this] { step(); });
}

void PresetUpdates::step() {
    Weights& weights = parameters_.weights;
    optimizer_.step(weights.master(), weights.copies(), parameters_.gradients,
                    weights.remainders());
}

UpdateTime PresetUpdates::update() {
    noise_.fill(parameters_.gradients.flat);
    backend_.synchronize();
    Timer timer;
    if (!std::isfinite(optimizer_.gradient_norm(parameters_.gradients))) {
        throw Error("the norm of the gradients is not finite");
    }
    const double norm = timer.restart();
    optimizer_.set_scalars(kRate, updates_++);
    graph_ ? graph_->launch() : step();
    backend_.synchronize();
    return {timer.seconds(), norm};
}

void PresetUpdates::check() {
    for (const double square : parameters_.weights.squares(arena_.workspace())) {
        if (!std::isfinite(square)) throw Error("left a weight that is not finite");
    }
}

int64_t PresetUpdates::state_bytes() const {
    return static_cast<int64_t>(arena_.parts().at("optimizer state"));
}

double PresetUpdates::traffic() const {
    const ModelPrecision& types = parameters_.precision;
    const double master = static_cast<double>(size_of(types.master));
    const bool copied = types.compute != types.master && !types.split;
    const double copy = copied ? static_cast<double>(size_of(types.compute)) : 0.0;
    return static_cast<double>(parameters_.list.count()) * (3.0 * master + copy) +
           2.0 * static_cast<double>(state_bytes());
}

// ---- Newton-Schulz ------------------------------------------------------------------------------

NewtonSchulzTime measure_newton_schulz(Backend& backend, Backend& host, const NewtonSchulzSet& set,
                                       const MatrixBatch& batch, int repeats) {
    const Shape& shape = batch.shape;
    const std::vector<Tensor> shapes(static_cast<size_t>(batch.count),
                                     Tensor{nullptr, DType::f32, shape});
    NewtonSchulz op{shapes,   set.steps,   set.norm_scale,
                    set.eps,  {},          set.inner.value_or(backend.preferred_newton_schulz()),
                    set.form, set.restarts};
    Arena plan;
    const auto take_all = [&](Arena& arena) {
        std::vector<Tensor> x;
        for (size_t i = 0; i <= shapes.size(); ++i) {  // and the input, kept
            x.push_back(arena.take("tensors", DType::f32, shape));
        }
        arena.reserve_workspace(backend.workspace_bytes(op));
        op.workspace = arena.workspace();
        return x;
    };
    take_all(plan);
    require(backend, plan);
    Arena arena(backend);
    std::vector<Tensor> x = take_all(arena);
    const Tensor input = x.back();
    x.pop_back();
    op.x = x;
    backend.copy_in(input, normal_values(shape.count()).data());

    const std::unique_ptr<Graph> graph = backend.capture([&] { backend.newton_schulz(op); });
    std::vector<double> seconds;
    for (int i = 0; i <= repeats; ++i) {  // the first is for what a first call does besides
        for (const Tensor& each : x) backend.copy(each, input);
        backend.synchronize();
        seconds.push_back(launch(backend, *graph));
    }
    seconds.erase(seconds.begin());
    NewtonSchulzTime result{timing_of(seconds), 0.0, backend.executed_flops(op)};
    result.flops =
        make_norm({NormType::spectral, set})->flops(shape) * static_cast<double>(batch.count);

    std::vector<float> output(static_cast<size_t>(shape.count()));
    backend.copy_out(output.data(), x[0]);
    if (std::min(shape[0], shape[1]) > kLargestMeasured) return result;
    const std::vector<double> matrix(output.begin(), output.end());
    const std::vector<double> values = singular_values(host, matrix, shape);
    double squares = 0.0;
    for (const double value : values) {
        result.largest = std::max(result.largest, std::abs(value - 1.0));
        squares += (value - 1.0) * (value - 1.0);
    }
    result.rms = std::sqrt(squares / static_cast<double>(values.size()));
    return result;
}

}  // namespace lmo
