// For tests: quantizing operations that have others do everything, as a DelegatingBackend does.
#ifndef NIBBLE_OPS_DELEGATING_QUANTIZE_OPS_H_
#define NIBBLE_OPS_DELEGATING_QUANTIZE_OPS_H_

#include <memory>
#include <utility>
#include <vector>

#include "src/ops/quantize_ops.h"

namespace nibble {

class DelegatingQuantizeOps : public QuantizeOps {
 public:
  explicit DelegatingQuantizeOps(std::unique_ptr<QuantizeOps> ops) : ops_(std::move(ops)) {}

  Result<Matrix> Load(const DenseWeight& weight) override { return ops_->Load(weight); }
  void Dequantize(const QuantizedWeight& weight, MatrixView out) override {
    ops_->Dequantize(weight, out);
  }
  void Scale(MatrixView weight, std::span<const float> rows, std::span<const float> columns,
             MatrixView out) override {
    ops_->Scale(weight, rows, columns, out);
  }
  double SumOfSquares(MatrixView a) override { return ops_->SumOfSquares(a); }
  double SquaredDifference(MatrixView a, MatrixView b) override {
    return ops_->SquaredDifference(a, b);
  }
  Result<std::unique_ptr<InputStatistics>> CreateStatistics(int64_t columns) override {
    return ops_->CreateStatistics(columns);
  }
  void Accumulate(MatrixView x, InputStatistics& statistics) override {
    ops_->Accumulate(x, statistics);
  }
  std::vector<float> MeanSquares(const InputStatistics& statistics) override {
    return ops_->MeanSquares(statistics);
  }
  std::vector<float> MeanMagnitudes(const InputStatistics& statistics) override {
    return ops_->MeanMagnitudes(statistics);
  }
  Result<std::unique_ptr<InputDrift>> CreateDrift(std::span<const MatrixView> weights) override {
    return ops_->CreateDrift(weights);
  }
  void AccumulateDrift(MatrixView unquantized, std::span<const float> scales, MatrixView x,
                       InputDrift& drift) override {
    ops_->AccumulateDrift(unquantized, scales, x, drift);
  }
  Result<Matrix> Factorize(const InputStatistics& statistics, std::span<const int32_t> order,
                           double damping) override {
    return ops_->Factorize(statistics, order, damping);
  }
  Result<Matrix> Retarget(MatrixView weight, const InputDrift& drift, const Matrix& factor,
                          std::span<const int32_t> order, double share) override {
    return ops_->Retarget(weight, drift, factor, order, share);
  }
  Result<QuantizedWeight> Sweep(MatrixView weight, const InputStatistics& statistics,
                                const Matrix& factor, const SweepOptions& options) override {
    return ops_->Sweep(weight, statistics, factor, options);
  }
  Result<QuantizedWeight> Round(MatrixView weight, const GridOptions& options,
                                const InputStatistics* statistics) override {
    return ops_->Round(weight, options, statistics);
  }
  void PseudoQuantize(MatrixView weight, const GridOptions& options, std::span<const float> scales,
                      MatrixView out) override {
    ops_->PseudoQuantize(weight, options, scales, out);
  }
  Result<Weight> Trial(MatrixView weight, const GridOptions& options, std::span<const float> scales,
                       MatrixView memory) override {
    return ops_->Trial(weight, options, scales, memory);
  }
  void Clip(MatrixView weight, const GridOptions& options, std::span<const float> scales,
            const InputStatistics& statistics) override {
    ops_->Clip(weight, options, scales, statistics);
  }
  double OutputError(MatrixView weight, MatrixView other,
                     const InputStatistics& statistics) override {
    return ops_->OutputError(weight, other, statistics);
  }

 private:
  std::unique_ptr<QuantizeOps> ops_;
};

}  // namespace nibble

#endif  // NIBBLE_OPS_DELEGATING_QUANTIZE_OPS_H_
