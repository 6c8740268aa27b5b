#include "src/engine/logit_rules.h"

#include <cmath>
#include <limits>

namespace nibble {

int32_t ChooseByRules(std::span<const float> logits, const LogitRules& rules,
                      const TokenCounts& counts, const SamplingOptions& sampling,
                      int64_t position) {
  const TokenChoice choice = ChoiceAt(sampling, position);
  if (!rules.any()) return ChooseToken(logits, choice);
  std::vector<float> changed(logits.begin(), logits.end());
  for (const auto& [token, bias] : rules.bias) changed[static_cast<size_t>(token)] += bias;
  for (const auto& [token, times] : counts) {
    changed[static_cast<size_t>(token)] -= static_cast<float>(
        rules.presence_penalty + rules.frequency_penalty * static_cast<double>(times));
  }
  if (rules.min_p > 0 && sampling.temperature > 0) {
    // p ≥ min_p · p_max is logit ≥ logit_max + temperature · ln min_p.
    const float highest = changed[static_cast<size_t>(MostProbable(changed))];
    const auto least = static_cast<float>(highest + sampling.temperature * std::log(rules.min_p));
    for (float& logit : changed) {
      if (logit < least) logit = -std::numeric_limits<float>::infinity();
    }
  }
  return ChooseToken(changed, choice);
}

}  // namespace nibble
