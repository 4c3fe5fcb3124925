// A safetensors file. Accepted means: every tensor that we can read, written by our writer, has the
// same bytes again.
#include "llmc/io/safetensors.h"

#include <cstring>

#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

bool safetensors(std::string_view input) {
    const std::string path = scratch("x.safetensors"), copy = scratch("copy.safetensors");
    write("x.safetensors", input);
    bool all_types = true;
    std::vector<TensorSource> sources;
    const bool accepted = accepts(
        [&] {
            const SafetensorsFile file(path);
            size_t bytes = 0;
            for (const std::string& name : file.names()) {
                const auto found = file.entries().find(name);
                if (found == file.entries().end()) {
                    all_types = false;
                    continue;
                }
                const SafetensorsFile::Entry& entry = found->second;
                bytes += entry.bytes;
                require(bytes <= input.size(), "tensors larger than the file");
                const size_t count = file.read(name, entry.shape).size();
                require(count * size_of(entry.dtype) == entry.bytes, "a size that is not the shape's");
            }
        },
        {path});
    if (!accepted) return false;

    const SafetensorsFile file(path);
    for (const auto& [name, entry] : file.entries()) {
        const auto fetch = [&entry = entry](void* to) { std::memcpy(to, entry.data, entry.bytes); };
        sources.push_back({name, entry.dtype, entry.shape, fetch});
    }
    write_safetensors(copy, sources);
    const SafetensorsFile again(copy);
    require(again.entries().size() == file.entries().size(), "the copy has other tensors");
    for (const auto& [name, entry] : file.entries()) {
        const SafetensorsFile::Entry* twin = again.find(name);
        require(twin && twin->dtype == entry.dtype && twin->shape == entry.shape &&
                    std::memcmp(twin->data, entry.data, entry.bytes) == 0,
                "the copy of " + name + " differs");
    }
    return all_types;
}

}  // namespace lmo::fuzz
