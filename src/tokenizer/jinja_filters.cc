// Filters on text and numbers, and the way to all filters.
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "src/tokenizer/jinja_builtins.h"
#include "src/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

Result<Value> Trim(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("trim", {"chars"}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ToText(context.budget, input));
  if (!bound[0] || bound[0]->Is(Kind::kNone)) {
    return MakeString(context.budget, std::string(StripSpace(text, Side::kBoth)));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view set, TextArgument("trim", *bound[0]));
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(set.size() * 8));
  return MakeString(context.budget, std::string(StripAnyOf(text, set, Side::kBoth)));
}

// jinja2's own: words start behind white space, hyphens and opening brackets.
std::string TitleOfWords(std::string_view text) {
  const auto parts_words = [](char32_t c) {
    return IsSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  };
  std::string result;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const bool separator = parts_words(NextCodePoint(text, &at));
    const size_t second = at;
    while (at < text.size()) {
      size_t next = at;
      if (parts_words(NextCodePoint(text, &next)) != separator) break;
      at = next;
    }
    result += Upper(text.substr(begin, second - begin));
    result += Lower(text.substr(second, at - second));
  }
  return result;
}

template <std::string (*kMap)(std::string_view)>
Result<Value> MapText(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("upper, lower, title, capitalize", {}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ToText(context.budget, input));
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(text.size() * 6));
  return MakeString(context.budget, kMap(text));
}

Result<Value> ToString(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("string", {}, 0));
  if (input.Is(Kind::kString)) return input;
  NIBBLE_ASSIGN_OR_RETURN(std::string text, ToText(context.budget, input));
  return MakeString(context.budget, std::move(text));
}

Result<Value> Replace(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("replace", {"old", "new", "count"}, 2));
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ToText(context.budget, input));
  NIBBLE_ASSIGN_OR_RETURN(const std::string from, ToText(context.budget, *bound[0]));
  NIBBLE_ASSIGN_OR_RETURN(const std::string to, ToText(context.budget, *bound[1]));
  int64_t count = -1;
  if (bound[2] && !bound[2]->Is(Kind::kNone)) {
    NIBBLE_ASSIGN_OR_RETURN(count, IntegerArgument("replace", *bound[2]));
  }
  return ReplaceText(context.budget, text, from, to, count);
}

Result<Value> Default(Context&, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound,
                          arguments.Bind("default", {"default_value", "boolean"}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const bool boolean, TruthArgument(bound[1]));
  bool replaced = input.Is(Kind::kUndefined);
  if (!replaced && boolean) {
    NIBBLE_ASSIGN_OR_RETURN(const bool truth, IsTrue(input));
    replaced = !truth;
  }
  if (!replaced) return input;
  return bound[0] ? *bound[0] : Value::String("");
}

Result<Value> ToJsonFilter(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(
      const auto bound,
      arguments.Bind("tojson", {"ensure_ascii", "indent", "separators", "sort_keys"}, 0));
  JsonStyle style;
  NIBBLE_ASSIGN_OR_RETURN(const bool ascii, TruthArgument(bound[0]));
  NIBBLE_ASSIGN_OR_RETURN(const bool sorted, TruthArgument(bound[3]));
  if (ascii) style.ascii = JsonStyle::Ascii::kYes;
  if (sorted) style.keys = JsonStyle::Keys::kSorted;
  if (bound[1] && bound[1]->Is(Kind::kString)) {
    style.indent = bound[1]->string();
  } else if (bound[1] && !bound[1]->Is(Kind::kNone)) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t width, IntegerArgument("tojson", *bound[1]));
    if (width > 1000) return BadInput("tojson: an indent of {} is not supported", width);
    style.indent = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  if (style.indent) style.item_separator = ",";
  if (bound[2] && !bound[2]->Is(Kind::kNone)) {
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> parts, Items(context.budget, *bound[2]));
    if (parts.size() != 2) return BadInput("tojson: want two separators");
    NIBBLE_ASSIGN_OR_RETURN(style.item_separator, TextArgument("tojson", parts[0]));
    NIBBLE_ASSIGN_OR_RETURN(style.key_separator, TextArgument("tojson", parts[1]));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::string text, ToJson(context.budget, input, style));
  return MakeString(context.budget, std::move(text));
}

Result<Value> Indent(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound,
                          arguments.Bind("indent", {"width", "first", "blank"}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const std::string_view text, TextArgument("indent", input));
  std::string indention(4, ' ');
  if (bound[0] && bound[0]->Is(Kind::kString)) {
    indention = bound[0]->string();
  } else if (bound[0]) {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t width, IntegerArgument("indent", *bound[0]));
    if (width > 1000) return BadInput("indent: a width of {} is not supported", width);
    indention = std::string(static_cast<size_t>(std::max<int64_t>(width, 0)), ' ');
  }
  NIBBLE_ASSIGN_OR_RETURN(const bool first, TruthArgument(bound[1]));
  NIBBLE_ASSIGN_OR_RETURN(const bool blank, TruthArgument(bound[2]));
  const std::string ended = std::string(text) + "\n";
  NIBBLE_ASSIGN_OR_RETURN(const auto lines, SplitLines(context.budget, ended, LineEnds::kDrop));
  std::string result;
  for (size_t i = 0; i < lines.size(); ++i) {
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(lines[i].size() + indention.size() + 1));
    if (i > 0) result += "\n";
    if (i > 0 ? blank || !lines[i].empty() : first) result += indention;
    result += lines[i];
  }
  return MakeString(context.budget, std::move(result));
}

