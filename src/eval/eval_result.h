// The record of an evaluation: what was asked of which model, every question's answer, and the
// accuracies that follow from them. All averages are micro: questions are pooled, not groups.
#ifndef NIBBLE_EVAL_EVAL_RESULT_H_
#define NIBBLE_EVAL_EVAL_RESULT_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/eval/mmlu_data.h"
#include "src/eval/mmlu_prompt.h"
#include "src/eval/statistics.h"

namespace nibble {

inline constexpr std::string_view kEvalSchema = "nibble.evaluate/1";

enum class WeightsOrigin { kTrained, kSynthetic };

// The question files, as MmluDataset reports them.
struct EvalData {
  std::string directory;  // the name alone
  MmluDataForm form;
  std::string fingerprint;
};
EvalData DescribeData(const MmluDataset& dataset);

struct EvalSettings {
  std::string task = "mmlu";
  std::string model;  // a label for people
  // Accuracies of synthetic weights mean nothing, and the record says so.
  WeightsOrigin origin = WeightsOrigin::kTrained;
  MmluFormat format;
  MmluDataOptions options;  // shots, and which questions
  EvalData data;
  // Of all prompts, and those of them that were run, since prompts share their beginnings; 0 where
  // that is not known.
  int64_t prompt_tokens = 0;
  int64_t computed_tokens = 0;
};

struct QuestionResult {
  int subject = 0;    // index into kMmluSubjects
  int64_t index = 0;  // MmluQuestion::index
  // What was compared, in nats: the letters' log-probabilities; under cloze the log-likelihoods of
  // the choices' texts divided by their bytes (MmluScores).
  std::array<double, 4> logprobs{};
  int choice = 0;  // the first of the largest; set by EvalResult::Make
  int answer = 0;  // the right one
  int shots = 0;   // those that the prompt had room for

  bool correct() const { return choice == answer; }
};

// Candidate against reference on the same questions.
struct PairedComparison {
  PairedCounts counts;
  double difference = 0;  // of the accuracies, candidate minus reference
  Interval ci95;          // of the difference
  double flipped = 0;     // share of the questions that changed between right and wrong
  double mcnemar_p = 1;
  // Corrected for looking at all groups of a kind at once: the 57 subjects, the 17 subcategories,
  // the 4 categories. Equal to mcnemar_p for the overall figure.
  double holm_p = 1;
};

struct GroupResult {
  std::string_view name;  // of the subject, subcategory or category; "overall"
  int64_t correct = 0;
  int64_t total = 0;  // > 0
  Interval ci95;      // of the accuracy
  std::optional<PairedComparison> comparison;

  double accuracy() const { return static_cast<double>(correct) / static_cast<double>(total); }
};

class EvalResult {
 public:
  // Sorts the questions by subject and index, chooses, aggregates. Errors (kBadInput): no
  // questions, one twice, a value out of range, a log-probability that is not finite (a broken
  // model gives those).
  static Result<EvalResult> Make(EvalSettings settings, std::vector<QuestionResult> questions);

  // Reads what ToJson wrote, from a file that anyone may have edited; `source` names it in errors.
  // Everything that follows from the questions is computed anew, and the file refused where its
  // choices or its overall figures say otherwise.
  static Result<EvalResult> FromJson(const Json& json, std::string_view source);
  Json ToJson() const;

  const EvalSettings& settings() const { return settings_; }
  const std::vector<QuestionResult>& questions() const { return questions_; }
  const GroupResult& overall() const { return overall_; }
  // In the order of mmlu_subjects.h, without those that have no question.
  const std::vector<GroupResult>& subjects() const { return subjects_; }
  const std::vector<GroupResult>& subcategories() const { return subcategories_; }
  const std::vector<GroupResult>& categories() const { return categories_; }
  int64_t dropped_shots() const;  // over all questions
  int64_t questions_with_dropped_shots() const;
  // The label of the model compared with; absent where nothing was.
  const std::optional<std::string>& reference_model() const { return reference_model_; }

  // `candidate` with its comparison to `reference`, overall and in every group. Refused (kBadInput)
  // where the two did not do the same: another task, template, scoring or number of shots, or other
  // questions (the first is named).
  friend Result<EvalResult> Compare(const EvalResult& reference, EvalResult candidate);

 private:
  void Aggregate();
  // Holm's correction needs all groups of a kind.
  void CorrectComparisons();
  Status ReadComparisons(const JsonObject& json);

  EvalSettings settings_;
  std::vector<QuestionResult> questions_;
  GroupResult overall_;
  std::vector<GroupResult> subjects_;
  std::vector<GroupResult> subcategories_;
  std::vector<GroupResult> categories_;
  std::optional<std::string> reference_model_;
};

Result<EvalResult> Compare(const EvalResult& reference, EvalResult candidate);

// All of `counts` but the Holm correction, which looks at more than one.
PairedComparison MakeComparison(const PairedCounts& counts);

}  // namespace nibble

#endif  // NIBBLE_EVAL_EVAL_RESULT_H_
