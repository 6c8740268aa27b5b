#include <algorithm>
#include <charconv>

#include "src/tokenizer/jinja_builtins.h"
#include "src/tokenizer/jinja_parser.h"

namespace nibble::jinja {
namespace {

using Type = Expression::Type;

std::string Shown(const Token& token) {
  switch (token.type) {
    case TokenType::kText:
      return "text";
    case TokenType::kBlockBegin:
      return "'{%'";
    case TokenType::kBlockEnd:
      return "'%}'";
    case TokenType::kOutputBegin:
      return "'{{'";
    case TokenType::kOutputEnd:
      return "'}}'";
    case TokenType::kString:
      return "a string";
    case TokenType::kEnd:
      return "the end of the template";
    default:
      return fmt::format("'{}'", token.text);
  }
}

std::optional<Operator> ComparisonOperator(const Token& token) {
  if (token.type != TokenType::kOperator) return std::nullopt;
  if (token.text == "==") return Operator::kEqual;
  if (token.text == "!=") return Operator::kNotEqual;
  if (token.text == "<") return Operator::kLess;
  if (token.text == "<=") return Operator::kLessEqual;
  if (token.text == ">") return Operator::kGreater;
  if (token.text == ">=") return Operator::kGreaterEqual;
  return std::nullopt;
}

std::optional<Operator> ProductOperator(const Token& token) {
  if (token.type != TokenType::kOperator) return std::nullopt;
  if (token.text == "*") return Operator::kMultiply;
  if (token.text == "/") return Operator::kDivide;
  if (token.text == "//") return Operator::kFloorDivide;
  if (token.text == "%") return Operator::kModulo;
  return std::nullopt;
}

}  // namespace

Token TokenStream::Take() {
  Token token = tokens_[position_];
  if (position_ + 1 < tokens_.size()) ++position_;
  return token;
}

bool TokenStream::SkipName(std::string_view name) {
  const bool at = AtName(name);
  if (at) Take();
  return at;
}

bool TokenStream::SkipOperator(std::string_view text) {
  const bool at = AtOperator(text);
  if (at) Take();
  return at;
}

tl::unexpected<Error> TokenStream::Unexpected(std::string_view wanted) const {
  return BadInput("line {}: want {}, got {}", current().line, wanted, Shown(current()));
}

Status TokenStream::ExpectName(std::string_view name) {
  if (!SkipName(name)) return Unexpected(fmt::format("'{}'", name));
  return {};
}

Status TokenStream::ExpectOperator(std::string_view text) {
  if (!SkipOperator(text)) return Unexpected(fmt::format("'{}'", text));
  return {};
}

Status TokenStream::Expect(TokenType type) {
  if (!At(type)) return Unexpected(Shown(Token{type, 0, ""}));
  Take();
  return {};
}

Result<std::string> TokenStream::TakeAnyName() {
  if (!At(TokenType::kName)) return Unexpected("a name");
  return Take().text;
}

Status ExpressionParser::Descend() {
  if (nesting_ >= kMaxNesting) {
    return BadInput("line {}: nested too deeply", tokens_.current().line);
  }
  ++nesting_;
  return {};
}

ExpressionPointer ExpressionParser::New(Type type, int line) {
  auto expression = std::make_unique<Expression>();
  expression->type = type;
  expression->line = line;
  return expression;
}

Status ExpressionParser::Add(ExpressionPointer operand, Expression* parent) {
  if (operand != nullptr) {
    parent->depth = std::max(parent->depth, operand->depth + 1);
    if (parent->depth > kMaxExpressionDepth) {
      return BadInput("line {}: an expression of more than {} levels", operand->line,
                      kMaxExpressionDepth);
    }
  }
  parent->operands.push_back(std::move(operand));
  return {};
}

Result<ExpressionPointer> ExpressionParser::ParseExpression(Conditional conditional) {
  NIBBLE_RETURN_IF_ERROR(Descend());
  auto result = conditional == Conditional::kAllowed ? ParseConditional() : ParseOr();
  Ascend();
  return result;
}

Result<ExpressionPointer> ExpressionParser::ParseExpressions(Conditional conditional) {
  const int line = tokens_.current().line;
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer first, ParseExpression(conditional));
  if (!tokens_.AtOperator(",")) return first;
  ExpressionPointer tuple = New(Type::kTuple, line);
  NIBBLE_RETURN_IF_ERROR(Add(std::move(first), tuple.get()));
  while (tokens_.SkipOperator(",")) {
    if (tokens_.At(TokenType::kOutputEnd) || tokens_.At(TokenType::kBlockEnd) ||
        tokens_.AtOperator(")")) {
      break;
    }
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer item, ParseExpression(conditional));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(item), tuple.get()));
  }
  return tuple;
}

Result<ExpressionPointer> ExpressionParser::ParseOutput() {
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer expression, ParseExpressions(Conditional::kAllowed));
  if (expression->type == Type::kFilter && expression->name == "safe") {
    ExpressionPointer input = std::move(expression->operands[0]);
    safe_line_.reset();
    return input;
  }
  return expression;
}

