// metrics.jsonl of a run that continues after update 5: what is kept is lines of it, in their order.
#include "llmc/io/metrics.h"

#include "llmc/io/files.h"
#include "tests/fuzz/fuzz.h"

namespace lmo::fuzz {

bool metrics(std::string_view input) {
    write("metrics.jsonl", input);
    if (!accepts([&] { MetricsLog(scratch_folder(), 5, false); }, {scratch_folder()})) return false;
    const std::string kept = read_file(scratch("metrics.jsonl"));
    size_t from = 0;
    for (size_t begin = 0; begin < kept.size();) {
        const size_t end = kept.find('\n', begin);
        require(end != std::string::npos, "half a line is left");
        const size_t found = input.find(kept.substr(begin, end + 1 - begin), from);
        require(found != std::string_view::npos, "a line that was not there");
        from = found + (end + 1 - begin);
        begin = end + 1;
    }
    // Once more changes nothing.
    { MetricsLog again(scratch_folder(), 5, false); }
    require(read_file(scratch("metrics.jsonl")) == kept, "the second time drops more");
    return !kept.empty();
}

}  // namespace lmo::fuzz
