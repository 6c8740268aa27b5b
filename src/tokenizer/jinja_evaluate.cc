// Expressions.
#include "src/tokenizer/jinja_depth.h"
#include "src/tokenizer/jinja_eval.h"

namespace nibble::jinja {

using Type = Expression::Type;

Result<Value> Interpreter::Evaluate(const Expression& expression) {
  Result<Value> value = EvaluateNode(expression);
  if (!value && error_line_ == 0) error_line_ = expression.line;
  return value;
}

// The nodes have functions of their own to keep the stack of one level small.
Result<Value> Interpreter::EvaluateNode(const Expression& expression) {
  NIBBLE_RETURN_IF_ERROR(context_.budget.Step());
  NIBBLE_ASSIGN_OR_RETURN(const DepthGuard guard, DepthGuard::Enter(&depth_, kMaxEvaluationDepth));
  switch (expression.type) {
    case Type::kConstant:
      return expression.constant;
    case Type::kName:
      return EvaluateName(expression);
    case Type::kTuple:
    case Type::kList:
      return EvaluateItems(expression);
    case Type::kDict:
      return EvaluateDict(expression);
    case Type::kConditional:
      return EvaluateConditional(expression);
    case Type::kOr:
    case Type::kAnd:
      return EvaluateLogic(expression);
    case Type::kNot:
    case Type::kNegate:
    case Type::kPlus:
      return EvaluateUnary(expression);
    case Type::kArithmetic:
      return EvaluateArithmetic(expression);
    case Type::kCompare:
      return EvaluateCompare(expression);
    case Type::kConcatenate:
      return EvaluateConcatenation(expression);
    case Type::kAttribute:
    case Type::kSubscript:
    case Type::kSlice:
      return EvaluateAccess(expression);
    case Type::kCall:
      return EvaluateCall(expression);
    case Type::kFilter:
    case Type::kTest:
      return EvaluateFilter(expression);
  }
  return Value();
}

Result<bool> Interpreter::EvaluateTruth(const Expression& expression) {
  NIBBLE_ASSIGN_OR_RETURN(const Value value, Evaluate(expression));
  return IsTrue(value);
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateName(const Expression& expression) {
  for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    const auto it = scope->variables.find(expression.name);
    if (it != scope->variables.end()) return it->second;
  }
  if (const std::optional<Function> function = FindFunction(expression.name);
      function && (*function != Function::kStrftimeNow || context_.now)) {
    return Value(*function);
  }
  NIBBLE_RETURN_IF_ERROR(context_.budget.Bytes(expression.name.size()));
  return Value::UndefinedBecause(fmt::format("'{}' is undefined", expression.name));
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateItems(const Expression& expression) {
  std::vector<Value> items;
  items.reserve(expression.operands.size());
  for (const ExpressionPointer& operand : expression.operands) {
    NIBBLE_ASSIGN_OR_RETURN(Value item, Evaluate(*operand));
    items.push_back(std::move(item));
  }
  const auto type = expression.type == Type::kList ? Sequence::Type::kList : Sequence::Type::kTuple;
  return MakeSequence(context_.budget, type, std::move(items));
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateDict(const Expression& expression) {
  std::vector<std::pair<Value, Value>> entries;
  entries.reserve(expression.operands.size() / 2);
  for (size_t i = 0; i + 1 < expression.operands.size(); i += 2) {
    NIBBLE_ASSIGN_OR_RETURN(Value key, Evaluate(*expression.operands[i]));
    NIBBLE_ASSIGN_OR_RETURN(Value value, Evaluate(*expression.operands[i + 1]));
    entries.emplace_back(std::move(key), std::move(value));
  }
  return MakeDict(context_.budget, std::move(entries));
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateConditional(const Expression& expression) {
  NIBBLE_ASSIGN_OR_RETURN(const bool condition, EvaluateTruth(*expression.operands[0]));
  if (condition) return Evaluate(*expression.operands[1]);
  if (expression.operands[2] != nullptr) return Evaluate(*expression.operands[2]);
  return Value::UndefinedBecause("an inline if without an else was false");
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateLogic(const Expression& expression) {
  NIBBLE_ASSIGN_OR_RETURN(Value left, Evaluate(*expression.operands[0]));
  NIBBLE_ASSIGN_OR_RETURN(const bool truth, IsTrue(left));
  if (truth == (expression.type == Type::kOr)) return left;
  return Evaluate(*expression.operands[1]);
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateUnary(const Expression& expression) {
  NIBBLE_ASSIGN_OR_RETURN(const Value value, Evaluate(*expression.operands[0]));
  if (expression.type == Type::kNot) {
    NIBBLE_ASSIGN_OR_RETURN(const bool truth, IsTrue(value));
    return Value(!truth);
  }
  NIBBLE_ASSIGN_OR_RETURN(const Value negated, Negate(value));
  return expression.type == Type::kNegate ? Result<Value>(negated) : Negate(negated);
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateArithmetic(const Expression& expression) {
  NIBBLE_ASSIGN_OR_RETURN(const Value left, Evaluate(*expression.operands[0]));
  NIBBLE_ASSIGN_OR_RETURN(const Value right, Evaluate(*expression.operands[1]));
  return Arithmetic(context_, expression.operators[0], left, right);
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateCompare(const Expression& expression) {
  NIBBLE_ASSIGN_OR_RETURN(Value left, Evaluate(*expression.operands[0]));
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(Value right, Evaluate(*expression.operands[i + 1]));
    NIBBLE_ASSIGN_OR_RETURN(const bool holds,
                            Holds(context_, expression.operators[i], left, right));
    if (!holds) return Value(false);
    left = std::move(right);
  }
  return Value(true);
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateConcatenation(const Expression& expression) {
  std::string text;
  for (const ExpressionPointer& operand : expression.operands) {
    NIBBLE_ASSIGN_OR_RETURN(const Value value, Evaluate(*operand));
    NIBBLE_ASSIGN_OR_RETURN(const std::string piece, ToText(context_.budget, value));
    text += piece;
  }
  return MakeString(context_.budget, std::move(text));
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateAccess(const Expression& expression) {
  NIBBLE_ASSIGN_OR_RETURN(const Value object, Evaluate(*expression.operands[0]));
  if (expression.type == Type::kAttribute) return GetAttribute(context_, object, expression.name);
  Value parts[3];  // of a slice: start, stop, step
  for (size_t i = 1; i < expression.operands.size(); ++i) {
    if (expression.operands[i] == nullptr) continue;
    NIBBLE_ASSIGN_OR_RETURN(parts[i - 1], Evaluate(*expression.operands[i]));
  }
  if (expression.type == Type::kSubscript) return GetItem(context_, object, parts[0]);
  return GetSlice(context_, object, parts[0], parts[1], parts[2]);
}

Result<Arguments> Interpreter::EvaluateArguments(const Expression& expression) {
  Arguments arguments;
  for (size_t i = 1; i < expression.operands.size(); ++i) {
    NIBBLE_ASSIGN_OR_RETURN(Value value, Evaluate(*expression.operands[i]));
    arguments.positional.push_back(std::move(value));
  }
  for (const auto& [name, operand] : expression.keywords) {
    NIBBLE_ASSIGN_OR_RETURN(Value value, Evaluate(*operand));
    NIBBLE_RETURN_IF_ERROR(context_.budget.Bytes(name.size()));
    arguments.named.emplace_back(name, std::move(value));
  }
  return arguments;
}

[[gnu::noinline]] Result<Value> Interpreter::EvaluateCall(const Expression& expression) {
  NIBBLE_ASSIGN_OR_RETURN(const Value callee, Evaluate(*expression.operands[0]));
  NIBBLE_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression));
  switch (callee.kind()) {
    case Kind::kFunction:
      return CallFunction(context_, callee.function(), arguments);
    case Kind::kMacro:
      return CallMacro(*callee.macro(), arguments);
    case Kind::kMethod:
      return CallMethod(context_, callee.method(), arguments);
    case Kind::kUndefined:
      return FailUndefined(callee);
    default:
      return BadInput("a {} cannot be called", callee.TypeName());
  }
}

// A filter or a test.
[[gnu::noinline]] Result<Value> Interpreter::EvaluateFilter(const Expression& expression) {
  Value input = captured_;
  if (expression.operands[0] != nullptr) {
    NIBBLE_ASSIGN_OR_RETURN(input, Evaluate(*expression.operands[0]));
  }
  NIBBLE_ASSIGN_OR_RETURN(const Arguments arguments, EvaluateArguments(expression));
  if (expression.type == Type::kFilter) {
    return ApplyFilter(context_, expression.name, input, arguments);
  }
  NIBBLE_ASSIGN_OR_RETURN(const bool passes,
                          ApplyTest(context_, expression.name, input, arguments));
  return Value(passes);
}

Result<Value> Interpreter::CallMacro(const Statement& macro, const Arguments& arguments) {
  if (arguments.positional.size() > macro.parameters.size()) {
    return BadInput("the macro '{}' takes at most {} arguments, got {}", macro.text,
                    macro.parameters.size(), arguments.positional.size());
  }
  for (const auto& [name, value] : arguments.named) {
    bool known = false;
    for (size_t i = arguments.positional.size(); i < macro.parameters.size(); ++i) {
      known = known || macro.parameters[i].name == name;
    }
    NIBBLE_RETURN_IF_ERROR(context_.budget.Step(1 + macro.parameters.size() / 8));
    if (!known) return BadInput("the macro '{}' has no argument '{}' left", macro.text, name);
  }
  // Macros stand at the top of a template, so that its variables are what they see.
  Scope scope{&globals_};
  Scope* const saved = std::exchange(scope_, &scope);
  std::string text;
  std::string* const out = std::exchange(out_, &text);
  const Status done = [&]() -> Status {
    for (size_t i = 0; i < macro.parameters.size(); ++i) {
      const Statement::Parameter& parameter = macro.parameters[i];
      Value value =
          Value::UndefinedBecause(fmt::format("parameter '{}' was not provided", parameter.name));
      bool given = false;
      if (i < arguments.positional.size()) {
        value = arguments.positional[i];
        given = true;
      }
      for (const auto& [name, named] : arguments.named) {
        if (name != parameter.name) continue;
        value = named;
        given = true;
      }
      if (!given && parameter.fallback != nullptr) {
        NIBBLE_ASSIGN_OR_RETURN(value, Evaluate(*parameter.fallback));
      }
      NIBBLE_RETURN_IF_ERROR(context_.budget.Bytes(parameter.name.size() + 4 * sizeof(Value)));
      NIBBLE_RETURN_IF_ERROR(context_.budget.Step(1 + arguments.named.size() / 8));
      scope.variables.insert_or_assign(parameter.name, std::move(value));
    }
    const Result<Flow> flow = ExecuteAll(macro.body);
    if (!flow) return tl::unexpected<Error>(flow.error());
    return {};
  }();
  scope_ = saved;
  out_ = out;
  NIBBLE_RETURN_IF_ERROR(done);
  return MakeString(context_.budget, std::move(text));
}

}  // namespace nibble::jinja
