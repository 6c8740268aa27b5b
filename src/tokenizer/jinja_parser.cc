#include "src/tokenizer/jinja_parser.h"

namespace nibble::jinja {

using Type = Statement::Type;

class TemplateParser {
 public:
  explicit TemplateParser(TokenStream tokens) : tokens_(std::move(tokens)), expressions_(tokens_) {}

  Result<Block> Parse() {
    NIBBLE_ASSIGN_OR_RETURN(Block block, ParseBlock({}));
    return block;
  }

 private:
  // Until one of the tags in `ends`, whose name is then the current token; to the end of the
  // template where `ends` is empty.
  Result<Block> ParseBlock(std::vector<std::string_view> ends) {
    NIBBLE_RETURN_IF_ERROR(expressions_.Descend());
    const int line = tokens_.current().line;
    Block block;
    while (!tokens_.At(TokenType::kEnd)) {
      if (tokens_.At(TokenType::kText)) {
        block.push_back(New(Type::kText));
        block.back().text = tokens_.Take().text;
      } else if (tokens_.At(TokenType::kOutputBegin)) {
        block.push_back(New(Type::kOutput));
        tokens_.Take();
        NIBBLE_ASSIGN_OR_RETURN(block.back().expression, expressions_.ParseOutput());
        NIBBLE_RETURN_IF_ERROR(EndTag(TokenType::kOutputEnd));
      } else {
        NIBBLE_RETURN_IF_ERROR(tokens_.Expect(TokenType::kBlockBegin));
        for (const std::string_view end : ends) {
          if (!tokens_.AtName(end)) continue;
          expressions_.Ascend();
          return block;
        }
        NIBBLE_ASSIGN_OR_RETURN(Statement statement, ParseStatement());
        block.push_back(std::move(statement));
        NIBBLE_RETURN_IF_ERROR(EndTag(TokenType::kBlockEnd));
      }
    }
    expressions_.Ascend();
    if (!ends.empty()) {
      return BadInput("line {}: {{% {} %}} is missing", line, ends.back());
    }
    return block;
  }

  // The block behind the current tag.
  Result<Block> ParseBody(std::vector<std::string_view> ends) {
    tokens_.SkipOperator(":");
    NIBBLE_RETURN_IF_ERROR(EndTag(TokenType::kBlockEnd));
    return ParseBlock(std::move(ends));
  }

  // A block that ends in the one tag `end`, which is passed, and has variables of its own.
  Result<Block> ParseScope(std::string_view end) {
    ++scopes_;
    NIBBLE_ASSIGN_OR_RETURN(Block block, ParseBody({end}));
    --scopes_;
    tokens_.Take();
    return block;
  }

  Status EndTag(TokenType type) {
    if (expressions_.safe_line_) {
      return BadInput("line {}: the filter 'safe' is supported only at the end of {{{{ }}}}",
                      *expressions_.safe_line_);
    }
    return tokens_.Expect(type);
  }

  Statement New(Type type) const {
    Statement statement;
    statement.type = type;
    statement.line = tokens_.current().line;
    return statement;
  }

  Result<Statement> ParseStatement() {
    const int line = tokens_.current().line;
    if (tokens_.AtName("if")) return ParseIf();
    if (tokens_.AtName("for")) return ParseFor();
    if (tokens_.AtName("set")) return ParseSet();
    if (tokens_.AtName("with")) return ParseWith();
    if (tokens_.AtName("macro")) return ParseMacro();
    if (tokens_.AtName("filter")) return ParseFilterBlock();
    if (tokens_.AtName("generation")) {
      Statement statement = New(Type::kGeneration);
      tokens_.Take();
      NIBBLE_ASSIGN_OR_RETURN(statement.body, ParseScope("endgeneration"));
      return statement;
    }
    if (tokens_.AtName("break") || tokens_.AtName("continue")) {
      Statement statement = New(tokens_.AtName("break") ? Type::kBreak : Type::kContinue);
      const Token token = tokens_.Take();
      if (loops_ == 0) return BadInput("line {}: '{}' outside of a loop", line, token.text);
      return statement;
    }
    NIBBLE_ASSIGN_OR_RETURN(const std::string name, tokens_.TakeAnyName());
    if (name.starts_with("end") || name == "else" || name == "elif") {
      return BadInput("line {}: {{% {} %}} ends nothing", line, name);
    }
    return BadInput("line {}: the statement '{}' is not supported", line, name);
  }

