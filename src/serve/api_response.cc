#include "src/serve/api_response.h"

#include <algorithm>

#include "src/base/json_text.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

// JSON has no infinities; OpenAI's own API writes this for a probability of zero.
constexpr double kLeastLogprob = -9999;

double Finite(double logprob) {
  return logprob > kLeastLogprob ? logprob : kLeastLogprob;  // NaN too
}

Json EndName(ChoiceEnd end) {
  if (end == ChoiceEnd::kNone) return nullptr;
  return end == ChoiceEnd::kStop ? "stop" : "length";
}

Json CompletionLogprobs(const ChoicePart& part, Logprobs logprobs) {
  if (logprobs == Logprobs::kNo) return nullptr;
  Json tokens = Json::array(), values = Json::array(), tops = Json::array(),
       offsets = Json::array();
  for (const ScoredToken& token : part.tokens) {
    const std::string name = TokenName(token.bytes);
    tokens.push_back(name);
    offsets.push_back(token.text_offset);
    if (!token.logprob) {
      values.push_back(nullptr);
      tops.push_back(nullptr);
      continue;
    }
    values.push_back(Finite(*token.logprob));
    // Of tokens with one name the most probable is shown, but the text's own comes first.
    Json top = Json::object();
    top[name] = Finite(*token.logprob);
    for (const auto& [bytes, logprob] : token.top) {
      const std::string other = TokenName(bytes);
      if (!top.contains(other)) top[other] = Finite(logprob);
    }
    tops.push_back(std::move(top));
  }
  return {{"tokens", std::move(tokens)},
          {"token_logprobs", std::move(values)},
          {"top_logprobs", std::move(tops)},
          {"text_offset", std::move(offsets)}};
}

Json ChatToken(std::string_view bytes, double logprob) {
  Json numbers = Json::array();
  for (const char byte : bytes) numbers.push_back(static_cast<unsigned char>(byte));
  return {{"token", TokenName(bytes)}, {"logprob", Finite(logprob)}, {"bytes", std::move(numbers)}};
}

Json ChatLogprobs(const ChoicePart& part, Logprobs logprobs) {
  if (logprobs == Logprobs::kNo) return nullptr;
  Json content = Json::array();
  for (const ScoredToken& token : part.tokens) {
    if (!token.logprob) continue;
    Json entry = ChatToken(token.bytes, *token.logprob);
    Json top = Json::array();
    for (const auto& [bytes, value] : token.top) top.push_back(ChatToken(bytes, value));
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}};
}

Json CompletionChoice(const ChoicePart& part, Logprobs logprobs) {
  return {{"index", part.index},
          {"text", part.text},
          {"logprobs", CompletionLogprobs(part, logprobs)},
          {"finish_reason", EndName(part.end)}};
}

Json UsageDocument(const Usage& usage) {
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", usage.prompt_tokens + usage.completion_tokens},
          {"prompt_tokens_details", {{"cached_tokens", usage.cached_tokens}}}};
}

Json Document(const AnswerHead& head, std::string_view object, Json choices) {
  return {{"id", head.id},
          {"object", object},
          {"created", head.created_s},
          {"model", head.model},
          {"choices", std::move(choices)}};
}

Json ChatChunkOf(const AnswerHead& head, int64_t index, Json delta, Json logprobs, ChoiceEnd end) {
  Json choice = {{"index", index},
                 {"delta", std::move(delta)},
                 {"logprobs", std::move(logprobs)},
                 {"finish_reason", EndName(end)}};
  return Document(head, "chat.completion.chunk", Json::array({std::move(choice)}));
}

}  // namespace

std::string TokenName(std::string_view bytes) {
  if (IsValidUtf8(bytes)) return std::string(bytes);
  std::string name = "bytes:";
  for (const char byte : bytes) {
    name += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
  }
  return name;
}

Json CompletionDocument(const AnswerHead& head, std::span<const ChoicePart> choices,
                        const Usage& usage, Logprobs logprobs) {
  Json list = Json::array();
  for (const ChoicePart& choice : choices) list.push_back(CompletionChoice(choice, logprobs));
  Json document = Document(head, "text_completion", std::move(list));
  document["usage"] = UsageDocument(usage);
  return document;
}

Json ChatDocument(const AnswerHead& head, std::span<const ChoicePart> choices, const Usage& usage,
                  Logprobs logprobs) {
  Json list = Json::array();
  for (const ChoicePart& choice : choices) {
    list.push_back({{"index", choice.index},
                    {"message", {{"role", "assistant"}, {"content", choice.text}}},
                    {"logprobs", ChatLogprobs(choice, logprobs)},
                    {"finish_reason", EndName(choice.end)}});
  }
  Json document = Document(head, "chat.completion", std::move(list));
  document["usage"] = UsageDocument(usage);
  return document;
}

Json CompletionChunk(const AnswerHead& head, const ChoicePart& part, Logprobs logprobs) {
  return Document(head, "text_completion", Json::array({CompletionChoice(part, logprobs)}));
}

Json ChatRoleChunk(const AnswerHead& head, int64_t index) {
  return ChatChunkOf(head, index, {{"role", "assistant"}, {"content", ""}}, nullptr,
                     ChoiceEnd::kNone);
}

Json ChatChunk(const AnswerHead& head, const ChoicePart& part, Logprobs logprobs) {
  Json delta = Json::object();
  if (!part.text.empty() || part.end == ChoiceEnd::kNone) delta["content"] = part.text;
  return ChatChunkOf(head, part.index, std::move(delta), ChatLogprobs(part, logprobs), part.end);
}

Json CompletionUsageChunk(const AnswerHead& head, const Usage& usage) {
  Json document = Document(head, "text_completion", Json::array());
  document["usage"] = UsageDocument(usage);
  return document;
}

Json ChatUsageChunk(const AnswerHead& head, const Usage& usage) {
  Json document = Document(head, "chat.completion.chunk", Json::array());
  document["usage"] = UsageDocument(usage);
  return document;
}

Json ErrorDocument(const ApiError& error) {
  return {{"error",
           {{"message", error.message},
            {"type", error.type},
            {"param", error.param ? Json(*error.param) : Json()},
            {"code", error.code ? Json(*error.code) : Json()}}}};
}

std::string EventText(const Json& document) { return "data: " + JsonText(document) + "\n\n"; }

}  // namespace nibble
