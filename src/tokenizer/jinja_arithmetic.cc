// Operators on values, as Python has them, but for integers beyond 64 bits, which are errors.
#include <cmath>

#include "src/base/checked.h"
#include "src/tokenizer/jinja_builtins.h"

namespace nibble::jinja {
namespace {

std::string_view Symbol(Operator operation) {
  switch (operation) {
    case Operator::kAdd:
      return "+";
    case Operator::kSubtract:
      return "-";
    case Operator::kMultiply:
      return "*";
    case Operator::kDivide:
      return "/";
    case Operator::kFloorDivide:
      return "//";
    case Operator::kModulo:
      return "%";
    default:
      return "**";
  }
}

Result<Value> Exact(std::optional<int64_t> value) {
  if (!value) return BadInput("an integer beyond 64 bits");
  return Value(*value);
}

Result<Value> IntegerPower(int64_t base, int64_t exponent) {
  std::optional<int64_t> result = 1;
  std::optional<int64_t> square = base;
  while (exponent > 0) {
    if (exponent % 2 == 1) {
      if (!square) return BadInput("an integer beyond 64 bits");
      result = CheckedMul(*result, *square);
      if (!result) return BadInput("an integer beyond 64 bits");
    }
    exponent /= 2;
    if (square) square = CheckedMul(*square, *square);
  }
  return Value(*result);
}

Result<Value> OfIntegers(Operator operation, int64_t a, int64_t b) {
  switch (operation) {
    case Operator::kAdd:
      return Exact(CheckedAdd(a, b));
    case Operator::kSubtract: {
      int64_t difference;
      if (__builtin_sub_overflow(a, b, &difference)) return Exact(std::nullopt);
      return Value(difference);
    }
    case Operator::kMultiply:
      return Exact(CheckedMul(a, b));
    case Operator::kFloorDivide:
    case Operator::kModulo: {
      if (b == 0) return BadInput("division by zero");
      if (b == -1) {  // INT64_MIN / -1 overflows
        return operation == Operator::kModulo ? Value(int64_t{0}) : Exact(CheckedMul(a, b));
      }
      const int64_t remainder = a % b;
      const bool adjust = remainder != 0 && (remainder < 0) != (b < 0);
      if (operation == Operator::kModulo) return Value(adjust ? remainder + b : remainder);
      return Value(a / b - (adjust ? 1 : 0));
    }
    default:
      return IntegerPower(a, b);
  }
}

Result<Value> OfFloats(Operator operation, double a, double b) {
  switch (operation) {
    case Operator::kAdd:
      return Value(a + b);
    case Operator::kSubtract:
      return Value(a - b);
    case Operator::kMultiply:
      return Value(a * b);
    case Operator::kDivide:
      if (b == 0) return BadInput("division by zero");
      return Value(a / b);
    case Operator::kFloorDivide:
    case Operator::kModulo: {
      if (b == 0) return BadInput("division by zero");
      double remainder = std::fmod(a, b);
      double quotient = (a - remainder) / b;
      if (remainder == 0) {
        remainder = std::copysign(0.0, b);
      } else if ((b < 0) != (remainder < 0)) {
        remainder += b;
        quotient -= 1;
      }
      if (operation == Operator::kModulo) return Value(remainder);
      if (quotient == 0) return Value(std::copysign(0.0, a / b));
      const double whole = std::floor(quotient);
      return Value(quotient - whole > 0.5 ? whole + 1 : whole);
    }
    default: {
      if (a == 0 && b < 0) return BadInput("division by zero");
      if (a < 0 && std::isfinite(b) && b != std::floor(b)) {
        return BadInput("a root of a negative number");
      }
      const double power = std::pow(a, b);
      if (std::isinf(power) && std::isfinite(a) && std::isfinite(b)) {
        return BadInput("a power that is out of range");
      }
      return Value(power);
    }
  }
}

Result<Value> Repeat(Context& context, const Value& value, int64_t times) {
  const uint64_t count = times > 0 ? static_cast<uint64_t>(times) : 0;
  const bool text = value.Is(Kind::kString);
  const uint64_t size = text ? value.string().size() : value.sequence().items.size();
  const auto total = CheckedMul(size, count);
  const auto bytes = total ? CheckedMul<uint64_t>(*total, text ? 1 : sizeof(Value)) : std::nullopt;
  NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(bytes.value_or(UINT64_MAX)));
  if (text) {
    std::string result;
    if (size > 0) {
      result.reserve(*total);
      for (uint64_t i = 0; i < count; ++i) result += value.string();
    }
    return MakeString(context.budget, std::move(result));
  }
  std::vector<Value> items;
  if (size > 0) {
    items.reserve(*total);
    for (uint64_t i = 0; i < count; ++i) {
      items.insert(items.end(), value.sequence().items.begin(), value.sequence().items.end());
    }
  }
  return MakeSequence(context.budget, value.sequence().type, std::move(items));
}

bool IsListOrTuple(const Value& value) {
  return value.Is(Kind::kSequence) && (value.sequence().type == Sequence::Type::kList ||
                                       value.sequence().type == Sequence::Type::kTuple);
}

bool IsInteger(const Value& value) { return value.Is(Kind::kInt) || value.Is(Kind::kBool); }

}  // namespace