Result<ExpressionPointer> ExpressionParser::ParseConditional() {
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer value, ParseOr());
  while (tokens_.AtName("if")) {
    ExpressionPointer conditional = New(Type::kConditional, tokens_.Take().line);
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer condition, ParseOr());
    ExpressionPointer otherwise;
    if (tokens_.SkipName("else")) {
      NIBBLE_ASSIGN_OR_RETURN(otherwise, ParseExpression(Conditional::kAllowed));
    }
    NIBBLE_RETURN_IF_ERROR(Add(std::move(condition), conditional.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(value), conditional.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(otherwise), conditional.get()));
    value = std::move(conditional);
  }
  return value;
}

Result<ExpressionPointer> ExpressionParser::ParseOr() {
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer left, ParseAnd());
  while (tokens_.AtName("or")) {
    ExpressionPointer parent = New(Type::kOr, tokens_.Take().line);
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer right, ParseAnd());
    NIBBLE_RETURN_IF_ERROR(Add(std::move(left), parent.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(right), parent.get()));
    left = std::move(parent);
  }
  return left;
}

Result<ExpressionPointer> ExpressionParser::ParseAnd() {
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer left, ParseNot());
  while (tokens_.AtName("and")) {
    ExpressionPointer parent = New(Type::kAnd, tokens_.Take().line);
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer right, ParseNot());
    NIBBLE_RETURN_IF_ERROR(Add(std::move(left), parent.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(right), parent.get()));
    left = std::move(parent);
  }
  return left;
}

Result<ExpressionPointer> ExpressionParser::ParseNot() {
  if (!tokens_.AtName("not")) return ParseCompare();
  ExpressionPointer negation = New(Type::kNot, tokens_.Take().line);
  NIBBLE_RETURN_IF_ERROR(Descend());
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer operand, ParseNot());
  Ascend();
  NIBBLE_RETURN_IF_ERROR(Add(std::move(operand), negation.get()));
  return negation;
}

Result<ExpressionPointer> ExpressionParser::ParseCompare() {
  const int line = tokens_.current().line;
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer first, ParseSum());
  ExpressionPointer comparison;
  while (true) {
    std::optional<Operator> operation = ComparisonOperator(tokens_.current());
    if (operation) {
      tokens_.Take();
    } else if (tokens_.SkipName("in")) {
      operation = Operator::kIn;
    } else if (tokens_.AtName("not") && TokenStream::Is(tokens_.next(), TokenType::kName, "in")) {
      tokens_.Take();
      tokens_.Take();
      operation = Operator::kNotIn;
    } else {
      break;
    }
    if (comparison == nullptr) {
      comparison = New(Type::kCompare, line);
      NIBBLE_RETURN_IF_ERROR(Add(std::move(first), comparison.get()));
    }
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer operand, ParseSum());
    NIBBLE_RETURN_IF_ERROR(Add(std::move(operand), comparison.get()));
    comparison->operators.push_back(*operation);
  }
  return comparison == nullptr ? std::move(first) : std::move(comparison);
}

Result<ExpressionPointer> ExpressionParser::ParseSum() {
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer left, ParseConcatenation());
  while (tokens_.AtOperator("+") || tokens_.AtOperator("-")) {
    const Token token = tokens_.Take();
    ExpressionPointer parent = New(Type::kArithmetic, token.line);
    parent->operators.push_back(token.text == "+" ? Operator::kAdd : Operator::kSubtract);
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer right, ParseConcatenation());
    NIBBLE_RETURN_IF_ERROR(Add(std::move(left), parent.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(right), parent.get()));
    left = std::move(parent);
  }
  return left;
}

Result<ExpressionPointer> ExpressionParser::ParseConcatenation() {
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer first, ParseProduct());
  if (!tokens_.AtOperator("~")) return first;
  ExpressionPointer parent = New(Type::kConcatenate, tokens_.current().line);
  NIBBLE_RETURN_IF_ERROR(Add(std::move(first), parent.get()));
  while (tokens_.SkipOperator("~")) {
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer operand, ParseProduct());
    NIBBLE_RETURN_IF_ERROR(Add(std::move(operand), parent.get()));
  }
  return parent;
}

Result<ExpressionPointer> ExpressionParser::ParseProduct() {
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer left, ParsePower());
  while (const std::optional<Operator> operation = ProductOperator(tokens_.current())) {
    ExpressionPointer parent = New(Type::kArithmetic, tokens_.Take().line);
    parent->operators.push_back(*operation);
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer right, ParsePower());
    NIBBLE_RETURN_IF_ERROR(Add(std::move(left), parent.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(right), parent.get()));
    left = std::move(parent);
  }
  return left;
}

