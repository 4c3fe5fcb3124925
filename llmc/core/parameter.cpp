#include "llmc/core/parameter.h"

#include <cassert>

namespace lmo {

namespace {
constexpr int64_t kAlignment = 64;  // elements
}

std::string to_string(Role role) {
    switch (role) {
        case Role::matrix:
            return "matrix";
        case Role::embedding:
            return "embedding";
        case Role::head:
            return "head";
        case Role::gain:
            return "gain";
    }
    return "unknown";
}

void ParameterList::add(Parameter parameter) {
    const bool fused = !parameters_.empty() && !parameter.fused.empty() &&
                       parameters_.back().fused == parameter.fused;
    assert(!parameter.adjacent || !parameters_.empty());
    if (!fused && !parameter.adjacent)
        length_ = (length_ + kAlignment - 1) / kAlignment * kAlignment;
    offsets_.push_back(length_);
    length_ += parameter.shape.count();
    count_ += parameter.shape.count();
    parameters_.push_back(std::move(parameter));
}

int ParameterList::find(const std::string& name) const {
    for (int i = 0; i < size(); ++i) {
        if (parameters_[i].name == name) return i;
    }
    return -1;
}

std::vector<ParameterBlock> ParameterList::blocks(bool fuse) const {
    std::vector<ParameterBlock> result;
    for (int i = 0; i < size(); ++i) {
        const Parameter& p = parameters_[i];
        if (fuse && !p.fused.empty() && i > 0 && parameters_[i - 1].fused == p.fused) {
            ParameterBlock& block = result.back();
            block.shape = {block.shape[0] + p.shape[0], p.shape[1]};
            ++block.count;
        } else {
            result.push_back(
                {fuse && !p.fused.empty() ? p.fused : p.name, i, 1, p.shape, p.role, p.layer});
        }
    }
    return result;
}

}  // namespace lmo
