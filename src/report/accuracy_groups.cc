#include "src/report/accuracy_groups.h"

#include <algorithm>

#include "src/eval/mmlu_subjects.h"
#include "src/report/content_parts.h"
#include "src/report/numbers.h"

namespace nibble {
namespace {

// "high_school_us_history" → "High school US history"
std::string Shown(std::string name) {
  std::replace(name.begin(), name.end(), '_', ' ');
  static constexpr std::pair<std::string_view, std::string_view> kProper[] = {
      {"us ", "US "}, {" us ", " US "}, {" european ", " European "}};
  for (const auto& [word, proper] : kProper) {
    const size_t at = word.starts_with(' ')    ? name.find(word)
                      : name.starts_with(word) ? 0
                                               : name.npos;
    if (at != name.npos) name.replace(at, word.size(), proper);
  }
  return Capitalized(std::move(name));
}

std::vector<AccuracyGroup> KnownGroups(AccuracyLevel level) {
  std::vector<AccuracyGroup> groups;
  if (level == AccuracyLevel::kOverall) groups.push_back({"", "All subjects", ""});
  for (size_t category = 0; category < kMmluCategories.size(); ++category) {
    const std::string category_name(kMmluCategories[category]);
    const std::string part = Shown(category_name);
    if (level == AccuracyLevel::kCategory) groups.push_back({category_name, part, ""});
    if (level == AccuracyLevel::kSubcategory) {
      for (const MmluSubcategory& subcategory : kMmluSubcategories) {
        if (subcategory.category != static_cast<int>(category)) continue;
        const std::string name(subcategory.name);
        groups.push_back({name, Shown(name), part});
      }
    }
    if (level == AccuracyLevel::kSubject) {
      for (size_t i = 0; i < kMmluSubjects.size(); ++i) {
        if (MmluCategoryOf(static_cast<int>(i)) != static_cast<int>(category)) continue;
        const std::string name(kMmluSubjects[i].name);
        groups.push_back({name, Shown(name), part});
      }
    }
  }
  return groups;
}

const NamedScores& ScoresAt(const Evaluation& evaluation, AccuracyLevel level) {
  if (level == AccuracyLevel::kCategory) return evaluation.categories;
  return level == AccuracyLevel::kSubcategory ? evaluation.subcategories : evaluation.subjects;
}

const char* NameOf(AccuracyLevel level) {
  static constexpr const char* kNames[] = {"overall", "category", "subcategory", "subject"};
  return kNames[static_cast<int>(level)];
}

}  // namespace

std::vector<AccuracyGroup> GroupsOf(const StudyRecord& record, Scoring scoring,
                                    AccuracyLevel level) {
  if (level == AccuracyLevel::kOverall) return KnownGroups(level);
  std::vector<AccuracyGroup> groups;
  for (AccuracyGroup& group : KnownGroups(level)) {
    for (const Score* score : ScoresOf(record, scoring, level, group.name)) {
      if (score == nullptr) continue;
      groups.push_back(std::move(group));
      break;
    }
  }
  for (const MethodRecord& method : record.methods) {
    const auto& evaluation = EvaluationOf(method, scoring);
    if (!evaluation) continue;
    for (const auto& [name, score] : ScoresAt(*evaluation, level)) {
      const bool known =
          std::any_of(groups.begin(), groups.end(),
                      [&name = name](const AccuracyGroup& group) { return group.name == name; });
      if (!known) groups.push_back({name, name, "Further groups"});
    }
  }
  return groups;
}

std::vector<const Score*> ScoresOf(const StudyRecord& record, Scoring scoring, AccuracyLevel level,
                                   const std::string& group) {
  std::vector<const Score*> scores;
  for (const MethodRecord& method : record.methods) {
    const auto& evaluation = EvaluationOf(method, scoring);
    scores.push_back(!evaluation ? nullptr
                     : level == AccuracyLevel::kOverall
                         ? &evaluation->overall
                         : FindScore(ScoresAt(*evaluation, level), group));
  }
  return scores;
}

int64_t QuestionsOf(const std::vector<const Score*>& scores) {
  int64_t questions = 0;
  for (const Score* score : scores) questions = std::max(questions, score ? score->total : 0);
  return questions;
}

std::string NumberAndRange(const Score& score) {
  return fmt::format("{} ({} to {})", FormatPercentNumber(score.accuracy),
                     FormatPercentNumber(score.ci95.low), FormatPercentNumber(score.ci95.high));
}

std::string DifferenceAndRange(const ScoreComparison& comparison, int64_t questions) {
  return fmt::format("{} ({})", FormatPoints(comparison.difference, questions),
                     FormatPointsRange(comparison.ci95, questions));
}

Table ScoreTable(const StudyRecord& record, Scoring scoring, AccuracyLevel level) {
  const bool by_subject = level == AccuracyLevel::kSubject;
  const std::vector<const Score*> overall = ScoresOf(record, scoring, AccuracyLevel::kOverall, "");
  Table table;
  table.caption = fmt::format(
      "Accuracy by {} in percent and difference from {} in points, with 95 % intervals{}",
      NameOf(level), record.methods[0].name,
      by_subject ? "; p is McNemar's, after Holm's correction for all subjects" : "");
  table.columns = {{Capitalized(NameOf(level)), Align::kLeft}, {"Questions"}};
  const auto compared = [&](size_t m) { return overall[m] != nullptr && overall[m]->comparison; };
  for (size_t m = 0; m < record.methods.size(); ++m) {
    if (overall[m] != nullptr) table.columns.push_back({record.methods[m].name + ", %"});
  }
  for (size_t m = 1; m < record.methods.size(); ++m) {
    if (!compared(m)) continue;
    table.columns.push_back({record.methods[m].name + " − " + record.methods[0].name});
    if (by_subject) table.columns.push_back({"p"});
  }
  const auto add_row = [&](const std::string& shown, const std::vector<const Score*>& scores) {
    const int64_t questions = QuestionsOf(scores);
    std::vector<std::string> row = {shown, FormatCount(questions)};
    for (size_t m = 0; m < scores.size(); ++m) {
      if (overall[m] == nullptr) continue;
      row.push_back(scores[m] != nullptr ? NumberAndRange(*scores[m]) : "–");
    }
    for (size_t m = 1; m < scores.size(); ++m) {
      if (!compared(m)) continue;
      const ScoreComparison* comparison =
          scores[m] != nullptr && scores[m]->comparison ? &*scores[m]->comparison : nullptr;
      row.push_back(comparison != nullptr ? DifferenceAndRange(*comparison, questions) : "–");
      if (!by_subject) continue;
      row.push_back(comparison != nullptr && comparison->holm_p ? FormatPValue(*comparison->holm_p)
                                                                : "–");
    }
    table.rows.push_back(std::move(row));
  };
  if (!by_subject) add_row("All subjects", overall);
  for (const AccuracyGroup& group : GroupsOf(record, scoring, level)) {
    add_row(group.shown, ScoresOf(record, scoring, level, group.name));
  }
  return table;
}

std::string Capitalized(std::string text) {
  if (!text.empty() && text[0] >= 'a' && text[0] <= 'z') text[0] = static_cast<char>(text[0] - 32);
  return text;
}

}  // namespace nibble
