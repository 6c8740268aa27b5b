// Filters on lists, and on what else can be iterated.
#include <algorithm>
#include <charconv>

#include "src/tokenizer/jinja_builtins.h"
#include "src/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

Result<Value> LengthFilter(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("length", {}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const int64_t length, Length(context.budget, input));
  return Value(length);
}

Result<Value> ToList(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("list", {}, 0));
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Items(context.budget, input));
  return MakeSequence(context.budget, Sequence::Type::kList, std::move(items));
}

Result<Value> First(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("first", {}, 0));
  const Value nothing = Value::UndefinedBecause("No first item, sequence was empty.");
  if (input.Is(Kind::kIterator)) {
    Iterator& iterator = *input.iterator();
    return iterator.next < iterator.items.size() ? iterator.items[iterator.next++] : nothing;
  }
  if (input.Is(Kind::kSequence)) {
    return input.sequence().items.empty() ? nothing : input.sequence().items.front();
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(context.budget, input));
  return items.empty() ? nothing : items.front();
}

Result<Value> Last(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("last", {}, 0));
  const Value nothing = Value::UndefinedBecause("No last item, sequence was empty.");
  if (input.Is(Kind::kIterator)) return BadInput("last: a generator has no last item");
  if (input.Is(Kind::kSequence)) {
    return input.sequence().items.empty() ? nothing : input.sequence().items.back();
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(context.budget, input));
  return items.empty() ? nothing : items.back();
}

Result<Value> ItemsFilter(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("items", {}, 0));
  std::vector<Value> pairs;
  if (!input.Is(Kind::kUndefined)) {
    if (!input.Is(Kind::kDict)) return BadInput("items: want a dict, got a {}", input.TypeName());
    for (const auto& [key, value] : input.dict().entries) {
      NIBBLE_ASSIGN_OR_RETURN(Value pair,
                              MakeSequence(context.budget, Sequence::Type::kTuple, {key, value}));
      pairs.push_back(std::move(pair));
    }
  }
  return MakeIterator(context.budget, std::move(pairs));
}

Result<Value> Reverse(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("reverse", {}, 0));
  if (input.Is(Kind::kString)) {
    return GetSlice(context, input, Value(), Value(), Value(int64_t{-1}));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Items(context.budget, input));
  std::reverse(items.begin(), items.end());
  if (input.Is(Kind::kIterator)) {
    return MakeSequence(context.budget, Sequence::Type::kList, std::move(items));
  }
  return MakeIterator(context.budget, std::move(items));
}

// "a.0.b", or an index.
struct Path {
  std::vector<Value> parts;

  static Result<Path> Of(Context& context, const Value& attribute) {
    Path path;
    if (!attribute.Is(Kind::kString)) {
      path.parts.push_back(attribute);
      return path;
    }
    std::string_view rest = attribute.string();
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(rest.size() * sizeof(Value)));
    while (true) {
      const size_t dot = rest.find('.');
      const std::string_view part = rest.substr(0, dot);
      int64_t index = 0;
      const bool digits =
          !part.empty() && part.find_first_not_of("0123456789") == std::string_view::npos;
      if (digits &&
          std::from_chars(part.data(), part.data() + part.size(), index).ec == std::errc()) {
        path.parts.emplace_back(index);
      } else {
        path.parts.push_back(Value::String(std::string(part)));
      }
      if (dot == std::string_view::npos) return path;
      rest.remove_prefix(dot + 1);
    }
  }

  // `fallback` takes the place of each part that is undefined.
  Result<Value> Get(Context& context, Value item, const std::optional<Value>& fallback) const {
    for (const Value& part : parts) {
      NIBBLE_ASSIGN_OR_RETURN(item, GetItem(context, item, part));
      if (item.Is(Kind::kUndefined) && fallback) item = *fallback;
    }
    return item;
  }
};

Result<Value> Join(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("join", {"d", "attribute"}, 0));
  std::string separator;
  if (bound[0]) {
    NIBBLE_ASSIGN_OR_RETURN(separator, ToText(context.budget, *bound[0]));
  }
  Path path;
  if (bound[1] && !bound[1]->Is(Kind::kNone)) {
    NIBBLE_ASSIGN_OR_RETURN(path, Path::Of(context, *bound[1]));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(context.budget, input));
  std::string result;
  for (size_t i = 0; i < items.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const Value item, path.Get(context, items[i], std::nullopt));
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, ToText(context.budget, item));
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(separator.size()));
    if (i > 0) result += separator;
    result += text;
  }
  return MakeString(context.budget, std::move(result));
}