Result<ExpressionPointer> ExpressionParser::ParsePower() {
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer left, ParseUnary(Filters::kAllowed));
  while (tokens_.AtOperator("**")) {
    ExpressionPointer parent = New(Type::kArithmetic, tokens_.Take().line);
    parent->operators.push_back(Operator::kPower);
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer right, ParseUnary(Filters::kAllowed));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(left), parent.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(right), parent.get()));
    left = std::move(parent);
  }
  return left;
}

Result<ExpressionPointer> ExpressionParser::ParseUnary(Filters filters) {
  ExpressionPointer node;
  if (tokens_.AtOperator("-") || tokens_.AtOperator("+")) {
    const Token sign = tokens_.Take();
    node = New(sign.text == "-" ? Type::kNegate : Type::kPlus, sign.line);
    NIBBLE_RETURN_IF_ERROR(Descend());
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer operand, ParseUnary(Filters::kNotAllowed));
    Ascend();
    NIBBLE_RETURN_IF_ERROR(Add(std::move(operand), node.get()));
  } else {
    NIBBLE_ASSIGN_OR_RETURN(node, ParsePrimary());
  }
  NIBBLE_ASSIGN_OR_RETURN(node, ParsePostfix(std::move(node)));
  if (filters == Filters::kAllowed) {
    NIBBLE_ASSIGN_OR_RETURN(node, ParseFilters(std::move(node)));
  }
  return node;
}

Result<ExpressionPointer> ExpressionParser::ParsePrimary() {
  switch (tokens_.current().type) {
    case TokenType::kName:
      return ParseName();
    case TokenType::kInteger:
    case TokenType::kFloat:
      return ParseNumber();
    case TokenType::kString: {
      ExpressionPointer constant = New(Type::kConstant, tokens_.current().line);
      std::string text;
      while (tokens_.At(TokenType::kString)) text += tokens_.Take().text;
      constant->constant = Value::String(std::move(text));
      return constant;
    }
    default:
      break;
  }
  if (tokens_.AtOperator("(")) return ParseParenthesized();
  if (tokens_.AtOperator("[")) return ParseList();
  if (tokens_.AtOperator("{")) return ParseDict();
  return tokens_.Unexpected("an expression");
}

Result<ExpressionPointer> ExpressionParser::ParseName() {
  const Token token = tokens_.Take();
  ExpressionPointer node = New(Type::kConstant, token.line);
  if (token.text == "true" || token.text == "True") {
    node->constant = Value(true);
  } else if (token.text == "false" || token.text == "False") {
    node->constant = Value(false);
  } else if (token.text != "none" && token.text != "None") {
    const bool undeclared =
        token.text == "varargs" || token.text == "kwargs" || token.text == "caller";
    if (macro_ && undeclared &&
        std::find(macro_->begin(), macro_->end(), token.text) == macro_->end()) {
      return BadInput("line {}: '{}' in a macro is not supported", token.line, token.text);
    }
    node->type = Type::kName;
    node->name = token.text;
  }
  return node;
}

Result<ExpressionPointer> ExpressionParser::ParseNumber() {
  const Token token = tokens_.Take();
  ExpressionPointer node = New(Type::kConstant, token.line);
  const char* begin = token.text.data();
  const char* end = begin + token.text.size();
  if (token.type == TokenType::kInteger) {
    int64_t value = 0;
    if (std::from_chars(begin, end, value).ec != std::errc()) {
      return BadInput("line {}: the number {} is too large", token.line, token.text);
    }
    node->constant = Value(value);
  } else {
    double value = 0;
    if (std::from_chars(begin, end, value).ec != std::errc()) {
      return BadInput("line {}: the number {} is out of range", token.line, token.text);
    }
    node->constant = Value(value);
  }
  return node;
}

Result<ExpressionPointer> ExpressionParser::ParseParenthesized() {
  const int line = tokens_.Take().line;
  if (tokens_.SkipOperator(")")) return New(Type::kTuple, line);
  NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer inner, ParseExpressions(Conditional::kAllowed));
  NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
  return inner;
}

Result<ExpressionPointer> ExpressionParser::ParseList() {
  ExpressionPointer list = New(Type::kList, tokens_.Take().line);
  while (!tokens_.AtOperator("]")) {
    if (!list->operands.empty()) NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
    if (tokens_.AtOperator("]")) break;
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer item, ParseExpression(Conditional::kAllowed));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(item), list.get()));
  }
  NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator("]"));
  return list;
}

Result<ExpressionPointer> ExpressionParser::ParseDict() {
  ExpressionPointer dict = New(Type::kDict, tokens_.Take().line);
  while (!tokens_.AtOperator("}")) {
    if (!dict->operands.empty()) NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
    if (tokens_.AtOperator("}")) break;
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer key, ParseExpression(Conditional::kAllowed));
    NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(":"));
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer value, ParseExpression(Conditional::kAllowed));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(key), dict.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(value), dict.get()));
  }
  NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator("}"));
  return dict;
}

}  // namespace nibble::jinja
