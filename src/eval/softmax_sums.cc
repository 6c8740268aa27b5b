#include "src/eval/softmax_sums.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/eval/softmax_sums.cc"
#include <algorithm>
#include <cmath>
#include <cstddef>

#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
// After highway.h, which it needs for each target.
#include "hwy/contrib/algo/find-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace nibble::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Doubles = hn::ScalableTag<double>;
using Floats = hn::Rebind<float, Doubles>;  // as many lanes as Doubles has

// Sets max and top.
void FindLargest(std::span<const float> logits, SoftmaxSum& result) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  auto largest = hn::Set(d, logits[0]);
  size_t i = 0;
  for (; i + lanes <= logits.size(); i += lanes) {
    largest = hn::Max(largest, hn::LoadU(d, logits.data() + i));
  }
  float max = hn::GetLane(hn::MaxOfLanes(d, largest));
  for (; i < logits.size(); ++i) max = std::max(max, logits[i]);
  result.max = max;
  // With NaN among the logits the maximum may be nowhere; the sum tells.
  const size_t top = hn::Find(d, max, logits.data(), logits.size());
  result.top = static_cast<int64_t>(top == logits.size() ? 0 : top);
}

template <class D>
auto LoadLess(D d, const float* logits, double max) {
  return hn::Sub(hn::PromoteTo(d, hn::LoadU(Floats(), logits)), hn::Set(d, max));
}

SoftmaxSum Sum(std::span<const float> logits) {
  SoftmaxSum result;
  FindLargest(logits, result);
  const Doubles d;
  const size_t lanes = hn::Lanes(d);
  const double max = result.max;
  auto sum = hn::Zero(d);
  size_t i = 0;
  for (; i + lanes <= logits.size(); i += lanes) {
    sum = hn::Add(sum, hn::Exp(d, LoadLess(d, logits.data() + i, max)));
  }
  result.sum = hn::GetLane(hn::SumOfLanes(d, sum));
  for (; i < logits.size(); ++i) result.sum += std::exp(logits[i] - max);
  return result;
}

PairedSoftmaxSums PairedSums(std::span<const float> reference, std::span<const float> candidate) {
  PairedSoftmaxSums result;
  FindLargest(reference, result.reference);
  FindLargest(candidate, result.candidate);
  const Doubles d;
  const size_t lanes = hn::Lanes(d);
  const double reference_max = result.reference.max;
  const double candidate_max = result.candidate.max;
  auto reference_sum = hn::Zero(d);
  auto candidate_sum = hn::Zero(d);
  auto weighted = hn::Zero(d);
  size_t i = 0;
  for (; i + lanes <= reference.size(); i += lanes) {
    const auto r = LoadLess(d, reference.data() + i, reference_max);
    const auto c = LoadLess(d, candidate.data() + i, candidate_max);
    const auto weight = hn::Exp(d, r);
    reference_sum = hn::Add(reference_sum, weight);
    candidate_sum = hn::Add(candidate_sum, hn::Exp(d, c));
    weighted = hn::MulAdd(weight, hn::Sub(r, c), weighted);
  }
  result.reference.sum = hn::GetLane(hn::SumOfLanes(d, reference_sum));
  result.candidate.sum = hn::GetLane(hn::SumOfLanes(d, candidate_sum));
  result.weighted_difference = hn::GetLane(hn::SumOfLanes(d, weighted));
  for (; i < reference.size(); ++i) {
    const double r = reference[i] - reference_max;
    const double c = candidate[i] - candidate_max;
    const double weight = std::exp(r);
    result.reference.sum += weight;
    result.candidate.sum += std::exp(c);
    result.weighted_difference += weight * (r - c);
  }
  return result;
}

}  // namespace
}  // namespace nibble::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace nibble {

HWY_EXPORT(Sum);
HWY_EXPORT(PairedSums);

SoftmaxSum ComputeSoftmaxSum(std::span<const float> logits) {
  return HWY_DYNAMIC_DISPATCH(Sum)(logits);
}

PairedSoftmaxSums ComputePairedSoftmaxSums(std::span<const float> reference,
                                           std::span<const float> candidate) {
  return HWY_DYNAMIC_DISPATCH(PairedSums)(reference, candidate);
}

}  // namespace nibble
#endif  // HWY_ONCE
