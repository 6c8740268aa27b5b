#include "src/tokenizer/jinja_value.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/tokenizer/jinja_unicode.h"

namespace nibble::jinja {
namespace {

int DepthOfAll(const std::vector<Value>& items) {
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.Depth());
  return depth;
}

Status CheckDepth(int depth) {
  if (depth > kMaxValueDepth) {
    return BadInput("lists and dicts nested deeper than {} levels", kMaxValueDepth);
  }
  return {};
}

// Ordering of numbers without rounding; nullopt where one is a NaN. A long double holds every
// int64_t exactly on the platforms that nibble runs on.
std::optional<int> CompareNumbers(const Value& a, const Value& b) {
  static_assert(std::numeric_limits<long double>::digits >= 63);
  if (!a.Is(Kind::kFloat) && !b.Is(Kind::kFloat)) {
    const int64_t x = a.AsInteger();
    const int64_t y = b.AsInteger();
    return x < y ? -1 : x > y ? 1 : 0;
  }
  const auto widen = [](const Value& value) {
    return value.Is(Kind::kFloat) ? static_cast<long double>(value.floating())
                                  : static_cast<long double>(value.AsInteger());
  };
  const long double x = widen(a);
  const long double y = widen(b);
  if (std::isnan(x) || std::isnan(y)) return std::nullopt;
  return x < y ? -1 : x > y ? 1 : 0;
}

// Of all but containers.
bool ScalarEquals(const Value& a, const Value& b) {
  if (a.IsNumber() && b.IsNumber()) return CompareNumbers(a, b) == 0;
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return true;
    case Kind::kString:
      return a.string() == b.string();
    case Kind::kIterator:
      return a.iterator() == b.iterator();
    case Kind::kNamespace:
      return a.name_space() == b.name_space();
    case Kind::kLoop:
      return a.loop() == b.loop();
    case Kind::kFunction:
      return a.function() == b.function();
    case Kind::kMacro:
      return a.macro() == b.macro();
    case Kind::kMethod:
      return &a.method() == &b.method();
    default:
      return false;
  }
}

Result<bool> SequencesEqual(Budget& budget, const Sequence& a, const Sequence& b) {
  if (a.type != b.type || a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(const bool equal, Equals(budget, a.items[i], b.items[i]));
    if (!equal) return false;
  }
  return true;
}

Result<bool> DictsEqual(Budget& budget, const Dict& a, const Dict& b) {
  if (a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    NIBBLE_ASSIGN_OR_RETURN(const Value* other, Lookup(budget, b, key));
    if (other == nullptr) return false;
    NIBBLE_ASSIGN_OR_RETURN(const bool equal, Equals(budget, value, *other));
    if (!equal) return false;
  }
  return true;
}

}  // namespace

Status Budget::Step(uint64_t steps) {
  if (steps > steps_) {
    steps_ = 0;
    return BadInput("the template takes too many steps");
  }
  steps_ -= steps;
  return {};
}

Status Budget::Bytes(uint64_t bytes) {
  if (bytes > bytes_) {
    bytes_ = 0;
    return BadInput("the template handles too much data");
  }
  bytes_ -= bytes;
  return {};
}

Value Value::String(std::string text) {
  Value value;
  value.storage_ = std::make_shared<const std::string>(std::move(text));
  return value;
}

Value Value::UndefinedBecause(std::string why) {
  Value value;
  value.storage_ = Undefined{std::make_shared<const std::string>(std::move(why))};
  return value;
}

int Value::Depth() const {
  switch (kind()) {
    case Kind::kSequence:
      return sequence().depth;
    case Kind::kDict:
      return dict().depth;
    case Kind::kIterator:
      return iterator()->depth;
    case Kind::kLoop:
      return loop()->depth;
    case Kind::kMethod:
      return method().depth;
    default:
      return 0;
  }
}

