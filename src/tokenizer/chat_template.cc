#include "src/tokenizer/chat_template.h"

#include <algorithm>

#include "src/tokenizer/jinja_eval.h"
#include "src/tokenizer/jinja_parser.h"
#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

using jinja::Budget;
using jinja::Sequence;
using jinja::Value;

Result<Value> TextValue(Budget& budget, const std::string& text, std::string_view what) {
  if (!IsValidUtf8(text)) return BadInput("{} is not valid UTF-8", what);
  return jinja::MakeString(budget, text);
}

Result<Value> JsonValue(Budget& budget, const Json& json, int depth) {
  if (depth > jinja::kMaxValueDepth) {
    return BadInput("variables nested deeper than {} levels", jinja::kMaxValueDepth);
  }
  switch (json.type()) {
    case Json::value_t::boolean:
      return Value(json.get<bool>());
    case Json::value_t::number_unsigned:
      if (json.get<uint64_t>() > uint64_t{INT64_MAX}) {
        return BadInput("the integer {} is beyond 64 bits", json.get<uint64_t>());
      }
      return Value(json.get<int64_t>());
    case Json::value_t::number_integer:
      return Value(json.get<int64_t>());
    case Json::value_t::number_float:
      return Value(json.get<double>());
    case Json::value_t::string:
      return TextValue(budget, json.get_ref<const std::string&>(), "a variable");
    case Json::value_t::array: {
      std::vector<Value> items;
      for (const Json& element : json) {
        NIBBLE_ASSIGN_OR_RETURN(Value item, JsonValue(budget, element, depth + 1));
        items.push_back(std::move(item));
      }
      return jinja::MakeSequence(budget, Sequence::Type::kList, std::move(items));
    }
    case Json::value_t::object: {
      std::vector<std::pair<Value, Value>> entries;
      for (const auto& [key, element] : json.items()) {
        NIBBLE_ASSIGN_OR_RETURN(Value name, TextValue(budget, key, "the name of a variable"));
        NIBBLE_ASSIGN_OR_RETURN(Value item, JsonValue(budget, element, depth + 1));
        entries.emplace_back(std::move(name), std::move(item));
      }
      return jinja::MakeDict(budget, std::move(entries));
    }
    default:
      return Value();
  }
}

Result<Value> MessagesValue(Budget& budget, std::span<const ChatMessage> messages) {
  std::vector<Value> items;
  for (size_t i = 0; i < messages.size(); ++i) {
    const std::string where = fmt::format("message {}", i + 1);
    NIBBLE_ASSIGN_OR_RETURN(Value role, TextValue(budget, messages[i].role, where));
    NIBBLE_ASSIGN_OR_RETURN(Value content, TextValue(budget, messages[i].content, where));
    NIBBLE_ASSIGN_OR_RETURN(
        Value item, jinja::MakeDict(budget, {{Value::String("role"), std::move(role)},
                                             {Value::String("content"), std::move(content)}}));
    items.push_back(std::move(item));
  }
  return jinja::MakeSequence(budget, Sequence::Type::kList, std::move(items));
}

Result<Value> MessagesValue(Budget& budget, const Json& messages) {
  if (!messages.is_array()) return BadInput("the messages are not a list");
  for (size_t i = 0; i < messages.size(); ++i) {
    if (!messages[i].is_object()) return BadInput("message {} is not an object", i + 1);
  }
  return JsonValue(budget, messages, 1);
}

// The names refer to `options`, or to literals.
Result<jinja::Variables> MakeVariables(Budget& budget, Result<Value> messages,
                                       const ChatTemplateOptions& options) {
  jinja::Variables variables;
  variables.emplace("tools", Value());
  variables.emplace("documents", Value());
  for (const auto& [name, token] :
       {std::pair{"bos_token", &options.bos_token}, std::pair{"eos_token", &options.eos_token}}) {
    if (!token->has_value()) continue;
    NIBBLE_ASSIGN_OR_RETURN(Value value, TextValue(budget, **token, name));
    variables.emplace(name, std::move(value));
  }
  if (!options.variables.is_object()) return BadInput("the variables are not an object");
  for (auto it = options.variables.begin(); it != options.variables.end(); ++it) {
    if (it.key() == "messages" || it.key() == "add_generation_prompt") {
      return BadInput("the variable '{}' is set by the conversation", it.key());
    }
    NIBBLE_ASSIGN_OR_RETURN(Value value, JsonValue(budget, it.value(), 1));
    variables.insert_or_assign(it.key(), std::move(value));
  }
  NIBBLE_ASSIGN_OR_RETURN(Value list, std::move(messages));
  variables.insert_or_assign("messages", std::move(list));
  variables.insert_or_assign("add_generation_prompt", Value(options.add_generation_prompt));
  return variables;
}

}  // namespace

struct ChatTemplate::Program {
  std::string source;
  jinja::Block block;
};

ChatTemplate::ChatTemplate(std::unique_ptr<const Program> program) : program_(std::move(program)) {}
ChatTemplate::ChatTemplate(ChatTemplate&&) noexcept = default;
ChatTemplate& ChatTemplate::operator=(ChatTemplate&&) noexcept = default;
ChatTemplate::~ChatTemplate() = default;

Result<ChatTemplate> ChatTemplate::Parse(std::string_view text, std::string_view source) {
  if (text.size() > kMaxChatTemplateBytes) {
    return BadInput("{}: a chat template of {} bytes; at most {} are read", source, text.size(),
                    kMaxChatTemplateBytes);
  }
  if (!IsValidUtf8(text)) {
    return BadInput("{}: the chat template is not valid UTF-8", source);
  }
  Result<jinja::Block> block = jinja::ParseTemplate(text);
  if (!block) return tl::unexpected<Error>(block.error().In(source));
  return ChatTemplate(
      std::make_unique<const Program>(Program{std::string(source), std::move(*block)}));
}

template <typename Messages>
Result<std::string> ChatTemplate::RenderAny(const Messages& messages,
                                            const Options& options) const {
  Budget budget(kMaxChatTemplateSteps, kMaxChatTemplateTraffic);
  Result<jinja::Variables> variables =
      MakeVariables(budget, MessagesValue(budget, messages), options);
  if (!variables) return tl::unexpected<Error>(variables.error().In(program_->source));
  jinja::Context context{budget, options.now};
  jinja::Interpreter interpreter(context, std::move(*variables), kMaxChatTemplateOutput);
  Result<std::string> text = interpreter.Run(program_->block);
  if (!text) return tl::unexpected<Error>(text.error().In(program_->source));
  return text;
}

Result<std::string> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                         const Options& options) const {
  return RenderAny(messages, options);
}

Result<std::string> ChatTemplate::RenderJson(const Json& messages, const Options& options) const {
  return RenderAny(messages, options);
}

}  // namespace nibble
