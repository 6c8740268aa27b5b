#include "src/engine/sampler.h"

#include <algorithm>
#include <cmath>

#include "src/base/error.h"

namespace nibble {

int32_t ArgMax(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

int32_t Sampler::Sample(std::span<const float> logits) {
  CHECK(!logits.empty());
  if (options_.temperature <= 0) return ArgMax(logits);

  candidates_.clear();
  for (size_t i = 0; i < logits.size(); ++i) {
    candidates_.push_back({logits[i], static_cast<int32_t>(i)});
  }
  // Most probable first, equal ones by id, so that the outcome does not depend on the sort.
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
  };
  size_t keep = candidates_.size();
  if (options_.top_k > 0) keep = std::min(keep, static_cast<size_t>(options_.top_k));
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(keep),
                    candidates_.end(), before);
  candidates_.resize(keep);

  const double highest = candidates_.front().logit;
  const auto weight = [&](const Candidate& c) {
    return std::exp((c.logit - highest) / options_.temperature);
  };
  double total = 0;
  for (const Candidate& c : candidates_) total += weight(c);
  double nucleus = 0;
  size_t count = 0;
  while (count < candidates_.size() && (count == 0 || nucleus < options_.top_p * total)) {
    nucleus += weight(candidates_[count++]);
  }
  double left = random_.Uniform() * nucleus;
  for (size_t i = 0; i < count; ++i) {
    left -= weight(candidates_[i]);
    if (left < 0) return candidates_[i].token;
  }
  return candidates_[count - 1].token;
}

}  // namespace nibble
