// Messages are made block by block, from one block's values in host memory at a time, and exchanged
// in rounds of bounded size. Their sizes follow from the configuration, so none is sent.
#include "llmc/train/error_feedback.h"

#include <algorithm>

#include "llmc/train/weights.h"

namespace lmo {

namespace {

constexpr size_t kRound = size_t{64} << 20;  // bytes of messages, about

// A device tensor's values in host memory; none of a tensor that is not there.
template <typename T>
std::vector<T> fetch(Backend& backend, const Tensor& tensor) {
    if (tensor.empty()) return {};
    std::vector<T> values(static_cast<size_t>(tensor.count()));
    backend.copy_out(values.data(), tensor);
    return values;
}

template <typename T>
void store(Backend& backend, const Tensor& tensor, const std::vector<T>& values) {
    if (!values.empty()) backend.copy_in(tensor, values.data());
}

template <typename T>
void add(std::vector<T>& to, const std::vector<T>& values) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += values[i];
}

// x - y
template <typename T>
std::vector<T> difference(std::vector<T> x, const std::vector<T>& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] -= y[i];
    return x;
}

// Space for a message at the end of `messages`.
std::byte* append(std::vector<std::byte>& messages, size_t bytes) {
    messages.resize(messages.size() + bytes);
    return messages.data() + messages.size() - bytes;
}

}  // namespace

ErrorFeedback::ErrorFeedback(Backend& backend, Arena& arena,
                             const CommunicationConfig& communication,
                             const OptimizerConfig& optimizer, const ParameterList& parameters,
                             DType master, const Sharding& sharding, int rank)
    : backend_(backend),
      up_(communication.up.type != CompressorType::identity),
      down_(communication.down.type != CompressorType::identity),
      master_(master),
      momentum_(backend, arena, optimizer, parameters, master) {
    for (const ParameterBlock& block : parameters.blocks(optimizer.fuse_qkv)) {
        const int owner = sharding.owner(block.first);
        blocks_.push_back({block,
                           owner,
                           rank < 0 || owner == rank,
                           Compressor(communication.up, block.shape, master),
                           Compressor(communication.down, block.shape, master),
                           {},
                           {},
                           {},
                           {},
                           {}});
        take(arena, blocks_.back(), parameters, master);
    }
}

void ErrorFeedback::take(Arena& arena, Block& b, const ParameterList& parameters, DType master) {
    const auto state = [&](const char* name, Spread spread) {
        const Tensor tensor = arena.take("optimizer state", master, b.block.shape);
        add_states(b.block, tensor, parameters, name, spread);
        return tensor;
    };
    // One for the whole block, by the name of its first parameter.
    const auto factor = [&](const Compressor& compressor, const char* name, Spread spread) {
        if (compressor.factor_elements() == 0) return Tensor{};
        const Tensor tensor = arena.take("optimizer state", master, compressor.factor_shape());
        states_.push_back({parameters[b.block.first].name + name, tensor, false, spread});
        return tensor;
    };
    if (up_) {
        b.sent = state(".sent", Spread::share);
        b.up_factor = factor(b.up, ".up_factor", Spread::each);
        if (b.owned) b.received = state(".received", Spread::owner);
    }
    if (down_ && b.owned) {
        b.server = state(".server", Spread::owner);
        b.down_factor = factor(b.down, ".down_factor", Spread::owner);
    }
}

void ErrorFeedback::add_states(const ParameterBlock& block, const Tensor& tensor,
                               const ParameterList& parameters, const char* name, Spread spread) {
    int64_t offset = 0;
    for (int i = block.first; i < block.first + block.count; ++i) {
        const Shape& shape = parameters[i].shape;
        const Tensor view =
            tensor.empty() ? Tensor{nullptr, tensor.dtype, shape} : tensor.slice(offset, shape);
        states_.push_back({parameters[i].name + name, view, false, spread});
        offset += shape.count();
    }
}

std::vector<StateTensor> ErrorFeedback::states() const {
    std::vector<StateTensor> all = momentum_.states();
    all.insert(all.end(), states_.begin(), states_.end());
    return all;
}

void ErrorFeedback::initialise(const ParameterBuffer& weights, uint64_t seed) {
    momentum_.initialise();
    const auto start_factor = [&](const Compressor& compressor, const Tensor& factor,
                                  const std::string& name) {
        if (factor.empty()) return;
        std::vector<double> values(static_cast<size_t>(factor.count()));
        compressor.start_factor(values.data(), seed, name);
        copy_in_converted(backend_, factor, values);
    };
    for (const Block& b : blocks_) {
        for (const Tensor& state : {b.sent, b.received}) {
            if (!state.empty()) backend_.zero(state);
        }
        if (!b.server.empty()) backend_.copy(b.server, weights[b.block]);
        const std::string& name = (*weights.list)[b.block.first].name;
        start_factor(b.up, b.up_factor, name);
        start_factor(b.down, b.down_factor, name);
    }
}

void ErrorFeedback::smooth(const ParameterBuffer& gradients, int64_t applied) {
    momentum_.run(gradients, applied);
}

void ErrorFeedback::before_sum(const ParameterBuffer& gradients) {
    if (!up_) return;
    for (const Block& b : blocks_) backend_.copy(b.sent, gradients[b.block]);
}

void ErrorFeedback::after_sum(const ParameterBuffer& gradients) {
    if (!up_) return;
    for (const Block& b : blocks_) {
        if (b.owned) backend_.copy(b.received, gradients[b.block]);
    }
}

