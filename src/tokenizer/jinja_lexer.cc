#include "src/tokenizer/jinja_lexer.h"

#include <algorithm>
#include <optional>

#include "src/tokenizer/jinja_unicode.h"
#include "src/tokenizer/utf8.h"

namespace nibble::jinja {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsNameStart(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool IsNamePart(char c) { return IsNameStart(c) || IsDigit(c); }

// Line ends become \n, and one at the very end goes.
std::string NormalizeLineEnds(std::string_view source) {
  std::string result;
  result.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] != '\r') {
      result.push_back(source[i]);
      continue;
    }
    result.push_back('\n');
    if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
  }
  if (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

// The value of a string literal, given what stands between its quotes. Python decodes it by way of
// ASCII, so that a backslash before any other character keeps both, with that character escaped.
Result<std::string> Unescape(std::string_view body) {
  std::string value;
  value.reserve(body.size());
  for (size_t i = 0; i < body.size();) {
    if (body[i] != '\\') {
      value.push_back(body[i++]);
      continue;
    }
    ++i;  // A literal never ends in a lone backslash.
    const char c = body[i];
    size_t digits = 0;
    switch (c) {
      case '\n':
        ++i;
        continue;
      case '\\':
      case '\'':
      case '"':
        value.push_back(c);
        ++i;
        continue;
      case 'a':
        value.push_back('\a');
        ++i;
        continue;
      case 'b':
        value.push_back('\b');
        ++i;
        continue;
      case 'f':
        value.push_back('\f');
        ++i;
        continue;
      case 'n':
        value.push_back('\n');
        ++i;
        continue;
      case 'r':
        value.push_back('\r');
        ++i;
        continue;
      case 't':
        value.push_back('\t');
        ++i;
        continue;
      case 'v':
        value.push_back('\v');
        ++i;
        continue;
      case 'N':
        return BadInput("the escape \\N in a string is not supported");
      case 'x':
        digits = 2;
        break;
      case 'u':
        digits = 4;
        break;
      case 'U':
        digits = 8;
        break;
      default:
        break;
    }
    uint32_t code_point = 0;
    if (digits > 0) {
      ++i;
      for (size_t k = 0; k < digits; ++k, ++i) {
        const char digit = i < body.size() ? body[i] : ' ';
        if (!IsDigit(digit) && !(digit >= 'a' && digit <= 'f') && !(digit >= 'A' && digit <= 'F')) {
          return BadInput("the escape \\{} in a string wants {} hexadecimal digits", c, digits);
        }
        code_point =
            code_point * 16 +
            static_cast<uint32_t>(IsDigit(digit) ? digit - '0' : (digit | 0x20) - 'a' + 10);
      }
      if (code_point > 0x10FFFF || (code_point >= 0xD800 && code_point < 0xE000)) {
        return BadInput("the escape \\{} in a string is not a character", c);
      }
      AppendUtf8(code_point, value);
    } else if (c >= '0' && c <= '7') {
      for (size_t k = 0; k < 3 && i < body.size() && body[i] >= '0' && body[i] <= '7'; ++k, ++i) {
        code_point = code_point * 8 + static_cast<uint32_t>(body[i] - '0');
      }
      AppendUtf8(code_point, value);
    } else if (static_cast<unsigned char>(c) >= 0x80) {
      const char32_t other = NextCodePoint(body, &i);
      value += other < 0x100     ? fmt::format("\\x{:02x}", static_cast<uint32_t>(other))
               : other < 0x10000 ? fmt::format("\\u{:04x}", static_cast<uint32_t>(other))
                                 : fmt::format("\\U{:08x}", static_cast<uint32_t>(other));
    } else {
      value.push_back('\\');
      value.push_back(c);
      ++i;
    }
  }
  return value;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(NormalizeLineEnds(source)) {}

  Result<std::vector<Token>> Run() {
    Status status = LexAll();
    if (!status) {
      return tl::unexpected<Error>(status.error().In(fmt::format("line {}", line_)));
    }
    Add(TokenType::kEnd, "");
    return std::move(tokens_);
  }

 private:
  enum class Tag { kBlock, kOutput, kComment };

  Status LexAll() {
    while (true) {
      const size_t begin = FindTag(position_);
      if (begin == std::string::npos) {
        AddText(std::string_view(source_).substr(position_));
        return {};
      }
      const std::string_view text = std::string_view(source_).substr(position_, begin - position_);
      const char kind = source_[begin + 1];
      position_ = begin + 2;
      const char sign = TakeSign();
      const Tag tag = kind == '%' ? Tag::kBlock : kind == '{' ? Tag::kOutput : Tag::kComment;
      const std::string_view kept = StripBefore(text, sign, tag);
      AddText(kept);
      line_ += CountLines(text.substr(kept.size()));
      switch (tag) {
        case Tag::kComment:
          NIBBLE_RETURN_IF_ERROR(SkipComment());
          break;
        case Tag::kBlock:
          if (const std::optional<size_t> body = RawBegin(); body) {
            NIBBLE_RETURN_IF_ERROR(LexRaw(*body));
            break;
          }
          [[fallthrough]];
        case Tag::kOutput:
          NIBBLE_RETURN_IF_ERROR(LexTag(tag));
          break;
      }
    }
  }

  size_t FindTag(size_t from) const {
    for (size_t at = source_.find('{', from); at != std::string::npos;
         at = source_.find('{', at + 1)) {
      if (at + 1 >= source_.size()) break;
      const char next = source_[at + 1];
      if (next == '%' || next == '{' || next == '#') return at;
    }
    return std::string::npos;
  }

  char TakeSign() {
    if (position_ < source_.size() && (source_[position_] == '-' || source_[position_] == '+')) {
      return source_[position_++];
    }
    return ' ';
  }

  // What remains of the text before a tag.
  std::string_view StripBefore(std::string_view text, char sign, Tag tag) const {
    if (sign == '-') return StripSpace(text, Side::kRight);
    if (sign == '+' || tag == Tag::kOutput) return text;
    const size_t newline = text.rfind('\n');
    if (newline == std::string_view::npos && !line_starting_) return text;
    const size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
    const bool blank = StripSpace(text.substr(line_start), Side::kBoth).empty();
    return blank ? text.substr(0, line_start) : text;
  }

  static int CountLines(std::string_view text) {
    return static_cast<int>(std::count(text.begin(), text.end(), '\n'));
  }

  void Add(TokenType type, std::string text) {
    tokens_.push_back(Token{type, line_, std::move(text)});
  }
  void AddText(std::string_view text) {
    if (text.empty()) return;
    Add(TokenType::kText, std::string(text));
    line_ += CountLines(text);
  }

  // Moves to `end`, behind the end of a tag.
  void Leave(size_t end) {
    line_ += CountLines(std::string_view(source_).substr(position_, end - position_));
    line_starting_ = end > 0 && source_[end - 1] == '\n';
    position_ = end;
  }

  size_t SkipSpace(size_t at) const {
    const std::string_view rest = std::string_view(source_).substr(at);
    return at + (rest.size() - StripSpace(rest, Side::kLeft).size());
  }

  bool StartsWith(size_t at, std::string_view what) const {
    return source_.compare(at, what.size(), what) == 0;
  }

  // The end of the tag that closes with `close` ("%}", "#}"), where one closes at `at`.
  std::optional<size_t> BlockEnd(size_t at, std::string_view close) const {
    if (at < source_.size() && source_[at] == '-' && StartsWith(at + 1, close)) {
      return SkipSpace(at + 3);
    }
    if (at < source_.size() && source_[at] == '+' && StartsWith(at + 1, close)) return at + 3;
    if (!StartsWith(at, close)) return std::nullopt;
    return at + 2 < source_.size() && source_[at + 2] == '\n' ? at + 3 : at + 2;
  }

  std::optional<size_t> OutputEnd(size_t at) const {
    if (at < source_.size() && source_[at] == '-' && StartsWith(at + 1, "}}")) {
      return SkipSpace(at + 3);
    }
    if (StartsWith(at, "}}")) return at + 2;
    return std::nullopt;
  }

  Status SkipComment() {
    for (size_t at = position_; at < source_.size(); ++at) {
      if (const std::optional<size_t> end = BlockEnd(at, "#}"); end) {
        Leave(*end);
        return {};
      }
    }
    return BadInput("a comment is not closed");
  }

  // Where the body of {% raw %} starts, if this tag is one.
  std::optional<size_t> RawBegin() const {
    size_t at = SkipSpace(position_);
    if (!StartsWith(at, "raw")) return std::nullopt;
    at = SkipSpace(at + 3);
    if (StartsWith(at, "%}")) return at + 2;
    if (StartsWith(at, "-%}")) return SkipSpace(at + 3);
    return std::nullopt;
  }

  Status LexRaw(size_t body) {
    Leave(body);
    for (size_t at = source_.find("{%", body); at != std::string::npos;
         at = source_.find("{%", at + 1)) {
      size_t name = at + 2;
      char sign = ' ';
      if (name < source_.size() && (source_[name] == '-' || source_[name] == '+')) {
        sign = source_[name++];
      }
      name = SkipSpace(name);
      if (!StartsWith(name, "endraw")) continue;
      const std::optional<size_t> end = BlockEnd(SkipSpace(name + 6), "%}");
      if (!end) continue;
      const std::string_view text = std::string_view(source_).substr(body, at - body);
      const std::string_view kept = StripBefore(text, sign, Tag::kBlock);
      AddText(kept);
      line_ += CountLines(text.substr(kept.size()));
      position_ = at;
      Leave(*end);
      return {};
    }
    return BadInput("{{% raw %}} is not closed");
  }

  Status LexTag(Tag tag) {
    const bool block = tag == Tag::kBlock;
    Add(block ? TokenType::kBlockBegin : TokenType::kOutputBegin, "");
    std::string open;  // brackets, by what closes them
    while (position_ < source_.size()) {
      if (open.empty()) {
        const auto end = block ? BlockEnd(position_, "%}") : OutputEnd(position_);
        if (end) {
          Add(block ? TokenType::kBlockEnd : TokenType::kOutputEnd, "");
          Leave(*end);
          return {};
        }
      }
      if (const size_t next = SkipSpace(position_); next > position_) {
        Leave(next);
        continue;
      }
      NIBBLE_RETURN_IF_ERROR(LexToken(&open));
    }
    return BadInput("a tag is not closed");
  }

  Status LexToken(std::string* open) {
    const char c = source_[position_];
    if (IsDigit(c)) return LexNumber();
    if (IsNameStart(c)) {
      size_t end = position_;
      while (end < source_.size() && IsNamePart(source_[end])) ++end;
      return Take(TokenType::kName, end);
    }
    if (c == '\'' || c == '"') return LexString(c);
    return LexOperator(open);
  }

  Status Take(TokenType type, size_t end) {
    Add(type, source_.substr(position_, end - position_));
    position_ = end;
    return {};
  }

  // The end of digits that single underscores may part; `at` where there is none.
  template <typename Predicate>
  size_t Digits(size_t at, const Predicate& is_digit) const {
    size_t end = at;
    while (end < source_.size()) {
      if (is_digit(source_[end])) {
        ++end;
      } else if (end > at && source_[end] == '_' && end + 1 < source_.size() &&
                 is_digit(source_[end + 1])) {
        end += 2;
      } else {
        break;
      }
    }
    return end;
  }

  Status LexNumber() {
    const size_t whole = Digits(position_, IsDigit);
    size_t end = whole;
    // "a.1.5" is two subscripts, not a subscript by 1.5.
    const bool after_dot = position_ > 0 && source_[position_ - 1] == '.';
    if (!after_dot) {
      if (end < source_.size() && source_[end] == '.' && Digits(end + 1, IsDigit) > end + 1) {
        end = Digits(end + 1, IsDigit);
      }
      if (end < source_.size() && (source_[end] | 0x20) == 'e') {
        size_t exponent = end + 1;
        if (exponent < source_.size() && (source_[exponent] == '+' || source_[exponent] == '-')) {
          ++exponent;
        }
        if (Digits(exponent, IsDigit) > exponent) end = Digits(exponent, IsDigit);
      }
    }
    const bool is_float = end > whole;
    if (!is_float && source_[position_] == '0') {
      if (position_ + 1 < source_.size() &&
          std::string_view("xXoObB").find(source_[position_ + 1]) != std::string_view::npos) {
        return BadInput("numbers that start with 0{} are not supported", source_[position_ + 1]);
      }
      end = Digits(position_, [](char digit) { return digit == '0'; });
    }
    std::string digits = source_.substr(position_, end - position_);
    std::erase(digits, '_');
    Add(is_float ? TokenType::kFloat : TokenType::kInteger, std::move(digits));
    position_ = end;
    return {};
  }

  Status LexString(char quote) {
    size_t end = position_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return BadInput("a string is not closed");
    NIBBLE_ASSIGN_OR_RETURN(std::string value, Unescape(std::string_view(source_).substr(
                                                   position_ + 1, end - position_ - 1)));
    Add(TokenType::kString, std::move(value));
    Leave(end + 1);
    return {};
  }

  Status LexOperator(std::string* open) {
    constexpr std::string_view kLong[] = {"//", "**", "==", "!=", ">=", "<="};
    for (const std::string_view two : kLong) {
      if (StartsWith(position_, two)) return Take(TokenType::kOperator, position_ + 2);
    }
    constexpr std::string_view kShort = "+-/*%~[](){}><=.:|,;";
    const char c = source_[position_];
    if (kShort.find(c) == std::string_view::npos) {
      size_t end = position_;
      NextCodePoint(source_, &end);
      return BadInput("unexpected character '{}'", source_.substr(position_, end - position_));
    }
    if (c == '(' || c == '[' || c == '{') open->push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open->empty()) return BadInput("unexpected '{}'", c);
      if (open->back() != c) return BadInput("unexpected '{}', want '{}'", c, open->back());
      open->pop_back();
    }
    return Take(TokenType::kOperator, position_ + 1);
  }

  const std::string source_;
  size_t position_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

Result<std::vector<Token>> Tokenize(std::string_view source) { return Lexer(source).Run(); }

}  // namespace nibble::jinja
