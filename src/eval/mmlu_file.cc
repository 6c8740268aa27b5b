#include "src/eval/mmlu_file.h"

#include <utf8proc.h>

#include <algorithm>
#include <charconv>
#include <system_error>
#include <utility>

namespace nibble {
namespace {

constexpr size_t kColumns = 6;  // of the original form

// Which column holds what.
struct Layout {
  size_t columns = kColumns;
  size_t question = 0;
  std::array<size_t, 4> choices = {1, 2, 3, 4};
  size_t answer = 5;
  std::optional<size_t> choice_list;  // instead of `choices`
};

bool IsSpace(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

std::string_view Trimmed(std::string_view text) {
  while (!text.empty() && IsSpace(text.front())) text.remove_prefix(1);
  while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
  return text;
}

std::string LowerCase(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return lower;
}

// The column that bears one of `names` (lower case).
std::optional<size_t> FindColumn(const CsvRow& header, const std::vector<std::string_view>& names) {
  for (size_t i = 0; i < header.cells.size(); ++i) {
    const std::string cell = LowerCase(Trimmed(header.cells[i]));
    if (std::find(names.begin(), names.end(), cell) != names.end()) return i;
  }
  return std::nullopt;
}

// The layout that a header row describes; nothing where the row is no header.
Result<std::optional<Layout>> ReadHeader(const CsvRow& row, std::string_view path) {
  const auto question = FindColumn(row, {"question", "input", "prompt"});
  const auto answer = FindColumn(row, {"answer", "target", "label"});
  if (!question || !answer) return std::optional<Layout>();
  Layout layout{.columns = row.cells.size(), .question = *question, .answer = *answer};
  layout.choice_list = FindColumn(row, {"choices"});
  if (layout.choice_list) return layout;
  for (size_t i = 0; i < 4; ++i) {
    const std::string letter(1, static_cast<char>('a' + i));
    const auto column = FindColumn(row, {letter, "choice_" + letter});
    if (!column) {
      return BadInput("{}:{}: the header names no column \"{}\" for a choice (nor \"choices\")",
                      path, row.line, static_cast<char>('A' + i));
    }
    layout.choices[i] = *column;
  }
  return layout;
}

Status ReadAnswer(const std::string& cell, MmluQuestion& question, MmluAnswerForm& form) {
  const std::string_view text = Trimmed(cell);
  if (text.size() == 1 && text[0] >= 'A' && text[0] <= 'D') {
    question.answer = text[0] - 'A';
    form = MmluAnswerForm::kLetters;
  } else if (text.size() == 1 && text[0] >= '0' && text[0] <= '3') {
    question.answer = text[0] - '0';
    form = MmluAnswerForm::kDigits;
  } else {
    return BadInput("the answer: want A, B, C or D (or 0 to 3), got {}",
                    text.size() > 40 ? fmt::format("{} bytes of text", text.size())
                                     : fmt::format("\"{}\"", text));
  }
  return {};
}

Status ReadChoices(const CsvRow& row, const Layout& layout, MmluQuestion& question) {
  if (layout.choice_list) {
    auto choices = ParseChoiceList(row.cells[*layout.choice_list]);
    if (!choices) return BadInput("the choices: want a list of four quoted strings");
    question.choices = std::move(*choices);
  } else {
    for (size_t i = 0; i < 4; ++i) question.choices[i] = row.cells[layout.choices[i]];
  }
  for (size_t i = 0; i < 4; ++i) {
    if (Trimmed(question.choices[i]).empty()) {
      return BadInput("choice {} is empty (some programs write the text None as an empty cell)",
                      static_cast<char>('A' + i));
    }
  }
  return {};
}

Result<MmluQuestion> ReadQuestion(const CsvRow& row, const Layout& layout, MmluAnswerForm& form) {
  if (row.cells.size() != layout.columns) {
    return BadInput("want {} columns, got {}", layout.columns, row.cells.size());
  }
  MmluQuestion question;
  question.question = row.cells[layout.question];
  if (Trimmed(question.question).empty()) return BadInput("the question is empty");
  NIBBLE_RETURN_IF_ERROR(ReadChoices(row, layout, question));
  NIBBLE_RETURN_IF_ERROR(ReadAnswer(row.cells[layout.answer], question, form));
  return question;
}

// Reads `digits` hexadecimal digits at text[i] as a code point and appends it as UTF-8.
bool AppendCodePoint(std::string_view text, size_t i, size_t digits, std::string& value) {
  if (text.size() - i < digits) return false;
  utf8proc_int32_t code_point = 0;
  const char* end = text.data() + i + digits;
  const auto [stop, error] = std::from_chars(text.data() + i, end, code_point, 16);
  if (error != std::errc() || stop != end || !utf8proc_codepoint_valid(code_point)) return false;
  std::array<utf8proc_uint8_t, 4> bytes;
  const utf8proc_ssize_t length = utf8proc_encode_char(code_point, bytes.data());
  value.append(reinterpret_cast<const char*>(bytes.data()), static_cast<size_t>(length));
  return true;
}

// Appends what the escape sequence after the backslash at text[i - 1] stands for and moves i to its
// last character.
bool AppendEscape(std::string_view text, size_t& i, std::string& value) {
  constexpr std::string_view kPlain = "\\'\"ntr";
  constexpr std::string_view kMeaning = "\\'\"\n\t\r";
  if (const size_t plain = kPlain.find(text[i]); plain != std::string_view::npos) {
    value += kMeaning[plain];
    return true;
  }
  const size_t digits = text[i] == 'x' ? 2 : text[i] == 'u' ? 4 : text[i] == 'U' ? 8 : 0;
  if (digits == 0 || !AppendCodePoint(text, i + 1, digits, value)) return false;
  i += digits;
  return true;
}

// Reads one quoted string off the front of `text`.
std::optional<std::string> TakeString(std::string_view& text) {
  if (text.empty() || (text.front() != '\'' && text.front() != '"')) return std::nullopt;
  const char quote = text.front();
  std::string value;
  for (size_t i = 1; i < text.size(); ++i) {
    if (text[i] == quote) {
      text.remove_prefix(i + 1);
      return value;
    }
    if (text[i] != '\\') {
      value += text[i];
    } else if (++i == text.size() || !AppendEscape(text, i, value)) {
      return std::nullopt;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::array<std::string, 4>> ParseChoiceList(std::string_view text) {
  text = Trimmed(text);
  if (text.size() < 2 || text.front() != '[' || text.back() != ']') return std::nullopt;
  text = Trimmed(text.substr(1, text.size() - 2));
  std::array<std::string, 4> choices;
  for (size_t i = 0; i < 4; ++i) {
    auto choice = TakeString(text);
    if (!choice) return std::nullopt;
    choices[i] = std::move(*choice);
    text = Trimmed(text);
    if (i < 3 && text.starts_with(',')) text = Trimmed(text.substr(1));
  }
  if (!text.empty()) return std::nullopt;
  return choices;
}

Result<MmluFile> InterpretMmluRows(const std::vector<CsvRow>& rows, std::string_view path) {
  MmluFile file;
  Layout layout;
  if (!rows.empty()) {
    NIBBLE_ASSIGN_OR_RETURN(const std::optional<Layout> header, ReadHeader(rows[0], path));
    file.has_header = header.has_value();
    if (header) layout = *header;
  }
  for (size_t i = file.has_header ? 1 : 0; i < rows.size(); ++i) {
    const CsvRow& row = rows[i];
    MmluAnswerForm form = MmluAnswerForm::kLetters;
    auto question = ReadQuestion(row, layout, form);
    if (!question) {
      return tl::unexpected<Error>(question.error().In(fmt::format("{}:{}", path, row.line)));
    }
    if (!file.questions.empty() && form != file.answers) {
      return BadInput("{}:{}: the answer is a {}, those before it are {}", path, row.line,
                      form == MmluAnswerForm::kDigits ? "digit" : "letter",
                      form == MmluAnswerForm::kDigits ? "letters" : "digits");
    }
    file.answers = form;
    question->index = static_cast<int64_t>(file.questions.size());
    file.questions.push_back(std::move(*question));
  }
  return file;
}

}  // namespace nibble
