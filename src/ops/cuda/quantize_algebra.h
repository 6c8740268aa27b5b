// The products and the factorization that quantizing takes from cuBLAS and cuSOLVER. Matrices are
// row-major. Results are the same bits in every run: cuBLAS on one stream, without atomics.
#ifndef NIBBLE_OPS_CUDA_QUANTIZE_ALGEBRA_H_
#define NIBBLE_OPS_CUDA_QUANTIZE_ALGEBRA_H_

#include <cublas_v2.h>
#include <cusolverDn.h>

#include <memory>
#include <vector>

#include "src/ops/cuda/stream.h"
#include "src/tensor/tensor.h"

namespace nibble::cuda {

class QuantizeAlgebra {
 public:
  // Work on `stream`, which must outlive it.
  static Result<std::unique_ptr<QuantizeAlgebra>> Create(Stream& stream, MemoryTracker& memory);
  ~QuantizeAlgebra();
  QuantizeAlgebra(const QuantizeAlgebra&) = delete;
  QuantizeAlgebra& operator=(const QuantizeAlgebra&) = delete;

  // What a sum of products begins with.
  enum class Sum { kReplace, kAdd };

  // out += aᵀb, or =, for 16-bit a and b; out: float32 [a.columns, b.columns].
  void TransposedProduct(MatrixView a, MatrixView b, Sum sum, float* out);
  // The upper triangle of out += xᵀx; what becomes of the lower one is undefined.
  void GramProduct(MatrixView x, Sum sum, float* out);

  // out = scale · a · b + (kAdd: out), all float32. kTf32: the factors are read with 10 bits after
  // the point, and cut off where they have more.
  enum class Precision { kFloat32, kTf32 };
  void Product(MatrixView a, MatrixView b, float scale, Sum sum, Precision precision,
               MatrixView out);
  // out = a · uᵀ, or a · u, for an upper triangular u. out must not overlap a.
  enum class Transposed { kNo, kYes };
  void TriangularProduct(MatrixView a, MatrixView u, Transposed transposed, MatrixView out);

  // Scratch memory for InvertFactor.
  Result<size_t> InvertFactorBytes(int64_t n);
  // (L⁻¹)ᵀ in place of the upper triangle of a symmetric h = L · Lᵀ, [n, n], of which that triangle
  // is read and the lower one left alone. Waits for the factorization. kBadInput where h is not
  // positive definite.
  Status InvertFactor(double* h, int64_t n, void* scratch, size_t bytes);

 private:
  explicit QuantizeAlgebra(Stream& stream) : stream_(stream) {}
  // What solving a matrix of n columns works with.
  struct Solving {
    int64_t n;
    int* info;
    std::byte* scratch;
    size_t bytes;
  };
  void InvertTriangle(double* l, int64_t size, const Solving& at);
  void CheckSolver(cusolverStatus_t status, const char* operation, int64_t n);
  void Check(cublasStatus_t status, const char* operation, int64_t rows, int64_t columns);

  Stream& stream_;
  cublasHandle_t blas_ = nullptr;
  cusolverDnHandle_t solver_ = nullptr;
  cusolverDnParams_t parameters_ = nullptr;
  Buffer workspace_;  // of cuBLAS
  Buffer info_;       // what cuSOLVER says, page-locked
  std::vector<std::byte> host_scratch_;
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_QUANTIZE_ALGEBRA_H_
