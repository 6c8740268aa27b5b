// Dense matrix products: cuBLASLt, and a kernel of our own for the few rows where reading the weight
// is all the work.
#ifndef NIBBLE_OPS_CUDA_MATRIX_PRODUCT_H_
#define NIBBLE_OPS_CUDA_MATRIX_PRODUCT_H_

#include <cublasLt.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "src/base/error.h"
#include "src/ops/backend.h"
#include "src/ops/cuda/cuda_backend.h"
#include "src/ops/cuda/linear_q4.h"
#include "src/ops/cuda/stream.h"

namespace nibble::cuda {

// out = x · Wᵀ, or out += x · Wᵀ, with float32 sums. x: [rows, in] and w: [out.columns, in],
// contiguous, of one 16-bit type; out: of that type or float32. The algorithm for a shape is chosen
// once and kept. Under kBatchInvariant it is the same one for any number of rows, and adds each sum
// in one piece.
class MatrixProduct {
 public:
  static Result<std::unique_ptr<MatrixProduct>> Create(CudaKernels kernels);
  ~MatrixProduct();
  MatrixProduct(const MatrixProduct&) = delete;
  MatrixProduct& operator=(const MatrixProduct&) = delete;

  enum class Output { kReplace, kAdd };
  static Output OutputOf(Epilogue epilogue) {
    return epilogue == Epilogue::kAdd ? Output::kAdd : Output::kReplace;
  }
  void Run(Stream& stream, MatrixView x, const void* w, Output output, MatrixView out,
           void* workspace, size_t workspace_bytes);

  // The same of a 4-bit weight, which is dequantized piece by piece, as much of it at a time as
  // fits into `dense`. 128 of its rows must fit, or all if it has fewer.
  void RunDequantized(Stream& stream, MatrixView x, const Q4Layout& layout, const void* packed,
                      Output output, MatrixView out, void* dense, size_t dense_bytes,
                      void* workspace, size_t workspace_bytes);

 private:
  // Everything an algorithm's choice depends on: rows, columns, in, strides of x and out, types,
  // output, alignments.
  using Key = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, DType, DType, Output, int, int,
                         int>;
  struct Choice;

  MatrixProduct(cublasLtHandle_t handle, CudaKernels kernels);

  cublasLtHandle_t handle_;
  CudaKernels kernels_;
  std::map<Key, std::unique_ptr<Choice>> choices_;
};

// The rows that MultiplyFewRows takes.
inline constexpr int64_t kFewRows = 2;

// The same product and its epilogue (see FinishLinear for the order of gate and up), for x of at most
// kFewRows rows; out may be float32 under kNone. x's rows are 16-byte aligned and `in` a multiple of 8.
bool CanMultiplyFewRows(MatrixView x, const void* w);
void MultiplyFewRows(Stream& stream, MatrixView x, const void* w, const float* bias,
                     Epilogue epilogue, MatrixView out, CudaKernels kernels);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_MATRIX_PRODUCT_H_
