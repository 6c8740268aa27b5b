// Perplexity of a model, and how far a candidate's predictions are from a reference's, from logits
// over the vocabulary at each scored position. Nothing of vocabulary size is kept: a row of logits
// becomes a few numbers, which the accumulators take in order. Rows are independent, so a caller
// may compute them on several threads.
//
// Logarithms are natural. Logits are float, sums and logarithms of probabilities double.
#ifndef NIBBLE_EVAL_DIVERGENCE_H_
#define NIBBLE_EVAL_DIVERGENCE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "src/base/error.h"

namespace nibble {

// The log-probabilities that a row of logits stands for: log_softmax(logits)[token]. `logits` is
// borrowed and not empty. Where a logit is not finite, the results are not either.
class RowLogProbabilities {
 public:
  explicit RowLogProbabilities(std::span<const float> logits);

  double At(int64_t token) const {  // 0 <= token < logits.size()
    return static_cast<double>(logits_[static_cast<size_t>(token)]) - log_sum_;
  }
  int64_t top() const { return top_; }  // the first of the most probable

 private:
  std::span<const float> logits_;
  double log_sum_ = 0;  // log Σ exp(logit)
  int64_t top_ = 0;
};

// The `count` most probable tokens (or all, where there are fewer), most probable first, equal ones by id.
std::vector<int32_t> MostProbableTokens(std::span<const float> logits, int64_t count);

// What is kept of one scored position.
struct RowStatistics {
  double reference_logprob = 0;  // of the true token
  double candidate_logprob = 0;
  // KL(reference ‖ candidate) = Σ_t p_reference(t) · log(p_reference(t) / p_candidate(t)) >= 0
  double kl = 0;
  int64_t reference_top = 0;  // the most probable token
  int64_t candidate_top = 0;

  // The candidate's probability of the true token less the reference's.
  double DeltaP() const;
};

// `reference` and `candidate` are logits over the same vocabulary, at least one; 0 <= target <
// size.
RowStatistics ComputeRow(std::span<const float> reference, std::span<const float> candidate,
                         int64_t target);

// Perplexity = exp(mean negative log-likelihood per token).
class PerplexityAccumulator {
 public:
  // The log-probability of the next true token. kBadInput where it is not finite: the model's
  // weights or arithmetic are broken.
  Status Add(double logprob);

  int64_t tokens() const { return tokens_; }
  // Of at least one token:
  double mean_nll() const;
  double perplexity() const;
  // Standard error by the delta method: perplexity · s / √n with s the standard deviation of the
  // tokens' negative log-likelihoods. It takes tokens to be independent, which neighbours in a text
  // are not quite, so it is a little too small. NaN for fewer than two tokens.
  double perplexity_se() const;

 private:
  int64_t tokens_ = 0;
  double mean_ = 0;              // of the negative log-likelihoods
  double squared_distance_ = 0;  // from the mean, summed (Welford)
};

// Percentiles interpolate linearly between the order statistics around them, as numpy does.
struct DivergenceSummary {
  struct {
    double mean = 0, median = 0, p99 = 0, p999 = 0, max = 0;
  } kl_divergence;
  struct {
    double mean = 0, p1 = 0, p5 = 0, p95 = 0, p99 = 0;
  } delta_p;
  double top1_agreement = 0;  // share of the positions where the most probable tokens are equal
  double perplexity_reference = 0;
  double perplexity_ratio = 0;  // candidate's by reference's
};

class DivergenceAccumulator {
 public:
  // kBadInput where a statistic is not finite, naming the model.
  Status Add(const RowStatistics& row);

  int64_t tokens() const { return candidate_.tokens(); }
  const PerplexityAccumulator& candidate() const { return candidate_; }
  const PerplexityAccumulator& reference() const { return reference_; }
  DivergenceSummary Summarize() const;  // of at least one token

 private:
  PerplexityAccumulator reference_;
  PerplexityAccumulator candidate_;
  std::vector<double> kl_;
  std::vector<double> delta_p_;
  int64_t agreed_ = 0;
};

}  // namespace nibble

#endif  // NIBBLE_EVAL_DIVERGENCE_H_