std::string_view Value::TypeName() const {
  switch (kind()) {
    case Kind::kUndefined:
      return "Undefined";
    case Kind::kNone:
      return "NoneType";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kSequence:
      switch (sequence().type) {
        case Sequence::Type::kList:
          return "list";
        case Sequence::Type::kTuple:
          return "tuple";
        case Sequence::Type::kRange:
          return "range";
        case Sequence::Type::kDictItems:
          return "dict_items";
        case Sequence::Type::kDictKeys:
          return "dict_keys";
        case Sequence::Type::kDictValues:
          return "dict_values";
      }
      return "list";
    case Kind::kDict:
      return "dict";
    case Kind::kIterator:
      return "generator";
    case Kind::kNamespace:
      return "namespace";
    case Kind::kLoop:
      return "loop";
    case Kind::kFunction:
      return "function";
    case Kind::kMacro:
      return "macro";
    case Kind::kMethod:
      return "method";
  }
  return "object";
}

Result<bool> Loop::Advance() {
  std::optional<Value> item;
  if (ahead_next < ahead.size()) {
    item = std::move(ahead[ahead_next++]);
    if (ahead_next == ahead.size()) {
      ahead.clear();
      ahead_next = 0;
    }
  } else {
    NIBBLE_ASSIGN_OR_RETURN(item, pull());
  }
  if (!item) return false;
  previous = std::move(current);
  current = std::move(*item);
  ++index0;
  return true;
}

Result<std::optional<Value>> Loop::Peek() {
  if (ahead_next == ahead.size()) {
    NIBBLE_ASSIGN_OR_RETURN(std::optional<Value> item, pull());
    if (!item) return std::optional<Value>();
    ahead.push_back(std::move(*item));
  }
  return std::optional<Value>(ahead[ahead_next]);
}

Result<int64_t> Loop::Length() {
  if (!length) {
    while (true) {
      NIBBLE_ASSIGN_OR_RETURN(std::optional<Value> item, pull());
      if (!item) break;
      ahead.push_back(std::move(*item));
    }
    length = index0 + 1 + static_cast<int64_t>(ahead.size() - ahead_next);
  }
  return *length;
}

Result<Value> MakeString(Budget& budget, std::string text) {
  NIBBLE_RETURN_IF_ERROR(budget.Bytes(text.size() + sizeof(std::string)));
  return Value::String(std::move(text));
}

Result<Value> MakeSequence(Budget& budget, Sequence::Type type, std::vector<Value> items) {
  NIBBLE_RETURN_IF_ERROR(budget.Bytes((items.size() + 1) * sizeof(Value)));
  const int depth = 1 + DepthOfAll(items);
  NIBBLE_RETURN_IF_ERROR(CheckDepth(depth));
  return Value(std::make_shared<const Sequence>(Sequence{type, std::move(items), depth}));
}

Result<Value> MakeIterator(Budget& budget, std::vector<Value> items) {
  NIBBLE_RETURN_IF_ERROR(budget.Bytes((items.size() + 1) * sizeof(Value)));
  const int depth = 1 + DepthOfAll(items);
  NIBBLE_RETURN_IF_ERROR(CheckDepth(depth));
  return Value(std::make_shared<Iterator>(Iterator{std::move(items), 0, depth}));
}

Result<Value> MakeDict(Budget& budget, std::vector<std::pair<Value, Value>> entries) {
  Dict dict{{}, 1};
  dict.entries.reserve(entries.size());
  for (auto& [key, value] : entries) {
    if (!IsHashable(key)) return BadInput("a {} cannot be a key", key.TypeName());
    NIBBLE_RETURN_IF_ERROR(budget.Bytes(2 * sizeof(Value)));
    dict.depth = std::max(dict.depth, 1 + value.Depth());
    NIBBLE_ASSIGN_OR_RETURN(const Value* existing, Lookup(budget, dict, key));
    if (existing != nullptr) {
      *const_cast<Value*>(existing) = std::move(value);
    } else {
      dict.entries.emplace_back(std::move(key), std::move(value));
    }
  }
  NIBBLE_RETURN_IF_ERROR(CheckDepth(dict.depth));
  return Value(std::make_shared<const Dict>(std::move(dict)));
}

