// See newton_schulz_bf16.h.
#include "llmc/cpu/newton_schulz_bf16.h"

#include <omp.h>

#include <algorithm>

namespace lmo::cpu {

namespace {

int64_t padded(int64_t extent) { return (extent + bf16_padding - 1) / bf16_padding * bf16_padding; }

// From row to row; not a multiple of 4 KiB, as rows would then share few lines of the cache. The
// library takes dense matrices alone.
int64_t stride_of(int64_t padded_columns, const Bf16Matmul* library) {
    constexpr int64_t page = 2048;  // elements
    if (library) return padded_columns;
    return padded_columns % page == 0 ? padded_columns + bf16_padding : padded_columns;
}

}  // namespace

struct Bf16NewtonSchulz::Buffers {
    uint16_t *x, *next, *a, *m;
    char* panels;  // scratch of each thread
};

Bf16NewtonSchulz::Bf16NewtonSchulz(const NewtonSchulz& op, int threads, Bf16Matmul* library)
    : steps_(op.steps),
      library_(library),
      threads_(threads),
      tall_(op.x[0].shape[0] > op.x[0].shape[1]),
      rows_(std::min(op.x[0].shape[0], op.x[0].shape[1])),
      columns_(std::max(op.x[0].shape[0], op.x[0].shape[1])),
      padded_rows_(padded(rows_)),
      padded_columns_(padded(columns_)),
      stride_(stride_of(padded_columns_, library)),
      square_stride_(stride_of(padded_rows_, library)) {
    assert(op.form != NewtonSchulzForm::gram && "bf16 is too coarse for it");
    assert(op.x[0].dtype == DType::f32);
}

Bf16NewtonSchulz::Buffers Bf16NewtonSchulz::take(Scratch& scratch) const {
    Buffers buffers;
    buffers.x = scratch.take<uint16_t>(padded_rows_ * stride_);
    buffers.next = scratch.take<uint16_t>(padded_rows_ * stride_);
    buffers.a = scratch.take<uint16_t>(padded_rows_ * square_stride_);
    buffers.m = scratch.take<uint16_t>(padded_rows_ * square_stride_);
    buffers.panels = scratch.take<char>(threads_ * bf16_panel_scratch(padded_rows_));
    return buffers;
}

size_t Bf16NewtonSchulz::workspace_bytes() const {
    Scratch scratch;
    take(scratch);
    return scratch.bytes();
}

double Bf16NewtonSchulz::executed_flops() const {
    const auto product = [&](int64_t m, int64_t n, int64_t k) {
        return 2.0 * static_cast<double>(m * n) * static_cast<double>(k);
    };
    const auto symmetric = [&](int64_t k) {
        if (library_) return product(padded_rows_, padded_rows_, k);
        double flops = 0.0;
        for (int64_t column = 0; column < padded_rows_; column += bf16_panel_columns) {
            const int64_t rest = padded_rows_ - column;
            flops += product(rest, std::min(bf16_panel_columns, rest), k);
        }
        return flops;
    };
    double flops = 0.0;
    for (const NewtonSchulzStep& step : steps_) {
        flops += symmetric(padded_columns_) + (step.c != 0.0 ? symmetric(padded_rows_) : 0.0) +
                 product(padded_rows_, padded_columns_, padded_rows_);
    }
    return flops;
}

// The panels of `product`, of which all but those of a panel is set. The highest panels of a
// symmetric product come first.
void Bf16NewtonSchulz::multiply(const Bf16Tiles& tiles, const Buffers& buffers, Product kind,
                                int64_t columns, const Bf16Panel& product) const {
    if (library_ && multiply_by_library(kind, columns, product)) return;
    const int64_t panels = block_count(columns, bf16_panel_columns);
#pragma omp parallel for num_threads(threads_) schedule(dynamic, 1)
    for (int64_t i = 0; i < panels; ++i) {
        Bf16Panel panel = product;
        panel.symmetric = kind == Product::symmetric;
        panel.transposed = panel.symmetric;
        panel.column = i * bf16_panel_columns;
        panel.width = std::min(bf16_panel_columns, columns - panel.column);
        panel.m = padded_rows_;
        panel.scratch = buffers.panels + omp_get_thread_num() * bf16_panel_scratch(padded_rows_);
        tiles.multiply(panel);
    }
}

// Returns false, with nothing done but d copied to c, where the library cannot.
bool Bf16NewtonSchulz::multiply_by_library(Product kind, int64_t columns,
                                           const Bf16Panel& p) const {
    const auto tensor = [](const uint16_t* data, int64_t rows, int64_t dense) {
        return Tensor{const_cast<uint16_t*>(data), DType::bf16, {rows, dense}};
    };
    Gemm op;
    op.a = tensor(p.a, padded_rows_, p.k);
    op.transpose_b = kind == Product::symmetric;
    op.b = op.transpose_b ? tensor(p.b, columns, p.k) : tensor(p.b, p.k, columns);
    op.c = tensor(p.c, padded_rows_, columns);
    op.alpha = p.alpha;
    if (p.d) {
        op.beta = p.beta;
        parallel_blocks(
            threads_, padded_rows_ * columns, element_block,
            [&](int64_t begin, int64_t end) { std::copy(p.d + begin, p.d + end, p.c + begin); });
    }
    return library_->run(op, threads_);
}

void Bf16NewtonSchulz::run(const Bf16Tiles& tiles, const Tensor& x, double divisor,
                           Scratch& scratch) const {
    Buffers buffers = take(scratch);
    Bf16Border border{tall_, rows_, columns_, x.as<float>(), buffers.x, stride_};
    parallel_blocks(threads_, padded_rows_, bf16_padding, [&](int64_t begin, int64_t end) {
        tiles.bring_in(border, divisor, begin, end);
    });
    const int64_t square = square_stride_;
    for (const NewtonSchulzStep& step : steps_) {
        Bf16Panel gram{}, polynomial{}, advance{};
        gram.k = padded_columns_;
        gram.alpha = step.c == 0.0 ? static_cast<float>(step.b) : 1.0f;
        gram.a = gram.b = buffers.x;
        gram.a_stride = gram.b_stride = stride_;
        gram.c = step.c == 0.0 ? buffers.m : buffers.a;
        gram.c_stride = square;
        multiply(tiles, buffers, Product::symmetric, padded_rows_, gram);

        if (step.c != 0.0) {
            polynomial.k = padded_rows_;
            polynomial.alpha = static_cast<float>(step.c);
            polynomial.beta = static_cast<float>(step.b);
            polynomial.a = polynomial.b = polynomial.d = buffers.a;
            polynomial.a_stride = polynomial.b_stride = polynomial.d_stride = square;
            polynomial.c = buffers.m;
            polynomial.c_stride = square;
            multiply(tiles, buffers, Product::symmetric, padded_rows_, polynomial);
        }

        advance.k = padded_rows_;
        advance.alpha = 1.0f;
        advance.beta = static_cast<float>(step.a);
        advance.a = buffers.m;
        advance.a_stride = square;
        advance.b = advance.d = buffers.x;
        advance.c = buffers.next;
        advance.b_stride = advance.d_stride = advance.c_stride = stride_;
        multiply(tiles, buffers, Product::general, padded_columns_, advance);
        std::swap(buffers.x, buffers.next);
    }
    border.padded = buffers.x;
    parallel_blocks(threads_, padded_rows_, bf16_padding,
                    [&](int64_t begin, int64_t end) { tiles.write_back(border, begin, end); });
}

}  // namespace lmo::cpu
