// Perplexity of a text, and divergence from a reference model over the same windows.
//
// The text is one sequence of tokens (BOS once at its start, if the tokenizer adds one), cut into
// contiguous windows of `context` tokens that do not overlap; the tail is dropped. Every token but
// a window's first is scored. Reference and candidate go over a window together, a few rows at a
// time, so that nothing of vocabulary size is ever stored.
#ifndef NIBBLE_EVAL_PERPLEXITY_H_
#define NIBBLE_EVAL_PERPLEXITY_H_

#include <functional>
#include <optional>
#include <string>

#include "src/base/cancel.h"
#include "src/base/json.h"
#include "src/base/thread_pool.h"
#include "src/engine/engine.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

// kRaw: the file as it is. kPaper: as the literature scores WikiText-2: its rows joined by blank
// lines ("\n\n".join of the dataset's rows, each of which keeps its own line break).
enum class TextJoin { kRaw, kPaper };
std::string_view Name(TextJoin join);  // "raw", "paper"
Result<TextJoin> ParseTextJoin(std::string_view name);
std::string JoinText(std::string_view text, TextJoin join);

struct PerplexityOptions {
  int64_t context = 2048;              // tokens of a window
  std::optional<int64_t> max_windows;  // from the start of the text
};

// kBadInput where the context exceeds the model's or the text has fewer tokens than one window.
Status CheckPerplexity(const PerplexityOptions& options, const ModelConfig& config,
                       int64_t text_tokens);

// An engine for this: one sequence, logits of every row.
EngineOptions PerplexityEngineOptions(const PerplexityOptions& options, const Backend& backend,
                                      DType kv_dtype);

// Called with the number of windows done and their total.
using PerplexityProgress = std::function<void(int64_t done, int64_t total)>;

// The figures of a perplexity document: those of the candidate, and with a `reference` (which may
// be null, and must have the same vocabulary) the divergence. `pool` shares the work on rows.
Result<Json> RunPerplexity(Engine& candidate, Engine* reference, std::span<const int32_t> tokens,
                           const PerplexityOptions& options, ThreadPool& pool,
                           const PerplexityProgress& progress, const CancelToken& cancel);

}  // namespace nibble

#endif  // NIBBLE_EVAL_PERPLEXITY_H_
