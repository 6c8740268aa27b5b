// How the next token is chosen from a row of logits; the same on every device, bit for bit.
//
// The tokens are ordered by probability (see token_weight.h), equal ones by id. The first top_k are
// kept, of those the fewest that hold top_p of their weight, and one of those is drawn by weight.
#ifndef NIBBLE_OPS_SAMPLING_H_
#define NIBBLE_OPS_SAMPLING_H_

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "src/tensor/tensor.h"

namespace nibble {

struct SamplingOptions {
  double temperature = 0;  // 0: greedy, the most probable token (the lowest id among equals)
  int64_t top_k = 0;       // keep the k most probable; 0: all
  double top_p = 1;        // then the fewest tokens that hold this probability (arXiv:1904.09751)
  uint64_t seed = 0;
};

// One token's choice: the options, and the random number that decides.
struct TokenChoice {
  uint64_t random = 0;
  double top_p = 1;
  float scale = 0;    // log2(e) / temperature; 0: greedy
  int32_t top_k = 0;  // 0: all
};

// The choice of a sequence's token number `position`. The random number depends on the seed and the
// position alone, so that a text does not depend on what else runs.
TokenChoice ChoiceAt(const SamplingOptions& options, int64_t position);

// The column of the greatest logit, the first of equals; NaN counts as minus infinity.
int32_t MostProbable(std::span<const float> logits);
int32_t ChooseToken(std::span<const float> logits, const TokenChoice& choice);

// The tokens that a plan's steps chose, for backends that compute on the host.
class HostTokens {
 public:
  // A step's: keeps the choices, and fills in the tokens that the host did not know.
  void SetBatch(std::span<const TokenChoice> choices, std::span<const int32_t> chosen_rows,
                std::span<int32_t> tokens);
  // logits: float32 [logit rows, vocabulary].
  void Choose(MatrixView logits);
  // The oldest that were not received yet; valid until the next call.
  std::span<const int32_t> Receive();

 private:
  std::vector<TokenChoice> choices_;
  std::vector<int32_t> last_, received_;
  std::deque<std::vector<int32_t>> waiting_;
};

}  // namespace nibble

#endif  // NIBBLE_OPS_SAMPLING_H_
