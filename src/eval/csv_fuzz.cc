// libFuzzer target for the CSV reader and for what MMLU makes of its rows: whatever the bytes, a
// value or an error that names the file, within the limits; and rows that were read, written again
// with every cell quoted, read the same.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "src/base/error.h"
#include "src/eval/csv.h"
#include "src/eval/mmlu_file.h"

namespace nibble {
namespace {

std::string WriteQuoted(const std::vector<CsvRow>& rows) {
  std::string text;
  for (const CsvRow& row : rows) {
    for (size_t i = 0; i < row.cells.size(); ++i) {
      text += i == 0 ? "\"" : ",\"";
      for (const char c : row.cells[i]) {
        if (c == '"') text += '"';
        text += c;
      }
      text += '"';
    }
    text += "\r\n";
  }
  return text;
}

void CheckRows(std::string_view text) {
  const CsvLimits limits{.max_bytes = 1 << 16, .max_rows = 500, .max_columns = 16};
  const auto rows = ParseCsv(text, "fuzz.csv", limits);
  if (!rows) {
    CHECK(rows.error().message().starts_with("fuzz.csv:"));
    return;
  }
  CHECK(static_cast<int64_t>(rows->size()) <= limits.max_rows);
  size_t cell_bytes = 0;
  int64_t line = 0;
  for (const CsvRow& row : *rows) {
    CHECK(!row.cells.empty());
    CHECK(static_cast<int64_t>(row.cells.size()) <= limits.max_columns);
    CHECK(row.line > line);
    line = row.line;
    for (const std::string& cell : row.cells) cell_bytes += cell.size();
  }
  CHECK(cell_bytes <= text.size());
  const auto again = ParseCsv(WriteQuoted(*rows), "fuzz.csv");
  CHECK(again.has_value(), "{}", again.error().message());
  CHECK(again->size() == rows->size());
  for (size_t i = 0; i < rows->size(); ++i) CHECK((*again)[i].cells == (*rows)[i].cells);

  const auto file = InterpretMmluRows(*rows, "fuzz.csv");
  if (!file) {
    CHECK(file.error().message().starts_with("fuzz.csv:"));
    return;
  }
  for (const MmluQuestion& question : file->questions) {
    CHECK(!question.question.empty() && question.answer >= 0 && question.answer < 4);
  }
}

}  // namespace
}  // namespace nibble

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  nibble::CheckRows({reinterpret_cast<const char*>(data), size});
  return 0;
}
