// Chooses the next token from a row of logits.
#ifndef NIBBLE_ENGINE_SAMPLER_H_
#define NIBBLE_ENGINE_SAMPLER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "src/base/random.h"

namespace nibble {

struct SamplingOptions {
  double temperature = 0;  // 0: greedy, the most probable token (the lowest id among equals)
  int64_t top_k = 0;       // keep the k most probable; 0: all
  double top_p = 1;        // then the fewest tokens that hold this probability (arXiv:1904.09751)
  uint64_t seed = 0;
};

int32_t ArgMax(std::span<const float> logits);

class Sampler {
 public:
  explicit Sampler(const SamplingOptions& options) : options_(options), random_(options.seed) {}
  int32_t Sample(std::span<const float> logits);

 private:
  struct Candidate {
    float logit;
    int32_t token;
  };
  SamplingOptions options_;
  Random random_;
  std::vector<Candidate> candidates_;  // scratch
};

}  // namespace nibble

#endif  // NIBBLE_ENGINE_SAMPLER_H_
