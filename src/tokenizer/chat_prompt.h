// A conversation as the tokens of a prompt.
#ifndef NIBBLE_TOKENIZER_CHAT_PROMPT_H_
#define NIBBLE_TOKENIZER_CHAT_PROMPT_H_

#include <span>
#include <vector>

#include "src/tokenizer/chat_template.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

// The messages as the template arranges them at the local time `now`, up to where the model's
// answer begins. Errors are the template's.
Result<std::vector<TokenId>> ChatPromptTokens(const ChatTemplate& chat_template,
                                              const Tokenizer& tokenizer,
                                              std::span<const ChatMessage> messages,
                                              const std::tm& now);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_CHAT_PROMPT_H_