// The arguments behind the first `count`.
Arguments Behind(const Arguments& arguments, size_t count) {
  return Arguments{
      {arguments.positional.begin() + static_cast<ptrdiff_t>(count), arguments.positional.end()},
      arguments.named};
}

Result<Value> Map(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const bool any, IsTrue(input));
  if (!any) return MakeIterator(context.budget, {});
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Items(context.budget, input));
  if (arguments.positional.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("map", {"attribute", "default"}, 1));
    NIBBLE_ASSIGN_OR_RETURN(const Path path, Path::Of(context, *bound[0]));
    const bool has_default = bound[1] && !bound[1]->Is(Kind::kNone);
    for (Value& item : items) {
      NIBBLE_ASSIGN_OR_RETURN(
          item, path.Get(context, std::move(item), has_default ? bound[1] : std::nullopt));
    }
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const std::string_view name,
                            TextArgument("map", arguments.positional[0]));
    const Arguments rest = Behind(arguments, 1);
    for (Value& item : items) {
      NIBBLE_ASSIGN_OR_RETURN(item, ApplyFilter(context, name, item, rest));
    }
  }
  return MakeIterator(context.budget, std::move(items));
}

enum class Keep { kPassing, kFailing };
enum class By { kItem, kAttribute };

template <Keep kKeep, By kBy>
Result<Value> Select(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const bool any, IsTrue(input));
  if (!any) return MakeIterator(context.budget, {});
  constexpr size_t kTestPosition = kBy == By::kAttribute ? 1 : 0;
  if (arguments.positional.size() < kTestPosition) {
    return BadInput("selectattr, rejectattr: the attribute is missing");
  }
  Path path;
  if constexpr (kBy == By::kAttribute) {
    NIBBLE_ASSIGN_OR_RETURN(path, Path::Of(context, arguments.positional[0]));
  }
  const bool has_test = arguments.positional.size() > kTestPosition;
  std::string_view test;
  Arguments rest;
  if (has_test) {
    NIBBLE_ASSIGN_OR_RETURN(test, TextArgument("select", arguments.positional[kTestPosition]));
    rest = Behind(arguments, kTestPosition + 1);
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Items(context.budget, input));
  std::vector<Value> kept;
  for (Value& item : items) {
    NIBBLE_ASSIGN_OR_RETURN(const Value tested, path.Get(context, item, std::nullopt));
    NIBBLE_ASSIGN_OR_RETURN(const bool passes,
                            has_test ? ApplyTest(context, test, tested, rest) : IsTrue(tested));
    if (passes == (kKeep == Keep::kPassing)) kept.push_back(std::move(item));
  }
  return MakeIterator(context.budget, std::move(kept));
}

// What sort, unique and dictsort compare by.
Result<Value> FoldCase(Context& context, const Value& value, bool case_sensitive) {
  if (case_sensitive || !value.Is(Kind::kString)) return value;
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(value.string().size() * 6));
  return MakeString(context.budget, Lower(value.string()));
}

// Merges two sorted runs of `order` that meet at `middle`. Unlike std::stable_sort's, this order
// may be undefined for some pairs.
Status Merge(Budget& budget, const std::vector<Value>& keys, bool reverse, size_t begin,
             size_t middle, size_t end, std::vector<size_t>* order) {
  std::vector<size_t> merged;
  merged.reserve(end - begin);
  size_t left = begin;
  size_t right = middle;
  while (left < middle && right < end) {
    const Value& a = keys[(*order)[left]];
    const Value& b = keys[(*order)[right]];
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<int> comparison, Compare(budget, b, a));
    const bool right_first = comparison && (reverse ? *comparison > 0 : *comparison < 0);
    merged.push_back((*order)[right_first ? right++ : left++]);
  }
  merged.insert(merged.end(), order->begin() + static_cast<ptrdiff_t>(left),
                order->begin() + static_cast<ptrdiff_t>(middle));
  std::copy(merged.begin(), merged.end(), order->begin() + static_cast<ptrdiff_t>(begin));
  return {};
}

// The items in the order of their keys; equal ones keep theirs.
Result<std::vector<Value>> SortBy(Context& context, const std::vector<Value>& keys,
                                  const std::vector<Value>& items, bool reverse) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (size_t width = 1; width < order.size(); width *= 2) {
    NIBBLE_RETURN_IF_ERROR(context.budget.Step(order.size()));
    for (size_t begin = 0; begin + width < order.size(); begin += 2 * width) {
      const size_t end = std::min(begin + 2 * width, order.size());
      NIBBLE_RETURN_IF_ERROR(
          Merge(context.budget, keys, reverse, begin, begin + width, end, &order));
    }
  }
  std::vector<Value> sorted;
  sorted.reserve(items.size());
  for (const size_t i : order) sorted.push_back(items[i]);
  return sorted;
}

