// Attributes, subscripts and slices.
#include <algorithm>
#include <array>

#include "src/tokenizer/jinja_builtins.h"
#include "src/tokenizer/jinja_unicode.h"
#include "src/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

using Names = std::initializer_list<std::string_view>;

constexpr std::array kStringMethods = std::to_array<std::string_view>(
    {"strip",      "lstrip",       "rstrip",       "split",   "rsplit", "splitlines", "startswith",
     "endswith",   "removeprefix", "removesuffix", "replace", "upper",  "lower",      "title",
     "capitalize", "join",         "find",         "index",   "count",  "isspace"});
constexpr std::array kSequenceMethods = std::to_array<std::string_view>({"index", "count"});
constexpr std::array kDictMethods =
    std::to_array<std::string_view>({"get", "items", "keys", "values", "copy"});
constexpr std::array kLoopMethods = std::to_array<std::string_view>({"cycle"});
// What the sandbox hides, even from keys of the same name.
constexpr std::array kHiddenOfDict = std::to_array<std::string_view>(
    {"clear", "pop", "popitem", "setdefault", "update", "fromkeys"});

template <size_t n>
bool IsOneOf(std::string_view name, const std::array<std::string_view, n>& names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// "'dict object' has no attribute 'x'"
std::string Described(const Value& object) {
  return object.Is(Kind::kNone) ? "None" : fmt::format("{} object", object.TypeName());
}

Value NoAttribute(const Value& object, std::string_view name) {
  return Value::UndefinedBecause(
      fmt::format("'{}' has no attribute '{}'", Described(object), name));
}

Result<Value> MakeMethod(Context& context, const Value& self, std::string_view name) {
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(sizeof(Method)));
  const int depth = self.Depth() + 1;
  if (depth > kMaxValueDepth) return BadInput("values nested too deeply");
  return Value(std::make_shared<const Method>(Method{self, std::string(name), depth}));
}

Result<Value> LoopAttribute(Context& context, const Value& object, std::string_view name) {
  Loop& loop = *object.loop();
  if (name == "index") return Value(loop.index0 + 1);
  if (name == "index0") return Value(loop.index0);
  if (name == "first") return Value(loop.index0 == 0);
  if (name == "depth") return Value(int64_t{1});
  if (name == "depth0") return Value(int64_t{0});
  if (name == "length" || name == "revindex" || name == "revindex0") {
    NIBBLE_ASSIGN_OR_RETURN(const int64_t length, loop.Length());
    return Value(name == "length"     ? length
                 : name == "revindex" ? length - loop.index0
                                      : length - loop.index0 - 1);
  }
  if (name == "last" || name == "nextitem") {
    NIBBLE_ASSIGN_OR_RETURN(std::optional<Value> item, loop.Peek());
    if (name == "last") return Value(!item.has_value());
    return item ? std::move(*item) : Value::UndefinedBecause("there is no next item");
  }
  if (name == "previtem") {
    return loop.index0 == 0 ? Value::UndefinedBecause("there is no previous item") : loop.previous;
  }
  if (name == "changed") return BadInput("loop.changed is not supported");
  if (IsOneOf(name, kLoopMethods)) return MakeMethod(context, object, name);
  return NoAttribute(object, name);
}

bool IsSubscripted(const Sequence& sequence) {
  return sequence.type == Sequence::Type::kList || sequence.type == Sequence::Type::kTuple ||
         sequence.type == Sequence::Type::kRange;
}

// The attributes that Python's type has, not its items: nullopt where there is none.
Result<std::optional<Value>> OwnAttribute(Context& context, const Value& object,
                                          std::string_view name) {
  bool method = false;
  switch (object.kind()) {
    case Kind::kString:
      method = IsOneOf(name, kStringMethods);
      break;
    case Kind::kSequence:
      method = IsSubscripted(object.sequence()) && IsOneOf(name, kSequenceMethods);
      break;
    case Kind::kDict:
      if (IsOneOf(name, kHiddenOfDict)) {
        return std::optional<Value>(Value::UndefinedBecause(
            fmt::format("access to attribute '{}' of a dict is not safe", name)));
      }
      method = IsOneOf(name, kDictMethods);
      break;
    case Kind::kNamespace: {
      const auto it = object.name_space()->variables.find(name);
      if (it == object.name_space()->variables.end()) return std::optional<Value>();
      return std::optional<Value>(it->second);
    }
    case Kind::kLoop: {
      NIBBLE_ASSIGN_OR_RETURN(Value value, LoopAttribute(context, object, name));
      return std::optional<Value>(std::move(value));
    }
    default:
      break;
  }
  if (!method) return std::optional<Value>();
  NIBBLE_ASSIGN_OR_RETURN(Value value, MakeMethod(context, object, name));
  return std::optional<Value>(std::move(value));
}

// The element at an index that may count from the end; nullopt where there is none.
Result<std::optional<Value>> Element(Context& context, const Value& object, int64_t index) {
  if (object.Is(Kind::kSequence) && IsSubscripted(object.sequence())) {
    const std::vector<Value>& items = object.sequence().items;
    const auto size = static_cast<int64_t>(items.size());
    if (index < 0) index += size;
    if (index < 0 || index >= size) return std::optional<Value>();
    return std::optional<Value>(items[static_cast<size_t>(index)]);
  }
  if (!object.Is(Kind::kString)) return std::optional<Value>();
  const std::string& text = object.string();
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(text.size() / 4 + sizeof(std::string)));
  if (index < 0) index += static_cast<int64_t>(CountCodePoints(text));
  if (index < 0 || static_cast<uint64_t>(index) >= text.size()) return std::optional<Value>();
  const size_t start = ByteOffset(text, static_cast<size_t>(index));
  if (start >= text.size()) return std::optional<Value>();
  size_t end = start;
  NextCodePoint(text, &end);
  return std::optional<Value>(Value::String(text.substr(start, end - start)));
}

