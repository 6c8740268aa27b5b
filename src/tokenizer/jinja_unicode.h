// Strings as Python sees them: sequences of code points, kept in UTF-8. Every function wants valid
// UTF-8 (IsValidUtf8 in utf8.h) and gives valid UTF-8.
#ifndef NIBBLE_TOKENIZER_JINJA_UNICODE_H_
#define NIBBLE_TOKENIZER_JINJA_UNICODE_H_

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace nibble::jinja {

size_t CountCodePoints(std::string_view text);

// The code point that starts at byte `*offset`, which is moved behind it.
char32_t NextCodePoint(std::string_view text, size_t* offset);
std::vector<char32_t> CodePoints(std::string_view text);

// The byte at which code point `index` starts; text.size() where there are not so many.
size_t ByteOffset(std::string_view text, size_t index);

// The first byte of the first occurrence at or behind byte `from`; npos where there is none. Takes
// time linear in the lengths, whatever the texts.
size_t FindText(std::string_view text, std::string_view wanted, size_t from);

bool IsSpace(char32_t code_point);      // str.isspace
bool IsPrintable(char32_t code_point);  // str.isprintable
bool IsCased(char32_t code_point);
bool IsLineBreak(char32_t code_point);  // where str.splitlines splits

enum class Side { kBoth, kLeft, kRight };
std::string_view StripSpace(std::string_view text, Side side);
std::string_view StripAnyOf(std::string_view text, std::string_view characters, Side side);

// str.upper, lower, title, capitalize: the full mappings (ß becomes SS), not those by language.
std::string Upper(std::string_view text);
std::string Lower(std::string_view text);
std::string Title(std::string_view text);
std::string Capitalize(std::string_view text);

}  // namespace nibble::jinja

#endif  // NIBBLE_TOKENIZER_JINJA_UNICODE_H_
