// What a tokenizer does to a text before it splits it.
#ifndef NIBBLE_TOKENIZER_NORMALIZER_H_
#define NIBBLE_TOKENIZER_NORMALIZER_H_

#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace nibble {

// Puts `text` before a text that is not empty.
struct PrependStep {
  std::string text;
};
// Replaces every `from`, which is not empty.
struct ReplaceStep {
  std::string from;
  std::string to;
};
// Unicode normalization form C.
struct NfcStep {};

using NormalizerStep = std::variant<PrependStep, ReplaceStep, NfcStep>;

// In order; texts are valid UTF-8.
std::string Normalize(const std::vector<NormalizerStep>& steps, std::string_view text);

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to);

// Linear but for a sort of each run of combining marks.
std::string ToNfc(std::string_view text);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_NORMALIZER_H_
