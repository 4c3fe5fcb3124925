// Tiles of matrices as Hopper's tensor memory accelerator (TMA) moves them, and how the host
// describes the matrices to it.
//
// A tile is [rows, 64] 16-bit elements in shared memory, a row being 128 bytes, from an address
// that is a multiple of 1024, with the 128-byte swizzle: the 16-byte piece p of row r lies where
// piece p ^ (r % 8) would. TMA writes and reads tiles so, wgmma reads them so, and `swizzled` says
// where an element lies for code that touches one itself. Wider matrices are several tiles.
// Sources: PTX ISA 8.7, "Tensors"; CUDA driver API, cuTensorMapEncodeTiled.
#pragma once

#include <cuda.h>

#include <string>

#include "llmc/core/error.h"
#include "llmc/cuda/common.cuh"

namespace lmo::cuda {

constexpr int kTileColumns = 64;

// Where element (row, column) of a tile lies, in elements.
__host__ __device__ constexpr int swizzled(int row, int column) {
    return row * kTileColumns + ((column / 8) ^ (row % 8)) * 8 + column % 8;
}

// What TMA needs to know of matrices in global memory: a kernel's parameter, declared
// `const __grid_constant__ TensorMap`. Made on the host.
using TensorMap = CUtensorMap;

namespace detail {

// sizes from the innermost dimension on, strides (in bytes) from the next one on.
template <typename T>
TensorMap encode_tensor_map(const T* data, int rank, const cuuint64_t* sizes,
                            const cuuint64_t* strides, int box_rows) {
    static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, fp16>);
    void* encode = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &encode, 12000,
                                           cudaEnableDefault, &found),
          "looking for cuTensorMapEncodeTiled");
    if (found != cudaDriverEntryPointSuccess) {
        throw Error("CUDA: the driver has no cuTensorMapEncodeTiled: it is older than 12.0");
    }
    const auto type = std::is_same_v<T, bf16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                              : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    const cuuint32_t box[3] = {kTileColumns, static_cast<cuuint32_t>(box_rows), 1};
    const cuuint32_t steps[3] = {1, 1, 1};
    // Not the returned object itself: g++ may place a result that nobody names at a multiple of 16
    // bytes alone, and the driver wants 64.
    struct {
        TensorMap map;
    } aligned;
    const CUresult status = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
        &aligned.map, type, rank, const_cast<T*>(data), sizes, strides, box, steps,
        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (status != CUDA_SUCCESS) {
        throw Error("CUDA: no tensor map for [" + std::to_string(sizes[1]) + ", " +
                    std::to_string(sizes[0]) + "] with rows " + std::to_string(strides[0]) +
                    " bytes apart and tiles of " + std::to_string(box_rows) + " rows: error " +
                    std::to_string(status));
    }
    return aligned.map;
}

}  // namespace detail

// A matrix [rows, columns], of which TMA moves tiles [box_rows, 64], box_rows at most 256. What a
// tile has beyond the matrix reads as zero and is not written. data is a multiple of 16 bytes;
// row_stride, in elements, one of 8. Throws Error where the driver refuses.
template <typename T>
TensorMap make_tensor_map(const T* data, int64_t rows, int64_t columns, int64_t row_stride,
                          int box_rows) {
    const cuuint64_t sizes[2] = {cuuint64_t(columns), cuuint64_t(rows)};
    const cuuint64_t stride = cuuint64_t(row_stride) * sizeof(T);
    return detail::encode_tensor_map(data, 2, sizes, &stride, box_rows);
}

// The same of `batch` matrices; tma_load and tma_store then want the matrix as third coordinate.
template <typename T>
TensorMap make_tensor_map(const T* data, int64_t batch, int64_t rows, int64_t columns,
                          int64_t batch_stride, int64_t row_stride, int box_rows) {
    const cuuint64_t sizes[3] = {cuuint64_t(columns), cuuint64_t(rows), cuuint64_t(batch)};
    const cuuint64_t strides[2] = {cuuint64_t(row_stride) * sizeof(T),
                                   cuuint64_t(batch_stride) * sizeof(T)};
    return detail::encode_tensor_map(data, 3, sizes, strides, box_rows);
}

}  // namespace lmo::cuda
