// The inner loops of the CPU backend, compiled once for each instruction set and chosen when the
// program starts, so that one binary runs on any x86-64 and uses what the processor has.
//
// The files *_kernels.cpp are compiled three times, with LMO_ISA = baseline, avx2, avx512 (and the
// compiler's -march for it; -O3 -fno-math-errno -fno-trapping-math help vectorisation and change no
// result). Everything in them lives in namespace lmo::cpu::LMO_ISA and they call no inline function
// of another header: the linker keeps one copy of those, and it might be one that the processor
// cannot run.
//
// All kernels are serial and work on a range of rows or elements; the callers divide the work among
// threads. T, C, ... are the letters of llmc/device/backend.h. "master" below is f64 when compute
// is f64, else f32.
#pragma once

#include <stdint.h>

#include <vector>

#include "llmc/core/dtype.h"

namespace lmo::cpu {

// One tile of a matrix product, row-major: c[m, n] = alpha op(a) op(b) + beta c. m <=
// gemm_tile_rows, n <= gemm_tile_columns, any k.
struct GemmTile {
    bool transpose_a, transpose_b;
    int64_t m, n, k;
    double alpha, beta;
    const void *a, *b;
    void* c;
    int64_t lda, ldb, ldc;
};
constexpr int64_t gemm_tile_rows = 72, gemm_tile_columns = 128;

// `rows` rows of attention scores of one head, query positions first, first + 1, ...; row r has
// `columns` entries of which first + r + 1 are not masked.
struct ScoreTile {
    int64_t rows, columns, first;
    void* scores;     // [rows, columns]
    void* lse;        // [rows]
    void* top;        // [rows] the largest score of each, or null
    void* gradients;  // backward: dP on entry, dS on exit [rows, columns]
    double scale;
};

struct RmsNormForwardRows {
    DType compute, residual;
    const void *x, *branch, *gain;  // branch may be null
    void *sum, *out, *rstd;         // sum may be null
    int64_t columns;
    double eps;
};

struct RmsNormBackwardRows {
    DType compute, residual;
    const void *x, *gain, *rstd, *dout;
    void *dx, *dbranch;  // dbranch may be null
    int64_t columns;
};

struct RopeRows {
    DType compute;
    void* qkv;
    const void* table;
    int64_t positions, stride, heads, head_size;  // heads: those that are rotated
    bool inverse;
};

struct SwigluRows {
    DType compute;
    const void *gate_up, *dout;  // dout: backward only
    void* out;                   // forward: out, backward: dgate_up
    int64_t width;
};

struct ClassifierRows {
    DType compute;
    void* logits;
    const int32_t* targets;
    void* losses;
    int64_t columns;
    double gradient_scale;
};

// u = u_m m + u_g g to `x`, m_m m + m_g g to `new_m`. x may be g, and new_m be m; without m
// u = u_g g.
struct MomentumRange {
    DType type;
    const void *g, *m;  // m may be null
    void *x, *new_m;
    double factor, u_m, u_g, m_m, m_g;
};

// x = (m * m_scale) / (sqrt(v * v_scale) + eps): both variants of Adam. x may be g.
struct AdamRange {
    DType type;
    const void* g;
    void *x, *m, *v;
    double factor, beta1, beta2, eps, m_scale, v_scale;
};

// w = w - (decay * w + step * x), cautious: decay only where x * w > 0; with a start also
// + pull * (start - old w)
struct ApplyRange {
    DType type, copy_type;
    void* w;
    const void* x;
    void* copy;  // may be null
    double decay, step;
    bool cautious;
    const void* start;  // may be null
    double pull;
};

// Parts of a long sum of squares: element i belongs to lane i mod square_lanes.
constexpr int64_t square_lanes = 32;

struct Kernels {
    const char* isa;  // for people

    // elements.
    void (*convert)(DType to_type, void* to, DType from_type, const void* from, int64_t count);
    void (*add)(DType type, void* to, const void* from, DType from_type, int64_t count);
    void (*zero_far)(void* to, int64_t bytes);  // for more than the caches hold
    double (*sum)(DType type, const void* x, int64_t begin, int64_t end);
    double (*sum_of_squares)(DType type, const void* x, int64_t begin, int64_t end);
    // lanes += squares; pieces of a sum of squares, all but the last of whole rounds of lanes, give
    // its lanes.
    void (*add_squares)(DType type, const void* x, int64_t begin, int64_t end, double* lanes);
    void (*divide)(DType type, void* to, const void* x, double divisor, int64_t begin, int64_t end);
    void (*sign)(DType type, void* x, int64_t begin, int64_t end);
    void (*momentum)(const MomentumRange&, int64_t begin, int64_t end);
    void (*adam)(const AdamRange&, int64_t begin, int64_t end);
    void (*apply)(const ApplyRange&, int64_t begin, int64_t end);
    // Split weights (core/split_float.h) and fp32 ones.
    void (*join)(const uint16_t* high, const int16_t* low, float* to, int64_t count);
    void (*split)(const float* from, uint16_t* high, int16_t* low, int64_t count);
    double (*dot)(DType type, const void* x, const void* y, int64_t count);
    // (x, y) = (cosine x - sine y, sine x + cosine y)
    void (*rotate)(DType type, void* x, void* y, double cosine, double sine, int64_t count);

    // Dense: f32 and f64.
    void (*gemm_tile_f32)(const GemmTile&);
    void (*gemm_tile_f64)(const GemmTile&);

    // Attention, in the type of the scores (f32, f64).
    void (*softmax)(DType type, const ScoreTile&);
    void (*softmax_backward)(DType type, const ScoreTile&);

    // Model.
    void (*rmsnorm_forward)(const RmsNormForwardRows&, int64_t begin, int64_t end);
    // dgain [columns] (master) is overwritten with the part of these rows.
    void (*rmsnorm_backward)(const RmsNormBackwardRows&, int64_t begin, int64_t end, void* dgain);
    void (*rope)(const RopeRows&, int64_t begin, int64_t end);
    void (*swiglu_forward)(const SwigluRows&, int64_t begin, int64_t end);
    void (*swiglu_backward)(const SwigluRows&, int64_t begin, int64_t end);
    void (*classifier)(const ClassifierRows&, int64_t begin, int64_t end);
};

// Each *_kernels.cpp file fills its part of the table.
#define LMO_DECLARE_KERNELS(isa)          \
    namespace isa {                       \
    void add_element_kernels(Kernels&);   \
    void add_gemm_kernels(Kernels&);      \
    void add_attention_kernels(Kernels&); \
    void add_model_kernels(Kernels&);     \
    }
LMO_DECLARE_KERNELS(baseline)
LMO_DECLARE_KERNELS(avx2)
LMO_DECLARE_KERNELS(avx512)
#undef LMO_DECLARE_KERNELS

// The tables that this processor can run, the best one last.
std::vector<Kernels> supported_kernels();

}  // namespace lmo::cpu
