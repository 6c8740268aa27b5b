// What quantizers accumulate over the calibration tokens, as a GPU keeps it.
//
// Sums are float32. Products of 16-bit inputs are exact in float32; the tensor cores add up to 2048
// rows of them, cutting off what float32 does not hold, and these sums are added to each other. What
// 64 of them lose is 1e-5 of a diagonal element (quantize_test.cc, against double), while damping adds
// 1e-2 of the diagonal's mean and the inputs themselves are rounded to 5e-4.
#ifndef NIBBLE_OPS_CUDA_CUDA_STATISTICS_H_
#define NIBBLE_OPS_CUDA_CUDA_STATISTICS_H_

#include <memory>

#include "src/ops/cuda/quantize_algebra.h"
#include "src/ops/cuda/stream.h"
#include "src/ops/quantize_ops.h"

namespace nibble::cuda {

class CudaStatistics final : public InputStatistics {
 public:
  static Result<std::unique_ptr<CudaStatistics>> Create(int64_t columns, MemoryTracker& memory,
                                                        Stream& stream);
  void Add(MatrixView x, QuantizeAlgebra& algebra);

  // Σ xᵀx, row-major, its upper triangle; undefined before the first tokens.
  const float* gram() const { return gram_.as<float>(); }
  // All of it, once what is issued is done.
  float* full_gram() const;
  const double* magnitudes() const { return magnitudes_.as<double>(); }  // Σ |x|
  double mean_scale() const { return 1.0 / static_cast<double>(tokens_ > 0 ? tokens_ : 1); }

 private:
  CudaStatistics(int64_t columns, Stream& stream, Buffer gram, Buffer magnitudes)
      : InputStatistics(columns),
        stream_(stream),
        gram_(std::move(gram)),
        magnitudes_(std::move(magnitudes)) {}

  Stream& stream_;
  Buffer gram_;        // float32 [columns, columns]
  Buffer magnitudes_;  // double [columns]
  mutable bool is_full_ = false;
};

// Always of the inputs: the weights' outputs would save a quarter of the work at most, in one layer
// of seven.
class CudaDrift final : public InputDrift {
 public:
  static Result<std::unique_ptr<CudaDrift>> Create(int64_t columns, MemoryTracker& memory);
  // `difference`: x̃ - x in x's type. It is no larger than the inputs, and so is what rounding it
  // takes beside what rounding x̃ and x has taken.
  void Add(MatrixView difference, MatrixView x, QuantizeAlgebra& algebra);

  // Σ (x̃ - x)ᵀx; undefined before the first tokens.
  MatrixView sums() const { return {sums_.data(), DType::kF32, columns_, columns_, columns_}; }
  double mean_scale() const { return 1.0 / static_cast<double>(tokens_ > 0 ? tokens_ : 1); }

 private:
  CudaDrift(int64_t columns, Buffer sums) : InputDrift(columns), sums_(std::move(sums)) {}

  Buffer sums_;  // float32 [columns, columns]
};

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_CUDA_STATISTICS_H_
