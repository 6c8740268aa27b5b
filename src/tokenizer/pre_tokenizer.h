// How a tokenizer cuts a normalized text into the pieces within which tokens form. The reference is
// `tokenizers`' pre-tokenizers.
#ifndef NIBBLE_TOKENIZER_PRE_TOKENIZER_H_
#define NIBBLE_TOKENIZER_PRE_TOKENIZER_H_

#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "src/tokenizer/regex.h"

namespace nibble {

// What becomes of a delimiter between two pieces.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
enum class SplitAt { kMatches, kBetweenMatches };

struct SplitStep {
  Regex regex;
  SplitBehavior behavior;
  SplitAt at;  // whether the matches are the delimiters, or what lies between them
};
// Numbers (categories Nd, Nl, No) apart from the rest.
struct DigitsStep {
  SplitBehavior behavior;  // kIsolated: each digit, kContiguous: each run
};
enum class PrependScheme { kFirst, kNever, kAlways };
// Spaces become `replacement`, one of which is put before the text.
struct MetaspaceStep {
  std::string replacement;  // one character
  PrependScheme prepend;
  bool split;  // a new piece at each replacement
};
// A space before a piece that has none.
struct PrefixSpaceStep {};

using PreTokenizerStep = std::variant<SplitStep, DigitsStep, MetaspaceStep, PrefixSpaceStep>;

// Whether a segment starts where the whole text does.
enum class SegmentPlace { kStart, kLater };

struct PreTokenized {
  std::string text;
  std::vector<TextRange> pieces;  // of `text`, in order, none of them empty
};

// Of one segment, which is not empty.
PreTokenized PreTokenize(const std::vector<PreTokenizerStep>& steps, std::string text,
                         SegmentPlace place);

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_PRE_TOKENIZER_H_
