// A stand-in for cublasLt, linked in its place: the functions that a trainer calls, against the
// real header. Products of fp32, bf16 and fp16 matrices with sums in fp32; factors on the host;
// results of the operands' type or fp32; any order and transposition; strided batches.
//
// What the library documents as an error is a status here. What it does not notice and a device
// would turn into wrong results or a fault is thrown as Error: matrices and workspace outside of
// allocations, addresses less aligned than the heuristic was promised, a result that overlaps an
// operand. An algorithm fits only the problem that it was found for. Where the preference allows
// it, the first algorithm found splits the sum: with its workspace overwritten, or in place, and
// then in an order that changes from call to call, as on a device.
#include <algorithm>
#include <cstring>
#include <utility>

#include "dev/emulator/cublaslt_objects.h"
#include "dev/emulator/cublaslt_product.h"
#include "dev/emulator/runtime.h"

using namespace emulator::cublaslt;

namespace emulator {

namespace {

constexpr int kMaxParts = 4;
// Smaller sums are not split.
constexpr int64_t kMinPart = 32;

// ---- problems ----------------------------------------------------------------------------------

struct Problem {
    const Description* description;
    const Layout *a, *b, *c, *d;
    int64_t m = 0, n = 0, k = 0;
    bool complete() const { return description && a && b && c && d; }
};

Problem open_problem(cublasLtMatmulDesc_t description, cublasLtMatrixLayout_t a,
                     cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    return {open<Description>(description), open<Layout>(a), open<Layout>(b), open<Layout>(c),
            open<Layout>(d)};
}

bool type_is_known(uint32_t type) {
    return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
}
int64_t element_bytes(const Layout& layout) { return layout.type == CUDA_R_32F ? 4 : 2; }

bool layout_is_valid(const Layout& l) {
    const int64_t line = static_cast<int64_t>(l.order == CUBLASLT_ORDER_ROW ? l.columns : l.rows);
    return l.rows > 0 && l.columns > 0 && l.rows < 1u << 31 && l.columns < 1u << 31 &&
           l.leading >= line && l.batch >= 1;
}

// What cublasLtMatmul and the heuristic check.
cublasStatus_t check_problem(Problem& p) {
    const Description& op = *p.description;
    for (const Layout* l : {p.a, p.b, p.c, p.d}) {
        if (!layout_is_valid(*l) || l->batch != p.d->batch) return kInvalid;
        if (!type_is_known(l->type)) return kNotSupported;
        if (l->order != CUBLASLT_ORDER_COL && l->order != CUBLASLT_ORDER_ROW) return kNotSupported;
    }
    const bool ta = op.transpose_a != CUBLAS_OP_N, tb = op.transpose_b != CUBLAS_OP_N;
    p.m = static_cast<int64_t>(ta ? p.a->columns : p.a->rows);
    p.k = static_cast<int64_t>(ta ? p.a->rows : p.a->columns);
    p.n = static_cast<int64_t>(tb ? p.b->rows : p.b->columns);
    const int64_t b_k = static_cast<int64_t>(tb ? p.b->columns : p.b->rows);
    const auto m = static_cast<uint64_t>(p.m), n = static_cast<uint64_t>(p.n);
    if (b_k != p.k || p.d->rows != m || p.d->columns != n || p.c->rows != m || p.c->columns != n) {
        return kInvalid;
    }
    if (p.d->batch > 1 && p.d->batch_stride == 0) return kInvalid;
    if (p.a->type != p.b->type || p.c->type != p.d->type || p.c->order != p.d->order) {
        return kNotSupported;
    }
    if (p.d->type != CUDA_R_32F && p.d->type != p.a->type) return kNotSupported;
    const bool tf32 = op.compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    if (tf32 && p.a->type != CUDA_R_32F) return kNotSupported;
    return kSuccess;
}

uint64_t hash(const Problem& p) {
    const uint64_t parts[] = {static_cast<uint64_t>(p.description->compute),
                              static_cast<uint64_t>(p.description->transpose_a),
                              static_cast<uint64_t>(p.description->transpose_b),
                              static_cast<uint64_t>(p.m),
                              static_cast<uint64_t>(p.n),
                              static_cast<uint64_t>(p.k),
                              static_cast<uint64_t>(p.d->batch),
                              p.a->type,
                              p.d->type,
                              static_cast<uint64_t>(p.a->order),
                              static_cast<uint64_t>(p.b->order),
                              static_cast<uint64_t>(p.d->order)};
    uint64_t h = 0;
    for (uint64_t part : parts) h = (h ^ part) * 0x9E3779B97F4A7C15ull + 1;
    return h;
}

Algorithm algorithm_for(const Problem& p, uint32_t reduction, const uint32_t (&align)[4]) {
    Algorithm algorithm{};
    algorithm.magic = Algorithm::kMagic;
    algorithm.problem = hash(p);
    algorithm.reduction = reduction;
    algorithm.parts = 1;
    if (reduction != CUBLASLT_REDUCTION_SCHEME_NONE) {
        algorithm.parts = static_cast<int>(std::min<int64_t>(kMaxParts, p.k / kMinPart));
    }
    if (reduction == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) {
        algorithm.workspace_bytes = static_cast<uint64_t>(p.m * p.n * 4) * algorithm.parts *
                                    static_cast<uint64_t>(p.d->batch);
    }
    memcpy(algorithm.align, align, sizeof align);
    return algorithm;
}

// ---- running -----------------------------------------------------------------------------------

// What lies between the first and the last byte of a batch.
struct Extent {
    uintptr_t first, last;
};
Extent extent(const Matrix& m, int64_t batch) {
    const auto start = reinterpret_cast<uintptr_t>(m.data);
    const int64_t before = std::min<int64_t>(0, (batch - 1) * m.batch_stride) * m.element_bytes();
    const int64_t after = std::max<int64_t>(0, (batch - 1) * m.batch_stride) * m.element_bytes();
    return {start + before, start + after + (m.lines() - 1) * m.pitch() + m.line_bytes()};
}

// Lines of one pitch that lie beside each other do not overlap, though their extents do.
bool overlap(const Matrix& x, const Matrix& y, int64_t batch) {
    const Extent ex = extent(x, batch), ey = extent(y, batch);
    if (ex.last <= ey.first || ey.last <= ex.first) return false;
    const int64_t pitch = x.pitch();
    const auto whole = [&](const Matrix& m) {
        return batch == 1 || m.batch_stride * m.element_bytes() % pitch == 0;
    };
    if (pitch != y.pitch() || !whole(x) || !whole(y)) return true;
    const int64_t distance = static_cast<int64_t>(y.data - x.data) % pitch;
    const int64_t right = distance < 0 ? distance + pitch : distance;  // of y from x
    return right < x.line_bytes() || right + y.line_bytes() > pitch;
}

Matrix matrix(const Layout& layout, const void* data) {
    Matrix m;
    m.data = static_cast<char*>(const_cast<void*>(data));
    m.type = static_cast<cudaDataType_t>(layout.type);
    m.rows = static_cast<int64_t>(layout.rows);
    m.columns = static_cast<int64_t>(layout.columns);
    m.row_major = layout.order == CUBLASLT_ORDER_ROW;
    m.leading = layout.leading;
    m.batch_stride = layout.batch_stride;
    return m;
}

void check_matrix(const char* name, const Matrix& m, int64_t batch, uint32_t align) {
    const Extent e = extent(m, batch);
    if (!is_live(reinterpret_cast<const void*>(e.first), e.last - e.first)) {
        fail("cublasLtMatmul: %s reaches outside of one live allocation", name);
    }
    for (int64_t i = 0; i < std::min<int64_t>(batch, 2); ++i) {
        if (reinterpret_cast<uintptr_t>(m.of_batch(i)) % align == 0) continue;
        fail(
            "cublasLtMatmul: %s is at %p, less aligned than the %u bytes that its algorithm was "
            "chosen for",
            name, static_cast<void*>(m.of_batch(i)), align);
    }
}

void check_memory(const ProductOfMatrices& p, const Algorithm& algorithm) {
    check_matrix("A", p.a, p.batch, algorithm.align[0]);
    check_matrix("B", p.b, p.batch, algorithm.align[1]);
    check_matrix("C", p.c, p.batch, algorithm.align[2]);
    check_matrix("D", p.d, p.batch, algorithm.align[3]);
    if (overlap(p.d, p.a, p.batch)) fail("cublasLtMatmul: D overlaps A");
    if (overlap(p.d, p.b, p.batch)) fail("cublasLtMatmul: D overlaps B");
    const bool in_place = p.c.data == p.d.data && p.c.leading == p.d.leading &&
                          (p.batch == 1 || p.c.batch_stride == p.d.batch_stride);
    if (!in_place && overlap(p.d, p.c, p.batch)) {
        fail("cublasLtMatmul: D overlaps C and is not the same matrix");
    }
}

void check_workspace(const ProductOfMatrices& p, const void* workspace, size_t bytes) {
    if (bytes == 0) return;
    if (reinterpret_cast<uintptr_t>(workspace) % 256) {
        fail("cublasLtMatmul: the workspace is not aligned to 256 bytes");
    }
    if (!is_live(workspace, bytes)) {
        fail("cublasLtMatmul: a workspace of %zu bytes reaches outside of its allocation", bytes);
    }
    Matrix whole;
    whole.data = static_cast<char*>(const_cast<void*>(workspace));
    whole.rows = whole.leading = static_cast<int64_t>(bytes / 4);
    whole.columns = 1;
    for (const Matrix* m : {&p.a, &p.b, &p.c, &p.d}) {
        const Extent e = extent(*m, p.batch), w = extent(whole, 1);
        if (e.first < w.last && w.first < e.last) {
            fail("cublasLtMatmul: the workspace overlaps a matrix");
        }
    }
}

// As many calls as there were in-place sums: their order depends on it.
uint64_t in_place_calls = 0;

}  // namespace

}  // namespace emulator

