// What a request changes about a model's logits before a token is chosen from them, in this order:
//
//   logit[t] += bias[t]
//   logit[t] -= presence_penalty + frequency_penalty · times   where t was generated before, so
//   often logit[t]  = -∞   where its probability, after temperature, is below min_p × the greatest
//
// Sources: OpenAI's API reference (bias and penalties; of the generated text alone), and
// arXiv:2407.01082 (min-p).
#ifndef NIBBLE_ENGINE_LOGIT_RULES_H_
#define NIBBLE_ENGINE_LOGIT_RULES_H_

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "src/ops/sampling.h"

namespace nibble {

struct LogitRules {
  std::vector<std::pair<int32_t, float>> bias;  // token ids of the vocabulary
  double presence_penalty = 0;
  double frequency_penalty = 0;
  double min_p = 0;

  bool any() const {
    return !bias.empty() || presence_penalty != 0 || frequency_penalty != 0 || min_p > 0;
  }
};

// How often each token was generated.
using TokenCounts = std::unordered_map<int32_t, int64_t>;

// The token that follows at `position`.
int32_t ChooseByRules(std::span<const float> logits, const LogitRules& rules,
                      const TokenCounts& counts, const SamplingOptions& sampling, int64_t position);

}  // namespace nibble

#endif  // NIBBLE_ENGINE_LOGIT_RULES_H_