Result<Value> Arithmetic(Context& context, Operator operation, const Value& a, const Value& b) {
  if (a.Is(Kind::kUndefined)) return FailUndefined(a);
  if (b.Is(Kind::kUndefined)) return FailUndefined(b);
  if (a.IsNumber() && b.IsNumber()) {
    const bool integers = IsInteger(a) && IsInteger(b);
    const bool whole = operation != Operator::kDivide &&
                       !(operation == Operator::kPower && integers && b.AsInteger() < 0);
    if (integers && whole) return OfIntegers(operation, a.AsInteger(), b.AsInteger());
    return OfFloats(operation, a.AsDouble(), b.AsDouble());
  }
  if (operation == Operator::kAdd && a.Is(Kind::kString) && b.Is(Kind::kString)) {
    NIBBLE_RETURN_IF_ERROR(context.budget.Bytes(a.string().size() + b.string().size()));
    return MakeString(context.budget, a.string() + b.string());
  }
  if (operation == Operator::kAdd && IsListOrTuple(a) && IsListOrTuple(b) &&
      a.sequence().type == b.sequence().type) {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Items(context.budget, a));
    NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> more, Items(context.budget, b));
    items.insert(items.end(), more.begin(), more.end());
    return MakeSequence(context.budget, a.sequence().type, std::move(items));
  }
  if (operation == Operator::kMultiply) {
    if ((a.Is(Kind::kString) || IsListOrTuple(a)) && IsInteger(b)) {
      return Repeat(context, a, b.AsInteger());
    }
    if ((b.Is(Kind::kString) || IsListOrTuple(b)) && IsInteger(a)) {
      return Repeat(context, b, a.AsInteger());
    }
  }
  if (operation == Operator::kModulo && a.Is(Kind::kString)) {
    return BadInput("formatting of text with % is not supported");
  }
  return BadInput("a {} and a {} cannot be combined with {}", a.TypeName(), b.TypeName(),
                  Symbol(operation));
}

Result<Value> Negate(const Value& value) {
  if (value.Is(Kind::kUndefined)) return FailUndefined(value);
  if (value.Is(Kind::kFloat)) return Value(-value.floating());
  if (!IsInteger(value)) return BadInput("a {} cannot be negated", value.TypeName());
  return Exact(CheckedMul<int64_t>(value.AsInteger(), -1));
}

Result<bool> Holds(Context& context, Operator operation, const Value& a, const Value& b) {
  if (operation == Operator::kIn || operation == Operator::kNotIn) {
    NIBBLE_ASSIGN_OR_RETURN(const bool contained, Contains(context.budget, b, a));
    return contained == (operation == Operator::kIn);
  }
  if (operation == Operator::kEqual || operation == Operator::kNotEqual) {
    NIBBLE_ASSIGN_OR_RETURN(const bool equal, Equals(context.budget, a, b));
    return equal == (operation == Operator::kEqual);
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::optional<int> order, Compare(context.budget, a, b));
  if (!order) return false;
  switch (operation) {
    case Operator::kLess:
      return *order < 0;
    case Operator::kLessEqual:
      return *order <= 0;
    case Operator::kGreater:
      return *order > 0;
    default:
      return *order >= 0;
  }
}

}  // namespace nibble::jinja
