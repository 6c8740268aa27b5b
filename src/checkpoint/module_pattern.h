// A regular expression over module names, as quantization configs have them: Python's, matched from
// the name's beginning (re.match). `^` at the beginning and `$` at the end may be written; see
// tokenizer/regex.h for what else is accepted.
#ifndef NIBBLE_CHECKPOINT_MODULE_PATTERN_H_
#define NIBBLE_CHECKPOINT_MODULE_PATTERN_H_

#include <optional>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/tokenizer/regex.h"

namespace nibble {

class ModulePattern {
 public:
  // `source` names the pattern in errors.
  static Result<ModulePattern> Compile(std::string_view pattern, std::string_view source);

  const std::string& text() const { return text_; }  // as it was given
  bool Matches(std::string_view module_name) const { return !regex_.FindAll(module_name).empty(); }

  friend bool operator==(const ModulePattern& a, const ModulePattern& b) {
    return a.text_ == b.text_;
  }

 private:
  ModulePattern(std::string text, Regex regex) : text_(std::move(text)), regex_(std::move(regex)) {}
  std::string text_;
  Regex regex_;
};

// A pattern that matches this name, from its beginning to its end, and nothing else; none for what
// is no module's name.
std::optional<std::string> PatternOfName(std::string_view name);

}  // namespace nibble

#endif  // NIBBLE_CHECKPOINT_MODULE_PATTERN_H_
