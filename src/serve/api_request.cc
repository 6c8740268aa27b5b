#include "src/serve/api_request.h"

#include <charconv>
#include <limits>

#include "src/serve/body_reader.h"

namespace nibble {
namespace {

constexpr int64_t kMaxInt32 = std::numeric_limits<int32_t>::max();

std::optional<int32_t> TokenIdIn(const Json& value) {
  if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{kMaxInt32}) {
    return std::nullopt;
  }
  return static_cast<int32_t>(value.get<uint64_t>());
}

std::vector<std::string> ReadStop(BodyReader& body) {
  std::vector<std::string> stops;
  const Json* value = body.Find("stop");
  if (value == nullptr) return stops;
  const auto add = [&](const Json& stop) {
    if (!stop.is_string() || stop.get_ref<const std::string&>().empty() ||
        stop.get_ref<const std::string&>().size() > kMaxStopBytes) {
      body.Fail("stop", fmt::format("want strings of 1 to {} bytes, got {}", kMaxStopBytes,
                                    ShownValue(stop)));
      return;
    }
    stops.push_back(stop.get<std::string>());
  };
  if (!value->is_array()) {
    add(*value);
  } else if (value->size() > kMaxStopStrings) {
    body.Fail("stop",
              fmt::format("want at most {} strings, got {}", kMaxStopStrings, value->size()));
  } else {
    for (const Json& stop : *value) add(stop);
  }
  return stops;
}

std::vector<std::pair<int32_t, float>> ReadLogitBias(BodyReader& body) {
  std::vector<std::pair<int32_t, float>> biases;
  const Json* value = body.Find("logit_bias");
  if (value == nullptr) return biases;
  if (!value->is_object() || value->size() > kMaxLogitBiases) {
    body.Fail("logit_bias", fmt::format("want an object of at most {} members, got {}",
                                        kMaxLogitBiases, ShownValue(*value)));
    return biases;
  }
  for (const auto& [key, bias] : value->items()) {
    int32_t token = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), token);
    const bool number = error == std::errc() && end == key.data() + key.size() && token >= 0;
    const double amount = bias.is_number() ? bias.get<double>() : 1e9;
    if (!number || !(amount >= -100 && amount <= 100)) {
      body.Fail("logit_bias",
                fmt::format("want token ids with numbers from -100 to 100, got {}: {}",
                            ShownValue(key), ShownValue(bias)));
      return biases;
    }
    biases.emplace_back(token, static_cast<float>(amount));
  }
  return biases;
}

void ReadStream(BodyReader& body, GenerationParameters& parameters) {
  if (body.Boolean("stream", false)) parameters.delivery = Delivery::kStream;
  const Json* value = body.Find("stream_options");
  if (value == nullptr) return;
  if (parameters.delivery != Delivery::kStream) {
    body.Fail("stream_options", "goes only with \"stream\": true");
    return;
  }
  BodyReader options(*value, "stream_options");
  parameters.include_usage = options.Boolean("include_usage", false);
  if (options.error()) body.Fail("stream_options", options.error()->message);
}

// All but the count of tokens and the log-probabilities, which each kind of request spells its own
// way.
GenerationParameters ReadParameters(BodyReader& body) {
  GenerationParameters parameters;
  parameters.model = body.String("model");
  parameters.temperature = body.Number("temperature", 0, 2, parameters.temperature);
  parameters.top_p = body.Number("top_p", 0, 1, parameters.top_p);
  if (parameters.top_p == 0) body.Fail("top_p", "want a number above 0 and up to 1, got 0");
  // vLLM's clients write -1 for all.
  const int64_t top_k = body.Integer("top_k", -1, kMaxInt32).value_or(0);
  parameters.top_k = top_k < 0 ? 0 : top_k;
  parameters.min_p = body.Number("min_p", 0, 1, parameters.min_p);
  parameters.n = body.Integer("n", 1, kMaxChoices).value_or(1);
  parameters.stop = ReadStop(body);
  if (const auto seed = body.Integer("seed", std::numeric_limits<int64_t>::min(),
                                     std::numeric_limits<int64_t>::max())) {
    parameters.seed = static_cast<uint64_t>(*seed);
  }
  parameters.presence_penalty = body.Number("presence_penalty", -2, 2, 0);
  parameters.frequency_penalty = body.Number("frequency_penalty", -2, 2, 0);
  parameters.logit_bias = ReadLogitBias(body);
  ReadStream(body, parameters);
  parameters.ignore_eos = body.Boolean("ignore_eos", false);
  body.String("user");
  return parameters;
}