tl::unexpected<Error> FailUndefined(const Value& value) {
  return BadInput("{}", value.why_undefined());
}

bool IsHashable(const Value& value) {
  return value.IsNumber() || value.Is(Kind::kString) || value.Is(Kind::kNone);
}

bool MayBeSought(const Value& value) {
  return IsHashable(value) || value.Is(Kind::kUndefined) ||
         (value.Is(Kind::kSequence) && value.sequence().type == Sequence::Type::kTuple);
}

Result<const Value*> Lookup(Budget& budget, const Dict& dict, const Value& key) {
  if (key.Is(Kind::kString)) return Lookup(budget, dict, std::string_view(key.string()));
  NIBBLE_RETURN_IF_ERROR(budget.Step(1 + dict.entries.size() / 4));
  for (const auto& [name, value] : dict.entries) {
    if (ScalarEquals(name, key)) return &value;
  }
  return nullptr;
}

Result<const Value*> Lookup(Budget& budget, const Dict& dict, std::string_view key) {
  NIBBLE_RETURN_IF_ERROR(budget.Step(1 + dict.entries.size() / 4));
  NIBBLE_RETURN_IF_ERROR(budget.Bytes(key.size() * dict.entries.size() / 8));
  for (const auto& [name, value] : dict.entries) {
    if (name.Is(Kind::kString) && name.string() == key) return &value;
  }
  return nullptr;
}

Result<bool> IsTrue(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
      return value.boolean();
    case Kind::kInt:
      return value.integer() != 0;
    case Kind::kFloat:
      return value.floating() != 0;
    case Kind::kString:
      return !value.string().empty();
    case Kind::kSequence:
      return !value.sequence().items.empty();
    case Kind::kDict:
      return !value.dict().entries.empty();
    case Kind::kLoop: {
      NIBBLE_ASSIGN_OR_RETURN(const int64_t length, value.loop()->Length());
      return length > 0;
    }
    default:
      return true;
  }
}

Result<bool> Equals(Budget& budget, const Value& a, const Value& b) {
  NIBBLE_RETURN_IF_ERROR(budget.Step());
  if (a.Is(Kind::kString) && b.Is(Kind::kString) && a.string().size() == b.string().size()) {
    NIBBLE_RETURN_IF_ERROR(budget.Bytes(a.string().size() / 8));
  }
  if (a.Is(Kind::kSequence) && b.Is(Kind::kSequence)) {
    return SequencesEqual(budget, a.sequence(), b.sequence());
  }
  if (a.Is(Kind::kDict) && b.Is(Kind::kDict)) return DictsEqual(budget, a.dict(), b.dict());
  return ScalarEquals(a, b);
}

Result<std::optional<int>> Compare(Budget& budget, const Value& a, const Value& b) {
  NIBBLE_RETURN_IF_ERROR(budget.Step());
  if (a.Is(Kind::kUndefined)) return FailUndefined(a);
  if (b.Is(Kind::kUndefined)) return FailUndefined(b);
  if (a.IsNumber() && b.IsNumber()) return CompareNumbers(a, b);
  if (a.Is(Kind::kString) && b.Is(Kind::kString)) {
    NIBBLE_RETURN_IF_ERROR(budget.Bytes(std::min(a.string().size(), b.string().size()) / 8));
    // Bytes of UTF-8 order as code points do.
    const int order = a.string().compare(b.string());
    return order < 0 ? -1 : order > 0 ? 1 : 0;
  }
  if (a.Is(Kind::kSequence) && b.Is(Kind::kSequence) && a.sequence().type == b.sequence().type &&
      (a.sequence().type == Sequence::Type::kList || a.sequence().type == Sequence::Type::kTuple)) {
    const std::vector<Value>& x = a.sequence().items;
    const std::vector<Value>& y = b.sequence().items;
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      NIBBLE_ASSIGN_OR_RETURN(const bool equal, Equals(budget, x[i], y[i]));
      if (!equal) return Compare(budget, x[i], y[i]);
    }
    return x.size() < y.size() ? -1 : x.size() > y.size() ? 1 : 0;
  }
  return BadInput("cannot order a {} and a {}", a.TypeName(), b.TypeName());
}

