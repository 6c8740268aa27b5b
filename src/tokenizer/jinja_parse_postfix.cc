// What may follow an operand: subscripts, calls, filters and tests.
#include <charconv>

#include "src/tokenizer/jinja_builtins.h"
#include "src/tokenizer/jinja_parser.h"

namespace nibble::jinja {

using Type = Expression::Type;

Result<ExpressionPointer> ExpressionParser::ParsePostfix(ExpressionPointer operand) {
  while (true) {
    if (tokens_.AtOperator(".") || tokens_.AtOperator("[")) {
      NIBBLE_ASSIGN_OR_RETURN(operand, ParseSubscript(std::move(operand)));
    } else if (tokens_.AtOperator("(")) {
      NIBBLE_ASSIGN_OR_RETURN(operand, ParseCall(std::move(operand)));
    } else {
      return operand;
    }
  }
}

Result<ExpressionPointer> ExpressionParser::ParseFilters(ExpressionPointer operand) {
  while (true) {
    if (tokens_.SkipOperator("|")) {
      NIBBLE_ASSIGN_OR_RETURN(operand, ParseFilter(std::move(operand)));
    } else if (tokens_.AtName("is")) {
      NIBBLE_ASSIGN_OR_RETURN(operand, ParseTest(std::move(operand)));
    } else if (tokens_.AtOperator("(")) {
      NIBBLE_ASSIGN_OR_RETURN(operand, ParseCall(std::move(operand)));
    } else {
      return operand;
    }
  }
}

Result<ExpressionPointer> ExpressionParser::ParseFiltersOnText(Bar bar) {
  ExpressionPointer filters;
  if (bar == Bar::kNone) {
    NIBBLE_ASSIGN_OR_RETURN(filters, ParseFilter(nullptr));
  }
  while (tokens_.SkipOperator("|")) {
    NIBBLE_ASSIGN_OR_RETURN(filters, ParseFilter(std::move(filters)));
  }
  return filters;
}

Result<ExpressionPointer> ExpressionParser::ParseSubscript(ExpressionPointer object) {
  const Token token = tokens_.Take();
  if (token.text == "[") return ParseIndex(std::move(object));
  ExpressionPointer node = New(Type::kAttribute, token.line);
  NIBBLE_RETURN_IF_ERROR(Add(std::move(object), node.get()));
  if (tokens_.At(TokenType::kInteger)) {
    node->type = Type::kSubscript;
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer index, ParseNumber());
    NIBBLE_RETURN_IF_ERROR(Add(std::move(index), node.get()));
    return node;
  }
  NIBBLE_ASSIGN_OR_RETURN(node->name, tokens_.TakeAnyName());
  return node;
}

Result<ExpressionPointer> ExpressionParser::ParseIndex(ExpressionPointer object) {
  const int line = tokens_.current().line;
  if (tokens_.AtOperator("]")) return tokens_.Unexpected("an index");
  ExpressionPointer start;
  if (!tokens_.AtOperator(":")) {
    NIBBLE_ASSIGN_OR_RETURN(start, ParseExpression(Conditional::kAllowed));
  }
  if (tokens_.AtOperator(",")) {
    return BadInput("line {}: several indices in one subscript are not supported", line);
  }
  if (!tokens_.AtOperator(":")) {
    ExpressionPointer node = New(Type::kSubscript, line);
    NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator("]"));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(object), node.get()));
    NIBBLE_RETURN_IF_ERROR(Add(std::move(start), node.get()));
    return node;
  }
  ExpressionPointer node = New(Type::kSlice, line);
  NIBBLE_RETURN_IF_ERROR(Add(std::move(object), node.get()));
  NIBBLE_RETURN_IF_ERROR(Add(std::move(start), node.get()));
  for (int part = 0; part < 2; ++part) {  // stop, step
    ExpressionPointer value;
    if (tokens_.SkipOperator(":") && !tokens_.AtOperator(":") && !tokens_.AtOperator("]")) {
      NIBBLE_ASSIGN_OR_RETURN(value, ParseExpression(Conditional::kAllowed));
    }
    NIBBLE_RETURN_IF_ERROR(Add(std::move(value), node.get()));
  }
  NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator("]"));
  return node;
}

Status ExpressionParser::ParseArguments(Expression* call) {
  NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator("("));
  bool first = true;
  while (!tokens_.AtOperator(")")) {
    if (!first) NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
    first = false;
    if (tokens_.AtOperator(")")) break;
    if (tokens_.AtOperator("*") || tokens_.AtOperator("**")) {
      return BadInput("line {}: arguments passed with '{}' are not supported",
                      tokens_.current().line, tokens_.current().text);
    }
    if (tokens_.At(TokenType::kName) &&
        TokenStream::Is(tokens_.next(), TokenType::kOperator, "=")) {
      std::string name = tokens_.Take().text;
      tokens_.Take();
      NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer value, ParseExpression(Conditional::kAllowed));
      call->depth = std::max(call->depth, value->depth + 1);
      for (const auto& [other, ignored] : call->keywords) {
        if (other == name) {
          return BadInput("line {}: the argument '{}' is given twice", value->line, name);
        }
      }
      call->keywords.emplace_back(std::move(name), std::move(value));
      if (call->depth > kMaxExpressionDepth) {
        return BadInput("line {}: an expression of more than {} levels", call->line,
                        kMaxExpressionDepth);
      }
    } else {
      if (!call->keywords.empty()) {
        return BadInput("line {}: an argument without a name after one with a name",
                        tokens_.current().line);
      }
      NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer value, ParseExpression(Conditional::kAllowed));
      NIBBLE_RETURN_IF_ERROR(Add(std::move(value), call));
    }
  }
  return tokens_.ExpectOperator(")");
}

