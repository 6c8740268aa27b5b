// How tokens become text. The references are `tokenizers`' decoders and SentencePiece's Decode.
#ifndef NIBBLE_TOKENIZER_DECODER_H_
#define NIBBLE_TOKENIZER_DECODER_H_

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "src/tokenizer/normalizer.h"
#include "src/tokenizer/pre_tokenizer.h"

namespace nibble {

// Tokens are bytes in GPT-2's printable spelling; together they are UTF-8 to be repaired.
struct ByteLevelDecoding {};

// Tokens are texts, joined after these steps.
struct TextDecoding {
  std::vector<ReplaceStep> replace;
  std::optional<MetaspaceStep> metaspace;  // replacements become spaces; the first token loses them
  // Tokens such as <0x0A> are bytes. A run of them that is not UTF-8 is one U+FFFD for each byte,
  // which is known only at the run's end.
  bool byte_fallback = false;
  std::string separator;   // between tokens
  std::string strip;       // a character removed from the start ...
  size_t strip_count = 0;  // ... up to so many times
};

// As SentencePiece: "▁" is a space, control tokens are nothing; of bytes that are not UTF-8 each is
// one U+FFFD.
struct SentencePieceDecoding {
  std::string unknown_surface;
  bool strips_leading_space = true;  // the one of the dummy prefix
  bool strips_every_leading_space = false;
};

using Decoding = std::variant<ByteLevelDecoding, TextDecoding, SentencePieceDecoding>;

enum class TokenKind { kText, kByte, kControl, kUnknown };

struct DecodedToken {
  std::string_view text;
  TokenKind kind;  // as the vocabulary says; TextDecoding looks at the text instead
};

// The state of one text being decoded. Push and Finish return whole characters.
class DecodingState {
 public:
  // `decoding` is borrowed.
  explicit DecodingState(const Decoding& decoding) : decoding_(&decoding) {}
  std::string Push(const DecodedToken& token);
  std::string Finish();  // what was held back; the state is as new after it

 private:
  std::string Push(const ByteLevelDecoding& how, const DecodedToken& token);
  std::string Push(const TextDecoding& how, const DecodedToken& token);
  std::string Push(const SentencePieceDecoding& how, const DecodedToken& token);
  std::string Strip(const TextDecoding& how, std::string text);

  const Decoding* decoding_;
  std::string bytes_;  // held back
  bool first_ = true;  // no token yet
  size_t stripped_ = 0;
  bool strip_done_ = false;
  bool started_ = false;            // some text came out
  bool prefix_space_seen_ = false;  // SentencePiece's
};

// The bytes that a token adds in the middle of a text.
std::string MiddleBytes(const Decoding& decoding, const DecodedToken& token);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_DECODER_H_
