// What a client may ask for: the bodies of /v1/completions and /v1/chat/completions, as OpenAI's
// API defines them (and vLLM extends them by top_k, min_p and ignore_eos), and of vLLM's /tokenize and
// /detokenize, checked and typed.
//
// A body is untrusted: every type, number and count is checked here. Members that are not known are
// ignored and named in `unknown_members`.
#ifndef NIBBLE_SERVE_API_REQUEST_H_
#define NIBBLE_SERVE_API_REQUEST_H_

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "src/base/json.h"
#include "src/tokenizer/chat_template.h"

namespace nibble {

inline constexpr int64_t kMaxChoices = 128;  // of one request: prompts × n
inline constexpr int64_t kMaxTopLogprobs = 20;
inline constexpr size_t kMaxStopStrings = 4;
inline constexpr size_t kMaxStopBytes = 1024;
inline constexpr size_t kMaxLogitBiases = 1024;
inline constexpr size_t kMaxMessages = 4096;
inline constexpr size_t kMaxUnknownNamed = 8;
inline constexpr int64_t kDefaultMaxTokens = 16;  // of completions

// An answer that is not a success: the HTTP status and the members of OpenAI's error object.
struct ApiError {
  int status = 400;
  std::string message;
  std::string type = "invalid_request_error";
  std::optional<std::string> param;
  std::optional<std::string> code;
};
template <typename T>
using ApiResult = tl::expected<T, ApiError>;

enum class Delivery { kWhole, kStream };

// What both kinds of requests have.
struct GenerationParameters {
  std::optional<std::string> model;
  std::optional<int64_t> max_tokens;  // absent: what is left of the context
  double temperature = 1;
  double top_p = 1;
  int64_t top_k = 0;  // 0: all
  double min_p = 0;
  int64_t n = 1;
  std::vector<std::string> stop;  // none is empty
  bool ignore_eos = false;        // the model's end of sequence does not end the text
  std::optional<uint64_t> seed;   // absent: any
  double presence_penalty = 0;
  double frequency_penalty = 0;
  std::vector<std::pair<int32_t, float>>
      logit_bias;  // token ids, not yet checked against a vocabulary
  // How many alternatives' log-probabilities are wanted beside each token's; absent: no
  // log-probabilities at all.
  std::optional<int64_t> top_logprobs;
  Delivery delivery = Delivery::kWhole;
  bool include_usage = false;                // a last chunk of a stream that counts the tokens
  std::vector<std::string> unknown_members;  // kMaxUnknownNamed at most
};

// Token ids are at least 0; the vocabulary is not known here.
using Prompt = std::variant<std::string, std::vector<int32_t>>;

struct CompletionRequest {
  GenerationParameters parameters;  // max_tokens is set; 0 only with echo
  std::vector<Prompt> prompts;      // at least one
  bool echo = false;                // the prompt precedes the text
};

struct ChatRequest {
  GenerationParameters parameters;
  std::vector<ChatMessage> messages;  // at least one
};

// What tokens a text or a conversation becomes.
struct TokenizeRequest {
  std::optional<std::string> model;
  std::variant<std::string, std::vector<ChatMessage>> input;  // at least one message
  bool add_special_tokens = true;                             // false for a conversation
  bool add_generation_prompt = true;                          // of a conversation
  bool return_token_strs = false;
};

struct DetokenizeRequest {
  std::optional<std::string> model;
  std::vector<int32_t> tokens;  // at least 0 each
};

// `body` is the bytes of a request. Errors are of status 400 and name the member in `param` where
// it is one's fault.
ApiResult<CompletionRequest> ParseCompletionRequest(std::string_view body);
ApiResult<ChatRequest> ParseChatRequest(std::string_view body);
ApiResult<TokenizeRequest> ParseTokenizeRequest(std::string_view body);
ApiResult<DetokenizeRequest> ParseDetokenizeRequest(std::string_view body);

}  // namespace nibble

#endif  // NIBBLE_SERVE_API_REQUEST_H_
