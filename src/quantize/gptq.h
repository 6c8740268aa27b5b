// GPTQ (Frantar et al., arXiv:2210.17323): rounds a linear layer's weights column after column,
// spreading each column's error over the columns to come so that the layer's output on the
// calibration tokens changes least. Where errors before the layer changed its inputs, it aims at
// the outputs that the layer has without them: GPTAQ's goal (Li et al., arXiv:2504.02692), by the
// least squares' weight in place of the paper's term for each column.
#ifndef NIBBLE_QUANTIZE_GPTQ_H_
#define NIBBLE_QUANTIZE_GPTQ_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/ops/quantize_ops.h"

namespace nibble {

// In which order the columns are swept; every order needs no index at run time.
//   kNatural     as they lie
//   kActivation  descending H_jj over all columns ("act-order"), with static groups
//   kGroup       groups by their largest H_jj, and descending within a group
enum class ColumnOrder : uint8_t { kNatural, kActivation, kGroup };
std::string_view Name(ColumnOrder order);  // "natural", "act", "group"
std::optional<ColumnOrder> ColumnOrderFromName(std::string_view name);
std::string_view Name(ScaleSearch search);  // "none", "mse", "hessian"
std::optional<ScaleSearch> ScaleSearchFromName(std::string_view name);

struct GptqOptions {
  ColumnOrder order = ColumnOrder::kActivation;
  GridTime grid_time = GridTime::kUpdated;  // kActivation implies kStatic
  ScaleSearch search = ScaleSearch::kNone;
  ScaleRounding rounding = ScaleRounding::kFloat16;
  double damping = 0.05;  // times mean(diag H)
  // The share of what earlier errors did to the inputs that the weights make up for, in [0, 1]
  // (asymmetric calibration); 0 needs no unquantized stream.
  double drift_share = 0.5;
  // The share of the calibration samples, above 0, that show what those errors did: the first ones,
  // which run through the unquantized model as well.
  double drift_samples = 1;

  // How many of them that is: one at least, and none without asymmetric calibration.
  int64_t DriftSamples(int64_t samples) const;
};

// The columns in the order of the sweep; a permutation of 0 … size - 1. `importance`: H_jj.
std::vector<int32_t> SweepOrder(ColumnOrder order, std::span<const float> importance,
                                int64_t group_length);

// For the linears that share one input: the factorization is made once.
class GptqSolver {
 public:
  // Borrows both. Where H with the damping asked for is not positive definite, the damping rises by
  // 0.01 until it is; above 1 that is an error that says what was tried.
  static Result<GptqSolver> Create(QuantizeOps& ops, const InputStatistics& statistics,
                                   const QuantSpec& spec, const GptqOptions& options);

  // What to solve for instead of `weight` where earlier errors changed the input; see
  // QuantizeOps::Retarget. `drift` is of the tokens that the statistics were of when the solver was
  // made: with a factor of others, how much the two sets differ would count as drift.
  Result<Matrix> Retarget(MatrixView weight, const InputDrift& drift) const;
  // `weight`: float32 [out, in].
  Result<QuantizedWeight> Solve(MatrixView weight) const;
  double damping() const { return damping_; }  // what it took

 private:
  GptqSolver(QuantizeOps& ops, const InputStatistics& statistics)
      : ops_(ops), statistics_(statistics) {}

  QuantizeOps& ops_;
  const InputStatistics& statistics_;
  SweepOptions sweep_;
  std::vector<int32_t> order_;
  double drift_share_ = 0;
  double damping_ = 0;
  Matrix factor_;
};

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_GPTQ_H_
