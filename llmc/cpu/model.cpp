// The model's row-wise operations: they check shapes and divide rows among the threads.
#include <algorithm>
#include <cstring>

#include "llmc/cpu/cpu_backend.h"

namespace lmo::cpu {

namespace {

constexpr int64_t row_block = 16;  // rows that one thread takes at a time

DType master_of(DType compute) { return compute == DType::f64 ? DType::f64 : DType::f32; }

// The gradient of the gain is summed over blocks of rows whose borders depend on N alone.
int64_t gain_block(int64_t rows) { return std::max<int64_t>(row_block, block_count(rows, 64)); }

[[maybe_unused]] bool types_fit(DType compute, DType residual) {
    return compute == DType::f64 ? residual == DType::f64
                                 : residual == DType::f32 || residual == DType::bf16;
}

}  // namespace

void CpuBackend::embedding_forward(const EmbeddingForward& op) {
    const int64_t columns = op.table.shape[1], bytes = columns * int64_t(size_of(op.table.dtype));
    assert(op.out.count() == op.ids.count() * columns);
    const int32_t* ids = op.ids.as<int32_t>();
    if (op.out.dtype != op.table.dtype) {  // a residual stream of another type
        const int64_t out_bytes = columns * int64_t(size_of(op.out.dtype));
        parallel_blocks(threads_, op.ids.count(), row_block, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                kernels_.convert(op.out.dtype, op.out.as<char>() + i * out_bytes, op.table.dtype,
                                 op.table.as<char>() + ids[i] * bytes, columns);
            }
        });
        return;
    }
    parallel_blocks(threads_, op.ids.count(), row_block, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            assert(ids[i] >= 0 && ids[i] < op.table.shape[0]);
            std::memcpy(op.out.as<char>() + i * bytes, op.table.as<char>() + ids[i] * bytes,
                        static_cast<size_t>(bytes));
        }
    });
}

// Positions are sorted by id, so that each row of the table has one thread.
size_t CpuBackend::workspace_bytes(const EmbeddingBackward& op) const {
    Scratch scratch;
    scratch.take<uint64_t>(op.ids.count());
    return scratch.bytes();
}

void CpuBackend::embedding_backward(const EmbeddingBackward& op) {
    const int64_t count = op.ids.count(), columns = op.dtable.shape[1];
    assert(op.dout.count() == count * columns);
    const int64_t out_bytes = columns * int64_t(size_of(op.dout.dtype));
    const int64_t table_bytes = columns * int64_t(size_of(op.dtable.dtype));
    Scratch scratch(op.workspace);
    uint64_t* keys = scratch.take<uint64_t>(count);  // id, position
    for (int64_t i = 0; i < count; ++i) {
        keys[i] = uint64_t(uint32_t(op.ids.as<int32_t>()[i])) << 32 | uint64_t(i);
    }
    std::sort(keys, keys + count);
#pragma omp parallel for num_threads(threads_) schedule(dynamic, 16)
    for (int64_t first = 0; first < count; ++first) {
        const uint64_t id = keys[first] >> 32;
        if (first > 0 && keys[first - 1] >> 32 == id) continue;
        for (int64_t i = first; i < count && keys[i] >> 32 == id; ++i) {
            const int64_t position = int64_t(keys[i] & 0xffffffffu);
            kernels_.add(op.dtable.dtype, op.dtable.as<char>() + int64_t(id) * table_bytes,
                         op.dout.as<char>() + position * out_bytes, op.dout.dtype, columns);
        }
    }
}

void CpuBackend::rmsnorm_forward(const RmsNormForward& op) {
    const int64_t rows = op.rstd.count(), columns = op.gain.count();
    assert(op.x.count() == rows * columns && op.out.count() == rows * columns);
    assert(types_fit(op.out.dtype, op.x.dtype) && op.gain.dtype == op.out.dtype);
    assert(op.rstd.dtype == master_of(op.out.dtype));
    assert(op.branch.empty() || (op.branch.dtype == op.out.dtype && !op.sum.empty()));
    assert(op.sum.empty() || op.sum.dtype == op.x.dtype);
    const RmsNormForwardRows args{op.out.dtype, op.x.dtype,  op.x.data,   op.branch.data,
                                  op.gain.data, op.sum.data, op.out.data, op.rstd.data,
                                  columns,      op.eps};
    parallel_blocks(threads_, rows, row_block, [&](int64_t begin, int64_t end) {
        kernels_.rmsnorm_forward(args, begin, end);
    });
}

