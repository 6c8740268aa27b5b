// The contract of quantization: what GPTQ (arXiv:2210.17323) and AWQ (arXiv:2306.00978) ask of a
// device. Implemented by ref (scalar, double: the oracle), cpu and, in time, cuda.
//
// Weights are contiguous float32 matrices [out, in] in the memory of the backend that the operations
// belong to; x is the input of a linear layer, one row for each calibration token, of the backend's
// activation type. H = 2/n Σ xᵀx over n tokens is the layer's Hessian. Operations follow the
// backend's in order; those that return numbers or weights of the host wait for the device.
#ifndef NIBBLE_OPS_QUANTIZE_OPS_H_
#define NIBBLE_OPS_QUANTIZE_OPS_H_

#include <memory>
#include <span>
#include <vector>

#include "src/base/error.h"
#include "src/format/grid.h"
#include "src/format/weight.h"
#include "src/tensor/tensor.h"

namespace nibble {

// Σ xᵀx and Σ |x| over the tokens seen so far, where the device keeps them.
class InputStatistics {
 public:
  explicit InputStatistics(int64_t columns) : columns_(columns) {}
  virtual ~InputStatistics() = default;
  int64_t columns() const { return columns_; }
  int64_t tokens() const { return tokens_; }

 protected:
  int64_t columns_;
  int64_t tokens_ = 0;
};

// Σ (x̃ - x)ᵀx over the tokens seen so far: how the inputs x of a linear differ from the inputs x̃
// that it has where nothing before it is quantized.
class InputDrift {
 public:
  explicit InputDrift(int64_t columns) : columns_(columns) {}
  virtual ~InputDrift() = default;
  int64_t columns() const { return columns_; }

 protected:
  int64_t columns_;
  int64_t tokens_ = 0;
};

// How a group's range is chosen. kNone takes all of it; the others try shrinking it to p · range,
// p = 1, 0.99 … 0.21, and keep the p of the least
//   kMse      Σ |w - q|^2.4
//   kHessian  Σ H_jj (w_j - q_j)²
enum class ScaleSearch : uint8_t { kNone, kMse, kHessian };

struct GridOptions {
  QuantSpec spec;
  ScaleSearch search = ScaleSearch::kNone;
  ScaleRounding rounding = ScaleRounding::kFloat16;
};

// When the sweep finds a group's grid: when it reaches the group, from the columns as updated by
// then, or before it starts, from the weight as it was.
enum class GridTime : uint8_t { kUpdated, kStatic };

struct SweepOptions {
  GridOptions grid;
  GridTime grid_time = GridTime::kUpdated;
  // order[i] is the column swept i-th. Under kUpdated a group's columns follow one another.
  std::span<const int32_t> order;
};

class QuantizeOps {
 public:
  virtual ~QuantizeOps() = default;

  // A checkpoint's weight as float32 on the device. kBadInput, saying which row, where a value is not
  // finite.
  virtual Result<Matrix> Load(const DenseWeight& weight) = 0;
  // What the codes stand for; `out` is [out, in], its columns in the weight's order.
  virtual void Dequantize(const QuantizedWeight& weight, MatrixView out) = 0;
  // out = diag(rows) · weight · diag(columns); an empty span stands for ones. `out` may be `weight`.
  virtual void Scale(MatrixView weight, std::span<const float> rows, std::span<const float> columns,
                     MatrixView out) = 0;
  // Σ a² and Σ (a - b)² over all elements, of float32 matrices or of activations.
  virtual double SumOfSquares(MatrixView a) = 0;
  virtual double SquaredDifference(MatrixView a, MatrixView b) = 0;

  virtual Result<std::unique_ptr<InputStatistics>> CreateStatistics(int64_t columns) = 0;
  virtual void Accumulate(MatrixView x, InputStatistics& statistics) = 0;
  // Of each column over the tokens: mean x², mean |x|.
  virtual std::vector<float> MeanSquares(const InputStatistics& statistics) = 0;
  virtual std::vector<float> MeanMagnitudes(const InputStatistics& statistics) = 0;

  // For Retarget of these weights, which share the input and stay as they are until then: of one
  // with few rows a device may keep weight · Σ(x̃ - x)ᵀx instead, a smaller product.
  virtual Result<std::unique_ptr<InputDrift>> CreateDrift(std::span<const MatrixView> weights) = 0;
  // x̃ = unquantized · diag(scales)⁻¹, row by row of the same tokens as x.
  virtual void AccumulateDrift(MatrixView unquantized, std::span<const float> scales, MatrixView x,
                               InputDrift& drift) = 0;

  // The upper Cholesky factor U of (H + damping · mean(diag H) · I)⁻¹ = UᵀU, rows and columns in
  // sweep order; a column that was always zero has H_jj = 1. Fails with kBadInput where that matrix
  // is not positive definite.
  virtual Result<Matrix> Factorize(const InputStatistics& statistics,
                                   std::span<const int32_t> order, double damping) = 0;
  // weight + share · weight · 2/n Σ(x̃ - x)ᵀx · UᵀU, [out, in] in its own column order. With a share
  // of 1 its outputs at x are, in the least squares and but for the damping, the weight's at x̃; to
  // quantize it instead of the weight is GPTAQ's goal (arXiv:2504.02692).
  virtual Result<Matrix> Retarget(MatrixView weight, const InputDrift& drift, const Matrix& factor,
                                  std::span<const int32_t> order, double share) = 0;
  // GPTQ's sweep: quantizes column after column, spreading each column's error over those to come.
  // `weight` is [out, in] in its own column order.
  virtual Result<QuantizedWeight> Sweep(MatrixView weight, const InputStatistics& statistics,
                                        const Matrix& factor, const SweepOptions& options) = 0;

  // Each weight to the nearest value of its group's grid. `statistics` is for kHessian alone.
  virtual Result<QuantizedWeight> Round(MatrixView weight, const GridOptions& options,
                                        const InputStatistics* statistics) = 0;
  // out = Q(weight · diag(scales)) · diag(scales)⁻¹ with Q as Round does; AWQ's trial of scales.
  // `out` may be `weight`.
  virtual void PseudoQuantize(MatrixView weight, const GridOptions& options,
                              std::span<const float> scales, MatrixView out) = 0;
  // weight · diag(scales) as Round leaves it, in the form that the device prepares sooner: quantized,
  // or dense in `memory`, a float32 matrix of the weight's shape that must outlive it.
  virtual Result<Weight> Trial(MatrixView weight, const GridOptions& options,
                               std::span<const float> scales, MatrixView memory) = 0;
  // AWQ's clipping: limits the weights of each row and group to ±max|w| · (1 - i/20), i = 0 … 9,
  // whichever i leaves the least error δᵀ H_gg δ, δ = diag(scales)⁻¹ (w - Q(w)); in groups longer
  // than 128, H_gg counts in blocks of 128. `weight` is already multiplied by `scales`; the
  // statistics are of the input before it was divided by them.
  virtual void Clip(MatrixView weight, const GridOptions& options, std::span<const float> scales,
                    const InputStatistics& statistics) = 0;
  // The mean over tokens of ‖x · (weight - other)ᵀ‖², tr(Δ · Σxᵀx · Δᵀ) / n.
  virtual double OutputError(MatrixView weight, MatrixView other,
                             const InputStatistics& statistics) = 0;
};

}  // namespace nibble

#endif  // NIBBLE_OPS_QUANTIZE_OPS_H_
