// model.safetensors.index.json beside two good shards and one that is none.
#include "llmc/io/safetensors.h"
#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

namespace {

void write_shard(const std::string& file, const std::string& tensor) {
    write_safetensors(scratch(file), {{tensor, DType::f32, {1}, [](void* to) {
                                           *static_cast<float*>(to) = 1.0f;
                                       }}});
}

}  // namespace

bool shards(std::string_view input) {
    static const bool written = [] {
        write_shard("one.safetensors", "a");
        write_shard("two.safetensors", "b");
        write("text.safetensors", "no shard");
        return true;
    }();
    require(written, "the shards");
    write("model.safetensors.index.json", input);
    bool accepted = false;
    accepts(
        [&] {
            const WeightFolder weights(scratch_folder());
            accepted = true;
            for (const std::string& name : weights.names()) {
                require(weights.has(name), "a name that is not there");
                // An index may promise what the shard lacks: an Error when it is read.
                accepts([&] { require(weights.read(name, {1})[0] == 1.0, "another value"); },
                        {scratch_folder()});
            }
        },
        {scratch_folder()});
    return accepted;
}

}  // namespace lmo::fuzz
