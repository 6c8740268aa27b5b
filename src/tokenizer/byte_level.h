// GPT-2's spelling of bytes as printable characters, in which byte-level vocabularies are written:
// "Ġ" is a space.
#ifndef NIBBLE_TOKENIZER_BYTE_LEVEL_H_
#define NIBBLE_TOKENIZER_BYTE_LEVEL_H_

#include <optional>
#include <string>
#include <string_view>

namespace nibble {

std::string BytesToPrintable(std::string_view bytes);

// Nothing where a character does not stand for a byte.
std::optional<std::string> PrintableToBytes(std::string_view printable);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_BYTE_LEVEL_H_