size_t CpuBackend::workspace_bytes(const RmsNormBackward& op) const {
    Scratch scratch;
    const int64_t rows = op.rstd.count(), columns = op.gain.count();
    scratch.take<char>(block_count(rows, gain_block(rows)) * columns *
                       int64_t(size_of(op.dgain.dtype)));
    return scratch.bytes();
}

void CpuBackend::rmsnorm_backward(const RmsNormBackward& op) {
    const int64_t rows = op.rstd.count(), columns = op.gain.count();
    assert(op.x.count() == rows * columns && op.dout.count() == rows * columns);
    assert(op.dx.count() == rows * columns && op.dx.dtype == op.x.dtype);
    assert(types_fit(op.dout.dtype, op.x.dtype) && op.gain.dtype == op.dout.dtype);
    assert(op.dgain.dtype == master_of(op.dout.dtype) && op.rstd.dtype == op.dgain.dtype);
    assert(op.dbranch.empty() || op.dbranch.dtype == op.dout.dtype);
    const RmsNormBackwardRows args{op.dout.dtype, op.x.dtype,      op.x.data,
                                   op.gain.data,  op.rstd.data,    op.dout.data,
                                   op.dx.data,    op.dbranch.data, columns};
    const int64_t block = gain_block(rows), blocks = block_count(rows, block);
    const int64_t part_bytes = columns * int64_t(size_of(op.dgain.dtype));
    Scratch scratch(op.workspace);
    char* parts = scratch.take<char>(blocks * part_bytes);
    parallel_blocks(threads_, rows, block, [&](int64_t begin, int64_t end) {
        kernels_.rmsnorm_backward(args, begin, end, parts + begin / block * part_bytes);
    });
    for (int64_t b = 0; b < blocks; ++b) {
        kernels_.add(op.dgain.dtype, op.dgain.data, parts + b * part_bytes, op.dgain.dtype,
                     columns);
    }
}

void CpuBackend::rope(const Rope& op) {
    const int64_t positions = op.qkv.shape[1], stride = op.qkv.shape[2];
    const int64_t head_size = stride / (op.heads + 2 * op.kv_heads);
    assert(head_size % 2 == 0 && stride == (op.heads + 2 * op.kv_heads) * head_size);
    assert(op.table.shape[0] >= positions && op.table.shape[1] == head_size / 2);
    assert(op.table.dtype == master_of(op.qkv.dtype));
    const RopeRows args{op.qkv.dtype,           op.qkv.data, op.table.data, positions, stride,
                        op.heads + op.kv_heads, head_size,   op.inverse};
    parallel_blocks(threads_, op.qkv.shape[0] * positions, row_block,
                    [&](int64_t begin, int64_t end) { kernels_.rope(args, begin, end); });
}

void CpuBackend::swiglu_forward(const SwigluForward& op) {
    const int64_t width = op.gate_up.shape[op.gate_up.shape.rank() - 1] / 2;
    assert(op.gate_up.count() == 2 * op.out.count() && op.out.dtype == op.gate_up.dtype);
    const SwigluRows args{op.out.dtype, op.gate_up.data, nullptr, op.out.data, width};
    parallel_blocks(threads_, op.out.count() / width, row_block,
                    [&](int64_t begin, int64_t end) { kernels_.swiglu_forward(args, begin, end); });
}

void CpuBackend::swiglu_backward(const SwigluBackward& op) {
    const int64_t width = op.gate_up.shape[op.gate_up.shape.rank() - 1] / 2;
    assert(op.gate_up.count() == 2 * op.dout.count() && op.dout.dtype == op.gate_up.dtype);
    assert(op.dgate_up.count() == op.gate_up.count() && op.dgate_up.dtype == op.gate_up.dtype);
    const SwigluRows args{op.dout.dtype, op.gate_up.data, op.dout.data, op.dgate_up.data, width};
    parallel_blocks(threads_, op.dout.count() / width, row_block, [&](int64_t begin, int64_t end) {
        kernels_.swiglu_backward(args, begin, end);
    });
}

void CpuBackend::classifier(const Classifier& op) {
    const int64_t rows = op.targets.count();
    assert(rows > 0 && op.logits.count() % rows == 0 && op.losses.count() == rows);
    assert(op.losses.dtype == master_of(op.logits.dtype) && op.targets.dtype == DType::i32);
    const ClassifierRows args{op.logits.dtype, op.logits.data,           op.targets.as<int32_t>(),
                              op.losses.data,  op.logits.count() / rows, op.gradient_scale};
    parallel_blocks(threads_, rows, 1,
                    [&](int64_t begin, int64_t end) { kernels_.classifier(args, begin, end); });
}

}  // namespace lmo::cpu