Result<bool> Contains(Budget& budget, const Value& container, const Value& item) {
  NIBBLE_RETURN_IF_ERROR(budget.Step());
  switch (container.kind()) {
    case Kind::kUndefined:
      return false;
    case Kind::kString:
      if (!item.Is(Kind::kString)) {
        return BadInput("'in' a string wants a string on its left, got a {}", item.TypeName());
      }
      NIBBLE_RETURN_IF_ERROR(budget.Bytes(container.string().size() + item.string().size()));
      return FindText(container.string(), item.string(), 0) != std::string_view::npos;
    case Kind::kSequence:
      for (const Value& element : container.sequence().items) {
        NIBBLE_ASSIGN_OR_RETURN(const bool equal, Equals(budget, element, item));
        if (equal) return true;
      }
      return false;
    case Kind::kDict: {
      if (!MayBeSought(item)) return BadInput("a {} cannot be a key", item.TypeName());
      NIBBLE_ASSIGN_OR_RETURN(const Value* found, Lookup(budget, container.dict(), item));
      return found != nullptr;
    }
    case Kind::kIterator: {
      Iterator& iterator = *container.iterator();
      while (iterator.next < iterator.items.size()) {
        NIBBLE_ASSIGN_OR_RETURN(const bool equal,
                                Equals(budget, iterator.items[iterator.next++], item));
        if (equal) return true;
      }
      return false;
    }
    default:
      return BadInput("a {} cannot be searched with 'in'", container.TypeName());
  }
}

Result<int64_t> Length(Budget& budget, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      NIBBLE_RETURN_IF_ERROR(budget.Bytes(value.string().size() / 8));
      return static_cast<int64_t>(CountCodePoints(value.string()));
    case Kind::kSequence:
      return static_cast<int64_t>(value.sequence().items.size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().entries.size());
    case Kind::kLoop:
      return value.loop()->Length();
    default:
      return BadInput("a {} has no length", value.TypeName());
  }
}

bool IsIterable(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kSequence:
    case Kind::kDict:
    case Kind::kIterator:
    case Kind::kLoop:
      return true;
    default:
      return false;
  }
}

Result<std::vector<Value>> Items(Budget& budget, const Value& value) {
  std::vector<Value> items;
  switch (value.kind()) {
    case Kind::kUndefined:
      return items;
    case Kind::kString: {
      const std::string& text = value.string();
      // One small string for each character.
      constexpr uint64_t kBytesPerCharacter = sizeof(Value) + sizeof(std::string) + 16;
      NIBBLE_RETURN_IF_ERROR(budget.Bytes(CountCodePoints(text) * kBytesPerCharacter));
      for (size_t offset = 0; offset < text.size();) {
        const size_t start = offset;
        NextCodePoint(text, &offset);
        items.push_back(Value::String(text.substr(start, offset - start)));
      }
      return items;
    }
    case Kind::kSequence:
      NIBBLE_RETURN_IF_ERROR(budget.Bytes(value.sequence().items.size() * sizeof(Value)));
      return value.sequence().items;
    case Kind::kDict:
      NIBBLE_RETURN_IF_ERROR(budget.Bytes(value.dict().entries.size() * sizeof(Value)));
      for (const auto& [key, ignored] : value.dict().entries) items.push_back(key);
      return items;
    case Kind::kIterator: {
      Iterator& iterator = *value.iterator();
      NIBBLE_RETURN_IF_ERROR(budget.Bytes((iterator.items.size() - iterator.next) * sizeof(Value)));
      items.assign(iterator.items.begin() + static_cast<ptrdiff_t>(iterator.next),
                   iterator.items.end());
      iterator.next = iterator.items.size();
      return items;
    }
    default:
      return BadInput("a {} cannot be iterated", value.TypeName());
  }
}

}  // namespace nibble::jinja
