// What the CPU's quantizers gather from calibration tokens.
#ifndef NIBBLE_OPS_CPU_CPU_STATISTICS_H_
#define NIBBLE_OPS_CPU_CPU_STATISTICS_H_

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "src/base/thread_pool.h"
#include "src/ops/quantize_ops.h"
#include "src/tensor/memory.h"

namespace nibble {

class CpuStatistics final : public InputStatistics {
 public:
  static Result<std::unique_ptr<CpuStatistics>> Create(int64_t columns, MemoryTracker& memory);
  // `scratch`: as for ForProductBlocks.
  void Add(MatrixView x, float* scratch, ThreadPool& pool);

  // Σ xᵀx, double, row-major, the upper triangle; undefined before the first tokens.
  double* gram() const { return gram_.as<double>(); }
  double At(int64_t i, int64_t j) const {
    return gram()[std::min(i, j) * columns_ + std::max(i, j)];
  }
  const std::vector<double>& magnitudes() const { return magnitudes_; }
  double mean_scale() const { return 1.0 / static_cast<double>(std::max<int64_t>(1, tokens_)); }

 private:
  CpuStatistics(int64_t columns, Buffer gram)
      : InputStatistics(columns),
        gram_(std::move(gram)),
        magnitudes_(static_cast<size_t>(columns)) {}

  Buffer gram_;
  std::vector<double> magnitudes_;
};

class CpuDrift final : public InputDrift {
 public:
  static Result<std::unique_ptr<CpuDrift>> Create(std::span<const MatrixView> weights,
                                                  MemoryTracker& memory);
  // `difference`: x̃ - x.
  void Add(MatrixView difference, MatrixView x, float* scratch, ThreadPool& pool);

  // Whether it is of the weight's outputs.
  bool has_weight() const { return weight_.data != nullptr; }
  int64_t rows() const { return has_weight() ? weight_.rows : columns_; }
  // Of the mean over tokens of (x̃ - x)ᵀx, or weight · that; undefined before the first tokens.
  double Mean(int64_t i, int64_t j) const {
    return sums_.as<double>()[i * columns_ + j] /
           static_cast<double>(std::max<int64_t>(1, tokens_));
  }

 private:
  explicit CpuDrift(int64_t columns) : InputDrift(columns) {}

  MatrixView weight_;
  Buffer sums_;  // double, [rows, columns]
  std::vector<float> outputs_;
};

}  // namespace nibble

#endif  // NIBBLE_OPS_CPU_CPU_STATISTICS_H_