  Result<Statement> ParseIf() {
    Statement statement = New(Type::kIf);
    while (true) {
      tokens_.Take();  // if, elif
      Statement::Branch branch;
      NIBBLE_ASSIGN_OR_RETURN(branch.condition,
                              expressions_.ParseExpressions(Conditional::kNotAllowed));
      NIBBLE_ASSIGN_OR_RETURN(branch.body, ParseBody({"elif", "else", "endif"}));
      statement.branches.push_back(std::move(branch));
      if (tokens_.AtName("elif")) continue;
      if (tokens_.SkipName("else")) {
        NIBBLE_ASSIGN_OR_RETURN(statement.otherwise, ParseBody({"endif"}));
      }
      tokens_.Take();
      return statement;
    }
  }

  Result<Statement> ParseFor() {
    Statement statement = New(Type::kFor);
    tokens_.Take();
    ++inside_for_;
    NIBBLE_ASSIGN_OR_RETURN(statement.target, ParseTarget(Attributes::kNotAllowed));
    NIBBLE_RETURN_IF_ERROR(tokens_.ExpectName("in"));
    NIBBLE_ASSIGN_OR_RETURN(statement.expression,
                            expressions_.ParseExpressions(Conditional::kNotAllowed));
    if (tokens_.SkipName("if")) {
      NIBBLE_ASSIGN_OR_RETURN(statement.condition,
                              expressions_.ParseExpression(Conditional::kAllowed));
    }
    if (tokens_.AtName("recursive")) {
      return BadInput("line {}: 'recursive' loops are not supported", tokens_.current().line);
    }
    ++loops_;
    ++scopes_;
    NIBBLE_ASSIGN_OR_RETURN(statement.body, ParseBody({"else", "endfor"}));
    --loops_;
    if (tokens_.SkipName("else")) {
      NIBBLE_ASSIGN_OR_RETURN(statement.otherwise, ParseBody({"endfor"}));
    }
    --scopes_;
    --inside_for_;
    tokens_.Take();
    return statement;
  }

  Result<Statement> ParseSet() {
    Statement statement = New(Type::kSet);
    tokens_.Take();
    NIBBLE_ASSIGN_OR_RETURN(statement.target, ParseTarget(Attributes::kAllowed));
    if (tokens_.SkipOperator("=")) {
      NIBBLE_ASSIGN_OR_RETURN(statement.expression,
                              expressions_.ParseExpressions(Conditional::kAllowed));
      return statement;
    }
    statement.type = Type::kSetBlock;
    NIBBLE_ASSIGN_OR_RETURN(statement.expression,
                            expressions_.ParseFiltersOnText(ExpressionParser::Bar::kBefore));
    NIBBLE_ASSIGN_OR_RETURN(statement.body, ParseScope("endset"));
    return statement;
  }

  Result<Statement> ParseWith() {
    Statement statement = New(Type::kWith);
    tokens_.Take();
    while (!tokens_.At(TokenType::kBlockEnd) && !tokens_.AtOperator(":")) {
      if (!statement.assignments.empty()) NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      NIBBLE_ASSIGN_OR_RETURN(Target target, ParseTarget(Attributes::kNotAllowed));
      NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator("="));
      NIBBLE_ASSIGN_OR_RETURN(ExpressionPointer value,
                              expressions_.ParseExpression(Conditional::kAllowed));
      statement.assignments.emplace_back(std::move(target), std::move(value));
    }
    NIBBLE_ASSIGN_OR_RETURN(statement.body, ParseScope("endwith"));
    return statement;
  }

  Result<Statement> ParseFilterBlock() {
    Statement statement = New(Type::kFilter);
    tokens_.Take();
    NIBBLE_ASSIGN_OR_RETURN(statement.expression,
                            expressions_.ParseFiltersOnText(ExpressionParser::Bar::kNone));
    NIBBLE_ASSIGN_OR_RETURN(statement.body, ParseScope("endfilter"));
    return statement;
  }

