#include "src/eval/csv.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "src/base/file.h"

namespace nibble {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

class CsvParser {
 public:
  CsvParser(std::string_view text, std::string_view source, const CsvLimits& limits)
      : text_(text), source_(source), limits_(limits) {}

  Result<std::vector<CsvRow>> Parse() {
    if (text_.size() > limits_.max_bytes) {
      return BadInput("{}: {} bytes, more than the {} allowed here", source_, text_.size(),
                      limits_.max_bytes);
    }
    if (text_.starts_with(kByteOrderMark)) text_.remove_prefix(kByteOrderMark.size());
    NIBBLE_RETURN_IF_ERROR(CheckUtf8());
    std::vector<CsvRow> rows;
    while (!AtEnd()) {
      if (SkipLineBreak()) continue;
      if (static_cast<int64_t>(rows.size()) == limits_.max_rows) {
        return BadInput("{}:{}: more than {} rows", source_, line_, limits_.max_rows);
      }
      CsvRow row;
      row.line = line_;
      NIBBLE_RETURN_IF_ERROR(ReadRow(row));
      rows.push_back(std::move(row));
    }
    return rows;
  }

 private:
  bool AtEnd() const { return position_ == text_.size(); }

  // Steps over LF or CRLF.
  bool SkipLineBreak() {
    const std::string_view rest = text_.substr(position_);
    const size_t length = rest.starts_with("\r\n") ? 2 : rest.starts_with('\n') ? 1 : 0;
    if (length == 0) return false;
    position_ += length;
    ++line_;
    return true;
  }

  Status CheckUtf8() const {
    const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text_.data());
    int64_t line = 1;
    for (size_t i = 0; i < text_.size();) {
      if (bytes[i] < 0x80) {
        if (bytes[i] == '\n') ++line;
        ++i;
        continue;
      }
      utf8proc_int32_t code_point = 0;
      const utf8proc_ssize_t length = utf8proc_iterate(
          bytes + i, static_cast<utf8proc_ssize_t>(std::min<size_t>(text_.size() - i, 4)),
          &code_point);
      if (length <= 0) {
        return BadInput("{}:{}: not UTF-8 (byte 0x{:02x})", source_, line, bytes[i]);
      }
      i += static_cast<size_t>(length);
    }
    return {};
  }

  // Reads up to the row's end, past its line break.
  Status ReadRow(CsvRow& row) {
    while (true) {
      if (static_cast<int64_t>(row.cells.size()) == limits_.max_columns) {
        return BadInput("{}:{}: more than {} columns", source_, row.line, limits_.max_columns);
      }
      std::string& cell = row.cells.emplace_back();
      const bool quoted = !AtEnd() && text_[position_] == '"';
      NIBBLE_RETURN_IF_ERROR(quoted ? ReadQuoted(cell) : ReadPlain(cell));
      if (AtEnd() || SkipLineBreak()) return {};
      if (text_[position_] == ',') {
        ++position_;
      } else if (text_[position_] == '\r') {
        return BadInput("{}:{}: a carriage return without a line feed", source_, line_);
      } else {
        return BadInput(
            "{}:{}: text after a closing quote (a quote inside a quoted cell is doubled)", source_,
            line_);
      }
    }
  }

  // Stops before the comma or the line break.
  Status ReadPlain(std::string& cell) {
    const size_t end = std::min(text_.find_first_of(",\r\n\"", position_), text_.size());
    cell = text_.substr(position_, end - position_);
    position_ = end;
    if (!AtEnd() && text_[position_] == '"') {
      return BadInput("{}:{}: a quote inside a cell that does not begin with one", source_, line_);
    }
    return {};
  }

  // Stops after the closing quote.
  Status ReadQuoted(std::string& cell) {
    const int64_t first_line = line_;
    ++position_;
    while (true) {
      const size_t quote = text_.find('"', position_);
      if (quote == std::string_view::npos) {
        return BadInput("{}:{}: a quote is opened here and never closed", source_, first_line);
      }
      const std::string_view part = text_.substr(position_, quote - position_);
      line_ += std::count(part.begin(), part.end(), '\n');
      cell += part;
      position_ = quote + 1;
      if (AtEnd() || text_[position_] != '"') return {};
      cell += '"';
      ++position_;
    }
  }

  std::string_view text_;
  std::string_view source_;
  const CsvLimits& limits_;
  size_t position_ = 0;
  int64_t line_ = 1;
};

}  // namespace

Result<std::vector<CsvRow>> ParseCsv(std::string_view text, std::string_view source,
                                     const CsvLimits& limits) {
  return CsvParser(text, source, limits).Parse();
}

Result<std::vector<CsvRow>> ReadCsvFile(const std::string& path, const CsvLimits& limits) {
  NIBBLE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, limits.max_bytes));
  return ParseCsv(text, path, limits);
}

}  // namespace nibble
