#include "src/quantize/awq.h"

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr float kLeastScale = 1e-4f;

}  // namespace

std::string_view Name(AwqForm form) { return form == AwqForm::kActivations ? "x" : "xw"; }

std::vector<float> AwqScales(AwqForm form, double ratio, std::span<const float> mean_magnitudes,
                             std::span<const float> mean_weights) {
  std::vector<float> scales;
  for (size_t k = 0; k < mean_magnitudes.size(); ++k) {
    double scale = std::pow(mean_magnitudes[k], ratio);
    if (form == AwqForm::kActivationsAndWeights) {
      scale /= std::pow(mean_weights[k], 1 - ratio) + kLeastScale;
    }
    scales.push_back(std::max(static_cast<float>(scale), kLeastScale));
  }
  const auto [least, most] = std::minmax_element(scales.begin(), scales.end());
  const float middle = std::sqrt(*least) * std::sqrt(*most);
  for (float& scale : scales) scale /= middle;
  return scales;
}

std::vector<float> MeanNormalizedWeights(std::span<const MatrixView> weights,
                                         const QuantSpec& spec) {
  const int64_t columns = weights.front().columns, length = spec.GroupLength(columns);
  std::vector<double> sums(static_cast<size_t>(columns));
  int64_t rows = 0;
  for (const MatrixView& weight : weights) {
    rows += weight.rows;
    for (int64_t n = 0; n < weight.rows; ++n) {
      const float* const row = weight.row<float>(n);
      for (int64_t first = 0; first < columns; first += length) {
        float most = 0;
        for (int64_t k = first; k < first + length; ++k) most = std::max(most, std::abs(row[k]));
        if (most == 0) continue;
        for (int64_t k = first; k < first + length; ++k) {
          sums[static_cast<size_t>(k)] += std::abs(row[k]) / most;
        }
      }
    }
  }
  std::vector<float> means;
  for (const double sum : sums)
    means.push_back(static_cast<float>(sum / static_cast<double>(rows)));
  return means;
}

Result<AwqSearch> SearchAwqScales(std::span<const float> mean_magnitudes,
                                  std::span<const float> mean_weights,
                                  std::span<const AwqForm> forms, const AwqLoss& loss) {
  AwqSearch search;
  for (const AwqForm form : forms) {
    for (int i = 0; i < kAwqRatios; ++i) {
      AwqTrial candidate{.form = form, .ratio = static_cast<double>(i) / kAwqRatios};
      std::vector<float> scales = AwqScales(form, candidate.ratio, mean_magnitudes, mean_weights);
      NIBBLE_ASSIGN_OR_RETURN(candidate.loss, loss(scales));
      if (!std::isfinite(candidate.loss)) {
        return BadInput("the loss at ratio {} is {}", candidate.ratio, candidate.loss);
      }
      if (search.trials.empty() || candidate.loss < search.best.loss) {
        search.best = candidate;
        search.scales = std::move(scales);
      }
      search.trials.push_back(candidate);
    }
  }
  return search;
}

}  // namespace nibble