// The positions that a slice takes from `size` elements, as Python's slice.indices does.
struct Positions {
  int64_t start;
  int64_t step;
  int64_t count;
};

Result<Positions> SlicePositions(const Value& start, const Value& stop, const Value& step,
                                 int64_t size) {
  for (const Value* part : {&start, &stop, &step}) {
    if (!part->Is(Kind::kNone) && !part->Is(Kind::kInt) && !part->Is(Kind::kBool)) {
      return BadInput("a slice wants integers, got a {}", part->TypeName());
    }
  }
  int64_t by = step.Is(Kind::kNone) ? 1 : step.AsInteger();
  if (by == 0) return BadInput("the step of a slice must not be 0");
  by = std::clamp<int64_t>(by, -size - 1, size + 1);  // one beyond the size acts as any larger one
  const int64_t lowest = by < 0 ? -1 : 0;
  const int64_t highest = by < 0 ? size - 1 : size;
  const auto bound = [&](const Value& part, int64_t absent) {
    if (part.Is(Kind::kNone)) return absent;
    const int64_t index = part.AsInteger();
    if (index < 0) return index < -size ? lowest : std::max(lowest, index + size);
    return std::min(highest, index);
  };
  const int64_t first = bound(start, by < 0 ? highest : lowest);
  const int64_t last = bound(stop, by < 0 ? lowest : highest);
  const int64_t distance = by < 0 ? first - last : last - first;
  const int64_t count = distance <= 0 ? 0 : (distance - 1) / std::abs(by) + 1;
  return Positions{first, by, count};
}

}  // namespace

bool IsMethodName(std::string_view name) {
  return IsOneOf(name, kStringMethods) || IsOneOf(name, kSequenceMethods) ||
         IsOneOf(name, kDictMethods) || IsOneOf(name, kLoopMethods);
}

Result<Value> GetAttribute(Context& context, const Value& object, std::string_view name) {
  if (object.Is(Kind::kUndefined)) return FailUndefined(object);
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(name.size()));
  NIBBLE_ASSIGN_OR_RETURN(std::optional<Value> own, OwnAttribute(context, object, name));
  if (own) return std::move(*own);
  if (object.Is(Kind::kDict)) {
    NIBBLE_ASSIGN_OR_RETURN(const Value* item, Lookup(context.budget, object.dict(), name));
    if (item != nullptr) return *item;
  }
  return NoAttribute(object, name);
}

Result<Value> GetItem(Context& context, const Value& object, const Value& index) {
  if (object.Is(Kind::kUndefined)) return FailUndefined(object);
  if (object.Is(Kind::kDict) && IsHashable(index)) {
    NIBBLE_ASSIGN_OR_RETURN(const Value* item, Lookup(context.budget, object.dict(), index));
    if (item != nullptr) return *item;
  } else if (index.Is(Kind::kInt) || index.Is(Kind::kBool)) {
    NIBBLE_ASSIGN_OR_RETURN(std::optional<Value> item, Element(context, object, index.AsInteger()));
    if (item) return std::move(*item);
  }
  if (index.Is(Kind::kString)) {
    NIBBLE_ASSIGN_OR_RETURN(std::optional<Value> own,
                            OwnAttribute(context, object, index.string()));
    if (own) return std::move(*own);
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(index.string().size()));
    return NoAttribute(object, index.string());
  }
  return Value::UndefinedBecause(fmt::format("{} has no such element", Described(object)));
}

Result<Value> GetSlice(Context& context, const Value& object, const Value& start, const Value& stop,
                       const Value& step) {
  if (object.Is(Kind::kUndefined)) return FailUndefined(object);
  if (object.Is(Kind::kSequence) && IsSubscripted(object.sequence())) {
    const Sequence& sequence = object.sequence();
    NIBBLE_ASSIGN_OR_RETURN(
        const Positions positions,
        SlicePositions(start, stop, step, static_cast<int64_t>(sequence.items.size())));
    std::vector<Value> items;
    items.reserve(static_cast<size_t>(positions.count));
    for (int64_t i = 0; i < positions.count; ++i) {
      items.push_back(sequence.items[static_cast<size_t>(positions.start + i * positions.step)]);
    }
    return MakeSequence(context.budget, sequence.type, std::move(items));
  }
  if (!object.Is(Kind::kString)) return BadInput("a {} cannot be sliced", object.TypeName());

  const std::string& text = object.string();
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(text.size()));
  NIBBLE_ASSIGN_OR_RETURN(
      const Positions positions,
      SlicePositions(start, stop, step, static_cast<int64_t>(CountCodePoints(text))));
  std::string result;
  if (positions.step == 1) {
    const size_t begin = ByteOffset(text, static_cast<size_t>(positions.start));
    const std::string_view rest = std::string_view(text).substr(begin);
    result = rest.substr(0, ByteOffset(rest, static_cast<size_t>(positions.count)));
  } else {
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(text.size() * sizeof(char32_t)));
    const std::vector<char32_t> code_points = CodePoints(text);
    for (int64_t i = 0; i < positions.count; ++i) {
      AppendUtf8(code_points[static_cast<size_t>(positions.start + i * positions.step)], result);
    }
  }
  return MakeString(context.budget, std::move(result));
}

}  // namespace nibble::jinja
