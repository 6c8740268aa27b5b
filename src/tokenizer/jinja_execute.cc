// Statements.
#include "src/tokenizer/jinja_depth.h"
#include "src/tokenizer/jinja_eval.h"

namespace nibble::jinja {

using Type = Statement::Type;

Interpreter::Interpreter(Context& context, Variables globals, uint64_t max_output_bytes)
    : context_(context),
      max_output_bytes_(max_output_bytes),
      globals_{nullptr, std::move(globals)} {}

Result<std::string> Interpreter::Run(const Block& block) {
  const Result<Flow> flow = ExecuteAll(block);
  if (!flow) return tl::unexpected<Error>(flow.error().In(fmt::format("line {}", error_line_)));
  return std::move(output_);
}

Status Interpreter::Write(std::string_view text) {
  NIBBLE_RETURN_IF_ERROR(context_.budget.Bytes(text.size()));
  if (text.size() > max_output_bytes_ - out_->size()) {
    return BadInput("the template writes more than {} bytes", max_output_bytes_);
  }
  out_->append(text);
  return {};
}

Result<Interpreter::Flow> Interpreter::ExecuteAll(const Block& block) {
  for (const Statement& statement : block) {
    Result<Flow> flow = Execute(statement);
    if (!flow && error_line_ == 0) error_line_ = statement.line;
    if (!flow || *flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::Execute(const Statement& statement) {
  NIBBLE_RETURN_IF_ERROR(context_.budget.Step());
  NIBBLE_ASSIGN_OR_RETURN(const DepthGuard guard, DepthGuard::Enter(&depth_, kMaxEvaluationDepth));
  switch (statement.type) {
    case Type::kText:
      NIBBLE_RETURN_IF_ERROR(Write(statement.text));
      return Flow::kNext;
    case Type::kOutput:
      return ExecuteOutput(statement);
    case Type::kIf:
      return ExecuteIf(statement);
    case Type::kFor:
      return ExecuteFor(statement);
    case Type::kSet:
      return ExecuteSet(statement);
    case Type::kWith:
      return ExecuteWith(statement);
    case Type::kGeneration:
      return ExecuteScope(statement);
    case Type::kSetBlock:
    case Type::kFilter:
      return ExecuteCapture(statement);
    case Type::kMacro:
      scope_->variables.insert_or_assign(statement.text, Value(&statement));
      return Flow::kNext;
    case Type::kBreak:
      return Flow::kBreak;
    case Type::kContinue:
      return Flow::kContinue;
  }
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteOutput(const Statement& statement) {
  NIBBLE_ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expression));
  if (value.Is(Kind::kString)) {
    NIBBLE_RETURN_IF_ERROR(Write(value.string()));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const std::string text, ToText(context_.budget, value));
    NIBBLE_RETURN_IF_ERROR(Write(text));
  }
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteIf(const Statement& statement) {
  for (const Statement::Branch& branch : statement.branches) {
    NIBBLE_ASSIGN_OR_RETURN(const bool taken, EvaluateTruth(*branch.condition));
    if (taken) return ExecuteAll(branch.body);
  }
  return ExecuteAll(statement.otherwise);
}

// The next item of a loop that passes its `if`.
Result<std::optional<Value>> Interpreter::PullItem(const Statement& statement, Scope* enclosing,
                                                   Iterator* iterator) {
  while (iterator->next < iterator->items.size()) {
    NIBBLE_RETURN_IF_ERROR(context_.budget.Step());
    const Value item = iterator->items[iterator->next++];
    if (statement.condition == nullptr) return std::optional<Value>(item);
    // The condition sees what surrounds the loop, and the item; not the loop's own variables.
    Scope scope{enclosing};
    Scope* const saved = scope_;
    scope_ = &scope;
    const Status assigned = Assign(statement.target, item);
    const Result<bool> passes = assigned ? EvaluateTruth(*statement.condition)
                                         : Result<bool>(tl::unexpected<Error>(assigned.error()));
    scope_ = saved;
    if (!passes) return tl::unexpected<Error>(passes.error());
    if (*passes) return std::optional<Value>(item);
  }
  return std::optional<Value>();
}

Result<std::shared_ptr<Loop>> Interpreter::StartLoop(const Statement& statement) {
  NIBBLE_ASSIGN_OR_RETURN(const Value iterated, Evaluate(*statement.expression));
  std::shared_ptr<Iterator> iterator;
  auto loop = std::make_shared<Loop>();
  loop->depth = iterated.Depth() + 1;
  if (loop->depth > kMaxValueDepth) return BadInput("values nested too deeply");
  if (iterated.Is(Kind::kIterator)) {
    iterator = iterated.iterator();
  } else {
    NIBBLE_ASSIGN_OR_RETURN(std::vector<Value> items, Items(context_.budget, iterated));
    if (statement.condition == nullptr) loop->length = static_cast<int64_t>(items.size());
    iterator = std::make_shared<Iterator>(Iterator{std::move(items), 0, loop->depth});
  }
  NIBBLE_RETURN_IF_ERROR(context_.budget.Bytes(sizeof(Loop) + sizeof(Iterator)));
  loop->pull = [this, &statement, enclosing = scope_, iterator] {
    return PullItem(statement, enclosing, iterator.get());
  };
  return loop;
}

Result<Interpreter::Flow> Interpreter::ExecuteFor(const Statement& statement) {
  NIBBLE_ASSIGN_OR_RETURN(const std::shared_ptr<Loop> loop, StartLoop(statement));
  // As jinja2 has it, an iteration left by break or continue does not count as one.
  bool completed_any = false;
  while (true) {
    NIBBLE_ASSIGN_OR_RETURN(const bool more, loop->Advance());
    if (!more) break;
    NIBBLE_ASSIGN_OR_RETURN(const Flow flow, ExecuteIteration(statement, loop));
    if (flow == Flow::kBreak) break;
    if (flow == Flow::kNext) completed_any = true;
  }
  // The loop may live on in a namespace, but what surrounds it does not.
  loop->pull = [] { return Result<std::optional<Value>>(std::nullopt); };
  if (completed_any || statement.otherwise.empty()) return Flow::kNext;
  Scope scope{scope_};
  scope_ = &scope;
  Result<Flow> flow = ExecuteAll(statement.otherwise);
  scope_ = scope.parent;
  return flow;
}

Result<Interpreter::Flow> Interpreter::ExecuteIteration(const Statement& statement,
                                                        const std::shared_ptr<Loop>& loop) {
  Scope scope{scope_};
  scope_ = &scope;
  scope.variables.emplace("loop", Value(loop));
  const Status assigned = Assign(statement.target, loop->current);
  Result<Flow> flow =
      assigned ? ExecuteAll(statement.body) : Result<Flow>(tl::unexpected<Error>(assigned.error()));
  scope_ = scope.parent;
  return flow;
}

Result<Interpreter::Flow> Interpreter::ExecuteSet(const Statement& statement) {
  NIBBLE_ASSIGN_OR_RETURN(const Value value, Evaluate(*statement.expression));
  NIBBLE_RETURN_IF_ERROR(Assign(statement.target, value));
  return Flow::kNext;
}

Result<Interpreter::Flow> Interpreter::ExecuteWith(const Statement& statement) {
  Scope scope{scope_};
  for (const auto& [target, expression] : statement.assignments) {
    NIBBLE_ASSIGN_OR_RETURN(const Value value, Evaluate(*expression));
    scope_ = &scope;
    const Status assigned = Assign(target, value);
    scope_ = scope.parent;
    NIBBLE_RETURN_IF_ERROR(assigned);
  }
  scope_ = &scope;
  Result<Flow> flow = ExecuteAll(statement.body);
  scope_ = scope.parent;
  return flow;
}

Result<Interpreter::Flow> Interpreter::ExecuteScope(const Statement& statement) {
  Scope scope{scope_};
  scope_ = &scope;
  Result<Flow> flow = ExecuteAll(statement.body);
  scope_ = scope.parent;
  return flow;
}

// A body whose text is filtered, then assigned or written.
Result<Interpreter::Flow> Interpreter::ExecuteCapture(const Statement& statement) {
  Scope scope{scope_};
  std::string text;
  std::string* const out = out_;
  out_ = &text;
  scope_ = &scope;
  Result<Flow> flow = ExecuteAll(statement.body);
  out_ = out;
  Result<Value> value = Value();
  if (flow && *flow == Flow::kNext) {
    value = MakeString(context_.budget, std::move(text));
    if (value && statement.expression != nullptr) {
      const Value saved = std::exchange(captured_, *value);
      value = Evaluate(*statement.expression);
      captured_ = saved;
    }
  }
  scope_ = scope.parent;
  if (!flow || *flow != Flow::kNext) return flow;
  if (!value) return tl::unexpected<Error>(value.error());
  if (statement.type == Type::kSetBlock) {
    NIBBLE_RETURN_IF_ERROR(Assign(statement.target, *value));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(const std::string filtered, ToText(context_.budget, *value));
    NIBBLE_RETURN_IF_ERROR(Write(filtered));
  }
  return Flow::kNext;
}

Status Interpreter::Assign(const Target& target, const Value& value) {
  switch (target.type) {
    case Target::Type::kName:
      NIBBLE_RETURN_IF_ERROR(context_.budget.Bytes(4 * sizeof(Value)));
      scope_->variables.insert_or_assign(target.name, value);
      return {};
    case Target::Type::kTuple: {
      NIBBLE_ASSIGN_OR_RETURN(const std::vector<Value> items, Items(context_.budget, value));
      if (items.size() != target.parts.size()) {
        return BadInput("want {} values to unpack, got {}", target.parts.size(), items.size());
      }
      for (size_t i = 0; i < items.size(); ++i) {
        NIBBLE_RETURN_IF_ERROR(Assign(target.parts[i], items[i]));
      }
      return {};
    }
    case Target::Type::kAttribute:
      break;
  }
  for (Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
    const auto it = scope->variables.find(target.name);
    if (it == scope->variables.end()) continue;
    if (!it->second.Is(Kind::kNamespace)) break;
    if (target.attribute.starts_with('_')) {
      return BadInput("'{}.{}': names must not start with _", target.name, target.attribute);
    }
    NIBBLE_RETURN_IF_ERROR(context_.budget.Bytes(target.attribute.size() + 4 * sizeof(Value)));
    it->second.name_space()->variables.insert_or_assign(target.attribute, value);
    return {};
  }
  return BadInput("'{}' is not a namespace: its attribute cannot be assigned", target.name);
}

}  // namespace nibble::jinja
