#include "src/tokenizer/chat_prompt.h"

#include <string>

namespace nibble {

Result<std::vector<TokenId>> ChatPromptTokens(const ChatTemplate& chat_template,
                                              const Tokenizer& tokenizer,
                                              std::span<const ChatMessage> messages,
                                              const std::tm& now) {
  const auto text = [&](std::optional<TokenId> token) -> std::optional<std::string> {
    if (!token) return std::nullopt;
    return std::string(tokenizer.TokenText(*token));
  };
  const ChatTemplateOptions options{
      .bos_token = text(tokenizer.bos()), .eos_token = text(tokenizer.eos()), .now = now};
  NIBBLE_ASSIGN_OR_RETURN(const std::string prompt, chat_template.Render(messages, options));
  // The template writes the special tokens itself.
  return tokenizer.Encode(prompt, SpecialTokens::kOmit);
}

}  // namespace nibble
