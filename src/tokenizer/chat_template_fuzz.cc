// Parses any bytes as a chat template and renders a short conversation with it. Whatever comes out
// is fine, as long as it comes out: no crash, no leak, no long run, no text that is not UTF-8.
#include "src/tokenizer/chat_template.h"

#include "src/tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(text, "fuzz");
  if (!parsed) return 0;
  static const Json messages = Json::parse(R"([
      {"role": "system", "content": " Be brief. "}, {"role": "user", "content": "Wie geht’s?\n"},
      {"role": "assistant", "content": "<think>hm</think>ok"},
      {"role": "user", "name": "x", "content": [{"type": "text", "text": "t"}, {"type": "image"}]},
      {"role": "assistant", "content": null,
       "tool_calls": [{"id": "123456789", "function": {"name": "f", "arguments": {"a": [1, {}]}}}]},
      {"role": "tool", "content": {"content": 2}}])");
  ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.now = std::tm{};
  options.variables = Json{{"tools", {{{"name", "f"}, {"numbers", {1, 2.5, nullptr}}}}}};
  const Result<std::string> rendered = parsed->RenderJson(messages, options);
  CHECK(!rendered || IsValidUtf8(*rendered));
  return 0;
}