using namespace emulator;

// ---- the library's functions -------------------------------------------------------------------

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle,
                                              cublasLtMatmulDesc_t description,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t opaque, int requested,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* returned) {
    if (!is_open(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    Problem p = open_problem(description, a, b, c, d);
    const Preference* preference = open<Preference>(opaque);
    if (!p.complete() || !preference || requested < 1 ||
        !results || !returned) {
        return kInvalid;
    }
    *returned = 0;
    if (const cublasStatus_t status = check_problem(p); status != kSuccess) return status;
    for (const auto& [layout, i] : {std::pair(p.a, 0), {p.b, 1}, {p.c, 2}, {p.d, 3}}) {
        if (preference->align[i] < element_bytes(*layout)) return kNotSupported;
    }
    for (uint32_t reduction :
         {CUBLASLT_REDUCTION_SCHEME_INPLACE, CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE,
          CUBLASLT_REDUCTION_SCHEME_NONE}) {
        if (reduction != CUBLASLT_REDUCTION_SCHEME_NONE &&
            (!(preference->reductions & reduction) || p.k < 2 * kMinPart)) {
            continue;
        }
        const Algorithm algorithm = algorithm_for(p, reduction, preference->align);
        if (algorithm.workspace_bytes > preference->workspace_bytes || *returned == requested) {
            continue;
        }
        cublasLtMatmulHeuristicResult_t& result = results[(*returned)++];
        memset(&result, 0, sizeof result);
        static_assert(sizeof algorithm <= sizeof result.algo);
        memcpy(&result.algo, &algorithm, sizeof algorithm);
        result.workspaceSize = algorithm.workspace_bytes;
        result.state = kSuccess;
        result.wavesCount = 1.0f;
    }
    return kSuccess;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t* opaque,
                                       cublasLtMatmulHeuristicResult_t* result) {
    if (!is_open(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    Problem p = open_problem(description, a, b, c, d);
    const Algorithm* algorithm = open<Algorithm>(opaque);
    if (!p.complete() || !algorithm || !result) return kInvalid;
    if (const cublasStatus_t status = check_problem(p); status != kSuccess) return status;
    if (algorithm->problem != hash(p)) return kNotSupported;
    memset(result, 0, sizeof *result);
    result->algo = *opaque;
    result->workspaceSize = algorithm->workspace_bytes;
    result->state = kSuccess;
    result->wavesCount = 1.0f;
    return kSuccess;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                              const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                              const void* b, cublasLtMatrixLayout_t b_layout, const void* beta,
                              const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* chosen,
                              void* workspace, size_t workspace_bytes, cudaStream_t stream) {
    if (!is_open(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    Problem p = open_problem(description, a_layout, b_layout, c_layout, d_layout);
    if (!p.complete() || !alpha || !beta || !a || !b || !c || !d ||
        (workspace_bytes > 0 && !workspace)) {
        return kInvalid;
    }
    if (const cublasStatus_t status = check_problem(p); status != kSuccess) return status;
    constexpr uint32_t any[4] = {1, 1, 1, 1};  // without an algorithm it looks at the addresses
    const Algorithm plain = algorithm_for(p, CUBLASLT_REDUCTION_SCHEME_NONE, any);
    const Algorithm* algorithm = chosen ? open<Algorithm>(chosen) : &plain;
    if (!algorithm) return kInvalid;
    if (algorithm->problem != hash(p)) return kNotSupported;
    if (workspace_bytes < algorithm->workspace_bytes) return kInvalid;

    ProductOfMatrices product;
    product.a = matrix(*p.a, a);
    product.b = matrix(*p.b, b);
    product.c = matrix(*p.c, c);
    product.d = matrix(*p.d, d);
    product.transpose_a = p.description->transpose_a != CUBLAS_OP_N;
    product.transpose_b = p.description->transpose_b != CUBLAS_OP_N;
    product.tf32 = p.description->compute == CUBLAS_COMPUTE_32F_FAST_TF32;
    memcpy(&product.alpha, alpha, sizeof(float));
    memcpy(&product.beta, beta, sizeof(float));
    product.batch = p.d->batch;
    product.k = p.k;
    product.parts = algorithm->parts;
    check_memory(product, *algorithm);
    check_workspace(product, workspace, workspace_bytes);
    const bool in_place = algorithm->reduction == CUBLASLT_REDUCTION_SCHEME_INPLACE;
    const size_t overwritten = algorithm->workspace_bytes;
    enqueue(stream, [=]() mutable {
        if (in_place) product.first_part = static_cast<int>(in_place_calls++ % product.parts);
        if (overwritten > 0) {
            mark_written(workspace, overwritten, "cublasLtMatmul using its workspace");
            memset(workspace, 0xff, overwritten);
        }
        multiply(product);
    });
    return kSuccess;
}
