// train_gpt eval and generate: a trained model, ours or any LLaMA folder of Hugging Face's layout.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "llmc/core/text.h"
#include "llmc/data/tokenizer.h"
#include "llmc/io/files.h"
#include "llmc/train/choices.h"
#include "llmc/train/commands.h"
#include "llmc/train/device.h"
#include "llmc/train/hf.h"
#include "llmc/train/run_state.h"
#include "llmc/train/validation.h"
#include "llmc/train/weights.h"

namespace lmo {

using nlohmann::ordered_json;

namespace {

ModelPrecision parse_precision(const std::string& name, const Backend& backend) {
    if (name == "auto") {
        const DType compute = backend.preferred_compute();
        return {compute, DType::f32, DType::f32};
    }
    if (name == "fp32") return {DType::f32, DType::f32, DType::f32};
    if (name == "bf16") return {DType::bf16, DType::f32, DType::f32};
    if (name == "fp64") return {DType::f64, DType::f64, DType::f64};
    throw UsageError("--precision " + name + ": expected auto, fp32, bf16 or fp64");
}

// A model loaded from a folder for inference.
struct LoadedModel {
    LoadedModel(const std::string& folder, const std::string& device, int threads,
                const std::string& precision_name, int64_t length, int64_t batch,
                bool keep_text = false)
        : backend(make_backend(device, threads)),
          precision(parse_precision(precision_name, *backend)),
          config(fitting_config(folder, length, batch, keep_text)),
          parameters(llama_parameters(config)),
          files(fitting_files(folder)),
          arena(*backend),
          tensors(arena, batch, config.seq_len),
          model(*backend, arena, config, parameters, precision, batch, false),
          weights(*backend, arena, parameters, precision, false) {
        weights.set([&](const Parameter& p) { return files.read(p.name, extents(p.shape)); });
    }

    LlamaConfig fitting_config(const std::string& folder, int64_t length, int64_t batch,
                               bool keep_text) const {
        LlamaConfig found = read_hf_config(folder);
        found.keep_text = keep_text;
        if (length > 0) found.seq_len = length;
        require_memory(*backend, found, precision, batch, {});
        return found;
    }

    // Before memory is taken for what config.json says.
    WeightFolder fitting_files(const std::string& folder) const {
        WeightFolder result(folder);
        for (const Parameter& p : parameters) result.require(p.name, extents(p.shape));
        return result;
    }

    std::unique_ptr<Backend> backend;
    ModelPrecision precision;
    LlamaConfig config;
    ParameterList parameters;
    WeightFolder files;
    Arena arena;
    BatchTensors tensors;
    Llama model;
    Weights weights;
};

std::string tokenizer_of(const std::string& named, const std::string& checkpoint) {
    if (!named.empty()) return named;
    std::string saved = saved_tokenizer(checkpoint);
    if (!saved.empty()) return saved;
    throw UsageError(
        checkpoint +
        ": no tokenizer is known for this model; give --tokenizer bytes, gpt2 or a file");
}

// A file of questions: the model's choice of an ending.
void run_eval_choices(const EvalOptions& options) {
    const std::unique_ptr<Tokenizer> tokenizer =
        make_tokenizer(tokenizer_of(options.tokenizer, options.checkpoint));
    const LlamaConfig config = read_hf_config(options.checkpoint);
    const std::vector<Question> questions =
        read_questions(options.data, *tokenizer, config.vocab_size,
                       options.length > 0 ? options.length : config.seq_len);
    size_t longest = 0;
    for (const Question& question : questions) {
        for (const auto& row : question.rows) longest = std::max(longest, row.size());
    }
    LoadedModel loaded(options.checkpoint, options.device, options.threads, options.precision,
                       static_cast<int64_t>(longest) - 1, 1);
    if (!options.json) {
        std::printf("%s\n%zu questions\n", loaded.backend->describe().c_str(), questions.size());
        std::fflush(stdout);
    }
    const ChoiceResult result = evaluate_choices(
        *loaded.backend, loaded.model, loaded.weights.compute(), loaded.tensors, questions);
    if (options.json) {
        const ordered_json line = {{"accuracy", result.accuracy},
                                   {"accuracy_norm", result.accuracy_norm},
                                   {"examples", result.examples}};
        std::printf("%s\n", line.dump().c_str());
    } else {
        std::printf("accuracy %.2f %%, by log-probability per token %.2f %%\n",
                    100 * result.accuracy, 100 * result.accuracy_norm);
    }
    flush_output();
}

}  // namespace

void run_eval(const EvalOptions& options) {
    if (options.data.ends_with(".jsonl")) return run_eval_choices(options);
    if (!options.tokenizer.empty()) {
        throw UsageError("--tokenizer: a file of tokens needs none, only --data FILE.jsonl does");
    }
    const TokenFile file(options.data, TokenFormat::automatic);
    int64_t length =
        options.length > 0 ? options.length : read_hf_config(options.checkpoint).seq_len;
    length = std::min(length, std::max<int64_t>(1, file.size() - 1));
    const int64_t windows = std::max<int64_t>(1, (file.size() - 1) / length);
    const int64_t batch =
        std::min(options.batch > 0 ? options.batch : std::max<int64_t>(1, 4096 / length), windows);
    LoadedModel loaded(options.checkpoint, options.device, options.threads, options.precision,
                       length, batch);
    if (!options.json) {
        std::printf("%s\n%lld tokens in windows of %lld\n", loaded.backend->describe().c_str(),
                    static_cast<long long>(file.size()), static_cast<long long>(length));
        std::fflush(stdout);
    }
    const ValidationResult result =
        evaluate_file(*loaded.backend, loaded.model, loaded.weights.compute(), loaded.tensors, file,
                      batch, length, loaded.config.vocab_size);
    if (!std::isfinite(result.loss)) {
        throw Error(options.checkpoint + ": the loss is not finite; the weights are damaged");
    }
    const double perplexity = std::exp(result.loss);
    if (options.json) {
        const ordered_json line = {
            {"loss", result.loss}, {"perplexity", perplexity}, {"tokens", result.tokens}};
        std::printf("%s\n", line.dump().c_str());
    } else {
        std::printf("loss %.4f, perplexity %.5g\n", result.loss, perplexity);
    }
    flush_output();
}

void run_generate(const GenerateOptions& options) {
    const std::unique_ptr<Tokenizer> tokenizer =
        make_tokenizer(tokenizer_of(options.tokenizer, options.checkpoint));
    const LlamaConfig config = read_hf_config(options.checkpoint);
    std::vector<int32_t> ids =
        encode_prompt(*tokenizer, options.prompt, config.vocab_size, "--prompt");
    // Memory for the text that is asked for, where the model's context is longer than that.
    const int64_t length =
        std::min(config.seq_len, static_cast<int64_t>(ids.size()) + options.tokens);
    LoadedModel loaded(options.checkpoint, options.device, options.threads, "auto", length, 1,
                       /*keep_text=*/true);
    std::printf("%s", options.prompt.c_str());
    const bool terminal = ::isatty(STDOUT_FILENO) == 1;  // a file or pipe gets the exact bytes
    PrintableStream stream;
    generate(*loaded.backend, loaded.model, loaded.config, loaded.weights.compute(), ids,
             options.tokens, options.sampling, loaded.tensors.tokens, [&](int32_t id) {
                 std::string text = tokenizer->decode({id});
                 if (terminal) text = stream.add(text);
                 std::fwrite(text.data(), 1, text.size(), stdout);
                 flush_output();
             });
    std::printf("%s\n", stream.finish().c_str());
    flush_output();
}

}  // namespace lmo
