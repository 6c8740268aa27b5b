// An evaluation as aligned plain text for a terminal.
#ifndef NIBBLE_EVAL_EVAL_TABLE_H_
#define NIBBLE_EVAL_EVAL_TABLE_H_

#include <cstdint>
#include <string>

#include "src/eval/eval_result.h"

namespace nibble {

enum class SubjectRows { kHide, kShow };

// What was run, then accuracy with its interval overall, by category and by subcategory, and by
// subject where asked for; with a reference also its accuracy, the difference with its interval,
// the flipped share and the p-values. Ends with a line break.
std::string FormatEvalTable(const EvalResult& result, SubjectRows subject_rows);

// "With 14042 questions of which 8 % flip, the smallest difference that can be told from chance is
// 0.67 points."
std::string DescribeDetectableDifference(int64_t questions, double flipped = kTypicalFlippedShare);

}  // namespace nibble

#endif  // NIBBLE_EVAL_EVAL_TABLE_H_
