// MMLU's questions (Hendrycks et al., 2009.03300) as files: {dev,test}/SUBJECT_{dev,test}.csv for
// each of the 57 subjects of mmlu_subjects.h.
//
// Two forms are read, and which was found is recorded:
// - the original: no header; six columns: question, four choices, the answer as a letter;
// - a hub copy: a header that names the columns ("question" or "input" or "prompt"; "A" to "D", or
//   "choices" holding a list of four quoted strings; "answer" or "target"; others are passed over),
//   answers as a letter or as 0 to 3.
// Every cell is text: "None" and "NA" are answers that occur. The text is kept as it stands.
//
// Errors (kBadInput), naming file and line: a missing file, wrong columns, an empty question or
// choice, an answer of another form, letters and digits in one file, no rows, fewer dev rows than
// shots, text that is not UTF-8 or not RFC 4180.
#ifndef NIBBLE_EVAL_MMLU_DATA_H_
#define NIBBLE_EVAL_MMLU_DATA_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/base/error.h"

namespace nibble {

struct MmluQuestion {
  int64_t index = 0;  // of the row among its file's questions, from 0
  std::string question;
  std::array<std::string, 4> choices;
  int answer = 0;  // 0 to 3 for A to D
};

enum class MmluSelection {
  kFirst,   // the first N questions of each subject
  kSample,  // N of each subject, drawn without replacement by the seed
};

struct MmluDataOptions {
  int shots = 5;  // dev rows kept for each subject; with 0 the dev files are not read
  std::optional<int64_t> questions_per_subject;  // all where absent; fewer where there are fewer
  MmluSelection selection = MmluSelection::kFirst;
  uint64_t seed = 0;  // for kSample
};

// What the files looked like. "mixed": not all alike.
struct MmluDataForm {
  std::string header;   // "absent", "present" or "mixed"
  std::string answers;  // "letters", "digits" or "mixed"
  bool operator==(const MmluDataForm&) const = default;
};

struct MmluSubjectData {
  int subject = 0;  // index into kMmluSubjects
  std::vector<MmluQuestion> shots;
  std::vector<MmluQuestion> questions;  // ascending by index
};

class MmluDataset {
 public:
  // WrongUsage for options that make no sense (negative shots, no questions).
  static Result<MmluDataset> Load(const std::string& directory, const MmluDataOptions& options);

  const std::vector<MmluSubjectData>& subjects() const { return subjects_; }  // 57, in order
  int64_t question_count() const;
  const MmluDataForm& form() const { return form_; }
  const MmluDataOptions& options() const { return options_; }
  const std::string& directory_name() const { return directory_name_; }  // without its parents
  // Of the shots and questions selected, 16 hexadecimal digits: equal for equal text.
  std::string FingerprintHex() const;

 private:
  std::vector<MmluSubjectData> subjects_;
  MmluDataForm form_;
  MmluDataOptions options_;
  std::string directory_name_;
};

}  // namespace nibble

#endif  // NIBBLE_EVAL_MMLU_DATA_H_
