#include <algorithm>

#include "src/base/checked.h"
#include "src/tokenizer/jinja_builtins.h"
#include "src/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

using Bound = std::vector<std::optional<Value>>;
using Pieces = std::vector<std::string_view>;

// The value of an argument that may be absent or none.
std::optional<Value> Given(const std::optional<Value>& value) {
  return value && !value->Is(Kind::kNone) ? value : std::nullopt;
}

Result<Value> MakeStrings(Context& context, const Result<Pieces>& split) {
  if (!split) return tl::unexpected<Error>(split.error());
  const Pieces& pieces = *split;
  std::vector<Value> items;
  items.reserve(pieces.size());
  for (const std::string_view piece : pieces) {
    NIBBLE_ASSIGN_OR_RETURN(Value text, MakeString(context.budget, std::string(piece)));
    items.push_back(std::move(text));
  }
  return MakeSequence(context.budget, Sequence::Type::kList, std::move(items));
}

Status Push(Budget& budget, std::string_view piece, Pieces* pieces) {
  NIBBLE_RETURN_IF_ERROR(budget.Bytes(sizeof(piece)));
  pieces->push_back(piece);
  return {};
}

// Splits at runs of white space; at most `most` times where that is not below 0.
Result<Pieces> SplitAtSpace(Budget& budget, std::string_view text, int64_t most) {
  Pieces pieces;
  for (text = StripSpace(text, Side::kLeft); !text.empty(); text = StripSpace(text, Side::kLeft)) {
    if (most >= 0 && static_cast<int64_t>(pieces.size()) >= most) {
      NIBBLE_RETURN_IF_ERROR(Push(budget, text, &pieces));
      break;
    }
    size_t end = 0;
    while (end < text.size()) {
      size_t next = end;
      if (IsSpace(NextCodePoint(text, &next))) break;
      end = next;
    }
    NIBBLE_RETURN_IF_ERROR(Push(budget, text.substr(0, end), &pieces));
    text.remove_prefix(end);
  }
  return pieces;
}

Result<Pieces> SplitAtSpaceFromRight(Budget& budget, std::string_view text, int64_t most) {
  Pieces pieces;
  for (text = StripSpace(text, Side::kRight); !text.empty();
       text = StripSpace(text, Side::kRight)) {
    if (most >= 0 && static_cast<int64_t>(pieces.size()) >= most) {
      NIBBLE_RETURN_IF_ERROR(Push(budget, text, &pieces));
      break;
    }
    size_t begin = text.size();
    while (begin > 0) {
      size_t start = begin - 1;
      while (start > 0 && (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) --start;
      size_t end = start;
      if (IsSpace(NextCodePoint(text, &end))) break;
      begin = start;
    }
    NIBBLE_RETURN_IF_ERROR(Push(budget, text.substr(begin), &pieces));
    text = text.substr(0, begin);
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

Result<Pieces> SplitAt(Budget& budget, std::string_view text, std::string_view separator,
                       int64_t most) {
  Pieces pieces;
  size_t begin = 0;
  while (most < 0 || static_cast<int64_t>(pieces.size()) < most) {
    const size_t end = FindText(text, separator, begin);
    if (end == std::string_view::npos) break;
    NIBBLE_RETURN_IF_ERROR(Push(budget, text.substr(begin, end - begin), &pieces));
    begin = end + separator.size();
  }
  NIBBLE_RETURN_IF_ERROR(Push(budget, text.substr(begin), &pieces));
  return pieces;
}

// Searches the reversed bytes, so that the time stays linear.
Result<Pieces> SplitAtFromRight(Budget& budget, std::string_view text, std::string_view separator,
                                int64_t most) {
  const std::string reversed(text.rbegin(), text.rend());
  const std::string separator_reversed(separator.rbegin(), separator.rend());
  Pieces pieces;
  NIBBLE_ASSIGN_OR_RETURN(const Pieces found, SplitAt(budget, reversed, separator_reversed, most));
  for (const std::string_view piece : found) {
    const auto start = static_cast<size_t>(piece.data() - reversed.data());
    NIBBLE_RETURN_IF_ERROR(
        Push(budget, text.substr(text.size() - start - piece.size(), piece.size()), &pieces));
  }
  std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

enum class From { kLeft, kRight };

Result<Value> Split(Context& context, std::string_view self, const Arguments& arguments,
                    From from) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, arguments.Bind("split", {"sep", "maxsplit"}, 0));
  int64_t most = -1;
  if (bound[1]) {
    NIBBLE_ASSIGN_OR_RETURN(most, IntegerArgument("split", *bound[1]));
  }
  const std::optional<Value> separator = Given(bound[0]);
  if (!separator) {
    return MakeStrings(context, from == From::kLeft
                                    ? SplitAtSpace(context.budget, self, most)
                                    : SplitAtSpaceFromRight(context.budget, self, most));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view text, TextArgument("split", *separator));
  if (text.empty()) return BadInput("split: the separator is empty");
  return MakeStrings(context, from == From::kLeft
                                  ? SplitAt(context.budget, self, text, most)
                                  : SplitAtFromRight(context.budget, self, text, most));
}

Result<Value> StripMethod(Context& context, std::string_view self, const Arguments& arguments,
                          Side side) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, arguments.Bind("strip", {""}, 0));
  const std::optional<Value> characters = Given(bound[0]);
  if (!characters) return MakeString(context.budget, std::string(StripSpace(self, side)));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view set, TextArgument("strip", *characters));
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(set.size() * 8));
  return MakeString(context.budget, std::string(StripAnyOf(self, set, side)));
}

