// The regular expressions of tokenizer.json, which are written for Oniguruma (Ruby syntax), matched
// by PCRE2. Only what means the same in both is accepted; the rest is refused by name. `\s` becomes
// \p{White_Space}: PCRE2's own also matches U+180E.
//
// A pattern is untrusted: its length, its nesting and the work of one match are bounded.
#ifndef NIBBLE_TOKENIZER_REGEX_H_
#define NIBBLE_TOKENIZER_REGEX_H_

#include <cstddef>
#include <memory>
#include <string_view>
#include <vector>

#include "src/base/error.h"

struct pcre2_real_code_8;

namespace nibble {

inline constexpr size_t kMaxPatternBytes = 4096;

// Bytes [begin, end) of a text.
struct TextRange {
  size_t begin;
  size_t end;
  size_t size() const { return end - begin; }
};

// Immutable, so it may be shared between threads.
class Regex {
 public:
  // `source` names the pattern in errors. A pattern that can match nothing at all is refused.
  static Result<Regex> Compile(std::string_view pattern, std::string_view source);

  // The matches in `text`, which must be valid UTF-8, from left to right. A match that would take
  // more work than the bound ends the search: what follows counts as unmatched.
  std::vector<TextRange> FindAll(std::string_view text) const;

 private:
  explicit Regex(std::shared_ptr<const pcre2_real_code_8> code) : code_(std::move(code)) {}
  std::shared_ptr<const pcre2_real_code_8> code_;
};

}  // namespace nibble

#endif  // NIBBLE_TOKENIZER_REGEX_H_
