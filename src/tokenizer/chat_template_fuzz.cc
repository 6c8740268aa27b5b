// Parses any bytes as a chat template and renders a short conversation with it. Whatever comes out
// is fine, as long as it comes out: no crash, no leak, no long run, no text that is not UTF-8.
#include "src/tokenizer/chat_template.h"

#include "src/tokenizer/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nibble;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(text, "fuzz");
  if (!parsed) return 0;
  const ChatMessage messages[] = {{"system", " Be brief. "},
                                  {"user", "Wie geht\xE2\x80\x99s?\n"},
                                  {"assistant", "<think>hm</think>ok"}};
  ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.now = std::tm{};
  options.variables = Json{{"tools", {{{"name", "f"}, {"numbers", {1, 2.5, nullptr}}}}}};
  const Result<std::string> rendered = parsed->Render(messages, options);
  CHECK(!rendered || IsValidUtf8(*rendered));
  return 0;
}
