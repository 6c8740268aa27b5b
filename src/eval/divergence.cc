#include "src/eval/divergence.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "src/eval/percentile.h"
#include "src/eval/softmax_sums.h"

namespace nibble {
namespace {

double Mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

std::vector<double> Sorted(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values;
}

}  // namespace

RowLogProbabilities::RowLogProbabilities(std::span<const float> logits) : logits_(logits) {
  const SoftmaxSum sum = ComputeSoftmaxSum(logits);
  log_sum_ = static_cast<double>(sum.max) + std::log(sum.sum);
  top_ = sum.top;
}

std::vector<int32_t> MostProbableTokens(std::span<const float> logits, int64_t count) {
  if (count == 0) return {};
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto keep = ids.begin() + std::min<int64_t>(count, static_cast<int64_t>(ids.size()));
  const auto logit = [&](int32_t id) {  // what is not a number cannot be ordered
    const float value = logits[static_cast<size_t>(id)];
    return std::isnan(value) ? -std::numeric_limits<float>::infinity() : value;
  };
  std::partial_sort(ids.begin(), keep, ids.end(), [&](int32_t a, int32_t b) {
    return logit(a) > logit(b) || (logit(a) == logit(b) && a < b);
  });
  ids.erase(keep, ids.end());
  return ids;
}

double RowStatistics::DeltaP() const {
  return std::exp(candidate_logprob) - std::exp(reference_logprob);
}

RowStatistics ComputeRow(std::span<const float> reference, std::span<const float> candidate,
                         int64_t target) {
  CHECK(!reference.empty() && reference.size() == candidate.size());
  CHECK(target >= 0 && static_cast<size_t>(target) < reference.size());
  const PairedSoftmaxSums sums = ComputePairedSoftmaxSums(reference, candidate);
  const auto logprob = [target](std::span<const float> logits, const SoftmaxSum& sum) {
    return static_cast<double>(logits[static_cast<size_t>(target)]) - static_cast<double>(sum.max) -
           std::log(sum.sum);
  };
  RowStatistics row;
  row.reference_logprob = logprob(reference, sums.reference);
  row.candidate_logprob = logprob(candidate, sums.candidate);
  // Σ p_r ((r - max_r - log S_r) - (c - max_c - log S_c)) with p_r = exp(r - max_r) / S_r. Equal
  // rows give exactly 0; a rounding below 0 is none.
  const double kl = sums.weighted_difference / sums.reference.sum - std::log(sums.reference.sum) +
                    std::log(sums.candidate.sum);
  row.kl = kl < 0 ? 0 : kl;
  row.reference_top = sums.reference.top;
  row.candidate_top = sums.candidate.top;
  return row;
}

Status PerplexityAccumulator::Add(double logprob) {
  if (!std::isfinite(logprob)) {
    return BadInput(
        "the model gives token {} a log-probability of {}: its weights or its arithmetic are "
        "broken",
        tokens_, logprob);
  }
  ++tokens_;
  const double before = -logprob - mean_;
  mean_ += before / static_cast<double>(tokens_);
  squared_distance_ += before * (-logprob - mean_);
  return {};
}

double PerplexityAccumulator::mean_nll() const {
  CHECK(tokens_ > 0);
  return mean_;
}

double PerplexityAccumulator::perplexity() const { return std::exp(mean_nll()); }

double PerplexityAccumulator::perplexity_se() const {
  if (tokens_ < 2) return std::numeric_limits<double>::quiet_NaN();
  const double n = static_cast<double>(tokens_);
  return perplexity() * std::sqrt(squared_distance_ / (n - 1) / n);
}

Status DivergenceAccumulator::Add(const RowStatistics& row) {
  if (const Status status = reference_.Add(row.reference_logprob); !status) {
    return tl::unexpected<Error>(status.error().In("reference"));
  }
  NIBBLE_RETURN_IF_ERROR(candidate_.Add(row.candidate_logprob));
  if (!std::isfinite(row.kl)) {
    return BadInput("the models' logits for token {} are not all finite", tokens() - 1);
  }
  kl_.push_back(row.kl);
  delta_p_.push_back(row.DeltaP());
  agreed_ += row.reference_top == row.candidate_top ? 1 : 0;
  return {};
}

DivergenceSummary DivergenceAccumulator::Summarize() const {
  CHECK(!kl_.empty());
  DivergenceSummary summary;
  const std::vector<double> kl = Sorted(kl_);
  summary.kl_divergence = {Mean(kl_), Percentile(kl, 0.5), Percentile(kl, 0.99),
                           Percentile(kl, 0.999), kl.back()};
  const std::vector<double> delta_p = Sorted(delta_p_);
  summary.delta_p = {Mean(delta_p_), Percentile(delta_p, 0.01), Percentile(delta_p, 0.05),
                     Percentile(delta_p, 0.95), Percentile(delta_p, 0.99)};
  summary.top1_agreement = static_cast<double>(agreed_) / static_cast<double>(kl_.size());
  summary.perplexity_reference = reference_.perplexity();
  summary.perplexity_ratio = std::exp(candidate_.mean_nll() - reference_.mean_nll());
  return summary;
}

}  // namespace nibble
