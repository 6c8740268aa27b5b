#include "src/eval/eval_table.h"

#include <algorithm>
#include <vector>

#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

using Row = std::vector<std::string>;

std::string Points(double fraction) { return fmt::format("{:.1f}", 100 * fraction); }
std::string SignedPoints(double fraction) { return fmt::format("{:+.1f}", 100 * fraction); }

std::string PValue(double p) { return p < 0.0005 ? "<0.001" : fmt::format("{:.3f}", p); }

Row MakeRow(const GroupResult& group, std::string_view indent) {
  Row row = {fmt::format("{}{}", indent, group.name), fmt::format("{}", group.total),
             Points(group.accuracy()),
             fmt::format("{} to {}", Points(group.ci95.low), Points(group.ci95.high))};
  if (const auto& paired = group.comparison) {
    row.push_back(Points(group.accuracy() - paired->difference));
    row.push_back(SignedPoints(paired->difference));
    row.push_back(
        fmt::format("{} to {}", SignedPoints(paired->ci95.low), SignedPoints(paired->ci95.high)));
    row.push_back(Points(paired->flipped));
    row.push_back(PValue(paired->mcnemar_p));
    row.push_back(PValue(paired->holm_p));
  }
  return row;
}

void AppendGroups(std::string_view title, const std::vector<GroupResult>& groups,
                  std::vector<Row>& rows) {
  rows.push_back({});
  rows.push_back({std::string(title)});
  for (const GroupResult& group : groups) rows.push_back(MakeRow(group, "  "));
}

// The first column to the left, the others to the right.
std::string Aligned(const std::vector<Row>& rows) {
  std::vector<size_t> widths;
  for (const Row& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const Row& row : rows) {
    for (size_t i = 0; i < row.size(); ++i) {
      if (i == 0) {
        text += row.size() == 1 ? row[0] : fmt::format("{:<{}}", row[0], widths[0]);
      } else {
        text += fmt::format("  {:>{}}", row[i], widths[i]);
      }
    }
    text += '\n';
  }
  return text;
}

std::string Heading(const EvalResult& result) {
  const EvalSettings& settings = result.settings();
  std::string text = fmt::format(
      "{}: {} on {}, {} questions, {} shots, template {}, scored by {}\n", settings.model,
      settings.task, settings.data.directory, result.overall().total, settings.options.shots,
      Name(settings.format.prompt_template),
      settings.format.scoring == MmluScoring::kLetters ? "letters" : "cloze (the answers' text)");
  if (settings.origin == WeightsOrigin::kSynthetic) {
    text += "The weights are synthetic: these accuracies say nothing about any model.\n";
  }
  if (result.dropped_shots() > 0) {
    text += fmt::format("Prompts too long for the context: {}; shots left out of them: {}.\n",
                        result.questions_with_dropped_shots(), result.dropped_shots());
  }
  if (settings.prompt_tokens > 0) {
    text += fmt::format("{} tokens of prompts, of which {} were computed: prompts share beginnings.\n",
                        settings.prompt_tokens, settings.computed_tokens);
  }
  if (result.reference_model()) {
    text += fmt::format("Compared with {} on the same questions.\n", *result.reference_model());
  }
  return text;
}

}  // namespace

std::string DescribeDetectableDifference(int64_t questions, double flipped) {
  return fmt::format(
      "With {} questions of which {:.0f} % flip, the smallest difference that can be told from "
      "chance is {:.2f} points.",
      questions, 100 * flipped, 100 * DetectableDifference(questions, flipped));
}

std::string FormatEvalTable(const EvalResult& result, SubjectRows subject_rows) {
  std::vector<Row> rows;
  Row header = {"", "questions", "accuracy %", "95 % interval"};
  if (result.reference_model()) {
    header.insert(header.end(),
                  {"reference %", "difference", "95 % interval", "flipped %", "p", "p (Holm)"});
  }
  rows.push_back(std::move(header));
  rows.push_back(MakeRow(result.overall(), ""));
  AppendGroups("categories", result.categories(), rows);
  AppendGroups("subcategories", result.subcategories(), rows);
  if (subject_rows == SubjectRows::kShow) AppendGroups("subjects", result.subjects(), rows);
  return fmt::format("{}\n{}\n{}\n", Heading(result), Aligned(rows),
                     DescribeDetectableDifference(result.overall().total));
}

}  // namespace nibble
