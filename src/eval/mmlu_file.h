// The meaning of one MMLU file's rows; the forms and errors are those of mmlu_data.h.
#ifndef NIBBLE_EVAL_MMLU_FILE_H_
#define NIBBLE_EVAL_MMLU_FILE_H_

#include <array>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/eval/csv.h"
#include "src/eval/mmlu_data.h"

namespace nibble {

enum class MmluAnswerForm { kLetters, kDigits };

struct MmluFile {
  bool has_header = false;
  MmluAnswerForm answers = MmluAnswerForm::kLetters;
  std::vector<MmluQuestion> questions;
};

// `path` names the file in errors.
Result<MmluFile> InterpretMmluRows(const std::vector<CsvRow>& rows, std::string_view path);

// The four strings of a list as Python or numpy print it: "['one', \"it's\" 'three', 'four']"; the
// commas may be missing. Nothing where the text is anything else.
std::optional<std::array<std::string, 4>> ParseChoiceList(std::string_view text);

}  // namespace nibble

#endif  // NIBBLE_EVAL_MMLU_FILE_H_
