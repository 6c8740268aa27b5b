// The figures of divergence.h under the keys of a perplexity document.
#ifndef NIBBLE_EVAL_DIVERGENCE_JSON_H_
#define NIBBLE_EVAL_DIVERGENCE_JSON_H_

#include "src/base/json.h"
#include "src/eval/divergence.h"

namespace nibble {

// {"perplexity", "perplexity_se", "tokens"}; of at least one token.
Json ToJson(const PerplexityAccumulator& perplexity);

// {"kl_divergence": {mean, median, p99, p999, max}, "delta_p": {mean, p1, p5, p95, p99},
//  "top1_agreement", "perplexity_reference", "perplexity_ratio"}
Json ToJson(const DivergenceSummary& divergence);

}  // namespace nibble

#endif  // NIBBLE_EVAL_DIVERGENCE_JSON_H_
