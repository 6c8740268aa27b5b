// The chat formats of well-known families, for models that come without a template, or with one
// that is wrong. The formats are the families' own; the texts of the templates are nibble's. They
// know the roles system, user and assistant, with content as text, and raise on an order of roles
// that the family was not trained on.
#ifndef NIBBLE_TOKENIZER_CHAT_TEMPLATE_FAMILIES_H_
#define NIBBLE_TOKENIZER_CHAT_TEMPLATE_FAMILIES_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/tokenizer/chat_template.h"

namespace nibble {

struct ChatTemplateFamily {
  std::string_view name;  // "llama3"
  std::string_view jinja;
};
std::span<const ChatTemplateFamily> ChatTemplateFamilies();

// A template that came with a model. "default" is the one for plain chats.
struct NamedChatTemplate {
  std::string name;
  std::string jinja;
};
inline constexpr size_t kMaxChatTemplates = 64;  // of one model
// kBadInput where one of that name is among them, or they are too many. `source` names them.
Status AddChatTemplate(NamedChatTemplate added, std::string_view source,
                       std::vector<NamedChatTemplate>& templates);

// `choice`: the name of a family, else of one of the model's own templates, else a file; empty for
// the model's "default". `model` names the model in errors. kBadInput where there is no such
// template, or where it uses what is not supported (named, with its line).
Result<ChatTemplate> ChooseChatTemplate(const std::string& choice,
                                        std::span<const NamedChatTemplate> of_model,
                                        std::string_view model);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_CHAT_TEMPLATE_FAMILIES_H_
