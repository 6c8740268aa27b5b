#include "src/serve/model_service.h"

#include <algorithm>
#include <random>
#include <utility>

#include "src/base/random.h"

namespace nibble {
namespace {

uint64_t FirstRandom() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

// Tokens stand for no more bytes than the longest has; what is much longer than that need not be
// encoded to be refused.
size_t MaxPromptBytes(const Tokenizer& tokenizer, int64_t context) {
  constexpr size_t kMargin = 4;  // normalization may shorten a text
  size_t longest = 1;
  for (TokenId token = 0; token < tokenizer.vocabulary_size(); ++token) {
    longest = std::max(longest, tokenizer.TokenText(token).size());
  }
  return kMargin * longest * static_cast<size_t>(context);
}

tl::unexpected<ApiError> Refused(std::string param, std::string message) {
  return tl::unexpected<ApiError>(
      ApiError{.status = 400, .message = std::move(message), .param = std::move(param)});
}

}  // namespace

ModelService::ModelService(const Tokenizer& tokenizer, EngineLoop& loop, ServiceOptions options)
    : tokenizer_(tokenizer),
      loop_(loop),
      options_(std::move(options)),
      max_prompt_bytes_(MaxPromptBytes(tokenizer, loop.context())),
      first_random_(FirstRandom()) {}

uint64_t ModelService::NextRandom() { return Random::Mix(first_random_ + randoms_.fetch_add(1)); }

std::string ModelService::NewId(std::string_view prefix) {
  return fmt::format("{}-{:016x}", prefix, NextRandom());
}

std::optional<ApiError> ModelService::CheckTokens(const std::vector<int32_t>& prompt,
                                                  const char* param,
                                                  const GenerationParameters& parameters) const {
  if (static_cast<int64_t>(prompt.size()) > loop_.context()) {
    ApiError error = Refused(param, fmt::format("a prompt of {} tokens exceeds the context of "
                                                "{} tokens",
                                                prompt.size(), loop_.context()))
                         .value();
    error.code = "context_length_exceeded";
    return error;
  }
  for (const int32_t token : prompt) {
    if (const Status status = loop_.CheckToken(token); !status) {
      return Refused(param, status.error().message()).value();
    }
  }
  for (const auto& bias : parameters.logit_bias) {
    if (const Status status = loop_.CheckToken(bias.first); !status) {
      return Refused("logit_bias", status.error().message()).value();
    }
  }
  return std::nullopt;
}

std::optional<ApiError> ModelService::CountLogprobs(int64_t prompt_tokens, const char* param,
                                                    const GenerationParameters& parameters,
                                                    EchoPrompt echo, PreparedAnswer& answer) const {
  if (!parameters.top_logprobs) return std::nullopt;
  const int64_t rest = std::max<int64_t>(1, context() - prompt_tokens);
  const int64_t tokens = std::min(parameters.max_tokens.value_or(rest), rest) +
                         (echo == EchoPrompt::kYes ? prompt_tokens : 0);
  answer.logprobs += parameters.n * tokens * (1 + *parameters.top_logprobs);
  const int64_t most = std::max(kMaxLogprobs, (context() + 1) * (1 + kMaxTopLogprobs));
  if (answer.logprobs <= most) return std::nullopt;
  return Refused(param, fmt::format("the answer could hold more than {} log-probabilities; ask for "
                                    "fewer choices, tokens or alternatives",
                                    most))
      .value();
}

std::optional<ApiError> ModelService::CheckTextTokens(size_t tokens, const char* param) const {
  const int64_t most = std::max(kMaxTextTokens, context());
  if (static_cast<int64_t>(tokens) <= most) return std::nullopt;
  return Refused(param, fmt::format("{} tokens exceed {}", tokens, most)).value();
}

ApiResult<std::vector<int32_t>> ModelService::Encode(std::string_view text, SpecialTokens special,
                                                     const char* param) const {
  if (text.size() > max_prompt_bytes_) {
    return Refused(param,
                   fmt::format("a prompt of {} bytes is far longer than the context of {} tokens",
                               text.size(), loop_.context()));
  }
  return tokenizer_.Encode(text, special);
}

ApiResult<std::vector<int32_t>> ModelService::Tokens(const Prompt& prompt) const {
  std::vector<int32_t> tokens;
  if (const auto* ids = std::get_if<std::vector<int32_t>>(&prompt)) {
    tokens = *ids;
  } else {
    ApiResult<std::vector<int32_t>> encoded =
        Encode(std::get<std::string>(prompt), SpecialTokens::kAdd, "prompt");
    if (!encoded) return encoded;
    tokens = *std::move(encoded);
  }
  if (!tokens.empty()) return tokens;
  if (!options_.bos) {
    return Refused("prompt", "an empty prompt starts from BOS, and the model has none");
  }
  return std::vector<int32_t>{*options_.bos};
}

ApiResult<std::vector<int32_t>> ModelService::ChatTokens(std::span<const ChatMessage> messages,
                                                         GenerationPrompt generation_prompt,
                                                         SpecialTokens special) const {
  if (!options_.chat) return Refused("messages", "the model has no chat template");
  const auto text = [&](std::optional<TokenId> token) -> std::optional<std::string> {
    if (!token) return std::nullopt;
    return std::string(tokenizer_.TokenText(*token));
  };
  const Result<std::string> prompt = options_.chat->Render(
      messages, {.add_generation_prompt = generation_prompt == GenerationPrompt::kAdd,
                 .bos_token = text(tokenizer_.bos()),
                 .eos_token = text(tokenizer_.eos())});
  if (!prompt) return Refused("messages", prompt.error().message());
  ApiResult<std::vector<int32_t>> tokens = Encode(*prompt, special, "messages");
  if (tokens && tokens->empty())
    return Refused("messages", "the chat template makes an empty prompt of them");
  return tokens;
}

ApiResult<TokenizedPrompt> ModelService::Tokenize(const TokenizeRequest& request) const {
  const SpecialTokens special =
      request.add_special_tokens ? SpecialTokens::kAdd : SpecialTokens::kOmit;
  const auto* messages = std::get_if<std::vector<ChatMessage>>(&request.input);
  ApiResult<std::vector<int32_t>> tokens =
      messages ? ChatTokens(*messages,
                            request.add_generation_prompt ? GenerationPrompt::kAdd
                                                          : GenerationPrompt::kOmit,
                            special)
               : Encode(std::get<std::string>(request.input), special, "prompt");
  if (!tokens) return tl::unexpected(tokens.error());
  if (auto error = CheckTextTokens(tokens->size(), messages ? "messages" : "prompt")) {
    return tl::unexpected(*std::move(error));
  }
  TokenizedPrompt prompt{.tokens = *std::move(tokens)};
  if (!request.return_token_strs) return prompt;
  for (const int32_t token : prompt.tokens) {
    prompt.token_strs.emplace_back(tokenizer_.TokenText(token));
  }
  return prompt;
}

ApiResult<std::string> ModelService::Detokenize(const DetokenizeRequest& request) const {
  if (auto error = CheckTextTokens(request.tokens.size(), "tokens")) {
    return tl::unexpected(*std::move(error));
  }
  for (const int32_t token : request.tokens) {
    if (const Status status = loop_.CheckToken(token); !status) {
      return Refused("tokens", status.error().message());
    }
  }
  return tokenizer_.Decode(request.tokens, SpecialText::kKeep);
}

Json ModelService::TokenizerInfo() const {
  const auto text = [&](std::optional<int32_t> token) {
    return token ? Json(tokenizer_.TokenText(*token)) : Json();
  };
  const std::optional<int32_t> eos = tokenizer_.eos() || options_.stop_tokens.empty()
                                         ? tokenizer_.eos()
                                         : options_.stop_tokens.front();
  return {{"tokenizer_class", "PreTrainedTokenizerFast"},
          {"model_max_length", context()},
          {"vocab_size", tokenizer_.vocabulary_size()},
          {"add_bos_token", tokenizer_.adds_bos()},
          {"add_eos_token", tokenizer_.adds_eos()},
          {"bos_token", text(options_.bos)},
          {"eos_token", text(eos)},
          {"unk_token", text(tokenizer_.unknown())},
          {"pad_token", text(tokenizer_.padding())},
          {"chat_template", options_.chat_jinja.empty() ? Json() : Json(options_.chat_jinja)}};
}

void ModelService::AddChoices(const std::vector<int32_t>& prompt,
                              const GenerationParameters& parameters, EchoPrompt echo,
                              PreparedAnswer& answer) {
  const auto length = static_cast<int64_t>(prompt.size());
  answer.prompt_tokens += length;
  const int64_t rest = std::max<int64_t>(1, loop_.context() - length);
  const uint64_t seed = parameters.seed ? *parameters.seed : NextRandom();
  for (int64_t i = 0; i < parameters.n; ++i) {
    ChoiceRequest& choice = answer.choices.emplace_back();
    choice.generation = {
        .prompt = prompt,
        .max_tokens = parameters.max_tokens.value_or(rest),
        .sampling = {.temperature = parameters.temperature,
                     .top_k = parameters.top_k,
                     .top_p = parameters.top_p,
                     .seed = seed + static_cast<uint64_t>(i)},
        .stop_tokens = parameters.ignore_eos ? std::vector<int32_t>() : options_.stop_tokens,
        .rules = {.bias = parameters.logit_bias,
                  .presence_penalty = parameters.presence_penalty,
                  .frequency_penalty = parameters.frequency_penalty,
                  .min_p = parameters.min_p}};
    choice.stops = parameters.stop;
    choice.echo = echo;
    choice.top_logprobs = parameters.top_logprobs;
    choice.repeats_prompt = i > 0;
  }
}

ApiResult<PreparedAnswer> ModelService::Prepare(const CompletionRequest& request) {
  PreparedAnswer answer;
  const EchoPrompt echo = request.echo ? EchoPrompt::kYes : EchoPrompt::kNo;
  for (const Prompt& prompt : request.prompts) {
    const ApiResult<std::vector<int32_t>> tokens = Tokens(prompt);
    if (!tokens) return tl::unexpected(tokens.error());
    // Before it is copied n times.
    auto error = CheckTokens(*tokens, "prompt", request.parameters);
    if (!error) {
      error = CountLogprobs(static_cast<int64_t>(tokens->size()), "logprobs", request.parameters,
                            echo, answer);
    }
    if (error) return tl::unexpected(*std::move(error));
    AddChoices(*tokens, request.parameters, echo, answer);
  }
  return answer;
}

ApiResult<PreparedAnswer> ModelService::Prepare(const ChatRequest& request) {
  // The template writes the special tokens itself.
  const ApiResult<std::vector<int32_t>> tokens =
      ChatTokens(request.messages, GenerationPrompt::kAdd, SpecialTokens::kOmit);
  if (!tokens) return tl::unexpected(tokens.error());
  PreparedAnswer answer;
  auto error = CheckTokens(*tokens, "messages", request.parameters);
  if (!error) {
    error = CountLogprobs(static_cast<int64_t>(tokens->size()), "top_logprobs", request.parameters,
                          EchoPrompt::kNo, answer);
  }
  if (error) return tl::unexpected(*std::move(error));
  AddChoices(*tokens, request.parameters, EchoPrompt::kNo, answer);
  return answer;
}

}  // namespace nibble
