// A parsed template. Depths are bounded (kMaxExpressionDepth, kMaxNesting in jinja_parser.h), so
// recursion over it is.
#ifndef NIBBLE_TOKENIZER_JINJA_AST_H_
#define NIBBLE_TOKENIZER_JINJA_AST_H_

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/tokenizer/jinja_value.h"

namespace nibble::jinja {

enum class Operator {
  kAdd,
  kSubtract,
  kMultiply,
  kDivide,
  kFloorDivide,
  kModulo,
  kPower,
  kEqual,
  kNotEqual,
  kLess,
  kLessEqual,
  kGreater,
  kGreaterEqual,
  kIn,
  kNotIn
};

struct Expression;
using ExpressionPointer = std::unique_ptr<Expression>;

struct Expression {
  enum class Type {
    kConstant,     // constant
    kName,         // name
    kTuple,        // operands
    kList,         // operands
    kDict,         // operands: key, value, key, value, ...
    kConditional,  // operands: condition, value, other value or null
    kOr,           // operands: two
    kAnd,          // operands: two
    kNot,          // operands: one
    kNegate,       // operands: one
    kPlus,         // operands: one
    kArithmetic,   // operands: two; operators: one
    kCompare,      // operands: n + 1; operators: n
    kConcatenate,  // operands, of ~
    kAttribute,    // operands: object; name
    kSubscript,    // operands: object, index
    kSlice,        // operands: object, start or null, stop or null, step or null
    kCall,         // operands: callee, arguments...; keywords
    kFilter,       // operands: input (null: the captured text), arguments...; keywords; name
    kTest          // operands: value, arguments...; keywords; name
  };
  Type type;
  int line;
  int depth = 1;
  Value constant;
  std::string name;
  std::vector<ExpressionPointer> operands;
  std::vector<std::pair<std::string, ExpressionPointer>> keywords;
  std::vector<Operator> operators;
};

// What an assignment assigns to.
struct Target {
  enum class Type { kName, kAttribute, kTuple };
  Type type;
  std::string name;
  std::string attribute;      // kAttribute: of the namespace `name`
  std::vector<Target> parts;  // kTuple
};

struct Statement;
using Block = std::vector<Statement>;

struct Statement {
  enum class Type {
    kText,        // text
    kOutput,      // expression
    kIf,          // branches; otherwise
    kFor,         // target, expression (what is iterated), condition or null, body, otherwise
    kSet,         // target, expression
    kSetBlock,    // target, expression (filters on the captured text) or null, body
    kWith,        // assignments, body
    kFilter,      // expression (filters on the captured text), body
    kGeneration,  // body
    kMacro,       // text (its name), parameters, body
    kBreak,
    kContinue
  };
  struct Branch {
    ExpressionPointer condition;
    Block body;
  };
  struct Parameter {
    std::string name;
    ExpressionPointer fallback;  // or null
  };

  Type type;
  int line;
  std::string text;
  ExpressionPointer expression;
  ExpressionPointer condition;
  Target target;
  Block body;
  Block otherwise;
  std::vector<Branch> branches;
  std::vector<Parameter> parameters;
  std::vector<std::pair<Target, ExpressionPointer>> assignments;
};

}  // namespace nibble::jinja

#endif  // NIBBLE_TOKENIZER_JINJA_AST_H_
