// The functions, filters, tests and methods that templates may use. Each behaves as Python's or
// jinja2's of the same name; arguments that ask for more than is supported are errors.
#ifndef NIBBLE_TOKENIZER_JINJA_BUILTINS_H_
#define NIBBLE_TOKENIZER_JINJA_BUILTINS_H_

#include <ctime>
#include <deque>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/tokenizer/jinja_ast.h"
#include "src/tokenizer/jinja_value.h"

namespace nibble::jinja {

// What one rendering has at its disposal.
struct Context {
  Budget& budget;
  const std::optional<std::tm>& now;
  std::deque<Namespace> namespaces = {};
};

struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The arguments in the order of `parameters`, nullopt where not given. Fails on too many, unknown
  // or doubled ones and where one of the first `required` is missing. A parameter whose name is
  // empty cannot be named.
  Result<std::vector<std::optional<Value>>> Bind(std::string_view function,
                                                 std::initializer_list<std::string_view> parameters,
                                                 size_t required) const;
};

bool IsFilterName(std::string_view name);
bool IsTestName(std::string_view name);
bool IsMethodName(std::string_view name);
std::optional<Function> FindFunction(std::string_view name);

using Filter = Result<Value> (*)(Context& context, const Value& input, const Arguments& arguments);
Filter FindSequenceFilter(std::string_view name);  // of those on lists; null where not among them
Result<Value> ApplyFilter(Context& context, std::string_view name, const Value& input,
                          const Arguments& arguments);
Result<bool> ApplyTest(Context& context, std::string_view name, const Value& value,
                       const Arguments& arguments);
Result<Value> CallFunction(Context& context, Function function, const Arguments& arguments);
Result<Value> CallMethod(Context& context, const Method& method, const Arguments& arguments);
Result<Value> CallStringMethod(Context& context, const std::string& self, std::string_view name,
                               const Arguments& arguments);

// object.name and object[index]: what is absent is undefined, not an error.
Result<Value> GetAttribute(Context& context, const Value& object, std::string_view name);
Result<Value> GetItem(Context& context, const Value& object, const Value& index);
// object[start:stop:step]; none stands for an absent part.
Result<Value> GetSlice(Context& context, const Value& object, const Value& start, const Value& stop,
                       const Value& step);

Result<Value> Arithmetic(Context& context, Operator operation, const Value& a, const Value& b);
Result<Value> Negate(const Value& value);
// Whether a comparison is true. Of what is unordered (a NaN) only != holds.
Result<bool> Holds(Context& context, Operator operation, const Value& a, const Value& b);

// json.dumps. indent: absent for one line.
struct JsonStyle {
  std::optional<std::string> indent = std::nullopt;
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  enum class Ascii { kNo, kYes } ascii = Ascii::kNo;
  enum class Keys { kAsInserted, kSorted } keys = Keys::kAsInserted;
};
Result<std::string> ToJson(Budget& budget, const Value& value, const JsonStyle& style);

// Text operations that filters and methods share. `count` below 0: all.
Result<Value> ReplaceText(Budget& budget, std::string_view text, std::string_view from,
                          std::string_view to, int64_t count);
enum class LineEnds { kDrop, kKeep };
Result<std::vector<std::string_view>> SplitLines(Budget& budget, std::string_view text,
                                                 LineEnds line_ends);

// Arguments of the type that a function wants. The text lives as long as the value.
Result<std::string_view> TextArgument(std::string_view function, const Value& value);
Result<int64_t> IntegerArgument(std::string_view function, const Value& value);
Result<bool> TruthArgument(const std::optional<Value>& value);  // false where absent

}  // namespace nibble::jinja

#endif  // NIBBLE_TOKENIZER_JINJA_BUILTINS_H_
