#include "src/eval/divergence_json.h"

namespace nibble {

Json ToJson(const PerplexityAccumulator& perplexity) {
  return {{"perplexity", perplexity.perplexity()},
          {"perplexity_se", perplexity.perplexity_se()},
          {"tokens", perplexity.tokens()}};
}

Json ToJson(const DivergenceSummary& divergence) {
  const auto& kl = divergence.kl_divergence;
  const auto& delta_p = divergence.delta_p;
  return {{"kl_divergence",
           {{"mean", kl.mean},
            {"median", kl.median},
            {"p99", kl.p99},
            {"p999", kl.p999},
            {"max", kl.max}}},
          {"delta_p",
           {{"mean", delta_p.mean},
            {"p1", delta_p.p1},
            {"p5", delta_p.p5},
            {"p95", delta_p.p95},
            {"p99", delta_p.p99}}},
          {"top1_agreement", divergence.top1_agreement},
          {"perplexity_reference", divergence.perplexity_reference},
          {"perplexity_ratio", divergence.perplexity_ratio}};
}

}  // namespace nibble