enum class End { kStart, kEnd };

bool HasAffix(std::string_view self, std::string_view affix, End end) {
  return end == End::kStart ? self.starts_with(affix) : self.ends_with(affix);
}

Result<Value> HasAffixMethod(Context& context, std::string_view self, const Arguments& arguments,
                             End end) {
  constexpr std::string_view kName = "startswith, endswith";
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, arguments.Bind(kName, {""}, 1));
  if (!bound[0]->Is(Kind::kSequence) || bound[0]->sequence().type != Sequence::Type::kTuple) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view affix, TextArgument(kName, *bound[0]));
    return Value(HasAffix(self, affix, end));
  }
  for (const Value& item : bound[0]->sequence().items) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view affix, TextArgument(kName, item));
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(std::min(affix.size(), self.size())));
    if (HasAffix(self, affix, end)) return Value(true);
  }
  return Value(false);
}

Result<Value> RemoveAffix(Context& context, std::string_view self, const Arguments& arguments,
                          End end) {
  constexpr std::string_view kName = "removeprefix, removesuffix";
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, arguments.Bind(kName, {""}, 1));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view affix, TextArgument(kName, *bound[0]));
  if (HasAffix(self, affix, end)) {
    self =
        end == End::kStart ? self.substr(affix.size()) : self.substr(0, self.size() - affix.size());
  }
  return MakeString(context.budget, std::string(self));
}

int64_t CountText(std::string_view text, std::string_view wanted) {
  if (wanted.empty()) return static_cast<int64_t>(CountCodePoints(text)) + 1;
  int64_t count = 0;
  for (size_t at = FindText(text, wanted, 0); at != std::string_view::npos;
       at = FindText(text, wanted, at + wanted.size())) {
    ++count;
  }
  return count;
}

Result<Value> Search(std::string_view self, std::string_view name, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, arguments.Bind(name, {""}, 1));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view wanted, TextArgument(name, *bound[0]));
  if (name == "count") return Value(CountText(self, wanted));
  const size_t at = FindText(self, wanted, 0);
  if (at != std::string_view::npos) {
    return Value(static_cast<int64_t>(CountCodePoints(self.substr(0, at))));
  }
  if (name == "index") return BadInput("index: the text is not in the string");
  return Value(int64_t{-1});
}

Result<Value> Join(Context& context, std::string_view self, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, arguments.Bind("join", {""}, 1));
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(context.budget, *bound[0]));
  std::string result;
  for (size_t i = 0; i < items.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view item, TextArgument("join", items[i]));
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(self.size() + item.size()));
    if (i > 0) result += self;
    result += item;
  }
  return MakeString(context.budget, std::move(result));
}

Result<Value> SplitLinesMethod(Context& context, std::string_view self,
                               const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, arguments.Bind("splitlines", {"keepends"}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const bool keep, TruthArgument(bound[0]));
  return MakeStrings(context,
                     SplitLines(context.budget, self, keep ? LineEnds::kKeep : LineEnds::kDrop));
}