  Result<Statement> ParseMacro() {
    Statement statement = New(Type::kMacro);
    tokens_.Take();
    if (scopes_ > 0) {
      return BadInput("line {}: a macro inside another block is not supported", statement.line);
    }
    NIBBLE_ASSIGN_OR_RETURN(statement.text, tokens_.TakeAnyName());
    NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator("("));
    std::vector<std::string> names;
    while (!tokens_.AtOperator(")")) {
      if (!names.empty()) NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(","));
      Statement::Parameter parameter;
      NIBBLE_ASSIGN_OR_RETURN(parameter.name, tokens_.TakeAnyName());
      if (tokens_.SkipOperator("=")) {
        NIBBLE_ASSIGN_OR_RETURN(parameter.fallback,
                                expressions_.ParseExpression(Conditional::kAllowed));
      } else if (!statement.parameters.empty() && statement.parameters.back().fallback != nullptr) {
        return BadInput("line {}: a parameter without a default after one with a default",
                        statement.line);
      }
      names.push_back(parameter.name);
      statement.parameters.push_back(std::move(parameter));
    }
    NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
    expressions_.EnterMacro(std::move(names));
    NIBBLE_ASSIGN_OR_RETURN(statement.body, ParseScope("endmacro"));
    expressions_.LeaveMacro();
    return statement;
  }

  enum class Attributes { kAllowed, kNotAllowed };

  // `a`, `a, b`, `(a, b)`, and `namespace.a` where attributes are allowed.
  Result<Target> ParseTarget(Attributes attributes) {
    NIBBLE_ASSIGN_OR_RETURN(Target first, ParseTargetPart(attributes));
    if (!tokens_.AtOperator(",")) return first;
    Target tuple{Target::Type::kTuple, {}, {}, {}};
    tuple.parts.push_back(std::move(first));
    while (tokens_.SkipOperator(",")) {
      if (tokens_.AtName("in") || tokens_.AtOperator(")") || tokens_.AtOperator("=")) break;
      NIBBLE_ASSIGN_OR_RETURN(Target part, ParseTargetPart(attributes));
      tuple.parts.push_back(std::move(part));
    }
    return tuple;
  }

  Result<Target> ParseTargetPart(Attributes attributes) {
    if (tokens_.SkipOperator("(")) {
      NIBBLE_RETURN_IF_ERROR(expressions_.Descend());
      NIBBLE_ASSIGN_OR_RETURN(Target inner, ParseTarget(attributes));
      expressions_.Ascend();
      NIBBLE_RETURN_IF_ERROR(tokens_.ExpectOperator(")"));
      return inner;
    }
    Target target{Target::Type::kName, {}, {}, {}};
    const int line = tokens_.current().line;
    NIBBLE_ASSIGN_OR_RETURN(target.name, tokens_.TakeAnyName());
    if (attributes == Attributes::kAllowed && tokens_.SkipOperator(".")) {
      target.type = Target::Type::kAttribute;
      NIBBLE_ASSIGN_OR_RETURN(target.attribute, tokens_.TakeAnyName());
      return target;
    }
    for (const std::string_view constant : {"true", "false", "none", "True", "False", "None"}) {
      if (target.name == constant) return BadInput("line {}: cannot assign to {}", line, constant);
    }
    if (target.name == "loop" && inside_for_ > 0) {
      return BadInput("line {}: cannot assign to 'loop' inside a loop", line);
    }
    return target;
  }

  TokenStream tokens_;
  ExpressionParser expressions_;
  int loops_ = 0;       // around this place, that break would leave
  int inside_for_ = 0;  // for statements around this place
  int scopes_ = 0;      // blocks with variables of their own around this place
};

Result<Block> ParseTemplate(std::string_view source) {
  NIBBLE_ASSIGN_OR_RETURN(std::vector<Token> tokens, Tokenize(source));
  return TemplateParser(TokenStream(std::move(tokens))).Parse();
}

}  // namespace nibble::jinja