Result<Value> Sort(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound,
                          arguments.Bind("sort", {"reverse", "case_sensitive", "attribute"}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const bool reverse, TruthArgument(bound[0]));
  NIBBLE_ASSIGN_OR_RETURN(const bool case_sensitive, TruthArgument(bound[1]));
  Path path;
  if (bound[2] && !bound[2]->Is(Kind::kNone)) {
    if (bound[2]->Is(Kind::kString) && bound[2]->string().find(',') != std::string::npos) {
      return BadInput("sort: several attributes are not supported");
    }
    NIBBLE_ASSIGN_OR_RETURN(path, Path::Of(context, *bound[2]));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(context.budget, input));
  std::vector<Value> keys;
  for (const Value& item : items) {
    NIBBLE_ASSIGN_OR_RETURN(const Value value, path.Get(context, item, std::nullopt));
    NIBBLE_ASSIGN_OR_RETURN(Value key, FoldCase(context, value, case_sensitive));
    keys.push_back(std::move(key));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> sorted, SortBy(context, keys, items, reverse));
  return MakeSequence(context.budget, Sequence::Type::kList, std::move(sorted));
}

Result<Value> DictSort(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound,
                          arguments.Bind("dictsort", {"case_sensitive", "by", "reverse"}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const bool case_sensitive, TruthArgument(bound[0]));
  NIBBLE_ASSIGN_OR_RETURN(const bool reverse, TruthArgument(bound[2]));
  std::string_view by = "key";
  if (bound[1]) {
    NIBBLE_ASSIGN_OR_RETURN(by, TextArgument("dictsort", *bound[1]));
  }
  if (by != "key" && by != "value") return BadInput("dictsort: sorts by key or value");
  if (!input.Is(Kind::kDict)) return BadInput("dictsort: want a dict, got a {}", input.TypeName());
  std::vector<Value> keys;
  std::vector<Value> pairs;
  for (const auto& [key, value] : input.dict().entries) {
    NIBBLE_ASSIGN_OR_RETURN(Value folded,
                            FoldCase(context, by == "key" ? key : value, case_sensitive));
    NIBBLE_ASSIGN_OR_RETURN(Value pair,
                            MakeSequence(context.budget, Sequence::Type::kTuple, {key, value}));
    keys.push_back(std::move(folded));
    pairs.push_back(std::move(pair));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> sorted, SortBy(context, keys, pairs, reverse));
  return MakeSequence(context.budget, Sequence::Type::kList, std::move(sorted));
}

Result<Value> Unique(Context& context, const Value& input, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound,
                          arguments.Bind("unique", {"case_sensitive", "attribute"}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const bool case_sensitive, TruthArgument(bound[0]));
  Path path;
  if (bound[1] && !bound[1]->Is(Kind::kNone)) {
    NIBBLE_ASSIGN_OR_RETURN(path, Path::Of(context, *bound[1]));
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(context.budget, input));
  Dict seen{{}, 1};
  std::vector<Value> kept;
  for (const Value& item : items) {
    NIBBLE_ASSIGN_OR_RETURN(const Value value, path.Get(context, item, std::nullopt));
    NIBBLE_ASSIGN_OR_RETURN(Value key, FoldCase(context, value, case_sensitive));
    if (!IsHashable(key)) return BadInput("unique: a {} cannot be compared", key.TypeName());
    NIBBLE_ASSIGN_OR_RETURN(const Value* found, Lookup(context.budget, seen, key));
    if (found != nullptr) continue;
    seen.entries.emplace_back(std::move(key), Value());
    kept.push_back(item);
  }
  return MakeIterator(context.budget, std::move(kept));
}

struct Entry {
  std::string_view name;
  Filter filter;
};
constexpr Entry kFilters[] = {
    {"length", LengthFilter},
    {"count", LengthFilter},
    {"list", ToList},
    {"first", First},
    {"last", Last},
    {"items", ItemsFilter},
    {"reverse", Reverse},
    {"join", Join},
    {"map", Map},
    {"select", Select<Keep::kPassing, By::kItem>},
    {"reject", Select<Keep::kFailing, By::kItem>},
    {"selectattr", Select<Keep::kPassing, By::kAttribute>},
    {"rejectattr", Select<Keep::kFailing, By::kAttribute>},
    {"sort", Sort},
    {"dictsort", DictSort},
    {"unique", Unique},
};

}  // namespace

Filter FindSequenceFilter(std::string_view name) {
  for (const Entry& entry : kFilters) {
    if (entry.name == name) return entry.filter;
  }
  return nullptr;
}

}  // namespace nibble::jinja
