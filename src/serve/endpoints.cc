#include "src/serve/endpoints.h"

#include <algorithm>
#include <iterator>

#include "src/base/json_text.h"

namespace nibble {
namespace {

ApiResult<PlainAnswer> AnswerHealth(const ServedModels*, std::string_view) {
  return PlainAnswer{JsonText({{"status", "ok"}})};
}

ApiResult<PlainAnswer> AnswerVersion(const ServedModels*, std::string_view) {
  return PlainAnswer{JsonText({{"version", NIBBLE_VERSION}})};
}

ApiResult<PlainAnswer> AnswerModels(const ServedModels* models, std::string_view) {
  return PlainAnswer{JsonText(models->List())};
}

ApiResult<PlainAnswer> AnswerMetrics(const ServedModels* models, std::string_view) {
  return PlainAnswer{models->Metrics(), "text/plain; version=0.0.4"};
}

ApiResult<PlainAnswer> AnswerTokenize(const ServedModels* models, std::string_view body) {
  const ApiResult<TokenizeRequest> request = ParseTokenizeRequest(body);
  if (!request) return tl::unexpected(request.error());
  const ApiResult<ModelService*> service = models->Find(request->model);
  if (!service) return tl::unexpected(service.error());
  const ApiResult<TokenizedPrompt> prompt = (*service)->Tokenize(*request);
  if (!prompt) return tl::unexpected(prompt.error());
  return PlainAnswer{
      JsonText({{"count", prompt->tokens.size()},
                {"max_model_len", (*service)->context()},
                {"tokens", prompt->tokens},
                {"token_strs", request->return_token_strs ? Json(prompt->token_strs) : Json()}})};
}

ApiResult<PlainAnswer> AnswerDetokenize(const ServedModels* models, std::string_view body) {
  const ApiResult<DetokenizeRequest> request = ParseDetokenizeRequest(body);
  if (!request) return tl::unexpected(request.error());
  const ApiResult<ModelService*> service = models->Find(request->model);
  if (!service) return tl::unexpected(service.error());
  const ApiResult<std::string> text = (*service)->Detokenize(*request);
  if (!text) return tl::unexpected(text.error());
  return PlainAnswer{JsonText({{"prompt", *text}})};
}

// Of the first model: a request cannot name another.
ApiResult<PlainAnswer> AnswerTokenizerInfo(const ServedModels* models, std::string_view) {
  return PlainAnswer{JsonText(models->Find(std::nullopt).value()->TokenizerInfo())};
}

constexpr Endpoint kEndpoints[] = {
    {"/health", "GET", Endpoint::Needs::kModels, AnswerHealth},
    {"/version", "GET", Endpoint::Needs::kNothing, AnswerVersion},
    {"/metrics", "GET", Endpoint::Needs::kModels, AnswerMetrics},
    {"/tokenizer_info", "GET", Endpoint::Needs::kModels, AnswerTokenizerInfo},
    {"/tokenize", "POST", Endpoint::Needs::kModels, AnswerTokenize},
    {"/detokenize", "POST", Endpoint::Needs::kModels, AnswerDetokenize},
    {"/v1/models", "GET", Endpoint::Needs::kModels, AnswerModels},
    {"/v1/completions", "POST", Endpoint::Needs::kModels, nullptr},
    {"/v1/chat/completions", "POST", Endpoint::Needs::kModels, nullptr},
};

}  // namespace

const Endpoint* FindEndpoint(std::string_view path) {
  const auto* found = std::ranges::find(kEndpoints, path, &Endpoint::path);
  return found == std::end(kEndpoints) ? nullptr : found;
}

}  // namespace nibble
