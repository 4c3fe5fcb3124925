// The stand-in of cublasLt: the library's handle, and its descriptions of products, matrices and
// preferences. Attributes and values that are not emulated are refused.
#include "dev/emulator/cublaslt_objects.h"

#include "dev/emulator/runtime.h"

using namespace emulator::cublaslt;

namespace {

template <typename T, typename Opaque>
cublasStatus_t destroy(Opaque* opaque) {
    if (!opaque) return kSuccess;
    if (!open<T>(opaque)) return kInvalid;
    memset(opaque, 0, sizeof *opaque);
    delete opaque;
    return kSuccess;
}

template <typename T>
cublasStatus_t set(T& field, const void* from, size_t bytes) {
    if (!from || bytes != sizeof(T)) return kInvalid;
    memcpy(&field, from, bytes);
    return kSuccess;
}

}  // namespace

// ---- library -----------------------------------------------------------------------------------

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
    if (!handle) return kInvalid;
    if (emulator::settings().no_device) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = new cublasLtContext{Description::kMagic};
    return kSuccess;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    if (!is_open(handle)) return CUBLAS_STATUS_NOT_INITIALIZED;
    handle->magic = 0;
    delete handle;
    return kSuccess;
}

size_t cublasLtGetVersion() { return CUBLAS_VERSION; }

const char* cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "CUBLAS_STATUS_SUCCESS";
        case CUBLAS_STATUS_NOT_INITIALIZED:
            return "CUBLAS_STATUS_NOT_INITIALIZED";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "CUBLAS_STATUS_INVALID_VALUE";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "CUBLAS_STATUS_NOT_SUPPORTED";
        default:
            return "a status that the emulator never returns";
    }
}
const char* cublasLtGetStatusString(cublasStatus_t status) {
    switch (status) {
        case CUBLAS_STATUS_SUCCESS:
            return "success";
        case CUBLAS_STATUS_NOT_INITIALIZED:
            return "the library was not initialized";
        case CUBLAS_STATUS_INVALID_VALUE:
            return "an unsupported value or parameter was passed";
        case CUBLAS_STATUS_NOT_SUPPORTED:
            return "the functionality requested is not supported";
        default:
            return "unknown";
    }
}

cublasStatus_t cublasLtHeuristicsCacheGetCapacity(size_t* capacity) {
    *capacity = 0;
    return kSuccess;
}
cublasStatus_t cublasLtHeuristicsCacheSetCapacity(size_t) { return kSuccess; }

// ---- descriptions ------------------------------------------------------------------------------

cublasStatus_t cublasLtMatmulDescInit_internal(cublasLtMatmulDesc_t opaque, size_t bytes,
                                               cublasComputeType_t compute, cudaDataType_t scale) {
    if (!opaque || bytes != sizeof *opaque) return kInvalid;
    if (compute != CUBLAS_COMPUTE_32F && compute != CUBLAS_COMPUTE_32F_FAST_TF32) {
        return kNotSupported;
    }
    if (scale != CUDA_R_32F) return kNotSupported;
    Description& description = make<Description>(opaque);
    description.compute = compute;
    description.scale = scale;
    description.pointer_mode = CUBLASLT_POINTER_MODE_HOST;
    description.transpose_a = description.transpose_b = CUBLAS_OP_N;
    description.epilogue = CUBLASLT_EPILOGUE_DEFAULT;
    return kSuccess;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* description,
                                        cublasComputeType_t compute, cudaDataType_t scale) {
    if (!description) return kInvalid;
    auto* opaque = new cublasLtMatmulDescOpaque_t;
    const cublasStatus_t status = cublasLtMatmulDescInit(opaque, compute, scale);
    if (status == kSuccess)
        *description = opaque;
    else
        delete opaque;
    return status;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
    return destroy<Description>(description);
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t opaque,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
    Description* op = open<Description>(opaque);
    if (!op) return kInvalid;
    Description changed = *op;
    cublasStatus_t status = kNotSupported;
    switch (attribute) {
        case CUBLASLT_MATMUL_DESC_TRANSA:
            status = set(changed.transpose_a, value, bytes);
            break;
        case CUBLASLT_MATMUL_DESC_TRANSB:
            status = set(changed.transpose_b, value, bytes);
            break;
        case CUBLASLT_MATMUL_DESC_EPILOGUE:
            status = set(changed.epilogue, value, bytes);
            break;
        case CUBLASLT_MATMUL_DESC_POINTER_MODE:
            status = set(changed.pointer_mode, value, bytes);
            break;
        default:
            break;
    }
    if (status != kSuccess) return status;
    for (int32_t operation : {changed.transpose_a, changed.transpose_b}) {
        if (operation != CUBLAS_OP_N && operation != CUBLAS_OP_T) return kNotSupported;
    }
    if (changed.epilogue != CUBLASLT_EPILOGUE_DEFAULT ||
        changed.pointer_mode != CUBLASLT_POINTER_MODE_HOST) {
        return kNotSupported;
    }
    *op = changed;
    return kSuccess;
}

