// Splits a template into text and the tokens of its tags, with the white space that trim_blocks,
// lstrip_blocks and the marks - and + remove already removed (jinja2 3.1, lexer.py).
#ifndef NIBBLE_TOKENIZER_JINJA_LEXER_H_
#define NIBBLE_TOKENIZER_JINJA_LEXER_H_

#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"

namespace nibble::jinja {

enum class TokenType {
  kText,        // template data
  kBlockBegin,  // {%
  kBlockEnd,
  kOutputBegin,  // {{
  kOutputEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd
};

struct Token {
  TokenType type;
  int line;          // from 1
  std::string text;  // of a string: its value
};

// `source`: valid UTF-8. Errors name the line. The last token is kEnd.
Result<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace nibble::jinja

#endif  // NIBBLE_TOKENIZER_JINJA_LEXER_H_
