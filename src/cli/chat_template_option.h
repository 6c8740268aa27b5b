// --chat-template, of the commands that render chats.
#ifndef NIBBLE_CLI_CHAT_TEMPLATE_OPTION_H_
#define NIBBLE_CLI_CHAT_TEMPLATE_OPTION_H_

#include <CLI/CLI.hpp>
#include <string>

#include "src/tokenizer/chat_template_families.h"

namespace nibble {

// `choice`, as ChooseChatTemplate takes it, must outlive the command.
inline void AddChatTemplateOption(CLI::App& command, std::string& choice) {
  std::string help = "for chats, instead of the model's own: ";
  for (const ChatTemplateFamily& family : ChatTemplateFamilies()) {
    help += std::string(family.name) + ", ";
  }
  command.add_option("--chat-template", choice,
                     help + "another of the model's by name, or a Jinja file");
}

}  // namespace nibble

#endif  // NIBBLE_CLI_CHAT_TEMPLATE_OPTION_H_
