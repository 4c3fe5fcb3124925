// The keys of the stages around an optimizer's groups: estimator, communication, outer stage.

#include "llmc/train/schema_values.h"

namespace lmo {

using namespace schema;

namespace {

Json share_of_small(const Json& resolved) {
    // Neither is there where a preset is checked by itself.
    const Json* small = find_value(resolved, "optimizer.estimator.small");
    const Json* all = find_value(resolved, "batch.sequences");
    if (small == nullptr || all == nullptr || !small->is_number() || !all->is_number()) return {};
    return small->get<double>() / (small->get<double>() + all->get<double>());
}

Json outer_rate(const Json& resolved) {
    const Json* type = find_value(resolved, "optimizer.communication.type");
    return type != nullptr && *type == "local" ? 1.0 : 0.5;
}

// A compressor at `path`.
void add_compressor_keys(std::vector<Key>& keys, const std::string& path, const std::string& what) {
    keys.push_back(
        {path + ".type",
         one_of({"identity", "topk", "columns", "rank", "natural"}),
         is("identity"),
         "how " + what +
             " are sent: identity: whole; topk: the largest elements; "
             "columns: the longest columns; rank: a product of two thin matrices; natural: "
             "rounded to powers of two, 9 bits each",
         {"optimizer.communication.type", {"ef21"}}});
    keys.push_back({path + ".fraction",
                    above_to(0, 1),
                    required(),
                    "of the elements (topk) or columns that are sent, at least one",
                    {path + ".type", {"topk", "columns"}}});
    keys.push_back({path + ".rank",
                    integer(1, kMaxExtent),
                    required(),
                    "columns of the thin matrices; vectors are sent whole",
                    {path + ".type", {"rank"}}});
    keys.push_back({path + ".natural",
                    boolean(),
                    is(false),
                    "its values as powers of two",
                    {path + ".type", {"topk", "columns", "rank"}}});
}

std::vector<Key> estimator_keys() {
    const std::string type = "optimizer.estimator.type";
    const When corrected = {type, {"storm", "hessian"}};
    const When hessian = {type, {"hessian"}};
    const When page = {type, {"page"}};
    const When clips = {type, {"plain", "igt", "storm", "hessian"}};
    return {
        {type, one_of({"plain", "igt", "storm", "hessian", "page"}), is("plain"),
         "which gradients an update takes (a preset may say so; communication.md): igt: at a point "
         "ahead; storm: and at the weights before; hessian: and of the curvature between them; "
         "page: of a large batch now and then, else of a small one at both"},
        {"optimizer.estimator.beta",
         from_below(0, 1),
         none("that of the matrices' momentum"),
         "beta of the momentum behind it: the point of igt is beta/(1-beta) updates ahead, which "
         "is the factor of the correction too",
         {type, {"igt", "storm", "hessian"}}},
        {"optimizer.estimator.scale", at_least(0), is(1.0), "of the correction", corrected},
        {"optimizer.estimator.batch", one_of({"own", "same"}), is("own"),
         "own: the curvature is that of another batch, the next one; same: of the update's",
         hessian},
        {"optimizer.estimator.difference", one_of({"central", "segment"}), is("central"),
         "central: around a random point of the last update; segment: between its ends", hessian},
        {"optimizer.estimator.step",
         above_to(0, 1),
         is(0.1),
         "half the distance of the central difference, in last updates",
         {"optimizer.estimator.difference", {"central"}}},
        {"optimizer.estimator.clip", at_least(0), is(0.0),
         "bound of the norm of the gradient (all tensors) before it is corrected; 0: none", clips},
        {"optimizer.estimator.clip_correction", at_least(0), is(0.0),
         "bound of the norm of the correction for an update of length 1; 0: none", corrected},
        {"optimizer.estimator.small", integer(1, kMaxExtent), required(),
         "sequences of a small batch; the large one is batch.sequences", page},
        {"optimizer.estimator.probability", above_to(0, 1),
         computed("small / (small + batch.sequences)", share_of_small), "of a large batch", page},
    };
}

std::vector<Key> outer_keys() {
    const When on = {"optimizer.outer.type", {"lookahead", "rapp"}};
    return {
        {"optimizer.outer.type", one_of({"none", "lookahead", "rapp"}), is("none"),
         "every so many updates an anchor takes a step to where they have led, and training goes "
         "on from it (Lookahead; Local SGD's and DiLoCo's outer step); rapp: each of them starts "
         "from the anchor"},
        {"optimizer.outer.every", integer(2, kMaxCount), required(), "updates between two steps",
         on},
        {"optimizer.outer.rate", above(0), computed("0.5; communication local: 1", outer_rate),
         "part of the way that the anchor goes", on},
        {"optimizer.outer.momentum", from_below(0, 1), is(0.0), "of these steps", on},
        {"optimizer.outer.nesterov", boolean(), is(false), "Nesterov's form of it", on},
    };
}

}  // namespace

std::vector<Key> schema::stage_keys() {
    std::vector<Key> keys = estimator_keys();
    keys.push_back(
        {"optimizer.communication.type", one_of({"mean", "ef21", "local"}), is("mean"),
         "what ranks tell each other (communication.md): mean: gradients, at every update; ef21: "
         "compressed changes of their momentum, with error feedback; local: nothing but the "
         "weights, at every step of optimizer.outer"});
    add_compressor_keys(keys, "optimizer.communication.up", "gradients");
    add_compressor_keys(keys, "optimizer.communication.down", "changes of the weights");
    keys.push_back({"optimizer.communication.inner_power",
                    at_least(0),
                    is(0.0),
                    "p: the rate of the j-th update since the ranks met is (j+1)^-p of the "
                    "schedule's (Decaying Local SGD)",
                    {"optimizer.communication.type", {"local"}}});
    for (const Key& key : outer_keys()) keys.push_back(key);
    return keys;
}

}  // namespace lmo