Result<Value> ReplaceMethod(Context& context, std::string_view self, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const Bound bound, arguments.Bind("replace", {"", "", ""}, 2));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view from, TextArgument("replace", *bound[0]));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view to, TextArgument("replace", *bound[1]));
  int64_t count = -1;
  if (bound[2]) {
    NIBBLE_ASSIGN_OR_RETURN(count, IntegerArgument("replace", *bound[2]));
  }
  return ReplaceText(context.budget, self, from, to, count);
}

bool IsAllSpace(std::string_view text) {
  return !text.empty() && StripSpace(text, Side::kLeft).empty();
}

}  // namespace

Result<Value> ReplaceText(Budget& budget, std::string_view text, std::string_view from,
                          std::string_view to, int64_t count) {
  NIBBLE_RETURN_IF_ERROR(budget.Bytes(2 * text.size()));
  const int64_t found = CountText(text, from);
  const auto times = static_cast<uint64_t>(count < 0 ? found : std::min(found, count));
  const auto added = CheckedMul<uint64_t>(times, to.size());
  NIBBLE_RETURN_IF_ERROR(budget.Bytes(added.value_or(UINT64_MAX)));
  std::string result;
  size_t at = 0;
  for (uint64_t i = 0; i < times; ++i) {
    if (from.empty()) {  // before each character, and at the end
      result += to;
      const size_t begin = at;
      if (at < text.size()) NextCodePoint(text, &at);
      result += text.substr(begin, at - begin);
    } else {
      const size_t next = FindText(text, from, at);
      result += text.substr(at, next - at);
      result += to;
      at = next + from.size();
    }
  }
  result += text.substr(at);
  return MakeString(budget, std::move(result));
}

Result<std::vector<std::string_view>> SplitLines(Budget& budget, std::string_view text,
                                                 LineEnds line_ends) {
  Pieces lines;
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t end = at;
    const char32_t c = NextCodePoint(text, &at);
    if (!IsLineBreak(c)) continue;
    if (c == '\r' && at < text.size() && text[at] == '\n') ++at;
    NIBBLE_RETURN_IF_ERROR(Push(
        budget, text.substr(begin, (line_ends == LineEnds::kKeep ? at : end) - begin), &lines));
    begin = at;
  }
  if (begin < text.size()) NIBBLE_RETURN_IF_ERROR(Push(budget, text.substr(begin), &lines));
  return lines;
}

Result<Value> CallStringMethod(Context& context, const std::string& self, std::string_view name,
                               const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(self.size()));
  if (name == "strip") return StripMethod(context, self, arguments, Side::kBoth);
  if (name == "lstrip") return StripMethod(context, self, arguments, Side::kLeft);
  if (name == "rstrip") return StripMethod(context, self, arguments, Side::kRight);
  if (name == "split") return Split(context, self, arguments, From::kLeft);
  if (name == "rsplit") return Split(context, self, arguments, From::kRight);
  if (name == "splitlines") return SplitLinesMethod(context, self, arguments);
  if (name == "startswith") return HasAffixMethod(context, self, arguments, End::kStart);
  if (name == "endswith") return HasAffixMethod(context, self, arguments, End::kEnd);
  if (name == "removeprefix") return RemoveAffix(context, self, arguments, End::kStart);
  if (name == "removesuffix") return RemoveAffix(context, self, arguments, End::kEnd);
  if (name == "replace") return ReplaceMethod(context, self, arguments);
  if (name == "join") return Join(context, self, arguments);
  if (name == "find" || name == "index" || name == "count") return Search(self, name, arguments);

  NIBBLE_RETURN_IF_ERROR(arguments.Bind(name, {}, 0));
  if (name == "isspace") return Value(IsAllSpace(self));
  // Decoded text and what the mappings add to it.
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(self.size() * 6));
  if (name == "upper") return MakeString(context.budget, Upper(self));
  if (name == "lower") return MakeString(context.budget, Lower(self));
  if (name == "title") return MakeString(context.budget, Title(self));
  if (name == "capitalize") return MakeString(context.budget, Capitalize(self));
  return BadInput("the method '{}' is not supported", name);
}

}  // namespace nibble::jinja
