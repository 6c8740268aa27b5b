#include "src/ops/cuda/matrix_product.h"

#include <algorithm>
#include <bit>

namespace nibble::cuda {
namespace {

cudaDataType_t CudaType(DType type) {
  return type == DType::kF32 ? CUDA_R_32F : type == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}

// The rows for which the algorithm of all rows is chosen, where it must be the same.
constexpr uint64_t kInvariantRows = 128;

// Rows of a dequantized piece begin at multiples of this (see DequantizeQ4).
constexpr int64_t kDequantizeRowMultiple = 128;

// The largest power of two up to 256 that divides the address and, in bytes, the stride.
int Alignment(const void* data, int64_t stride, DType type) {
  const uint64_t bits =
      reinterpret_cast<uintptr_t>(data) | (static_cast<uint64_t>(stride) * BytesOf(type)) | 256;
  return 1 << std::countr_zero(bits);
}

}  // namespace

// cuBLASLt's matrices are column by column, so rows of ours are its columns: out (columns × rows) =
// wᵀ · x.
struct MatrixProduct::Choice {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;
  cublasLtMatmulHeuristicResult_t heuristic{};
  cublasStatus_t status = CUBLAS_STATUS_SUCCESS;

  ~Choice() {
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t layout : {w, x, out}) {
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
    }
  }
};

MatrixProduct::MatrixProduct(cublasLtHandle_t handle, CudaKernels kernels)
    : handle_(handle), kernels_(kernels) {}
MatrixProduct::~MatrixProduct() {
  choices_.clear();
  cublasLtDestroy(handle_);
}

Result<std::unique_ptr<MatrixProduct>> MatrixProduct::Create(CudaKernels kernels) {
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = cublasLtCreate(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return BadInput("cuBLASLt does not start on this GPU: {}", cublasLtGetStatusString(status));
  }
  return std::unique_ptr<MatrixProduct>(new MatrixProduct(handle, kernels));
}

void MatrixProduct::Run(Stream& stream, MatrixView x, const void* w, Output output, MatrixView out,
                        void* workspace, size_t workspace_bytes) {
  if (x.rows == 0) return;
  const int64_t in = x.columns;
  const bool is_invariant = kernels_ == CudaKernels::kBatchInvariant;
  // Where a batch's rows lie must not matter.
  const int most = is_invariant ? 16 : 256;
  const int w_alignment = std::min(most, Alignment(w, in, x.dtype));
  const int x_alignment = std::min(most, Alignment(x.data, x.stride, x.dtype));
  const int out_alignment = std::min(most, Alignment(out.data, out.stride, out.dtype));
  std::unique_ptr<Choice>& choice =
      choices_[{x.rows, out.columns, in, x.stride, out.stride, x.dtype, out.dtype, output,
                w_alignment, x_alignment, out_alignment}];
  if (choice == nullptr) {
    choice = std::make_unique<Choice>();
    Choice& c = *choice;
    const auto check = [&c](cublasStatus_t status) {
      if (c.status == CUBLAS_STATUS_SUCCESS) c.status = status;
    };
    const cublasOperation_t transposed = CUBLAS_OP_T;
    check(cublasLtMatmulDescCreate(&c.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    check(cublasLtMatmulDescSetAttribute(c.operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                         sizeof(transposed)));
    const auto rows = static_cast<uint64_t>(x.rows), columns = static_cast<uint64_t>(out.columns);
    const uint64_t chosen_for = is_invariant ? kInvariantRows : rows;
    check(cublasLtMatrixLayoutCreate(&c.w, CudaType(x.dtype), static_cast<uint64_t>(in), columns,
                                     in));
    check(cublasLtMatrixLayoutCreate(&c.x, CudaType(x.dtype), static_cast<uint64_t>(in), chosen_for,
                                     x.stride));
    check(cublasLtMatrixLayoutCreate(&c.out, CudaType(out.dtype), columns, chosen_for, out.stride));
    cublasLtMatmulPreference_t preference = nullptr;
    check(cublasLtMatmulPreferenceCreate(&preference));
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
      check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)));
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes);
    // Parts of a sum are added as float32, never rounded to the output's type in between.
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
           is_invariant ? uint32_t{CUBLASLT_REDUCTION_SCHEME_NONE}
                        : static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_INPLACE |
                                                CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(w_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(x_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, static_cast<uint32_t>(out_alignment));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(out_alignment));
    int found = 0;
    if (c.status == CUBLAS_STATUS_SUCCESS) {
      check(cublasLtMatmulAlgoGetHeuristic(handle_, c.operation, c.w, c.x, c.out, c.out, preference,
                                           1, &c.heuristic, &found));
    }
    cublasLtMatmulPreferenceDestroy(preference);
    if (c.status == CUBLAS_STATUS_SUCCESS && chosen_for != rows) {
      for (const cublasLtMatrixLayout_t layout : {c.x, c.out}) {
        check(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_COLS, &rows,
                                               sizeof(rows)));
      }
    }
  }
  const float alpha = 1, beta = output == Output::kAdd ? 1.0f : 0.0f;
  cublasStatus_t status = choice->status;
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasLtMatmul(handle_, choice->operation, &alpha, w, choice->w, x.data, choice->x,
                            &beta, out.data, choice->out, out.data, choice->out,
                            &choice->heuristic.algo, workspace, workspace_bytes, stream.get());
  }
  stream.Check(status == CUBLAS_STATUS_SUCCESS ? cudaGetLastError() : cudaErrorNotSupported,
               "a matrix product (cuBLASLt)", x.rows, out.columns);
}

void MatrixProduct::RunDequantized(Stream& stream, MatrixView x, const Q4Layout& layout,
                                   const void* packed, Output output, MatrixView out, void* dense,
                                   size_t dense_bytes, void* workspace, size_t workspace_bytes) {
  const auto fit = static_cast<int64_t>(dense_bytes) / (2 * layout.in_features);
  const int64_t step =
      std::max(kDequantizeRowMultiple, fit / kDequantizeRowMultiple * kDequantizeRowMultiple);
  for (int64_t first = 0; first < layout.out_features; first += step) {
    const int64_t count = std::min(step, layout.out_features - first);
    CHECK(static_cast<size_t>(count * layout.in_features) * 2 <= dense_bytes,
          "{} bytes for {} rows of {}", dense_bytes, count, layout.in_features);
    DequantizeQ4(stream, layout, packed, x.dtype, first, count, dense);
    Run(stream, x, dense, output, out.Columns(first, count), workspace, workspace_bytes);
  }
}

}  // namespace nibble::cuda
