// The tests behind `is`.
#include "src/tokenizer/jinja_builtins.h"

namespace nibble::jinja {
namespace {

using Test = Result<bool> (*)(Context& context, const Value& value, const Arguments& arguments);

template <Kind kKind>
Result<bool> IsOfKind(Context&, const Value& value, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("is", {}, 0));
  return value.Is(kKind);
}

Result<bool> IsDefined(Context&, const Value& value, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("defined", {}, 0));
  return !value.Is(Kind::kUndefined);
}

template <bool kWanted>
Result<bool> IsBoolean(Context&, const Value& value, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("true, false", {}, 0));
  return value.Is(Kind::kBool) && value.boolean() == kWanted;
}

Result<bool> IsNumber(Context&, const Value& value, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("number", {}, 0));
  return value.IsNumber();
}

Result<bool> IsSequence(Context&, const Value& value, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("sequence", {}, 0));
  if (value.Is(Kind::kSequence)) {
    const Sequence::Type type = value.sequence().type;
    return type == Sequence::Type::kList || type == Sequence::Type::kTuple ||
           type == Sequence::Type::kRange;
  }
  return value.Is(Kind::kString) || value.Is(Kind::kDict) || value.Is(Kind::kUndefined);
}

Result<bool> IsIterableTest(Context&, const Value& value, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("iterable", {}, 0));
  return IsIterable(value);
}

Result<bool> IsCallable(Context&, const Value& value, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("callable", {}, 0));
  return value.Is(Kind::kFunction) || value.Is(Kind::kMacro) || value.Is(Kind::kMethod) ||
         value.Is(Kind::kLoop) || value.Is(Kind::kUndefined);
}

Result<bool> IsDivisibleBy(Context& context, const Value& value, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("divisibleby", {"num"}, 1));
  NIBBLE_ASSIGN_OR_RETURN(const Value rest,
                          Arithmetic(context, Operator::kModulo, value, *bound[0]));
  return Equals(context.budget, rest, Value(int64_t{0}));
}

template <int64_t kRemainder>
Result<bool> IsOddOrEven(Context& context, const Value& value, const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(arguments.Bind("odd, even", {}, 0));
  NIBBLE_ASSIGN_OR_RETURN(const Value rest,
                          Arithmetic(context, Operator::kModulo, value, Value(int64_t{2})));
  return Equals(context.budget, rest, Value(kRemainder));
}

template <Operator kOperator>
Result<bool> Compares(Context& context, const Value& value, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("comparison", {""}, 1));
  return Holds(context, kOperator, value, *bound[0]);
}

// Identity, which is only plain for what exists once.
Result<bool> IsSameAs(Context&, const Value& value, const Arguments& arguments) {
  NIBBLE_ASSIGN_OR_RETURN(const auto bound, arguments.Bind("sameas", {"other"}, 1));
  const Value& other = *bound[0];
  if (other.Is(Kind::kNone)) return value.Is(Kind::kNone);
  if (!other.Is(Kind::kBool)) {
    return BadInput("sameas: supported for none, true and false only, got a {}", other.TypeName());
  }
  return value.Is(Kind::kBool) && value.boolean() == other.boolean();
}

struct Entry {
  std::string_view name;
  Test test;
};
constexpr Entry kTests[] = {
    {"defined", IsDefined},
    {"undefined", IsOfKind<Kind::kUndefined>},
    {"none", IsOfKind<Kind::kNone>},
    {"boolean", IsOfKind<Kind::kBool>},
    {"integer", IsOfKind<Kind::kInt>},
    {"float", IsOfKind<Kind::kFloat>},
    {"string", IsOfKind<Kind::kString>},
    {"mapping", IsOfKind<Kind::kDict>},
    {"true", IsBoolean<true>},
    {"false", IsBoolean<false>},
    {"number", IsNumber},
    {"sequence", IsSequence},
    {"iterable", IsIterableTest},
    {"callable", IsCallable},
    {"divisibleby", IsDivisibleBy},
    {"odd", IsOddOrEven<1>},
    {"even", IsOddOrEven<0>},
    {"in", Compares<Operator::kIn>},
    {"eq", Compares<Operator::kEqual>},
    {"==", Compares<Operator::kEqual>},
    {"equalto", Compares<Operator::kEqual>},
    {"ne", Compares<Operator::kNotEqual>},
    {"!=", Compares<Operator::kNotEqual>},
    {"lt", Compares<Operator::kLess>},
    {"<", Compares<Operator::kLess>},
    {"lessthan", Compares<Operator::kLess>},
    {"le", Compares<Operator::kLessEqual>},
    {"<=", Compares<Operator::kLessEqual>},
    {"gt", Compares<Operator::kGreater>},
    {">", Compares<Operator::kGreater>},
    {"greaterthan", Compares<Operator::kGreater>},
    {"ge", Compares<Operator::kGreaterEqual>},
    {">=", Compares<Operator::kGreaterEqual>},
    {"sameas", IsSameAs},
};

Test FindTest(std::string_view name) {
  for (const Entry& entry : kTests) {
    if (entry.name == name) return entry.test;
  }
  return nullptr;
}

}  // namespace

bool IsTestName(std::string_view name) { return FindTest(name) != nullptr; }

Result<bool> ApplyTest(Context& context, std::string_view name, const Value& value,
                       const Arguments& arguments) {
  NIBBLE_RETURN_IF_ERROR(context.budget.Step());
  const Test test = FindTest(name);
  if (test == nullptr) return BadInput("the test '{}' is not supported", name);
  return test(context, value, arguments);
}

}  // namespace nibble::jinja
