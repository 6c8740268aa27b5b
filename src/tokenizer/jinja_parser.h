// Tokens to a tree, as jinja2 3.1 parses them. What the interpreter does not know (statements,
// filters, tests, methods, ways to pass arguments) is refused here, by name and line.
#ifndef NIBBLE_TOKENIZER_JINJA_PARSER_H_
#define NIBBLE_TOKENIZER_JINJA_PARSER_H_

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/tokenizer/jinja_ast.h"
#include "src/tokenizer/jinja_lexer.h"

namespace nibble::jinja {

inline constexpr int kMaxExpressionDepth = 250;  // of the tree: a sum of 250 terms is as deep
inline constexpr int kMaxNesting = 300;          // of the parser's recursion

// `source`: valid UTF-8.
Result<Block> ParseTemplate(std::string_view source);

// The tokens of a template, read once from front to back.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[position_]; }
  const Token& next() const { return tokens_[std::min(position_ + 1, tokens_.size() - 1)]; }
  Token Take();
  bool At(TokenType type) const { return current().type == type; }
  bool AtName(std::string_view name) const { return Is(current(), TokenType::kName, name); }
  bool AtOperator(std::string_view text) const { return Is(current(), TokenType::kOperator, text); }
  bool SkipName(std::string_view name);
  bool SkipOperator(std::string_view text);
  Status ExpectName(std::string_view name);
  Status ExpectOperator(std::string_view text);
  Status Expect(TokenType type);
  Result<std::string> TakeAnyName();
  tl::unexpected<Error> Unexpected(std::string_view wanted) const;

  static bool Is(const Token& token, TokenType type, std::string_view text) {
    return token.type == type && token.text == text;
  }

 private:
  std::vector<Token> tokens_;
  size_t position_ = 0;
};

enum class Conditional { kAllowed, kNotAllowed };  // `a if b else c` at the top of an expression

class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  Result<ExpressionPointer> ParseExpression(Conditional conditional);
  // One expression, or a tuple without parentheses.
  Result<ExpressionPointer> ParseExpressions(Conditional conditional);
  // {{ }}: as above, where `|safe` may come last (nothing is ever escaped, so it changes nothing).
  Result<ExpressionPointer> ParseOutput();
  // Filters that follow, on a null operand; null where none follow. `Bar`: before the first.
  enum class Bar { kBefore, kNone };
  Result<ExpressionPointer> ParseFiltersOnText(Bar bar);

  // Names that mean arguments not declared, inside a macro: refused but for its parameters.
  void EnterMacro(std::vector<std::string> parameters) { macro_ = std::move(parameters); }
  void LeaveMacro() { macro_.reset(); }

  // Fails where nesting is too deep. Undone by Ascend().
  Status Descend();
  void Ascend() { --nesting_; }

 private:
  friend class TemplateParser;

  Result<ExpressionPointer> ParseConditional();
  Result<ExpressionPointer> ParseOr();
  Result<ExpressionPointer> ParseAnd();
  Result<ExpressionPointer> ParseNot();
  Result<ExpressionPointer> ParseCompare();
  Result<ExpressionPointer> ParseSum();
  Result<ExpressionPointer> ParseConcatenation();
  Result<ExpressionPointer> ParseProduct();
  Result<ExpressionPointer> ParsePower();
  enum class Filters { kAllowed, kNotAllowed };
  Result<ExpressionPointer> ParseUnary(Filters filters);
  Result<ExpressionPointer> ParsePrimary();
  Result<ExpressionPointer> ParseName();
  Result<ExpressionPointer> ParseNumber();
  Result<ExpressionPointer> ParseParenthesized();
  Result<ExpressionPointer> ParseList();
  Result<ExpressionPointer> ParseDict();
  Result<ExpressionPointer> ParsePostfix(ExpressionPointer operand);
  Result<ExpressionPointer> ParseFilters(ExpressionPointer operand);
  Result<ExpressionPointer> ParseSubscript(ExpressionPointer object);
  Result<ExpressionPointer> ParseIndex(ExpressionPointer object);
  Result<ExpressionPointer> ParseCall(ExpressionPointer callee);
  Result<ExpressionPointer> ParseFilter(ExpressionPointer input);
  Result<ExpressionPointer> ParseTest(ExpressionPointer value);
  Status ParseArguments(Expression* call);
  Status CheckNameOfFunction(const Expression& filter);

  ExpressionPointer New(Expression::Type type, int line);
  Status Add(ExpressionPointer operand, Expression* parent);

  TokenStream& tokens_;
  int nesting_ = 0;
  std::optional<int> safe_line_;  // of a |safe met and not yet found to come last
  std::optional<std::vector<std::string>> macro_;
};

}  // namespace nibble::jinja

#endif  // NIBBLE_TOKENIZER_JINJA_PARSER_H_