size_t ErrorFeedback::end_of_round(size_t begin, bool up) const {
    size_t bytes = 0, end = begin;
    while (end < blocks_.size() && (end == begin || bytes < kRound)) {
        const Block& b = blocks_[end++];
        bytes += (up ? b.up : b.down).message_bytes();
    }
    return end;
}

template <typename T>
void ErrorFeedback::send_up_typed(const ParameterBuffer& gradients, Ranks& ranks) {
    const size_t size = static_cast<size_t>(ranks.size()), me = static_cast<size_t>(ranks.rank());
    kept_ = {};
    for (size_t begin = 0, end = 0; begin < blocks_.size(); begin = end) {
        end = end_of_round(begin, true);
        std::vector<std::vector<std::byte>> out(size), in(size);
        for (size_t i = begin; i < end; ++i) {
            const Block& b = blocks_[i];
            std::vector<T> sent = fetch<T>(backend_, b.sent);
            std::vector<T> change = difference(fetch<T>(backend_, gradients[b.block]), sent);
            std::vector<T> factor = fetch<T>(backend_, b.up_factor);
            const Kept kept =
                b.up.compress(change.data(), factor.data(),
                              append(out[static_cast<size_t>(b.owner)], b.up.message_bytes()));
            kept_.error += kept.error;
            kept_.total += kept.total;
            add(sent, change);
            store(backend_, b.sent, sent);
            store(backend_, b.up_factor, factor);
        }
        for (std::vector<std::byte>& messages : in) messages.resize(out[me].size());
        in[me] = out[me];
        ranks.exchange(out, in, "compressed gradients");
        size_t at = 0;
        for (size_t i = begin; i < end; ++i) {
            const Block& b = blocks_[i];
            if (!b.owned) continue;
            std::vector<T> received = fetch<T>(backend_, b.received), change(received.size());
            for (const std::vector<std::byte>& messages : in) {  // in the order of the ranks
                b.up.read(messages.data() + at, change.data());
                add(received, change);
            }
            at += b.up.message_bytes();
            store(backend_, b.received, received);
            store(backend_, gradients[b.block], received);
        }
    }
}

void ErrorFeedback::send_up(const ParameterBuffer& gradients, Ranks& ranks) {
    if (master_ == DType::f64) return send_up_typed<double>(gradients, ranks);
    send_up_typed<float>(gradients, ranks);
}

void ErrorFeedback::before_step(const ParameterBuffer& weights) {
    std::vector<Tensor> w, x;
    for (const Block& b : blocks_) {
        if (b.server.empty()) continue;
        w.push_back(weights[b.block]);
        x.push_back(b.server);
    }
    if (!w.empty()) backend_.momentum({w, x, {}, 1.0, 0.0, 0.0, 1.0});  // they change places
}

template <typename T>
void ErrorFeedback::send_down_typed(const ParameterBuffer& weights, Ranks& ranks) {
    const size_t size = static_cast<size_t>(ranks.size()), me = static_cast<size_t>(ranks.rank());
    for (size_t begin = 0, end = 0; begin < blocks_.size(); begin = end) {
        end = end_of_round(begin, false);
        std::vector<std::vector<std::byte>> in(size);
        std::vector<size_t> bytes(size, 0);
        for (size_t i = begin; i < end; ++i) {
            const Block& b = blocks_[i];
            bytes[static_cast<size_t>(b.owner)] += b.down.message_bytes();
            if (!b.owned) continue;
            const std::vector<T> x = fetch<T>(backend_, weights[b.block]);
            std::vector<T> change = difference(x, fetch<T>(backend_, b.server));
            std::vector<T> factor = fetch<T>(backend_, b.down_factor);
            b.down.compress(change.data(), factor.data(), append(in[me], b.down.message_bytes()));
            store(backend_, b.down_factor, factor);
            // The weights become W again, so that one sum follows on all ranks.
            backend_.copy(weights[b.block], b.server);
            store(backend_, b.server, x);
        }
        for (size_t r = 0; r < size; ++r) in[r].resize(bytes[r]);
        const std::vector<std::vector<std::byte>> out(size, in[me]);
        ranks.exchange(out, in, "compressed weights");
        std::vector<size_t> at(size, 0);
        for (size_t i = begin; i < end; ++i) {
            const Block& b = blocks_[i];
            const size_t owner = static_cast<size_t>(b.owner);
            std::vector<T> w = fetch<T>(backend_, weights[b.block]), change(w.size());
            b.down.read(in[owner].data() + at[owner], change.data());
            at[owner] += b.down.message_bytes();
            add(w, change);
            store(backend_, weights[b.block], w);
        }
    }
}

void ErrorFeedback::send_down(const ParameterBuffer& weights, Ranks& ranks) {
    if (master_ == DType::f64) return send_down_typed<double>(weights, ranks);
    send_down_typed<float>(weights, ranks);
}

MessageBytes message_bytes(const CommunicationConfig& communication,
                           const OptimizerConfig& optimizer, const ParameterList& parameters,
                           DType master) {
    MessageBytes sum;
    for (const ParameterBlock& block : parameters.blocks(optimizer.fuse_qkv)) {
        const auto bytes = [&](const CompressorConfig& config) {
            return static_cast<double>(Compressor(config, block.shape, master).message_bytes());
        };
        sum.up += bytes(communication.up);
        sum.down += bytes(communication.down);
    }
    return sum;
}

}  // namespace lmo
