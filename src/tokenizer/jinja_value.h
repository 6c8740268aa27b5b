// What a template computes with: Python's values, as far as Jinja shows them. Values are immutable
// (the sandbox is), but for namespaces, iterators and loops; strings and containers are shared, not
// copied. Whatever could grow without bound is charged to a Budget first.
#ifndef NIBBLE_TOKENIZER_JINJA_VALUE_H_
#define NIBBLE_TOKENIZER_JINJA_VALUE_H_

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "src/base/error.h"

namespace nibble::jinja {

struct Statement;

// What one rendering may still use. Nothing is ever given back, so that the totals bound both the
// time and the memory of a rendering.
class Budget {
 public:
  Budget(uint64_t steps, uint64_t bytes) : steps_(steps), bytes_(bytes) {}
  Status Step(uint64_t steps = 1);
  Status Bytes(uint64_t bytes);  // read or made

 private:
  uint64_t steps_;
  uint64_t bytes_;
};

// Containers nest at most so deep, so that recursion over them is bounded.
inline constexpr int kMaxValueDepth = 100;

enum class Kind {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kSequence,
  kDict,
  kIterator,
  kNamespace,
  kLoop,
  kFunction,
  kMacro,
  kMethod
};

enum class Function { kRange, kNamespace, kDict, kRaiseException, kStrftimeNow };

struct Sequence;
struct Dict;
struct Iterator;
struct Namespace;
struct Loop;
struct Method;

class Value {
 public:
  struct Undefined {
    std::shared_ptr<const std::string> why;  // "'x' is undefined"
  };
  struct None {};

  Value() : storage_(None{}) {}
  // Only from bool itself: pointers convert to it too.
  template <std::same_as<bool> T>
  Value(T value) : storage_(value) {}                                           // NOLINT: converts
  Value(int64_t value) : storage_(value) {}                                     // NOLINT: converts
  Value(double value) : storage_(value) {}                                      // NOLINT: converts
  Value(std::shared_ptr<const Sequence> value) : storage_(std::move(value)) {}  // NOLINT
  Value(std::shared_ptr<const Dict> value) : storage_(std::move(value)) {}      // NOLINT
  Value(std::shared_ptr<Iterator> value) : storage_(std::move(value)) {}        // NOLINT
  Value(Namespace* value) : storage_(value) {}                                  // NOLINT
  Value(std::shared_ptr<Loop> value) : storage_(std::move(value)) {}            // NOLINT
  Value(Function value) : storage_(value) {}                                    // NOLINT
  Value(const Statement* macro) : storage_(macro) {}                            // NOLINT
  Value(std::shared_ptr<const Method> value) : storage_(std::move(value)) {}    // NOLINT
  // From text: not charged, so for constants and what was charged before.
  static Value String(std::string text);
  static Value UndefinedBecause(std::string why);

  Kind kind() const { return static_cast<Kind>(storage_.index()); }
  bool Is(Kind kind) const { return this->kind() == kind; }
  bool IsNumber() const { return Is(Kind::kInt) || Is(Kind::kFloat) || Is(Kind::kBool); }

  // Only for values of that kind.
  bool boolean() const { return std::get<bool>(storage_); }
  int64_t integer() const { return std::get<int64_t>(storage_); }
  double floating() const { return std::get<double>(storage_); }
  const std::string& string() const { return *std::get<StringPointer>(storage_); }
  const Sequence& sequence() const { return *std::get<std::shared_ptr<const Sequence>>(storage_); }
  const Dict& dict() const { return *std::get<std::shared_ptr<const Dict>>(storage_); }
  const std::shared_ptr<Iterator>& iterator() const {
    return std::get<std::shared_ptr<Iterator>>(storage_);
  }
  Namespace* name_space() const { return std::get<Namespace*>(storage_); }
  Loop* loop() const { return std::get<std::shared_ptr<Loop>>(storage_).get(); }
  Function function() const { return std::get<Function>(storage_); }
  const Statement* macro() const { return std::get<const Statement*>(storage_); }
  const Method& method() const { return *std::get<std::shared_ptr<const Method>>(storage_); }
  const std::string& why_undefined() const { return *std::get<Undefined>(storage_).why; }