// ---- layouts -----------------------------------------------------------------------------------

cublasStatus_t cublasLtMatrixLayoutInit_internal(cublasLtMatrixLayout_t opaque, size_t bytes,
                                                 cudaDataType type, uint64_t rows, uint64_t columns,
                                                 int64_t leading) {
    if (!opaque || bytes != sizeof *opaque) return kInvalid;
    Layout& layout = make<Layout>(opaque);
    layout.type = type;
    layout.rows = rows;
    layout.columns = columns;
    layout.leading = leading;
    layout.order = CUBLASLT_ORDER_COL;
    layout.batch = 1;
    return kSuccess;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t leading) {
    if (!layout) return kInvalid;
    *layout = new cublasLtMatrixLayoutOpaque_t;
    return cublasLtMatrixLayoutInit(*layout, type, rows, columns, leading);
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    return destroy<Layout>(layout);
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t opaque,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
    Layout* layout = open<Layout>(opaque);
    if (!layout) return kInvalid;
    switch (attribute) {
        case CUBLASLT_MATRIX_LAYOUT_TYPE:
            return set(layout->type, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_ORDER:
            return set(layout->order, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_ROWS:
            return set(layout->rows, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_COLS:
            return set(layout->columns, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_LD:
            return set(layout->leading, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
            return set(layout->batch, value, bytes);
        case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
            return set(layout->batch_stride, value, bytes);
        default:
            return kNotSupported;
    }
}

// ---- preferences -------------------------------------------------------------------------------

cublasStatus_t cublasLtMatmulPreferenceInit_internal(cublasLtMatmulPreference_t opaque,
                                                     size_t bytes) {
    if (!opaque || bytes != sizeof *opaque) return kInvalid;
    Preference& preference = make<Preference>(opaque);
    preference.reductions = CUBLASLT_REDUCTION_SCHEME_MASK;
    for (uint32_t& align : preference.align) align = 256;
    return kSuccess;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    if (!preference) return kInvalid;
    *preference = new cublasLtMatmulPreferenceOpaque_t;
    return cublasLtMatmulPreferenceInit(*preference);
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    return destroy<Preference>(preference);
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t opaque,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
    Preference* preference = open<Preference>(opaque);
    if (!preference) return kInvalid;
    const auto set_alignment = [&](int matrix) {
        uint32_t align = 0;
        const cublasStatus_t status = set(align, value, bytes);
        if (status != kSuccess) return status;
        if (align == 0 || align & (align - 1)) return kInvalid;
        preference->align[matrix] = align;
        return kSuccess;
    };
    switch (attribute) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
            return set(preference->workspace_bytes, value, bytes);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
            return set(preference->reductions, value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
            return set_alignment(0);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
            return set_alignment(1);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
            return set_alignment(2);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
            return set_alignment(3);
        default:
            return kNotSupported;
    }
}
