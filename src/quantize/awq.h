// AWQ (Lin et al., arXiv:2306.00978): multiplies a linear layer's input channels that see large
// activations by a scale before rounding, and divides what feeds the layer by it, so that the
// function stays and the important weights lose less.
#ifndef NIBBLE_QUANTIZE_AWQ_H_
#define NIBBLE_QUANTIZE_AWQ_H_

#include <functional>
#include <span>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/ops/quantize_ops.h"

namespace nibble {

// How scales follow from a ratio r in [0, 1):
//   kActivations           s = mean|x|^r
//   kActivationsAndWeights s = mean|x|^r / (mean |w| / max of its group)^(1 - r)
enum class AwqForm : uint8_t { kActivations, kActivationsAndWeights };
std::string_view Name(AwqForm form);  // "x", "xw"

inline constexpr int kAwqRatios = 20;  // r = 0, 0.05 … 0.95

// Positive and finite, normalized so that max · min = 1. kActivations with r = 0 gives ones.
std::vector<float> AwqScales(AwqForm form, double ratio, std::span<const float> mean_magnitudes,
                             std::span<const float> mean_weights);
// Over all rows of all weights, which the host can read: the mean of |w| ÷ the largest |w| of its
// row's group, each column.
std::vector<float> MeanNormalizedWeights(std::span<const MatrixView> weights,
                                         const QuantSpec& spec);

struct AwqTrial {
  AwqForm form = AwqForm::kActivations;
  double ratio = 0;
  double loss = 0;
};
struct AwqSearch {
  std::vector<float> scales;  // the best
  AwqTrial best;
  std::vector<AwqTrial> trials;  // the first is rounding to nearest

  double rtn_loss() const { return trials.front().loss; }
};

// What it costs at the block's output to round the weights, their columns multiplied by `scales`.
using AwqLoss = std::function<Result<double>(std::span<const float> scales)>;

// The scales of least loss for linears that share an input; never worse than rounding to nearest,
// which is the first trial. `mean_weights` is for kActivationsAndWeights alone.
Result<AwqSearch> SearchAwqScales(std::span<const float> mean_magnitudes,
                                  std::span<const float> mean_weights,
                                  std::span<const AwqForm> forms, const AwqLoss& loss);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_AWQ_H_
