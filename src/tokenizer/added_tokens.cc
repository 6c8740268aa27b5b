#include "src/tokenizer/added_tokens.h"

#include <utf8proc.h>

#include <algorithm>

#include "src/tokenizer/utf8.h"

namespace nibble {
namespace {

// Unicode's White_Space.
bool IsWhiteSpace(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == ' ' || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

// `\w` of Unicode's technical standard 18: letters and what else is alphabetic (letter numbers and
// the circled, squared letters), marks, decimal digits, connectors and joiners.
bool IsWord(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
             (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
             (c >= 0x1F170 && c <= 0x1F189);
  }
}

size_t LastCharacter(std::string_view text) {
  size_t at = text.size() - 1;
  while ((static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool EndsWithWord(std::string_view text) {
  return !text.empty() && IsWord(NextUtf8(text.substr(LastCharacter(text))).code_point);
}

bool StartsWithWord(std::string_view text) {
  return !text.empty() && IsWord(NextUtf8(text).code_point);
}

size_t WithoutTrailingSpace(std::string_view text) {
  while (!text.empty()) {
    const size_t last = LastCharacter(text);
    if (!IsWhiteSpace(NextUtf8(text.substr(last)).code_point)) break;
    text = text.substr(0, last);
  }
  return text.size();
}

size_t LeadingSpace(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const Utf8Step step = NextUtf8(text.substr(at));
    if (!IsWhiteSpace(step.code_point)) break;
    at += step.bytes;
  }
  return at;
}

uint64_t Edge(uint32_t node, char c) { return uint64_t{node} << 8 | static_cast<unsigned char>(c); }

}  // namespace

void PrefixTrie::Add(std::string_view text, size_t value) {
  starts_[static_cast<unsigned char>(text[0])] = true;
  uint32_t node = 0;
  for (const char c : text) {
    const auto next_node = static_cast<uint32_t>(children_.size() + 1);
    node = children_.try_emplace(Edge(node, c), next_node).first->second;
  }
  values_[node] = value;
}

std::optional<PrefixTrie::Match> PrefixTrie::Longest(std::string_view text) const {
  if (text.empty() || !starts_[static_cast<unsigned char>(text[0])]) return std::nullopt;
  std::optional<Match> longest;
  uint32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto child = children_.find(Edge(node, text[i]));
    if (child == children_.end()) break;
    node = child->second;
    if (const auto value = values_.find(node); value != values_.end()) {
      longest = Match{i + 1, value->second};
    }
  }
  return longest;
}

void AddedTokenSplitter::Add(const AddedToken& token, std::string_view pattern) {
  trie_.Add(pattern, tokens_.size());
  tokens_.push_back(token);
}

std::vector<Segment> AddedTokenSplitter::Split(std::string_view text,
                                               ParseSpecial parse_special) const {
  std::vector<Segment> segments;
  size_t done = 0;  // what lies before belongs to a segment already
  if (!trie_.empty()) {
    for (size_t at = 0; at < text.size();) {
      const std::optional<PrefixTrie::Match> match = trie_.Longest(text.substr(at));
      if (!match) {
        ++at;
        continue;
      }
      size_t begin = at;
      size_t end = at + match->bytes;
      at = end;
      const AddedToken& token = tokens_[match->value];
      // A match that is passed over still hides others that overlap it.
      if (token.special && parse_special == ParseSpecial::kNo) continue;
      if (token.single_word &&
          (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) {
        continue;
      }
      if (token.strip_left) begin = std::max(WithoutTrailingSpace(text.substr(0, begin)), done);
      if (token.strip_right) end += LeadingSpace(text.substr(end));
      if (done < begin) segments.push_back({done, begin, std::nullopt});
      segments.push_back({begin, end, token.id});
      done = end;
    }
  }
  if (done < text.size()) segments.push_back({done, text.size(), std::nullopt});
  return segments;
}

}  // namespace nibble
