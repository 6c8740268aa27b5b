#include "src/ops/cuda/quantize_algebra.h"

#include <algorithm>

#include "src/base/checked.h"
#include "src/ops/cuda/device_memory.h"

namespace nibble::cuda {
namespace {

constexpr size_t kBlasWorkspaceBytes = size_t{32} << 20;  // what cuBLAS wants on Hopper
constexpr size_t kInfoBytes = 256;                        // before the scratch memory's rest
// A Gram matrix is cut into halves while they are larger.
constexpr int64_t kLeastGramBlock = 2048;

cudaDataType_t HalfType(DType type) {
  CHECK(type == DType::kF16 || type == DType::kBF16);
  return type == DType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
}
// cuSOLVER inverts triangles of so many columns; larger ones are cut.
constexpr int64_t kMostInverse = 256;

int Int(int64_t value) { return static_cast<int>(value); }
void* At(MatrixView matrix, int64_t column) { return matrix.Columns(column, 0).data; }

}  // namespace

Result<std::unique_ptr<QuantizeAlgebra>> QuantizeAlgebra::Create(Stream& stream,
                                                                 MemoryTracker& memory) {
  std::unique_ptr<QuantizeAlgebra> algebra(new QuantizeAlgebra(stream));
  NIBBLE_ASSIGN_OR_RETURN(algebra->workspace_,
                          AllocateDevice(memory, MemoryClass::kWorkspace, kBlasWorkspaceBytes));
  NIBBLE_ASSIGN_OR_RETURN(algebra->info_, AllocatePinned(sizeof(int)));
  cublasStatus_t status = cublasCreate(&algebra->blas_);
  if (status == CUBLAS_STATUS_SUCCESS) status = cublasSetStream(algebra->blas_, stream.get());
  if (status == CUBLAS_STATUS_SUCCESS) {
    status = cublasSetWorkspace(algebra->blas_, algebra->workspace_.data(), kBlasWorkspaceBytes);
  }
  if (status != CUBLAS_STATUS_SUCCESS) {
    return BadInput("cuBLAS does not start on this GPU: {}", cublasGetStatusString(status));
  }
  cusolverStatus_t solver = cusolverDnCreate(&algebra->solver_);
  if (solver == CUSOLVER_STATUS_SUCCESS) {
    solver = cusolverDnSetStream(algebra->solver_, stream.get());
  }
  if (solver == CUSOLVER_STATUS_SUCCESS) solver = cusolverDnCreateParams(&algebra->parameters_);
  if (solver != CUSOLVER_STATUS_SUCCESS) {
    return BadInput("cuSOLVER does not start on this GPU: status {}", static_cast<int>(solver));
  }
  return algebra;
}

QuantizeAlgebra::~QuantizeAlgebra() {
  if (parameters_ != nullptr) cusolverDnDestroyParams(parameters_);
  if (solver_ != nullptr) cusolverDnDestroy(solver_);
  if (blas_ != nullptr) cublasDestroy(blas_);
}

void QuantizeAlgebra::Check(cublasStatus_t status, const char* operation, int64_t rows,
                            int64_t columns) {
  stream_.Check(status == CUBLAS_STATUS_SUCCESS ? cudaGetLastError() : cudaErrorNotSupported,
                operation, rows, columns);
}

// cuBLAS's matrices are column by column: ours are their transposes, and a product's factors change
// places.

void QuantizeAlgebra::TransposedProduct(MatrixView a, MatrixView b, Sum sum, float* out) {
  const float one = 1, old = sum == Sum::kAdd ? 1.0f : 0.0f;
  Check(cublasGemmEx(blas_, CUBLAS_OP_N, CUBLAS_OP_T, Int(b.columns), Int(a.columns), Int(a.rows),
                     &one, b.data, HalfType(b.dtype), Int(b.stride), a.data, HalfType(a.dtype),
                     Int(a.stride), &old, out, CUDA_R_32F, Int(b.columns), CUBLAS_COMPUTE_32F,
                     CUBLAS_GEMM_DEFAULT),
        "a product of inputs (cuBLAS)", a.columns, b.columns);
}

// The upper triangle is one square block beside the diagonal and two triangles of half the size,
// and so on: the blocks of one size are one batch. At 4096 columns 3/4 of the full product, at
// 11008 9/16, and every batch large enough to fill the device.
void QuantizeAlgebra::GramProduct(MatrixView x, Sum sum, float* out) {
  const float one = 1, old = sum == Sum::kAdd ? 1.0f : 0.0f;
  const int64_t n = x.columns;
  const cudaDataType_t type = HalfType(x.dtype);
  // `count` blocks of size², every `width` columns along the diagonal, `beside` columns beside it.
  const auto blocks = [&](int64_t size, int64_t width, int64_t beside) {
    Check(cublasGemmStridedBatchedEx(blas_, CUBLAS_OP_N, CUBLAS_OP_T, Int(size), Int(size),
                                     Int(x.rows), &one, At(x, beside), type, Int(x.stride), width,
                                     x.data, type, Int(x.stride), width, &old, out + beside,
                                     CUDA_R_32F, Int(n), width * (n + 1), Int(n / width),
                                     CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
          "a Gram matrix (cuBLAS)", n, n);
  };
  int64_t width = n;
  // Halves keep rows aligned to 16 bytes.
  for (; width > kLeastGramBlock && width % 16 == 0; width /= 2)
    blocks(width / 2, width, width / 2);
  blocks(width, width, 0);
}

void QuantizeAlgebra::Product(MatrixView a, MatrixView b, float scale, Sum sum, Precision precision,
                              MatrixView out) {
  const float old = sum == Sum::kAdd ? 1.0f : 0.0f;
  Check(cublasGemmEx(
            blas_, CUBLAS_OP_N, CUBLAS_OP_N, Int(b.columns), Int(a.rows), Int(a.columns), &scale,
            b.data, CUDA_R_32F, Int(b.stride), a.data, CUDA_R_32F, Int(a.stride), &old, out.data,
            CUDA_R_32F, Int(out.stride),
            precision == Precision::kTf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F,
            CUBLAS_GEMM_DEFAULT),
        "a product of weights (cuBLAS)", a.rows, b.columns);
}

void QuantizeAlgebra::TriangularProduct(MatrixView a, MatrixView u, Transposed transposed,
                                        MatrixView out) {
  const float one = 1;
  Check(
      cublasStrmm(blas_, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER,
                  transposed == Transposed::kYes ? CUBLAS_OP_T : CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT,
                  Int(a.columns), Int(a.rows), &one, u.row<float>(0), Int(u.stride),
                  a.row<float>(0), Int(a.stride), out.row<float>(0), Int(out.stride)),
      "a triangular product (cuBLAS)", a.rows, a.columns);
}

Result<size_t> QuantizeAlgebra::InvertFactorBytes(int64_t n) {
  void* const h = workspace_.data();  // not read
  size_t factor = 0, inverse = 0, factor_host = 0, inverse_host = 0;
  cusolverStatus_t status =
      cusolverDnXpotrf_bufferSize(solver_, parameters_, CUBLAS_FILL_MODE_LOWER, n, CUDA_R_64F, h, n,
                                  CUDA_R_64F, &factor, &factor_host);
  if (status == CUSOLVER_STATUS_SUCCESS) {
    status = cusolverDnXtrtri_bufferSize(solver_, CUBLAS_FILL_MODE_LOWER, CUBLAS_DIAG_NON_UNIT,
                                         std::min(n, kMostInverse), CUDA_R_64F, h, n, &inverse,
                                         &inverse_host);
  }
  if (status != CUSOLVER_STATUS_SUCCESS) {
    return Fail(ErrorCode::kInternal, "cuSOLVER and a matrix of {} columns: status {}", n,
                static_cast<int>(status));
  }
  host_scratch_.resize(std::max(factor_host, inverse_host));
  return kInfoBytes + std::max(factor, inverse);
}

void QuantizeAlgebra::CheckSolver(cusolverStatus_t status, const char* operation, int64_t n) {
  stream_.Check(status == CUSOLVER_STATUS_SUCCESS ? cudaGetLastError() : cudaErrorNotSupported,
                operation, n, n);
}

Status QuantizeAlgebra::InvertFactor(double* h, int64_t n, void* scratch, size_t bytes) {
  const Solving at{n, static_cast<int*>(scratch), static_cast<std::byte*>(scratch) + kInfoBytes,
                   bytes - kInfoBytes};
  CheckSolver(cusolverDnXpotrf(solver_, parameters_, CUBLAS_FILL_MODE_LOWER, n, CUDA_R_64F, h, n,
                               CUDA_R_64F, at.scratch, at.bytes, host_scratch_.data(),
                               host_scratch_.size(), at.info),
              "a factorization (cuSOLVER)", n);
  stream_.Check(
      cudaMemcpyAsync(info_.data(), at.info, sizeof(int), cudaMemcpyDeviceToHost, stream_.get()),
      "a factorization (cuSOLVER)", n, n);
  NIBBLE_RETURN_IF_ERROR(stream_.Synchronize());
  if (*info_.as<int>() != 0) return BadInput("the Hessian is not positive definite");
  InvertTriangle(h, n, at);
  return {};
}

// [A 0; B C]⁻¹ = [A⁻¹ 0; -C⁻¹BA⁻¹ C⁻¹], and A and C likewise; cuSOLVER's own inverse takes three
// times as long at 11008 columns. The diagonal of a factor is not zero, so that none of it can
// fail.
void QuantizeAlgebra::InvertTriangle(double* l, int64_t size, const Solving& at) {
  if (size <= kMostInverse) {
    CheckSolver(cusolverDnXtrtri(solver_, CUBLAS_FILL_MODE_LOWER, CUBLAS_DIAG_NON_UNIT, size,
                                 CUDA_R_64F, l, at.n, at.scratch, at.bytes, host_scratch_.data(),
                                 host_scratch_.size(), at.info),
                "an inverse (cuSOLVER)", size);
    return;
  }
  const int64_t first = RoundUp(size / 2, int64_t{64}), second = size - first;
  double* const a = l;
  double* const b = l + first;
  double* const c = l + first * (at.n + 1);
  InvertTriangle(a, first, at);
  InvertTriangle(c, second, at);
  const auto multiply = [&](cublasSideMode_t side, const double* by, double scale) {
    Check(cublasDtrmm(blas_, side, CUBLAS_FILL_MODE_LOWER, CUBLAS_OP_N, CUBLAS_DIAG_NON_UNIT,
                      Int(second), Int(first), &scale, by, Int(at.n), b, Int(at.n), b, Int(at.n)),
          "an inverse (cuBLAS)", second, first);
  };
  multiply(CUBLAS_SIDE_LEFT, c, 1);
  multiply(CUBLAS_SIDE_RIGHT, a, -1);
}

}  // namespace nibble::cuda