  // Bool as an integer, as Python has it. Only for numbers but floats, and for numbers.
  int64_t AsInteger() const { return Is(Kind::kBool) ? int64_t{boolean()} : integer(); }
  double AsDouble() const { return Is(Kind::kFloat) ? floating() : double(AsInteger()); }

  // Levels of containers in it: 0 for a scalar.
  int Depth() const;
  // Python's name of the type, for messages.
  std::string_view TypeName() const;

 private:
  using StringPointer = std::shared_ptr<const std::string>;
  // In the order of Kind.
  std::variant<Undefined, None, bool, int64_t, double, StringPointer,
               std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>,
               std::shared_ptr<Iterator>, Namespace*, std::shared_ptr<Loop>, Function,
               const Statement*, std::shared_ptr<const Method>>
      storage_;
};

// A list, or what else Python has that is iterated again and again and knows its length.
struct Sequence {
  enum class Type { kList, kTuple, kRange, kDictItems, kDictKeys, kDictValues };
  Type type;
  std::vector<Value> items;
  int depth;
};

// In order of insertion; keys are scalars and differ.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  int depth;
};

// What can be iterated once: a generator. The items are there already.
struct Iterator {
  std::vector<Value> items;
  size_t next = 0;
  int depth;
};

// Owned by the interpreter, since namespaces may refer to each other.
struct Namespace {
  std::map<std::string, Value, std::less<>> variables;
};

// The variable `loop`.
struct Loop {
  // The next item that passes the loop's own `if`; nullopt at the end.
  std::function<Result<std::optional<Value>>()> pull;
  std::optional<int64_t> length;  // where known without pulling
  int64_t index0 = -1;
  std::vector<Value> ahead;  // pulled early, in order
  size_t ahead_next = 0;
  Value current;
  Value previous;
  int depth;

  Result<bool> Advance();  // false at the end
  Result<std::optional<Value>> Peek();
  Result<int64_t> Length();
};

// `text.strip` before it is called.
struct Method {
  Value self;
  std::string name;
  int depth;
};

// Charged; they fail where the budget ends or the nesting is too deep.
Result<Value> MakeString(Budget& budget, std::string text);
Result<Value> MakeSequence(Budget& budget, Sequence::Type type, std::vector<Value> items);
Result<Value> MakeIterator(Budget& budget, std::vector<Value> items);
// A later entry with the same key replaces the value of the earlier one.
Result<Value> MakeDict(Budget& budget, std::vector<std::pair<Value, Value>> entries);

// An operation on an undefined value: the error that says what is undefined.
tl::unexpected<Error> FailUndefined(const Value& value);

bool IsHashable(const Value& value);  // supported as a key
// Whether Python lets it be sought among keys; undefined values and tuples never are any here.
bool MayBeSought(const Value& value);
// The value of a key, null where the dict has no such key.
Result<const Value*> Lookup(Budget& budget, const Dict& dict, const Value& key);
Result<const Value*> Lookup(Budget& budget, const Dict& dict, std::string_view key);
Result<bool> IsTrue(const Value& value);
Result<bool> Equals(Budget& budget, const Value& a, const Value& b);
// Of numbers, strings, lists and tuples: below, equal to or above 0. Unordered (a NaN): nullopt.
Result<std::optional<int>> Compare(Budget& budget, const Value& a, const Value& b);
Result<bool> Contains(Budget& budget, const Value& container, const Value& item);

Result<int64_t> Length(Budget& budget, const Value& value);
bool IsIterable(const Value& value);
// All items, as Python's list() gives them; an iterator is used up.
Result<std::vector<Value>> Items(Budget& budget, const Value& value);

// str() and repr(). The result is charged.
Result<std::string> ToText(Budget& budget, const Value& value);
Result<std::string> Representation(Budget& budget, const Value& value);
std::string FloatText(double value);

}  // namespace nibble::jinja

#endif  // NIBBLE_TOKENIZER_JINJA_VALUE_H_
