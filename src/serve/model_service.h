// A loaded model as a service: requests become sequences of tokens for its engine's loop.
#ifndef NIBBLE_SERVE_MODEL_SERVICE_H_
#define NIBBLE_SERVE_MODEL_SERVICE_H_

#include <atomic>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/serve/api_request.h"
#include "src/serve/engine_loop.h"
#include "src/tokenizer/chat_template.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

struct ServiceOptions {
  std::string name;                  // by which requests know the model
  std::optional<int32_t> bos;        // where an empty prompt starts
  std::vector<int32_t> stop_tokens;  // end of sequence
  std::optional<ChatTemplate> chat;  // absent: chats are refused
  std::string chat_jinja;            // what clients are told of it; empty: nothing
  int64_t created_s = 0;             // Unix time
};

// Log-probabilities that one answer may hold, unless a single choice that fills the context has
// more (about 150 bytes each).
inline constexpr int64_t kMaxLogprobs = 1 << 20;
// Tokens that a text may have to be made or read outside of an answer, unless the context has more.
inline constexpr int64_t kMaxTextTokens = 1 << 18;

// What a request asks of the engine.
struct PreparedAnswer {
  std::vector<ChoiceRequest> choices;
  int64_t prompt_tokens = 0;  // each prompt once
  int64_t logprobs = 0;       // at most
};

struct TokenizedPrompt {
  std::vector<int32_t> tokens;
  std::vector<std::string> token_strs;  // where they were asked for
};

// Thread-safe.
class ModelService {
 public:
  // Borrows the tokenizer and the loop.
  ModelService(const Tokenizer& tokenizer, EngineLoop& loop, ServiceOptions options);

  // Errors: 400 for what the model cannot do. Whose name a request has is ServedModels' business.
  ApiResult<PreparedAnswer> Prepare(const CompletionRequest& request);
  ApiResult<PreparedAnswer> Prepare(const ChatRequest& request);

  ApiResult<TokenizedPrompt> Tokenize(const TokenizeRequest& request) const;
  ApiResult<std::string> Detokenize(const DetokenizeRequest& request) const;
  // As vLLM's /tokenizer_info: the members of a tokenizer_config.json that clients look at.
  Json TokenizerInfo() const;

  // Of an answer: "PREFIX-" and 16 digits that no other answer has.
  std::string NewId(std::string_view prefix);

  const std::string& name() const { return options_.name; }
  int64_t context() const { return loop_.context(); }
  int64_t created_s() const { return options_.created_s; }
  EngineLoop& loop() { return loop_; }

 private:
  // What an answer to such a prompt needs to be possible; `param` held the prompt.
  std::optional<ApiError> CheckTokens(const std::vector<int32_t>& prompt, const char* param,
                                      const GenerationParameters& parameters) const;
  // Counts the log-probabilities of a prompt's choices, of which an answer may hold only so many;
  // `param` asked for them.
  std::optional<ApiError> CountLogprobs(int64_t prompt_tokens, const char* param,
                                        const GenerationParameters& parameters, EchoPrompt echo,
                                        PreparedAnswer& answer) const;
  // What /tokenize and /detokenize take; `param` held it.
  std::optional<ApiError> CheckTextTokens(size_t tokens, const char* param) const;
  // The text's tokens, unless it is so long that it is not worth looking; `param` held it.
  ApiResult<std::vector<int32_t>> Encode(std::string_view text, SpecialTokens special,
                                         const char* param) const;
  ApiResult<std::vector<int32_t>> Tokens(const Prompt& prompt) const;
  enum class GenerationPrompt { kOmit, kAdd };
  ApiResult<std::vector<int32_t>> ChatTokens(std::span<const ChatMessage> messages,
                                             GenerationPrompt generation_prompt,
                                             SpecialTokens special) const;
  uint64_t NextRandom();
  void AddChoices(const std::vector<int32_t>& prompt, const GenerationParameters& parameters,
                  EchoPrompt echo, PreparedAnswer& answer);

  const Tokenizer& tokenizer_;
  EngineLoop& loop_;
  const ServiceOptions options_;
  const size_t max_prompt_bytes_;
  const uint64_t first_random_;
  std::atomic<uint64_t> randoms_{0};  // drawn for ids, and as seeds of requests that name none
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_MODEL_SERVICE_H_