// The digits of a number as Python reads them: single underscores may part them. nullopt where the
// text is none of that.
std::optional<std::string> WithoutUnderscores(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      result.push_back(text[i]);
      continue;
    }
    const auto digit_at = [&](size_t k) {
      return k < text.size() && text[k] >= '0' && text[k] <= '9';
    };
    if (i == 0 || !digit_at(i - 1) || !digit_at(i + 1)) return std::nullopt;
  }
  return result;
}

// int(text): nullopt where Python raises ValueError.
Result<std::optional<int64_t>> ParseInteger(std::string_view text) {
  const std::optional<std::string> digits = WithoutUnderscores(StripSpace(text, Side::kBoth));
  if (!digits) return std::optional<int64_t>();
  std::string_view rest = *digits;
  if (rest.starts_with('+')) rest.remove_prefix(1);
  if (rest.starts_with('-') && digits->starts_with('+')) return std::optional<int64_t>();
  int64_t value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (error == std::errc::invalid_argument || end != rest.data() + rest.size()) {
    return std::optional<int64_t>();
  }
  if (error == std::errc::result_out_of_range) return BadInput("int: beyond 64 bits");
  return std::optional<int64_t>(value);
}

// float(text): nullopt where Python raises ValueError.
std::optional<double> ParseFloat(std::string_view text) {
  std::optional<std::string> digits = WithoutUnderscores(StripSpace(text, Side::kBoth));
  if (!digits) return std::nullopt;
  std::transform(digits->begin(), digits->end(), digits->begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  std::string_view rest = *digits;
  const bool negative = rest.starts_with('-');
  if (negative || rest.starts_with('+')) rest.remove_prefix(1);
  if (rest == "nan") return std::nan("");
  if (rest == "inf" || rest == "infinity") return negative ? -HUGE_VAL : HUGE_VAL;
  if (rest.empty() || rest.find_first_not_of("0123456789.e+-") != std::string_view::npos ||
      rest[0] == '+' || rest[0] == '-') {
    return std::nullopt;
  }
  char* end = nullptr;
  const double value = std::strtod(digits->c_str(), &end);
  if (end != digits->c_str() + digits->size()) return std::nullopt;
  return value;
}

Result<Value> Truncated(double value, const Value& fallback) {
  if (std::isnan(value)) return fallback;
  if (!(value > -0x1p63 && value < 0x1p63)) return BadInput("int: beyond 64 bits");
  return Value(static_cast<int64_t>(value));
}

Result<Value> ToInteger(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("int", {"default"}, 0));
  const Value fallback = bound[0].value_or(Value(int64_t{0}));
  if (input.Is(Kind::kUndefined)) return FailUndefined(input);
  if (input.Is(Kind::kFloat)) return Truncated(input.floating(), fallback);
  if (input.IsNumber()) return Value(input.AsInteger());
  if (!input.Is(Kind::kString)) return fallback;
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(input.string().size() * 2));
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<int64_t> integer, ParseInteger(input.string()));
  if (integer) return Value(*integer);
  const std::optional<double> number = ParseFloat(input.string());
  if (!number || std::isinf(*number)) return fallback;
  return Truncated(*number, fallback);
}

Result<Value> ToFloat(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("float", {"default"}, 0));
  const Value fallback = bound[0].value_or(Value(0.0));
  if (input.Is(Kind::kUndefined)) return FailUndefined(input);
  if (input.IsNumber()) return Value(input.AsDouble());
  if (!input.Is(Kind::kString)) return fallback;
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(input.string().size() * 2));
  const std::optional<double> number = ParseFloat(input.string());
  return number ? Value(*number) : fallback;
}

Result<Value> Absolute(Context&, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("abs", {}, 0));
  if (input.Is(Kind::kFloat)) return Value(std::abs(input.floating()));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t value, IntegerArgument("abs", input));
  return value < 0 ? Negate(Value(value)) : Value(value);
}

struct Entry {
  std::string_view name;
  Filter filter;
};
constexpr Entry kFilters[] = {
    {"trim", Trim},
    {"upper", MapText<Upper>},
    {"lower", MapText<Lower>},
    {"title", MapText<TitleOfWords>},
    {"capitalize", MapText<Capitalize>},
    {"string", ToString},
    {"replace", Replace},
    {"default", Default},
    {"d", Default},
    {"tojson", ToJsonFilter},
    {"indent", Indent},
    {"int", ToInteger},
    {"float", ToFloat},
    {"abs", Absolute},
};

Filter FindFilter(std::string_view name) {
  for (const Entry& entry : kFilters) {
    if (entry.name == name) return entry.filter;
  }
  return FindSequenceFilter(name);
}

}  // namespace

bool IsFilterName(std::string_view name) { return FindFilter(name) != nullptr; }

Result<Value> ApplyFilter(Context& context, std::string_view name, const Value& input,
                          const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(context.budget.Step());
  const Filter filter = FindFilter(name);
  if (filter == nullptr) return BadInput("the filter '{}' is not supported", name);
  return filter(context, input, arguments);
}

}  // namespace nibble::jinja
