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

std::optional<ApiError> ModelService::CheckModel(const GenerationParameters& parameters) const {
  if (!parameters.model || *parameters.model == options_.name) return std::nullopt;
  return ApiError{
      .status = 404,
      .message = fmt::format(
          "the model {} does not exist; this server has {}", Json(*parameters.model).dump(),
          Json(options_.name).dump(-1, ' ', false, Json::error_handler_t::replace)),
      .param = "model",
      .code = "model_not_found"};
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

ApiResult<std::vector<int32_t>> ModelService::ChatTokens(const ChatRequest& request) const {
  if (!options_.chat) return Refused("messages", "the model has no chat template");
  const auto text = [&](std::optional<TokenId> token) -> std::optional<std::string> {
    if (!token) return std::nullopt;
    return std::string(tokenizer_.TokenText(*token));
  };
  const Result<std::string> prompt = options_.chat->Render(
      request.messages, {.bos_token = text(tokenizer_.bos()), .eos_token = text(tokenizer_.eos())});
  if (!prompt) return Refused("messages", prompt.error().message());
  // The template writes the special tokens itself.
  ApiResult<std::vector<int32_t>> tokens = Encode(*prompt, SpecialTokens::kOmit, "messages");
  if (tokens && tokens->empty())
    return Refused("messages", "the chat template makes an empty prompt of them");
  return tokens;
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
    choice.generation = {.prompt = prompt,
                         .max_tokens = parameters.max_tokens.value_or(rest),
                         .sampling = {.temperature = parameters.temperature,
                                      .top_k = parameters.top_k,
                                      .top_p = parameters.top_p,
                                      .seed = seed + static_cast<uint64_t>(i)},
                         .stop_tokens = parameters.ignore_eos ? std::vector<int32_t>()
                                                              : options_.stop_tokens,
                         .rules = {.bias = parameters.logit_bias,
                                   .presence_penalty = parameters.presence_penalty,
                                   .frequency_penalty = parameters.frequency_penalty,
                                   .min_p = parameters.min_p}};
    choice.stops = parameters.stop;
    choice.echo = echo;
    choice.top_logprobs = parameters.top_logprobs;
  }
}

ApiResult<PreparedAnswer> ModelService::Prepare(const CompletionRequest& request) {
  if (auto error = CheckModel(request.parameters)) return tl::unexpected(*std::move(error));
  PreparedAnswer answer;
  for (const Prompt& prompt : request.prompts) {
    const ApiResult<std::vector<int32_t>> tokens = Tokens(prompt);
    if (!tokens) return tl::unexpected(tokens.error());
    // Before it is copied n times.
    if (auto error = CheckTokens(*tokens, "prompt", request.parameters)) {
      return tl::unexpected(*std::move(error));
    }
    AddChoices(*tokens, request.parameters, request.echo ? EchoPrompt::kYes : EchoPrompt::kNo,
               answer);
  }
  return answer;
}

ApiResult<PreparedAnswer> ModelService::Prepare(const ChatRequest& request) {
  if (auto error = CheckModel(request.parameters)) return tl::unexpected(*std::move(error));
  const ApiResult<std::vector<int32_t>> tokens = ChatTokens(request);
  if (!tokens) return tl::unexpected(tokens.error());
  if (auto error = CheckTokens(*tokens, "messages", request.parameters)) {
    return tl::unexpected(*std::move(error));
  }
  PreparedAnswer answer;
  AddChoices(*tokens, request.parameters, EchoPrompt::kNo, answer);
  return answer;
}

}  // namespace nibble
