// Parses any bytes as every kind of request. What is accepted keeps the ranges that the header
// promises; what is refused can be told to the client.
#include "src/serve/api_request.h"
#include "src/serve/api_response.h"

namespace nibble {
namespace {

void CheckParameters(const GenerationParameters& p) {
  CHECK(p.n >= 1 && p.n <= kMaxChoices);
  CHECK(p.temperature >= 0 && p.temperature <= 2 && p.top_p > 0 && p.top_p <= 1);
  CHECK(p.top_k >= 0 && p.min_p >= 0 && p.min_p <= 1);
  CHECK(p.stop.size() <= kMaxStopStrings && p.logit_bias.size() <= kMaxLogitBiases);
  for (const std::string& stop : p.stop) CHECK(!stop.empty() && stop.size() <= kMaxStopBytes);
  for (const auto& [token, bias] : p.logit_bias) CHECK(token >= 0 && bias >= -100 && bias <= 100);
  CHECK(p.max_tokens.value_or(0) >= 0 && p.top_logprobs.value_or(0) >= 0);
  CHECK(p.top_logprobs.value_or(0) <= kMaxTopLogprobs);
}

void CheckError(const ApiError& error) {
  CHECK(error.status == 400);
  CHECK(!EventText(ErrorDocument(error)).empty());
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view body(reinterpret_cast<const char*>(data), size);
  if (const auto request = ParseCompletionRequest(body)) {
    CheckParameters(request->parameters);
    CHECK(!request->prompts.empty() && request->parameters.max_tokens.has_value());
    CHECK(static_cast<int64_t>(request->prompts.size()) * request->parameters.n <= kMaxChoices);
  } else {
    CheckError(request.error());
  }
  if (const auto request = ParseChatRequest(body)) {
    CheckParameters(request->parameters);
    CHECK(!request->messages.empty());
  } else {
    CheckError(request.error());
  }
  if (const auto request = ParseTokenizeRequest(body)) {
    const auto* messages = std::get_if<std::vector<ChatMessage>>(&request->input);
    CHECK(messages == nullptr || !messages->empty());
  } else {
    CheckError(request.error());
  }
  if (const auto request = ParseDetokenizeRequest(body)) {
    for (const int32_t token : request->tokens) CHECK(token >= 0);
  } else {
    CheckError(request.error());
  }
  return 0;
}
