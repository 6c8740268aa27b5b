#include "src/eval/eval_result.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <tuple>
#include <utility>

#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

std::string QuestionName(const QuestionResult& question) {
  return fmt::format("{}, question {}", kMmluSubjects[static_cast<size_t>(question.subject)].name,
                     question.index);
}

auto Key(const QuestionResult& question) { return std::tuple(question.subject, question.index); }

Status CheckQuestion(const QuestionResult& question, const EvalSettings& settings) {
  CHECK(question.subject >= 0 && question.subject < static_cast<int>(kMmluSubjects.size()));
  const auto bad = [&](std::string_view what) {
    return BadInput("{}: {}", QuestionName(question), what);
  };
  if (question.index < 0) return bad("a negative index");
  if (question.answer < 0 || question.answer > 3) return bad("the answer is not A to D");
  if (question.shots < 0 || question.shots > settings.options.shots) {
    return bad(fmt::format("{} shots, of {}", question.shots, settings.options.shots));
  }
  for (const double logprob : question.logprobs) {
    if (!std::isfinite(logprob)) {
      return bad(
          fmt::format("the model gives a log-probability of {}: its weights or its "
                      "arithmetic are broken",
                      logprob));
    }
  }
  return {};
}

void Count(GroupResult& group, const QuestionResult& question) {
  ++group.total;
  group.correct += question.correct() ? 1 : 0;
}

// Removes the groups without questions and gives the others their interval.
void Finish(std::vector<GroupResult>& groups) {
  std::erase_if(groups, [](const GroupResult& group) { return group.total == 0; });
  for (GroupResult& group : groups) group.ci95 = WilsonInterval(group.correct, group.total);
}

void CorrectFamily(std::vector<GroupResult>& groups) {
  std::vector<double> p_values;
  for (const GroupResult& group : groups) p_values.push_back(group.comparison->mcnemar_p);
  const std::vector<double> adjusted = HolmAdjusted(p_values);
  for (size_t i = 0; i < groups.size(); ++i) groups[i].comparison->holm_p = adjusted[i];
}

Status CheckSameProtocol(const EvalSettings& reference, const EvalSettings& candidate) {
  const auto same = [](std::string_view what, auto in_reference, auto in_candidate) -> Status {
    if (in_reference == in_candidate) return {};
    return BadInput("the reference cannot be compared: its {} is {}, here it is {}", what,
                    in_reference, in_candidate);
  };
  NIBBLE_RETURN_IF_ERROR(same("task", reference.task, candidate.task));
  NIBBLE_RETURN_IF_ERROR(same("template", Name(reference.format.prompt_template),
                              Name(candidate.format.prompt_template)));
  NIBBLE_RETURN_IF_ERROR(
      same("scoring", Name(reference.format.scoring), Name(candidate.format.scoring)));
  return same("number of shots", reference.options.shots, candidate.options.shots);
}

// Both are sorted.
Status CheckSameQuestions(const std::vector<QuestionResult>& reference,
                          const std::vector<QuestionResult>& candidate) {
  const size_t common = std::min(reference.size(), candidate.size());
  for (size_t i = 0; i < common; ++i) {
    const QuestionResult& ours = candidate[i];
    if (Key(reference[i]) != Key(ours)) {
      const bool only_in_reference = Key(reference[i]) < Key(ours);
      return BadInput("the reference cannot be compared: {} is only in {}",
                      QuestionName(only_in_reference ? reference[i] : ours),
                      only_in_reference ? "the reference" : "this result");
    }
    if (reference[i].answer != ours.answer) {
      return BadInput("the reference cannot be compared: {}: the right answer is {} there, {} here",
                      QuestionName(ours), "ABCD"[reference[i].answer], "ABCD"[ours.answer]);
    }
  }
  if (reference.size() == candidate.size()) return {};
  const bool reference_is_longer = reference.size() > common;
  return BadInput("the reference cannot be compared: {} is only in {}",
                  QuestionName(reference_is_longer ? reference[common] : candidate[common]),
                  reference_is_longer ? "the reference" : "this result");
}

}  // namespace

EvalData DescribeData(const MmluDataset& dataset) {
  return {dataset.directory_name(), dataset.form(), dataset.FingerprintHex()};
}

