// A choice's tokens on their way to becoming text that a client may see: whole characters, up to
// the first stop string, of which nothing is sent, not even a beginning that more tokens may
// complete.
#ifndef NIBBLE_SERVE_CHOICE_TEXT_H_
#define NIBBLE_SERVE_CHOICE_TEXT_H_

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/serve/api_response.h"
#include "src/tokenizer/tokenizer.h"

namespace nibble {

enum class EchoPrompt { kNo, kYes };

// The bytes that a token's name in documents is made of; a special token's are its spelling.
std::string DisplayBytes(const Tokenizer& tokenizer, TokenId token);

class ChoiceText {
 public:
  // Borrows the tokenizer. The text continues the prompt's: it begins with the prompt itself where
  // that is echoed. Stop strings are UTF-8, not empty, and looked for in the new text alone.
  ChoiceText(const Tokenizer& tokenizer, std::vector<std::string> stops, EchoPrompt echo);

  enum class Progress { kGoesOn, kStopped };
  void PushPrompt(TokenId token);
  // kStopped once a stop string is complete; nothing may be pushed after it.
  Progress Push(TokenId token);
  // The score of the next token to be pushed, of the prompt or new; its offset is filled in here.
  void Score(ScoredToken score);
  // After the last token: what was held back becomes text. It may complete a stop string.
  Progress Finish();

  // The text, with its tokens' scores, that may be sent and was not taken yet.
  ChoicePart Take();

 private:
  Progress Append(std::string_view text);
  size_t HeldBack() const;

  std::vector<std::string> stops_;
  EchoPrompt echo_;
  StreamingDecoder decoder_;
  std::string text_;      // not taken
  size_t new_begin_ = 0;  // in text_, where what the model wrote begins
  int64_t taken_characters_ = 0;
  std::vector<ScoredToken> scores_;  // not taken
  int64_t generated_ = 0;            // tokens since the last Take
  bool ended_ = false;               // nothing is held back any more
};

}  // namespace nibble

#endif  // NIBBLE_SERVE_CHOICE_TEXT_H_
