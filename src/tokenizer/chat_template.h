// Chat templates: the Jinja2 text that comes with a model and turns a conversation into a prompt.
//
// The language is the part of Jinja2 3.1 that templates of the Llama family use, rendered as
// transformers' apply_chat_template does (sandboxed and immutable, trim_blocks, lstrip_blocks, loop
// controls, tojson without HTML escapes): the same text comes out, or an error. What is not
// supported is refused by name and line, while parsing wherever it can be seen there.
//
// A template is untrusted input. Its size, its nesting, the steps it takes, the bytes it handles
// and the text it writes are bounded (constants below), and it reaches nothing but the variables
// given.
#ifndef NIBBLE_TOKENIZER_CHAT_TEMPLATE_H_
#define NIBBLE_TOKENIZER_CHAT_TEMPLATE_H_

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/base/json.h"

namespace nibble {

inline constexpr size_t kMaxChatTemplateBytes = size_t{256} << 10;
inline constexpr uint64_t kMaxChatTemplateSteps = 10'000'000;  // expressions and items evaluated
// Bytes of strings and lists read or made, in total over one rendering: bounds time and memory.
inline constexpr uint64_t kMaxChatTemplateTraffic = uint64_t{256} << 20;
inline constexpr uint64_t kMaxChatTemplateOutput = uint64_t{32} << 20;

struct ChatMessage {
  std::string role;     // UTF-8
  std::string content;  // UTF-8
};

struct ChatTemplateOptions {
  bool add_generation_prompt = true;
  // The tokenizer's special tokens as text; absent ones are undefined variables.
  std::optional<std::string> bos_token;
  std::optional<std::string> eos_token;
  // The local time that strftime_now() shows. Without it that function is undefined, and templates
  // that ask `strftime_now is defined` take the date written into them.
  std::optional<std::tm> now;
  // Further variables (an object); `tools` and `documents` are none unless given here.
  Json variables = Json::object();
};

// Immutable, so it may be shared between threads. Movable.
class ChatTemplate {
 public:
  using Options = ChatTemplateOptions;

  // `source` names the template in errors.
  static Result<ChatTemplate> Parse(std::string_view jinja, std::string_view source);

  ChatTemplate(ChatTemplate&&) noexcept;
  ChatTemplate& operator=(ChatTemplate&&) noexcept;
  ~ChatTemplate();

  // Fails (kBadInput) where the template raises, for example on roles in an order that it does not
  // know, where it uses what is not supported, or where it exceeds a bound.
  Result<std::string> Render(std::span<const ChatMessage> messages, const Options& options) const;
  // The same for messages with members beyond these two (calls of tools, names), or with content in
  // parts: a JSON array of objects, passed on as they are.
  Result<std::string> RenderJson(const Json& messages, const Options& options) const;

 private:
  struct Program;
  template <typename Messages>
  Result<std::string> RenderAny(const Messages& messages, const Options& options) const;
  explicit ChatTemplate(std::unique_ptr<const Program> program);
  std::unique_ptr<const Program> program_;
};

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_CHAT_TEMPLATE_H_