Result<ExpressionPointer> ExpressionParser::ParseCall(ExpressionPointer callee) {
  ExpressionPointer call = New(Type::kCall, tokens_.current().line);
  if (callee->type == Type::kAttribute && !IsMethodName(callee->name)) {
    return BadInput("line {}: the method '{}' is not supported", callee->line, callee->name);
  }
  if (callee->type == Type::kName && (callee->name == "cycler" || callee->name == "joiner" ||
                                      callee->name == "lipsum" || callee->name == "super")) {
    return BadInput("line {}: the function '{}' is not supported", callee->line, callee->name);
  }
  NIBBLE_RETURN_IF_ERROR(Add(std::move(callee), call.get()));
  NIBBLE_RETURN_IF_ERROR(ParseArguments(call.get()));
  return call;
}

Result<ExpressionPointer> ExpressionParser::ParseFilter(ExpressionPointer input) {
  const int line = tokens_.current().line;
  ExpressionPointer filter = New(Type::kFilter, line);
  NIBBLE_RETURN_IF_ERROR(Add(std::move(input), filter.get()));
  NIBBLE_ASSIGN_OR_RETURN(filter->name, tokens_.TakeAnyName());
  if (filter->name == "safe") {
    if (safe_line_) return BadInput("line {}: the filter 'safe' is not supported here", line);
    safe_line_ = line;
  } else if (!IsFilterName(filter->name)) {
    return BadInput("line {}: the filter '{}' is not supported", line, filter->name);
  }
  if (tokens_.AtOperator("(")) NIBBLE_RETURN_IF_ERROR(ParseArguments(filter.get()));
  NIBBLE_RETURN_IF_ERROR(CheckNameOfFunction(*filter));
  return filter;
}

// Filters that take the name of another filter or of a test: where it is written out, it is
// checked.
Status ExpressionParser::CheckNameOfFunction(const Expression& filter) {
  const bool map = filter.name == "map";
  const bool by_attribute = filter.name == "selectattr" || filter.name == "rejectattr";
  if (!map && !by_attribute && filter.name != "select" && filter.name != "reject") return {};
  const size_t position = by_attribute ? 2 : 1;
  if (filter.operands.size() <= position) return {};
  const Expression& name = *filter.operands[position];
  if (name.type != Type::kConstant || !name.constant.Is(Kind::kString)) return {};
  const std::string& text = name.constant.string();
  if (map ? !IsFilterName(text) : !IsTestName(text)) {
    return BadInput("line {}: the {} '{}' is not supported", name.line, map ? "filter" : "test",
                    text);
  }
  return {};
}

Result<ExpressionPointer> ExpressionParser::ParseTest(ExpressionPointer value) {
  ExpressionPointer test = New(Type::kTest, tokens_.Take().line);
  NIBBLE_RETURN_IF_ERROR(Add(std::move(value), test.get()));
  const bool negated = tokens_.SkipName("not");
  NIBBLE_ASSIGN_OR_RETURN(test->name, tokens_.TakeAnyName());
  if (!IsTestName(test->name)) {
    return BadInput("line {}: the test '{}' is not supported", test->line, test->name);
  }
  const bool operand_follows = tokens_.At(TokenType::kName) || tokens_.At(TokenType::kString) ||
                               tokens_.At(TokenType::kInteger) || tokens_.At(TokenType::kFloat) ||
                               tokens_.AtOperator("[") || tokens_.AtOperator("{");
  if (tokens_.AtOperator("(")) {
    NIBBLE_RETURN_IF_ERROR(ParseArguments(test.get()));
  } else if (operand_follows && !tokens_.AtName("else") && !tokens_.AtName("or") &&
             !tokens_.AtName("and")) {
    if (tokens_.AtName("is")) {
      return BadInput("line {}: tests cannot be chained with 'is'", test->line);
    }
    NIBBLE_RETURN_IF_ERROR(Descend());
    NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer operand, ParsePrimary());
    NIBBLE_ASSIGN_OR_RETURN(operand, ParsePostfix(std::move(operand)));
    Ascend();
    NIBBLE_RETURN_IF_ERROR(Add(std::move(operand), test.get()));
  }
  if (!negated) return test;
  ExpressionPointer negation = New(Type::kNot, test->line);
  NIBBLE_RETURN_IF_ERROR(Add(std::move(test), negation.get()));
  return negation;
}

}  // namespace nibble::jinja
