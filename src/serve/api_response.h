// What clients get: the documents of OpenAI's API, as JSON. `finish_reason`, `logprobs` and the
// like are null where they are not known (yet), as there.
#ifndef NIBBLE_SERVE_API_RESPONSE_H_
#define NIBBLE_SERVE_API_RESPONSE_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/serve/api_request.h"

namespace nibble {

// A token of a text with what the model made of it.
struct ScoredToken {
  std::string bytes;              // that it adds to the text; need not be whole characters
  int64_t text_offset = 0;        // characters of the choice's text before it
  std::optional<double> logprob;  // absent for the first of a prompt, which nothing precedes
  // The most probable tokens in its place, most probable first.
  std::vector<std::pair<std::string, double>> top;
};

enum class ChoiceEnd { kNone, kStop, kLength };

// A choice, or what a chunk of a stream adds to one.
struct ChoicePart {
  int64_t index = 0;
  std::string text;                 // UTF-8
  std::vector<ScoredToken> tokens;  // where log-probabilities were asked for
  int64_t generated = 0;            // tokens of the model's own
  int64_t cached = 0;               // tokens of an answer's prompt that need not be computed
  ChoiceEnd end = ChoiceEnd::kNone;
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  int64_t cached_tokens = 0;  // of the prompts
};

// What all documents of one answer have in common.
struct AnswerHead {
  std::string id;
  int64_t created_s = 0;  // Unix time
  std::string model;
};

enum class Logprobs { kNo, kYes };

// The whole answer of /v1/completions and of /v1/chat/completions.
Json CompletionDocument(const AnswerHead& head, std::span<const ChoicePart> choices,
                        const Usage& usage, Logprobs logprobs);
Json ChatDocument(const AnswerHead& head, std::span<const ChoicePart> choices, const Usage& usage,
                  Logprobs logprobs);

// The chunks of a stream. A chat's choice begins with ChatRoleChunk.
Json CompletionChunk(const AnswerHead& head, const ChoicePart& part, Logprobs logprobs);
Json ChatRoleChunk(const AnswerHead& head, int64_t index);
Json ChatChunk(const AnswerHead& head, const ChoicePart& part, Logprobs logprobs);
// The last, with no choices, where include_usage asks for it.
Json CompletionUsageChunk(const AnswerHead& head, const Usage& usage);
Json ChatUsageChunk(const AnswerHead& head, const Usage& usage);

Json ErrorDocument(const ApiError& error);

// "data: …\n\n" of server-sent events.
std::string EventText(const Json& document);
inline constexpr std::string_view kLastEvent = "data: [DONE]\n\n";

// A token's name in documents: its text, or "bytes:\xe2\x80" where it is not whole characters.
std::string TokenName(std::string_view bytes);

}  // namespace nibble

#endif  // NIBBLE_SERVE_API_RESPONSE_H_