std::vector<int32_t> ReadTokens(BodyReader& body, const char* name, const Json& array) {
  std::vector<int32_t> tokens;
  for (const Json& value : array) {
    const std::optional<int32_t> token = TokenIdIn(value);
    if (!token) {
      body.Fail(name,
                fmt::format("want token ids from 0 to {}, got {}", kMaxInt32, ShownValue(value)));
      break;
    }
    tokens.push_back(*token);
  }
  return tokens;
}

// A string, token ids, or an array of either.
std::vector<Prompt> ReadPrompts(BodyReader& body) {
  const Json* value = body.Find("prompt");
  if (value == nullptr) {
    body.Fail("prompt", "is missing");
    return {};
  }
  if (value->is_string()) return {value->get<std::string>()};
  if (!value->is_array() || value->empty()) {
    body.Fail("prompt", fmt::format("want a string, token ids, or an array of either, got {}",
                                    ShownValue(*value)));
    return {};
  }
  if (value->front().is_number()) return {ReadTokens(body, "prompt", *value)};
  std::vector<Prompt> prompts;
  if (value->size() > static_cast<size_t>(kMaxChoices)) {
    body.Fail("prompt", fmt::format("want at most {} prompts, got {}", kMaxChoices, value->size()));
    return prompts;
  }
  for (const Json& prompt : *value) {
    if (prompt.is_string()) {
      prompts.emplace_back(prompt.get<std::string>());
    } else if (prompt.is_array() && !prompt.empty()) {
      prompts.emplace_back(ReadTokens(body, "prompt", prompt));
    } else {
      body.Fail("prompt", fmt::format("want prompts that are strings or token ids, got {}",
                                      ShownValue(prompt)));
      break;
    }
  }
  return prompts;
}

// Text, or parts of which each is text.
std::string ReadContent(BodyReader& message) {
  const Json* value = message.Find("content");
  // An assistant's message that only called a tool has none.
  if (value == nullptr) return "";
  if (value->is_string()) return value->get<std::string>();
  std::string content;
  if (!value->is_array()) {
    message.Fail("content",
                 fmt::format("want a string or an array of parts, got {}", ShownValue(*value)));
    return content;
  }
  for (const Json& entry : *value) {
    BodyReader part(entry, "content");
    const std::optional<std::string> type = part.String("type");
    const std::optional<std::string> text = part.String("text");
    if (part.error() || type != "text" || !text) {
      message.Fail("content",
                   "want parts {\"type\": \"text\", \"text\": …}; only text is supported");
      break;
    }
    content += *text;
  }
  return content;
}

std::vector<ChatMessage> ReadMessages(BodyReader& body) {
  std::vector<ChatMessage> messages;
  const Json* value = body.Find("messages");
  if (value == nullptr || !value->is_array() || value->empty() || value->size() > kMaxMessages) {
    body.Fail("messages", fmt::format("want an array of 1 to {} messages, got {}", kMaxMessages,
                                      value == nullptr ? "none" : ShownValue(*value)));
    return messages;
  }
  for (size_t i = 0; i < value->size(); ++i) {
    const std::string name = fmt::format("messages[{}]", i);
    BodyReader message((*value)[i], name);
    const std::optional<std::string> role = message.String("role");
    std::string content = ReadContent(message);
    if (!role) message.Fail("role", "is missing");
    if (message.error()) {
      body.Fail("messages", message.error()->message);
      break;
    }
    messages.push_back({*role, std::move(content)});
  }
  return messages;
}

tl::unexpected<ApiError> NotAnObject(const Error& error) {
  ApiError bad;
  bad.message = error.message();
  return tl::unexpected<ApiError>(std::move(bad));
}

}  // namespace