Result<EvalResult> EvalResult::Make(EvalSettings settings, std::vector<QuestionResult> questions) {
  if (questions.empty()) return BadInput("an evaluation needs at least one question");
  for (QuestionResult& question : questions) {
    NIBBLE_RETURN_IF_ERROR(CheckQuestion(question, settings));
    const auto largest = std::max_element(question.logprobs.begin(), question.logprobs.end());
    question.choice = static_cast<int>(largest - question.logprobs.begin());
  }
  std::sort(questions.begin(), questions.end(),
            [](const auto& a, const auto& b) { return Key(a) < Key(b); });
  const auto twice =
      std::adjacent_find(questions.begin(), questions.end(),
                         [](const auto& a, const auto& b) { return Key(a) == Key(b); });
  if (twice != questions.end()) return BadInput("{}: occurs twice", QuestionName(*twice));
  EvalResult result;
  result.settings_ = std::move(settings);
  result.questions_ = std::move(questions);
  result.Aggregate();
  return result;
}

void EvalResult::Aggregate() {
  overall_.name = "overall";
  for (const MmluSubject& subject : kMmluSubjects) subjects_.push_back({.name = subject.name});
  for (const MmluSubcategory& group : kMmluSubcategories) {
    subcategories_.push_back({.name = group.name});
  }
  for (const std::string_view name : kMmluCategories) categories_.push_back({.name = name});
  for (const QuestionResult& question : questions_) {
    const auto subject = static_cast<size_t>(question.subject);
    Count(overall_, question);
    Count(subjects_[subject], question);
    Count(subcategories_[static_cast<size_t>(kMmluSubjects[subject].subcategory)], question);
    Count(categories_[static_cast<size_t>(MmluCategoryOf(question.subject))], question);
  }
  overall_.ci95 = WilsonInterval(overall_.correct, overall_.total);
  Finish(subjects_);
  Finish(subcategories_);
  Finish(categories_);
}

int64_t EvalResult::dropped_shots() const {
  int64_t dropped = 0;
  for (const QuestionResult& question : questions_) {
    dropped += settings_.options.shots - question.shots;
  }
  return dropped;
}

int64_t EvalResult::questions_with_dropped_shots() const {
  return std::count_if(questions_.begin(), questions_.end(), [&](const QuestionResult& question) {
    return question.shots < settings_.options.shots;
  });
}

void EvalResult::CorrectComparisons() {
  CorrectFamily(subjects_);
  CorrectFamily(subcategories_);
  CorrectFamily(categories_);
}

PairedComparison MakeComparison(const PairedCounts& counts) {
  PairedComparison comparison;
  comparison.counts = counts;
  comparison.difference = counts.Difference();
  comparison.ci95 = PairedDifferenceInterval(counts);
  comparison.flipped = counts.FlippedShare();
  comparison.mcnemar_p = McNemarExactP(counts);
  comparison.holm_p = comparison.mcnemar_p;
  return comparison;
}

Result<EvalResult> Compare(const EvalResult& reference, EvalResult candidate) {
  NIBBLE_RETURN_IF_ERROR(CheckSameProtocol(reference.settings_, candidate.settings_));
  NIBBLE_RETURN_IF_ERROR(CheckSameQuestions(reference.questions_, candidate.questions_));
  if (reference.settings_.data.fingerprint != candidate.settings_.data.fingerprint) {
    return BadInput(
        "the reference cannot be compared: the texts of its questions or shots differ (their "
        "fingerprint is {}, here {})",
        reference.settings_.data.fingerprint, candidate.settings_.data.fingerprint);
  }
  PairedCounts overall;
  std::array<PairedCounts, kMmluSubjects.size()> subjects;
  std::array<PairedCounts, kMmluSubcategories.size()> subcategories;
  std::array<PairedCounts, kMmluCategories.size()> categories;
  for (size_t i = 0; i < candidate.questions_.size(); ++i) {
    const QuestionResult& ours = candidate.questions_[i];
    const bool lost = reference.questions_[i].correct() && !ours.correct();
    const bool gained = !reference.questions_[i].correct() && ours.correct();
    const auto subject = static_cast<size_t>(ours.subject);
    for (PairedCounts* counts :
         {&overall, &subjects[subject],
          &subcategories[static_cast<size_t>(kMmluSubjects[subject].subcategory)],
          &categories[static_cast<size_t>(MmluCategoryOf(ours.subject))]}) {
      ++counts->total;
      counts->reference_only_correct += lost ? 1 : 0;
      counts->candidate_only_correct += gained ? 1 : 0;
    }
  }
  // The groups of the result are those with questions, in the same order.
  const auto attach = [](std::vector<GroupResult>& groups, const auto& all_counts) {
    auto group = groups.begin();
    for (const PairedCounts& counts : all_counts) {
      if (counts.total > 0) (group++)->comparison = MakeComparison(counts);
    }
  };
  candidate.overall_.comparison = MakeComparison(overall);
  attach(candidate.subjects_, subjects);
  attach(candidate.subcategories_, subcategories);
  attach(candidate.categories_, categories);
  candidate.CorrectComparisons();
  candidate.reference_model_ = reference.settings_.model;
  return candidate;
}

}  // namespace nibble
