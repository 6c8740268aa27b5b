// Runs MMLU: asks a model every question of a data set and records what it answers.
//
// Letters: the log-probabilities of the four letter tokens after the prompt. Cloze: the
// log-likelihood of each choice's text after the prompt, divided by its bytes. The questions of a
// subject begin alike (the shots): what their prompts share, as tokens, is computed once.
#ifndef NIBBLE_EVAL_MMLU_TASK_H_
#define NIBBLE_EVAL_MMLU_TASK_H_

#include <functional>
#include <vector>

#include "src/base/cancel.h"
#include "src/base/thread_pool.h"
#include "src/engine/engine.h"
#include "src/eval/eval_result.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

struct MmluAnswers {
  std::vector<QuestionResult> questions;
  int64_t prompt_tokens = 0;    // of all prompts
  int64_t computed_tokens = 0;  // that were run: the rest was shared
};

// Called with the number of questions done.
using MmluProgress = std::function<void(int64_t done)>;

// A prompt too long for the context loses shots from the end, then its beginning; what was kept is
// recorded. kBadInput where the tokenizer has no token of its own for each letter (cloze needs
// none), kResources where the engine's cache is too small for one prompt. Prompts are encoded, and
// logits turned into log-probabilities, on the pool's threads.
Result<MmluAnswers> RunMmlu(Engine& engine, const Tokenizer& tokenizer, const MmluDataset& data,
                            const MmluFormat& format, ThreadPool& pool,
                            const MmluProgress& progress, const CancelToken& cancel);

// kBadInput where letters cannot be scored with this tokenizer.
Status CheckLetters(const Tokenizer& tokenizer);

// An engine that does this in steps of `rows` tokens of at most `sequences` sequences.
inline constexpr int64_t kMmluSequences = 128;
EngineOptions MmluEngineOptions(const ModelConfig& config, const Backend& backend, DType kv_dtype,
                                int64_t rows, int64_t sequences = kMmluSequences);
// The least that its KV cache may be cut down to: one prompt, and what its candidates add.
int64_t LeastMmluKvTokens(const EngineOptions& options, const Backend& backend);

}  // namespace nibble

#endif  // NIBBLE_EVAL_MMLU_TASK_H_