ApiResult<CompletionRequest> ParseCompletionRequest(std::string_view text) {
  const Result<Json> json = ParseJson(text, "body");
  if (!json) return NotAnObject(json.error());
  BodyReader body(*json);
  CompletionRequest request;
  request.parameters = ReadParameters(body);
  request.prompts = ReadPrompts(body);
  request.echo = body.Boolean("echo", false);
  request.parameters.max_tokens =
      body.Integer("max_tokens", 0, kMaxInt32).value_or(kDefaultMaxTokens);
  if (request.parameters.max_tokens == 0 && !request.echo) {
    body.Fail("max_tokens", "want at least 1 where \"echo\" is not true, got 0");
  }
  request.parameters.top_logprobs = body.Integer("logprobs", 0, kMaxTopLogprobs);
  const auto prompts = static_cast<int64_t>(request.prompts.size());
  if (prompts * request.parameters.n > kMaxChoices) {
    body.Fail("n", fmt::format("{} prompts with {} choices each exceed {} choices", prompts,
                               request.parameters.n, kMaxChoices));
  }
  request.parameters.unknown_members = body.UnknownMembers();
  if (body.error()) return tl::unexpected<ApiError>(*body.error());
  return request;
}

ApiResult<ChatRequest> ParseChatRequest(std::string_view text) {
  const Result<Json> json = ParseJson(text, "body");
  if (!json) return NotAnObject(json.error());
  BodyReader body(*json);
  ChatRequest request;
  request.parameters = ReadParameters(body);
  request.messages = ReadMessages(body);
  // The newer name wins, as in OpenAI's own API.
  request.parameters.max_tokens = body.Integer("max_tokens", 1, kMaxInt32);
  if (const auto newer = body.Integer("max_completion_tokens", 1, kMaxInt32)) {
    request.parameters.max_tokens = newer;
  }
  const bool logprobs = body.Boolean("logprobs", false);
  const std::optional<int64_t> top = body.Integer("top_logprobs", 0, kMaxTopLogprobs);
  if (logprobs) request.parameters.top_logprobs = top.value_or(0);
  if (!logprobs && top.value_or(0) > 0) {
    body.Fail("top_logprobs", "goes only with \"logprobs\": true");
  }
  request.parameters.unknown_members = body.UnknownMembers();
  if (body.error()) return tl::unexpected<ApiError>(*body.error());
  return request;
}

ApiResult<TokenizeRequest> ParseTokenizeRequest(std::string_view text) {
  const Result<Json> json = ParseJson(text, "body");
  if (!json) return NotAnObject(json.error());
  BodyReader body(*json);
  TokenizeRequest request;
  request.model = body.String("model");
  const bool chat = body.Find("messages") != nullptr;
  const std::optional<std::string> prompt = body.String("prompt");
  if (chat == prompt.has_value()) {
    body.Fail(chat ? "messages" : "prompt", "want either \"prompt\" or \"messages\"");
  } else if (chat) {
    request.input = ReadMessages(body);
  } else {
    request.input = *prompt;
  }
  request.add_special_tokens = body.Boolean("add_special_tokens", !chat);
  request.add_generation_prompt = body.Boolean("add_generation_prompt", true);
  request.return_token_strs = body.Boolean("return_token_strs", false);
  if (body.error()) return tl::unexpected<ApiError>(*body.error());
  return request;
}

ApiResult<DetokenizeRequest> ParseDetokenizeRequest(std::string_view text) {
  const Result<Json> json = ParseJson(text, "body");
  if (!json) return NotAnObject(json.error());
  BodyReader body(*json);
  DetokenizeRequest request;
  request.model = body.String("model");
  const Json* tokens = body.Find("tokens");
  if (tokens == nullptr || !tokens->is_array()) {
    body.Fail("tokens", fmt::format("want an array of token ids, got {}",
                                    tokens == nullptr ? "none" : ShownValue(*tokens)));
  } else {
    request.tokens = ReadTokens(body, "tokens", *tokens);
  }
  if (body.error()) return tl::unexpected<ApiError>(*body.error());
  return request;
}

}  // namespace nibble
