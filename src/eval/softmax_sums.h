// The sums over the vocabulary that a softmax, and the divergence of two, are made of; vectorized,
// with the instruction set chosen at run time. One pass finds the largest logit, one more sums;
// exponentials and sums are double.
#ifndef NIBBLE_EVAL_SOFTMAX_SUMS_H_
#define NIBBLE_EVAL_SOFTMAX_SUMS_H_

#include <cstdint>
#include <span>

namespace nibble {

struct SoftmaxSum {
  float max = 0;    // the largest logit
  int64_t top = 0;  // where it is first
  double sum = 0;   // Σ exp(logit - max)
};

struct PairedSoftmaxSums {
  SoftmaxSum reference;
  SoftmaxSum candidate;
  // Σ exp(r - max_r) · ((r - max_r) - (c - max_c))
  double weighted_difference = 0;
};

// Not empty. Where a logit is not finite the sum is NaN; the maximum may then be any.
SoftmaxSum ComputeSoftmaxSum(std::span<const float> logits);

// Not empty, of equal size.
PairedSoftmaxSums ComputePairedSoftmaxSums(std::span<const float> reference,
                                           std::span<const float> candidate);

}  // namespace nibble

#endif  // NIBBLE_EVAL_SOFTMAX_SUMS_H_
