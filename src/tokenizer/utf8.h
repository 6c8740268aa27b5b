// UTF-8 as tokenizers need it: one character at a time, and repaired where it is malformed.
#ifndef NIBBLE_TOKENIZER_UTF8_H_
#define NIBBLE_TOKENIZER_UTF8_H_

#include <cstddef>
#include <string>
#include <string_view>

namespace nibble {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

enum class Utf8Kind {
  kCharacter,   // well-formed
  kIncomplete,  // the text ends inside what could still become a character
  kMalformed    // a maximal subpart of an ill-formed sequence
};
struct Utf8Step {
  Utf8Kind kind;
  size_t bytes;         // at least 1
  char32_t code_point;  // of a kCharacter
};

// What `text`, which must not be empty, starts with. Overlong forms, surrogates and values beyond
// U+10FFFF are malformed. Source: Unicode 15, tables 3-7 and 3-8.
Utf8Step NextUtf8(std::string_view text);

bool IsValidUtf8(std::string_view text);

// Each maximal subpart of an ill-formed sequence becomes one U+FFFD, an incomplete end too.
std::string ReplaceMalformedUtf8(std::string_view text);

// Of a text that is valid UTF-8: bytes of the character that starts with `lead`.
constexpr size_t Utf8Length(char lead) {
  const auto byte = static_cast<unsigned char>(lead);
  return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}
static_assert(Utf8Length('\xE2') == 3);

void AppendUtf8(char32_t code_point, std::string& text);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_UTF8_H_
