#include "src/checkpoint/module_pattern.h"

namespace nibble {

Result<ModulePattern> ModulePattern::Compile(std::string_view pattern, std::string_view source) {
  std::string_view body = pattern;
  if (body.starts_with('^')) body.remove_prefix(1);
  // The end is written as a lookahead, as the beginning is as a lookbehind. An escaped dollar
  // stays, and Regex refuses what it then finds.
  const bool to_the_end = body.ends_with('$') && !body.ends_with("\\$");
  if (to_the_end) body.remove_suffix(1);
  constexpr std::string_view kAny = "[\\s\\S]";
  NIBBLE_ASSIGN_OR_RETURN(Regex regex,
                          Regex::Compile(fmt::format("(?<!{})(?:{}){}", kAny, body,
                                                     to_the_end ? fmt::format("(?!{})", kAny) : ""),
                                         source));
  return ModulePattern(std::string(pattern), std::move(regex));
}

std::optional<std::string> PatternOfName(std::string_view name) {
  constexpr size_t kMaxNameBytes = 1024;  // dots are escaped: a pattern has at most twice as many
  if (name.empty() || name.size() > kMaxNameBytes) return std::nullopt;
  std::string pattern = "^";
  for (const char c : name) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    if (!plain && c != '.') return std::nullopt;
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return pattern + "$";
}

}  // namespace nibble
