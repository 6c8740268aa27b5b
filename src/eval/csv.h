// Reads CSV as RFC 4180 defines it: cells parted by commas, rows by LF or CRLF, cells in double
// quotes where they hold commas, quotes (doubled) or line breaks. The text is UTF-8; a byte order
// mark at its start is dropped. An empty line is skipped. What the RFC does not allow (a quote
// inside an unquoted cell, text after a closing quote, a lone carriage return, an unclosed quote)
// is an error that names the source and the line, never a guess.
#ifndef NIBBLE_EVAL_CSV_H_
#define NIBBLE_EVAL_CSV_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"

namespace nibble {

struct CsvRow {
  int64_t line = 0;  // in the file, from 1, where the row begins
  std::vector<std::string> cells;
};

// A text beyond these is refused. They bound what reading takes in memory: about
// max_rows * max_columns * 64 bytes for the cells (100 MB with these) and max_bytes twice over.
struct CsvLimits {
  uint64_t max_bytes = uint64_t{64} << 20;  // of the whole text
  int64_t max_rows = 100'000;
  int64_t max_columns = 16;
};

// `source` names the text in errors.
Result<std::vector<CsvRow>> ParseCsv(std::string_view text, std::string_view source,
                                     const CsvLimits& limits = {});
Result<std::vector<CsvRow>> ReadCsvFile(const std::string& path, const CsvLimits& limits = {});

}  // namespace nibble

#endif  // NIBBLE_EVAL_CSV_H_
