#include "llmc/model/generate.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>
#include <numeric>
#include <string>

#include "llmc/core/error.h"
#include "llmc/core/random.h"

namespace lmo {

namespace {

constexpr uint64_t kSamplingStream =
    0x73616d706c65;  // "sample"; tensors' streams are small numbers

void check_finite(const std::vector<float>& logits) {
    for (size_t i = 0; i < logits.size(); ++i) {
        if (std::isfinite(logits[i])) continue;
        throw Error("cannot sample: the logit of token " + std::to_string(i) + " is " +
                    std::to_string(logits[i]) +
                    ", expected a finite number; the weights are damaged or their training "
                    "diverged: use an earlier checkpoint");
    }
}

std::vector<float> to_host(Backend& backend, const Tensor& tensor) {
    const size_t count = static_cast<size_t>(tensor.count());
    std::vector<unsigned char> bytes(tensor.bytes());
    backend.copy_out(bytes.data(), tensor);
    std::vector<float> values(count);
    const auto read = [&](auto element, auto convert) {
        for (size_t i = 0; i < count; ++i) {
            std::memcpy(&element, bytes.data() + i * sizeof element, sizeof element);
            values[i] = convert(element);
        }
    };
    switch (tensor.dtype) {
        case DType::f64:
            read(double{}, [](double x) { return static_cast<float>(x); });
            break;
        case DType::f32:
            read(float{}, [](float x) { return x; });
            break;
        case DType::bf16:
            read(uint16_t{}, bf16_to_float);
            break;
        default:
            assert(false && "not a compute type");
    }
    return values;
}

}  // namespace

int32_t sample_token(const std::vector<float>& logits, const SamplingConfig& config,
                     uint64_t draw) {
    assert(!logits.empty());
    check_finite(logits);
    const auto best = std::max_element(logits.begin(), logits.end());  // the first of equals
    if (config.temperature == 0.0) return static_cast<int32_t>(best - logits.begin());

    // Candidates, most likely first; equal logits in order of their ids.
    std::vector<int32_t> ids(logits.size());
    std::iota(ids.begin(), ids.end(), 0);
    const auto likelier = [&](int32_t a, int32_t b) {
        return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    };
    const size_t kept = config.top_k > 0
                            ? std::min(static_cast<size_t>(config.top_k), logits.size())
                            : logits.size();
    std::partial_sort(ids.begin(), ids.begin() + static_cast<ptrdiff_t>(kept), ids.end(), likelier);
    ids.resize(kept);

    // cumulative[i]: weight of the candidates up to i, in units of the most likely one's.
    std::vector<double> cumulative;
    double total = 0.0;
    for (int32_t id : ids) {
        total += std::exp((static_cast<double>(logits[id]) - *best) / config.temperature);
        cumulative.push_back(total);
    }
    const auto reaches = [&](double weight) {  // the first candidate with that cumulative weight
        const auto place = std::lower_bound(cumulative.begin(), cumulative.end(), weight);
        return std::min<size_t>(place - cumulative.begin(), cumulative.size() - 1);
    };
    if (config.top_p < 1.0) cumulative.resize(reaches(config.top_p * total) + 1);
    return ids[reaches(random_uniform(config.seed, kSamplingStream, draw) * cumulative.back())];
}

void generate(Backend& backend, Llama& model, const LlamaConfig& config,
              const ParameterBuffer& weights, std::vector<int32_t>& ids, int64_t count,
              const SamplingConfig& sampling, const Tensor& tokens_on_device,
              const std::function<void(int32_t)>& on_token) {
    assert(!ids.empty());
    for (int64_t draw = 0; draw < count; ++draw) {
        const int64_t length = static_cast<int64_t>(ids.size());
        // A window that slides gives every token another position: nothing kept is of use then.
        const bool next = config.keep_text && draw > 0 && length <= config.seq_len;
        const int64_t window = next ? 1 : std::min(length, config.seq_len);
        const Tensor tokens = tokens_on_device.slice(0, {1, window});
        backend.copy_in(tokens, ids.data() + length - window);
        const Tensor logits = next ? model.next_logits(weights, tokens, length - 1)
                                   : model.last_logits(weights, tokens);
        const int32_t id =
            sample_token(to_host(backend, logits), sampling, static_cast<uint64_t>(draw));
        ids.push_back(id);
        if (on_token) on_token(id);
    }
}

}  // namespace lmo
