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

double ExpOrNan(double exponent) { return std::exp(exponent) + exponent * 0; }

// Adds exp(exponents) to `sum` and returns it. Highway's Exp makes 0 of NaN, so that a broken logit
// would pass unseen: its product with 0, which is 0 for what is finite, is summed in `poison`.
template <class D, class V = hn::Vec<D>>
V AddExp(D d, V exponents, V& sum, V& poison) {
  const V values = hn::Exp(d, exponents);
  sum = hn::Add(sum, values);
  poison = hn::MulAdd(exponents, hn::Zero(d), poison);
  return values;
}

template <class D, class V = hn::Vec<D>>
double Total(D d, V sum, V poison) {
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(sum, poison)));
}

SoftmaxSum Sum(std::span<const float> logits) {
  SoftmaxSum result;
  FindLargest(logits, result);
  const Doubles d;
  const size_t lanes = hn::Lanes(d);
  const double max = result.max;
  auto sum = hn::Zero(d);
  auto poison = hn::Zero(d);
  size_t i = 0;
  for (; i + lanes <= logits.size(); i += lanes) {
    AddExp(d, LoadLess(d, logits.data() + i, max), sum, poison);
  }
  result.sum = Total(d, sum, poison);
  for (; i < logits.size(); ++i) result.sum += ExpOrNan(logits[i] - max);
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
  auto reference_poison = hn::Zero(d);
  auto candidate_sum = hn::Zero(d);
  auto candidate_poison = hn::Zero(d);
  auto weighted = hn::Zero(d);
  size_t i = 0;
  for (; i + lanes <= reference.size(); i += lanes) {
    const auto r = LoadLess(d, reference.data() + i, reference_max);
    const auto c = LoadLess(d, candidate.data() + i, candidate_max);
    const auto weight = AddExp(d, r, reference_sum, reference_poison);
    AddExp(d, c, candidate_sum, candidate_poison);
    weighted = hn::MulAdd(weight, hn::Sub(r, c), weighted);
  }
  result.reference.sum = Total(d, reference_sum, reference_poison);
  result.candidate.sum = Total(d, candidate_sum, candidate_poison);
  result.weighted_difference = hn::GetLane(hn::SumOfLanes(d, weighted));
  for (; i < reference.size(); ++i) {
    const double r = reference[i] - reference_max;
    const double c = candidate[i] - candidate_max;
    const double weight = ExpOrNan(r);
    result.reference.sum += weight;
    result.candidate.sum += ExpOrNan(c);
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
