#include "llmc/device/arena.h"

#include <algorithm>

namespace lmo {

Arena::~Arena() {
    for (void* block : blocks_) backend_->release(block);
}

Tensor Arena::take(const std::string& part, DType dtype, Shape shape) {
    Tensor tensor{nullptr, dtype, shape};
    parts_[part] += tensor.bytes();
    if (backend_ && tensor.bytes() > 0) {
        blocks_.reserve(blocks_.size() + 1);  // push_back below must not throw after allocate
        tensor.data = backend_->allocate(tensor.bytes());
        blocks_.push_back(tensor.data);
    }
    return tensor;
}

void Arena::reserve_workspace(size_t bytes) {
    assert(!workspace_fixed_ && "workspace asked for after it was fixed");
    workspace_bytes_ = std::max(workspace_bytes_, bytes);
}

Tensor Arena::workspace() {
    if (!workspace_fixed_) {
        workspace_fixed_ = true;
        const int64_t words = static_cast<int64_t>((workspace_bytes_ + 3) / 4);
        workspace_ = take("workspace", DType::f32, {words});
    }
    return workspace_;
}

size_t Arena::total() const {
    size_t bytes = 0;
    for (const auto& [part, size] : parts_) bytes += size;
    return bytes;
}

}  // namespace lmo
