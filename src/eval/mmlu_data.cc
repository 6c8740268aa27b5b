#include "src/eval/mmlu_data.h"

#include <algorithm>
#include <filesystem>
#include <numeric>
#include <string_view>
#include <utility>

#include "src/base/file.h"
#include "src/base/fingerprint.h"
#include "src/base/random.h"
#include "src/eval/csv.h"
#include "src/eval/mmlu_file.h"
#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

// Counts in how many files something was so, to say all, none or mixed.
class Tally {
 public:
  void Add(bool yes) { ++(yes ? yes_ : no_); }
  std::string Name(std::string_view all, std::string_view none) const {
    if (yes_ > 0 && no_ > 0) return "mixed";
    return std::string(yes_ > 0 ? all : none);
  }

 private:
  int yes_ = 0;
  int no_ = 0;
};

// A dataset while it is read.
struct Reading {
  std::string directory;
  Tally header;
  Tally letters;
};

Result<std::vector<MmluQuestion>> ReadSplit(Reading& reading, std::string_view split,
                                            std::string_view subject) {
  const std::string path =
      JoinPath(JoinPath(reading.directory, split), fmt::format("{}_{}.csv", subject, split));
  if (!FileExists(path)) {
    return BadInput(
        "{}: no such file; want {{dev,test}}/SUBJECT_{{dev,test}}.csv for each of the {} "
        "subjects of MMLU",
        path, kMmluSubjects.size());
  }
  NIBBLE_ASSIGN_OR_RETURN(const std::vector<CsvRow> rows, ReadCsvFile(path));
  NIBBLE_ASSIGN_OR_RETURN(MmluFile file, InterpretMmluRows(rows, path));
  if (file.questions.empty()) return BadInput("{}: no questions", path);
  reading.header.Add(file.has_header);
  reading.letters.Add(file.answers == MmluAnswerForm::kLetters);
  return std::move(file.questions);
}

// `count` of the questions, ascending. Each subject has a stream of its own, so that what is drawn
// from one does not depend on how many the others have.
std::vector<MmluQuestion> Sample(std::vector<MmluQuestion> questions, size_t count, uint64_t seed,
                                 int subject) {
  std::vector<size_t> order(questions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  Random random(Random::Mix(seed) ^ Random::Mix(static_cast<uint64_t>(subject) + 1));
  for (size_t i = 0; i < count; ++i) {
    std::swap(order[i], order[i + random.Below(order.size() - i)]);
  }
  order.resize(count);
  std::sort(order.begin(), order.end());
  std::vector<MmluQuestion> sample;
  sample.reserve(count);
  for (const size_t i : order) sample.push_back(std::move(questions[i]));
  return sample;
}

std::vector<MmluQuestion> Select(std::vector<MmluQuestion> questions,
                                 const MmluDataOptions& options, int subject) {
  const size_t count =
      options.questions_per_subject
          ? std::min(static_cast<size_t>(*options.questions_per_subject), questions.size())
          : questions.size();
  if (count == questions.size()) return questions;
  if (options.selection == MmluSelection::kSample) {
    return Sample(std::move(questions), count, options.seed, subject);
  }
  questions.resize(count);
  return questions;
}

Result<MmluSubjectData> ReadSubject(Reading& reading, int subject, const MmluDataOptions& options) {
  const std::string_view name = kMmluSubjects[static_cast<size_t>(subject)].name;
  MmluSubjectData data;
  data.subject = subject;
  if (options.shots > 0) {
    NIBBLE_ASSIGN_OR_RETURN(data.shots, ReadSplit(reading, "dev", name));
    if (data.shots.size() < static_cast<size_t>(options.shots)) {
      return BadInput("{}/dev/{}_dev.csv: want at least {} rows for {} shots, got {}",
                      reading.directory, name, options.shots, options.shots, data.shots.size());
    }
    data.shots.resize(static_cast<size_t>(options.shots));
  }
  NIBBLE_ASSIGN_OR_RETURN(std::vector<MmluQuestion> questions, ReadSplit(reading, "test", name));
  data.questions = Select(std::move(questions), options, subject);
  return data;
}

void AddTo(Fingerprint& fingerprint, const std::vector<MmluQuestion>& questions) {
  fingerprint.Add(std::to_string(questions.size()));
  for (const MmluQuestion& question : questions) {
    fingerprint.Add(std::to_string(question.index)).Add(question.question);
    for (const std::string& choice : question.choices) fingerprint.Add(choice);
    fingerprint.Add(std::to_string(question.answer));
  }
}

}  // namespace

Result<MmluDataset> MmluDataset::Load(const std::string& directory,
                                      const MmluDataOptions& options) {
  if (options.shots < 0) return WrongUsage("shots: want 0 or more, got {}", options.shots);
  if (options.questions_per_subject && *options.questions_per_subject < 1) {
    return WrongUsage("questions per subject: want 1 or more, got {}",
                      *options.questions_per_subject);
  }
  if (!IsDirectory(directory)) {
    return BadInput("{}: {}", directory,
                    FileExists(directory) ? "not a directory" : "no such directory");
  }
  Reading reading;
  reading.directory = directory;
  MmluDataset dataset;
  dataset.options_ = options;
  for (int subject = 0; subject < static_cast<int>(kMmluSubjects.size()); ++subject) {
    NIBBLE_ASSIGN_OR_RETURN(MmluSubjectData data, ReadSubject(reading, subject, options));
    dataset.subjects_.push_back(std::move(data));
  }
  dataset.form_ = {reading.header.Name("present", "absent"),
                   reading.letters.Name("letters", "digits")};
  // "data/mmlu/" and "." have a last part too.
  std::error_code ignored;
  std::filesystem::path path = std::filesystem::weakly_canonical(directory, ignored);
  dataset.directory_name_ = path.filename().string();
  return dataset;
}

int64_t MmluDataset::question_count() const {
  int64_t count = 0;
  for (const MmluSubjectData& subject : subjects_) {
    count += static_cast<int64_t>(subject.questions.size());
  }
  return count;
}

std::string MmluDataset::FingerprintHex() const {
  Fingerprint fingerprint;
  for (const MmluSubjectData& subject : subjects_) {
    AddTo(fingerprint, subject.shots);
    AddTo(fingerprint, subject.questions);
  }
  return fingerprint.Hex();
}

}  // namespace nibble
