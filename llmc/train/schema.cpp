// The table of configuration keys: the one place where a key is added.

#include <algorithm>

#include "llmc/train/schema_values.h"

namespace lmo {

using namespace schema;

namespace {

Json run_folder(const Json& resolved) {
    return "runs/" + resolved["run"]["name"].get<std::string>();
}

Json warmup_target(const Json& resolved) {
    const Json* target = find_value(resolved, "schedule.warmup.target_loss");
    return target == nullptr ? Json(0.0) : *target;
}

bool is_group_list(const Json& value) {
    if (!value.is_array() || value.empty()) return false;
    for (const Json& group : value) {
        if (!group.is_object()) return false;
    }
    return true;
}

bool is_gap(const Json& value) {
    if (value.is_number()) return value.get<double>() > 0;
    for (const char* name : {"exact", "unweighted", "quadpack", "gk21", "measured"}) {
        if (value == name) return true;
    }
    return false;
}

bool is_rate_list(const Json& value) {
    const auto is_rate = [](const Json& rate) {
        return rate.is_number() && rate.get<double>() > 0;
    };
    return value.is_array() && !value.empty() && std::all_of(value.begin(), value.end(), is_rate);
}

std::vector<Key> run_and_model_keys() {
    return {
        {"run.name", text(), is("run"), "name of the run"},
        {"run.dir", text(), computed("runs/NAME", run_folder), "folder that the run writes"},
        {"run.note", text(), none(), "a remark for readers, such as the result to compare with"},
        {"run.seed", integer(0), is(0), "seed of the initial weights and of sampled text"},
        {"run.steps", integer(1), required_by_train(), "updates in the whole run"},
        {"run.device", one_of({"auto", "cpu", "cuda"}), is("auto"), "where to compute"},
        {"run.threads", integer(0, 4096), is(0),
         "CPU threads of a rank; 0: all cores, shared by the ranks of a machine"},
        {"run.on_nonfinite", one_of({"stop", "skip", "rollback"}), is("stop"),
         "when loss, gradient or weights are not finite: stop; skip: leave the update out; "
         "rollback: go back to the newest checkpoint and leave it out (nonfinite.md)"},
        {"run.nonfinite_limit",
         integer(1),
         is(10),
         "updates left out in a row, or (rollback) since one checkpoint; one more stops the run",
         {"run.on_nonfinite", {"skip", "rollback"}}},
        {"run.rank_timeout", above_to(0, 1e6), is(60.0),
         "seconds after which a rank that does not come ends all of them (ranks.md)"},
        {"run.graphs", boolean(), is(true),
         "record micro-step and update as CUDA graphs; false, for debugging: launch every kernel by "
         "itself, to the same bits"},
        {"run.dependent_launch", boolean(), is(false),
         "GPUs of compute capability 9.0: kernels start while those ahead of them end, to "
         "the same bits; bench train measures both (cuda.md)"},
        {"run.overlap", boolean(), is(true),
         "ranks on GPUs sum gradients and share weights while they compute (ranks.md); false, for "
         "debugging: between backward pass, update and forward pass"},
        {"run.bucket_mb", above_to(0, 1e6), is(32.0),
         "with run.overlap: gradients or weights travel in parts of at least so many MB"},

        {"model.n_layer", integer(1, kMaxExtent), required(), "layers"},
        {"model.n_head", integer(1, kMaxExtent), required(), "query heads; divides d_model"},
        {"model.d_model", integer(1, kMaxExtent), required(), "width of the residual stream"},
        {"model.d_ff", integer(1, kMaxExtent), required(), "width of SwiGLU"},
        {"model.vocab_size", integer(1, kMaxVocabulary), required(), "token ids are below it"},
        {"model.seq_len", integer(1, kMaxExtent), required(), "tokens in a training sequence"},
        {"model.n_kv_head", integer(1, kMaxExtent), same_as("model.n_head"),
         "key and value heads (grouped-query attention); divides n_head"},
        {"model.rope_theta", above(0), is(10000.0), "base of the rotary angles"},
        {"model.norm_eps", above(0), is(1e-5), "epsilon inside the root of RMSNorm"},
        {"model.tie_embeddings", boolean(), is(true), "embedding and head are one matrix"},
        {"model.init_std", above(0), is(0.02),
         "standard deviation of initial weights; o_proj and down_proj: / sqrt(2 n_layer)"},
        {"model.attention", one_of({"own", "cudnn"}), is("own"),
         "kernels of attention in training: own, or cuDNN's on a GPU in bf16, to other roundings "
         "(cuda.md)"},
        {"model.recompute", one_of({"none", "norm+swiglu", "block"}), is("none"),
         "activations to compute again in the backward pass, for less memory and the same bits: "
         "outputs of norms and SwiGLU, or all of a layer but its input"},

        {"init.from", text(), none(), "Hugging Face LLaMA folder to start the weights from"},
    };
}

std::vector<Key> data_and_step_keys() {
    return {
        {"data.train", texts(), required_by_train(),
         "token files or globs, from the working directory"},
        {"data.val", texts(), required_by_train(), "the same, for validation"},
        {"data.format", one_of({"auto", "llmc", "uint16"}), is("auto"),
         "llm.c shards or headerless uint16; auto looks for the header"},
        {"data.seed", integer(0), is(1337), "seed of the sample order"},
        {"data.tokenizer", text(), none(), "bytes, gpt2 or a file; needed for text only"},
        {"data.compat.order", one_of({"own", "numpy"}), is("own"),
         "published: numpy, the permutation and offset of numpy.random.default_rng(seed + epoch)"},

        {"batch.sequences", integer(1, kMaxExtent), required_by_train(),
         "sequences in an update, over all ranks and micro-batches"},
        {"batch.micro_batch", integer(1, kMaxExtent),
         computed("batch.sequences / ranks", same_as("batch.sequences").compute),
         "sequences that one rank computes at once; divides batch.sequences / ranks"},

        {"precision.compute", one_of({"auto", "bf16", "fp32", "fp64"}), is("auto"),
         "type of activations and GEMMs; auto: bf16 where the device is fast at it, else fp32; "
         "fp64 is for tests on the CPU"},
        {"precision.residual",
         one_of({"fp32", "bf16"}),
         is("fp32"),
         "type of the residual stream (fp64 computes it in fp64)",
         {"precision.compute", {"auto", "bf16", "fp32"}}},
        {"precision.master",
         one_of({"fp32", "split"}),
         is("fp32"),
         "master weights of bf16 compute. fp32: beside the bf16 weights. split: the bf16 weights "
         "and 16-bit remainders, which together are the same fp32 numbers: 2 bytes a parameter "
         "less, in memory and for an update to move; bf16 ties round away from zero. May change "
         "on resume",
         {"precision.compute", {"auto", "bf16"}}},

        {"optimizer.preset", text(), none("required without groups"),
         "a preset built in from configs/optimizer, or the path of a preset file (looked for from "
         "the file that names it, then from the working directory); it replaces groups given "
         "earlier"},
        {"optimizer.groups", special("a list of parameter groups", is_group_list),
         none("from the preset"),
         "parameter groups, in place of the preset's; their keys are at the end of this page"},
        {"optimizer.lr", above(0), required(), "peak learning rate"},
        {"optimizer.weight_decay", at_least(0), is(0.0),
         "for groups that decay and do not say otherwise"},
        {"optimizer.clip_norm", at_least(0), is(0.0),
         "bound c of the global gradient norm: gradients times min(1, c / (norm + 1e-6)), as "
         "torch.nn.utils.clip_grad_norm_; 0: none"},
        {"optimizer.qkv", one_of({"fused", "split"}), is("fused"),
         "q, k, v as one matrix or as three in matrix norms"},
        {"optimizer.decay", one_of({"none", "decoupled", "constrained", "cautious", "start"}),
         none("as the groups say"),
         "decay of all groups, in place of their own; start: SODA around any preset"},
        {"optimizer.sampling.type", one_of({"all", "progressive", "subset", "periodic"}), is("all"),
         "layers that an update is of (a preset may say so): progressive: all from a random one on "
         "(Drop-Muon); subset: each at random; periodic: layer l where (update + l) mod period "
         "is 0. What belongs to no layer is always updated; the backward pass stops at the lowest"},
        {"optimizer.sampling.probability",
         above_to(0, 1),
         required(),
         "of each layer",
         {"optimizer.sampling.type", {"subset"}}},
        {"optimizer.sampling.period",
         integer(1, kMaxExtent),
         required(),
         "updates between two of a layer",
         {"optimizer.sampling.type", {"periodic"}}},
        {"optimizer.qk_clip", at_least(0), is(0.0),
         "QK-clip: query and key weights of a head whose largest attention score in the batch is "
         "above this are scaled down to it (a preset may say so); 0: none"},
        {"optimizer.compat.momentum_init", one_of({"zero", "parameters"}), is("zero"),
         "published for normalized SGD and Signum: parameters, heavy_ball and nesterov momenta "
         "start as the weights after their first decay"},
    };
}

std::vector<Key> schedule_keys() {
    const When ramp = {"schedule.warmup.type", {"linear", "cosine"}};
    const When any_warmup = {"schedule.warmup.type", {"linear", "cosine", "adaptive"}};
    const When adaptive = {"schedule.warmup.type", {"adaptive"}};
    const When falling = {"schedule.decay.type", {"cosine", "linear", "wsd", "gap"}};
    const When wsd = {"schedule.decay.type", {"wsd"}};
    return {
        {"schedule.warmup.type", one_of({"none", "linear", "cosine", "adaptive", "rates"}),
         is("none"),
         "how the rate rises; adaptive follows the loss and sets its own length; rates: as listed"},
        {"schedule.warmup.steps", integer(0), required(),
         "updates of the warm-up; 0 only with schedule.compat.onecycle", ramp},
        {"schedule.warmup.div", above(1), is(100.0), "the rate starts at lr / div", any_warmup},
        {"schedule.warmup.rates",
         special("a list of numbers > 0", is_rate_list),
         required(),
         "rate of each update of the warm-up, such as those of another run; the decay starts from "
         "the last of them",
         {"schedule.warmup.type", {"rates"}}},
        {"schedule.warmup.target_loss", at_least(0), required(),
         "loss that the run is hoped to reach; the gap delta is the loss above it", adaptive},
        {"schedule.warmup.delta_star",
         special("\"exact\", \"unweighted\", \"quadpack\", \"gk21\", \"measured\" or a number > 0",
                 is_gap),
         is("exact"),
         "gap at which the rate peaks; exact: by accurate quadrature; unweighted: a part of the "
         "first gap that depends on div alone; quadpack, gk21: as published; measured: where "
         "the fit of schedule.warmup.fit has it",
         adaptive},
        {"schedule.warmup.fit",
         text(),
         required(),
         "JSON file that `train_gpt smoothness --out` wrote for the same target_loss",
         {"schedule.warmup.delta_star", {"measured"}}},
        {"schedule.warmup.sigma_F", above(0), is(1e-3), "width of the weight in that quadrature",
         adaptive},
        {"schedule.warmup.loss_ema", from_below(0, 1), is(0.0),
         "smoothing of the loss: share of the old value; 0: none", adaptive},
        {"schedule.warmup.max_fraction", above_to(0, 1), is(0.5),
         "share of the run after which the warm-up ends anyway", adaptive},
        {"schedule.decay.type", one_of({"constant", "cosine", "linear", "wsd", "gap", "power"}),
         is("constant"),
         "how the rate falls; gap keeps following eta of the gap (adaptive only); power: "
         "(k+1)^-p after k updates, of the whole run or since the warm-up"},
        {"schedule.decay.power",
         power(),
         required(),
         "p; published for normalized steps: \"3/4\" with Polyak's momentum, \"5/7\" with igt, "
         "\"2/3\" with storm and hessian",
         {"schedule.decay.type", {"power"}}},
        {"schedule.decay.final_div", at_least(1), is(1e4), "the rate ends at lr / final_div",
         falling},
        {"schedule.decay.fraction", above_to(0, 1), is(0.2), "last part of the run that decays",
         wsd},
        {"schedule.decay.shape", one_of({"linear", "cosine", "sqrt"}), is("linear"), "of that part",
         wsd},
    };
}

// Behaviours of the published code that are not our defaults; dev/docs/published.md says why.
std::vector<Key> schedule_compat_keys() {
    const When ramp = {"schedule.warmup.type", {"linear", "cosine"}};
    const When adaptive = {"schedule.warmup.type", {"adaptive"}};
    return {
        {"schedule.compat.first_lr", one_of({"start", "peak"}), is("start"),
         "published: peak, update 0 runs at lr instead of lr / div", adaptive},
        {"schedule.compat.lag", boolean(), is(false),
         "published: true, the rate comes from the loss of the update before", adaptive},
        {"schedule.compat.loss", one_of({"mean", "last_micro_batch"}), is("mean"),
         "published: last_micro_batch, its mean loss divided by the number of micro-batches",
         adaptive},
        {"schedule.compat.loss_source", one_of({"mean", "rank0", "local"}), is("mean"),
         "published: local, each rank by its own loss, so that their weights drift apart; rank0: "
         "the loss of rank 0's share of the batch",
         adaptive},
        {"schedule.compat.late_decay", boolean(), is(false),
         "published: true, a cosine or linear decay leaves out its first two points", adaptive},
        {"schedule.compat.onecycle", boolean(), is(false),
         "published: true, PyTorch's OneCycleLR: its ramp, and the floor lr / (div final_div)",
         ramp},
    };
}

std::vector<Key> output_keys() {
    return {
        {"eval.every", integer(0), is(0), "updates between evaluations; 0: at the end only"},
        {"eval.batches", integer(1), is(32),
         "micro-batches of an evaluation, as large as one rank would have them; always the same"},
        {"eval.sample", text(), none(), "prompt of a text sampled at each evaluation"},
        {"smoothness.every", integer(0), is(0),
         "updates between measurements of the smoothness (two more gradients each, and norms in "
         "fp64 on the CPU); 0: off"},
        {"smoothness.target_loss", at_least(0),
         computed("schedule.warmup.target_loss, or 0", warmup_target),
         "the gap of a measurement is the loss above it"},
        {"checkpoint.every", integer(0), is(0),
         "updates between checkpoints; 0: at the end only (the end is always saved)"},
        {"checkpoint.keep", integer(0, 1e6), is(2), "newest checkpoints to keep; 0: all"},
        {"log.every", integer(1), is(1), "updates between lines of metrics"},
        {"log.tensorboard", boolean(), is(true), "write TensorBoard events"},
        {"log.spike", at_least(0), is(6.0),
         "a loss is told as a spike when it is this many robust standard deviations above the "
         "median of the last 64 (nonfinite.md); 0: never"},
        {"log.update_norms", boolean(), is(false),
         "with each line of metrics how far the update moved each tensor, relative to its norm "
         "(seeing.md); rank 0 keeps a copy of the weights for it"},
        {"log.peak_tflops", at_least(0), is(0.0),
         "what mfu is a share of, in TFLOP/s of a rank, such as the peak that its vendor states; "
         "0: "
         "the rate of a large matrix product, measured at the start (half a second on a CPU)"},
    };
}

}  // namespace

const std::vector<Key>& config_keys() {
    static const std::vector<Key> keys = [] {
        std::vector<Key> all;
        for (const auto& section : {run_and_model_keys(), data_and_step_keys(), stage_keys(),
                                    schedule_keys(), schedule_compat_keys(), output_keys()}) {
            all.insert(all.end(), section.begin(), section.end());
        }
        return all;
    }();
    return keys;
}

}  // namespace lmo
