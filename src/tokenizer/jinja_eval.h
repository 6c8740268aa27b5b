// Runs a parsed template.
#ifndef NIBBLE_TOKENIZER_JINJA_EVAL_H_
#define NIBBLE_TOKENIZER_JINJA_EVAL_H_

#include <string>
#include <string_view>
#include <unordered_map>

#include "src/tokenizer/jinja_ast.h"
#include "src/tokenizer/jinja_builtins.h"

namespace nibble::jinja {

// Statements, expressions and macro calls inside each other: bounds the stack.
inline constexpr int kMaxEvaluationDepth = 800;

using Variables = std::unordered_map<std::string_view, Value>;

class Interpreter {
 public:
  // The names of `globals` and whatever `context` refers to must outlive this.
  Interpreter(Context& context, Variables globals, uint64_t max_output_bytes);
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  // Once. Errors name the line. `block` must outlive this.
  Result<std::string> Run(const Block& block);

 private:
  struct Scope {
    Scope* parent;
    Variables variables = {};
  };
  enum class Flow { kNext, kBreak, kContinue };

  Result<Flow> ExecuteAll(const Block& block);
  Result<Flow> Execute(const Statement& statement);
  Result<Flow> ExecuteOutput(const Statement& statement);
  Result<Flow> ExecuteIf(const Statement& statement);
  Result<Flow> ExecuteFor(const Statement& statement);
  Result<Flow> ExecuteIteration(const Statement& statement, const std::shared_ptr<Loop>& loop);
  Result<Flow> ExecuteSet(const Statement& statement);
  Result<Flow> ExecuteWith(const Statement& statement);
  Result<Flow> ExecuteScope(const Statement& statement);
  Result<Flow> ExecuteCapture(const Statement& statement);
  Result<std::shared_ptr<Loop>> StartLoop(const Statement& statement);
  Result<std::optional<Value>> PullItem(const Statement& statement, Scope* scope,
                                        Iterator* iterator);
  Status Assign(const Target& target, const Value& value);
  Status Write(std::string_view text);

  Result<Value> Evaluate(const Expression& expression);
  Result<Value> EvaluateNode(const Expression& expression);
  Result<Value> EvaluateName(const Expression& expression);
  Result<Value> EvaluateItems(const Expression& expression);
  Result<Value> EvaluateDict(const Expression& expression);
  Result<Value> EvaluateConditional(const Expression& expression);
  Result<Value> EvaluateLogic(const Expression& expression);
  Result<Value> EvaluateUnary(const Expression& expression);
  Result<Value> EvaluateArithmetic(const Expression& expression);
  Result<Value> EvaluateCompare(const Expression& expression);
  Result<Value> EvaluateConcatenation(const Expression& expression);
  Result<Value> EvaluateAccess(const Expression& expression);
  Result<Value> EvaluateCall(const Expression& expression);
  Result<Value> EvaluateFilter(const Expression& expression);
  Result<bool> EvaluateTruth(const Expression& expression);
  Result<Arguments> EvaluateArguments(const Expression& expression);
  Result<Value> CallMacro(const Statement& macro, const Arguments& arguments);

  Context& context_;
  const uint64_t max_output_bytes_;
  Scope globals_;
  Scope* scope_ = &globals_;
  std::string output_;
  std::string* out_ = &output_;
  Value captured_;  // what filters without an operand apply to
  int depth_ = 0;
  int error_line_ = 0;  // of the innermost place that failed
};

}  // namespace nibble::jinja

#endif  // NIBBLE_TOKENIZER_JINJA_EVAL_H_
