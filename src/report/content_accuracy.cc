// Accuracy: the paired differences first, for they decide; then 4 categories, 17 subcategories and
// 57 subjects.
#include <algorithm>
#include <cmath>

#include "src/report/accuracy_groups.h"
#include "src/report/content_parts.h"
#include "src/report/numbers.h"
#include "src/report/svg_bars.h"
#include "src/report/svg_dots.h"

namespace nibble {
namespace {

constexpr double kSignificant = 0.05;

std::string Tooltip(const StudyRecord& record, size_t method, const std::string& group,
                    const Score& score) {
  return fmt::format("{}, {}: {} %, {} of {}", record.methods[method].name, group,
                     NumberAndRange(score), FormatCount(score.correct), FormatCount(score.total));
}

std::string Conditions(const StudyRecord& record, Scoring scoring) {
  for (const MethodRecord& method : record.methods) {
    const auto& evaluation = EvaluationOf(method, scoring);
    if (!evaluation) continue;
    std::string dropped;
    if (evaluation->questions_with_dropped_shots > 0) {
      dropped = fmt::format(" (fewer shots in {} questions, whose prompts were too long)",
                            FormatCount(evaluation->questions_with_dropped_shots));
    }
    return fmt::format("{} questions{}, {}-shot{}{}, scored {}",
                       FormatCount(evaluation->overall.total),
                       record.question_source.empty() ? "" : " (" + record.question_source + ")",
                       evaluation->shots, dropped,
                       evaluation->prompt_template.empty()
                           ? ""
                           : ", prompt template “" + evaluation->prompt_template + "”",
                       ScoringPhrase(scoring));
  }
  return "";
}

std::string IdPrefix(Scoring scoring) { return scoring == Scoring::kLetters ? "letters" : "cloze"; }

std::vector<LegendEntry> EvaluatedLegend(const StudyRecord& record, Scoring scoring) {
  return LegendFor(record,
                   [&](const MethodRecord& m) { return EvaluationOf(m, scoring).has_value(); });
}

Drawing DrawDotsBothWays(DotPlot plot) {
  Drawing drawing;
  const std::string id = plot.id;
  drawing.wide = DrawDots(plot, kWideFigure, RowLabels::kLeft);
  plot.id = id + "-narrow";
  drawing.narrow = DrawDots(plot, kNarrowFigure, RowLabels::kAbove);
  return drawing;
}

std::optional<Figure> DifferenceFigure(const StudyRecord& record, Scoring scoring) {
  DotPlot plot;
  plot.id = IdPrefix(scoring) + "-difference";
  plot.title = "Difference in accuracy from " + record.methods[0].name;
  plot.axis_title = fmt::format("accuracy minus {}’s, points", record.methods[0].name);
  plot.line = 0;
  double low = 0, high = 0;
  const auto add_row = [&](const std::string& shown, const std::vector<const Score*>& scores) {
    DotRow row;
    row.label = shown;
    row.note = "n = " + FormatCount(QuestionsOf(scores));
    for (size_t m = 1; m < scores.size(); ++m) {
      if (scores[m] == nullptr || !scores[m]->comparison) continue;
      const ScoreComparison& comparison = *scores[m]->comparison;
      const Interval points{100 * comparison.ci95.low, 100 * comparison.ci95.high};
      low = std::min({low, points.low, 100 * comparison.difference});
      high = std::max({high, points.high, 100 * comparison.difference});
      const std::string text = DifferenceAndRange(comparison, scores[m]->total);
      row.dots.push_back({static_cast<int>(m), 100 * comparison.difference, points, text,
                          FormatPoints(comparison.difference, scores[m]->total),
                          fmt::format("{}, {}: {} points", record.methods[m].name, shown, text)});
    }
    if (!row.dots.empty()) plot.rows.push_back(std::move(row));
  };
  add_row("All subjects", ScoresOf(record, scoring, AccuracyLevel::kOverall, ""));
  for (const AccuracyGroup& group : GroupsOf(record, scoring, AccuracyLevel::kCategory)) {
    add_row(group.shown, ScoresOf(record, scoring, AccuracyLevel::kCategory, group.name));
  }
  if (plot.rows.empty()) return std::nullopt;

  const std::optional<double> tolerance =
      record.recommendation ? record.recommendation->max_accuracy_drop_points : std::nullopt;
  if (tolerance) low = std::min(low, -1.25 * *tolerance);
  plot.axis = Axis::Linear(low, high, 6);
  if (tolerance) plot.band = Interval{-*tolerance, plot.axis.high()};
  plot.description =
      "Dots with 95 % intervals, one a method, for all subjects and by category; the numbers are "
      "in the table below the figure.";

  Figure figure;
  figure.title = plot.title;
  figure.legend = LegendFor(record, [&](const MethodRecord& m) {
    const auto& evaluation = EvaluationOf(m, scoring);
    return evaluation && evaluation->overall.comparison;
  });
  figure.caption =
      "How many points of accuracy each method loses (left of zero) or gains, with the 95 % "
      "interval of the difference. Both answered the same questions, so the difference is measured "
      "in pairs, and its interval is narrower than those of the accuracies themselves. An interval "
      "that includes zero shows no difference. ";
  if (tolerance) {
    figure.caption +=
        fmt::format("Shaded: within the tolerance of {}. ", FormatTolerance(*tolerance));
  }
  figure.caption += Conditions(record, scoring) + ".";
  figure.drawings = {DrawDotsBothWays(plot)};

  Table& table = figure.data;
  table.caption = "Paired comparison with " + record.methods[0].name + ", all subjects";
  table.columns = {{"Method", Align::kLeft},
                   {"Difference, points"},
                   {"95 % interval"},
                   {"Only the baseline right"},
                   {"Only the method right"},
                   {"Answers flipped"},
                   {"McNemar p"}};
  const std::vector<const Score*> overall = ScoresOf(record, scoring, AccuracyLevel::kOverall, "");
  for (size_t m = 1; m < overall.size(); ++m) {
    if (overall[m] == nullptr || !overall[m]->comparison) continue;
    const ScoreComparison& comparison = *overall[m]->comparison;
    const int64_t n = overall[m]->total;
    table.rows.push_back({record.methods[m].name, FormatPoints(comparison.difference, n),
                          FormatPointsRange(comparison.ci95, n),
                          FormatCount(comparison.reference_only_correct),
                          FormatCount(comparison.candidate_only_correct),
                          comparison.flipped ? FormatPercent(*comparison.flipped) : "–",
                          comparison.mcnemar_p ? FormatPValue(*comparison.mcnemar_p) : "–"});
  }
  return figure;
}

Figure CategoryFigure(const StudyRecord& record, Scoring scoring) {
  const std::vector<AccuracyGroup> groups = GroupsOf(record, scoring, AccuracyLevel::kCategory);
  BarChart chart;
  chart.id = IdPrefix(scoring) + "-categories";
  chart.title = "Accuracy by category";
  chart.axis_title = "correct answers, %";
  chart.description =
      "Bars with 95 % intervals, one a method, for all subjects and by category; the numbers are "
      "in the table below the figure.";
  chart.line = 100 * kChance;
  chart.line_label = "chance";
  double highest = 100 * kChance;
  const auto add_group = [&](const std::string& shown, const std::vector<const Score*>& scores) {
    BarGroup group;
    group.label = shown;
    group.note = "n = " + FormatCount(QuestionsOf(scores));
    for (size_t m = 0; m < scores.size(); ++m) {
      if (scores[m] == nullptr) continue;
      const Score& score = *scores[m];
      group.bars.push_back({static_cast<int>(m),
                            {100 * score.accuracy},
                            Interval{100 * score.ci95.low, 100 * score.ci95.high},
                            FormatPercentNumber(score.accuracy),
                            FormatFixed(100 * score.accuracy, 0),
                            Tooltip(record, m, shown, score)});
      highest = std::max(highest, 100 * score.ci95.high);
    }
    chart.groups.push_back(std::move(group));
  };
  add_group("All subjects", ScoresOf(record, scoring, AccuracyLevel::kOverall, ""));
  for (const AccuracyGroup& group : groups) {
    add_group(group.shown, ScoresOf(record, scoring, AccuracyLevel::kCategory, group.name));
  }
  chart.axis = Axis::Linear(0, highest, 5);

  Figure figure;
  figure.title = chart.title;
  figure.legend = EvaluatedLegend(record, scoring);
  figure.caption = fmt::format(
      "The share of questions answered correctly, by MMLU’s {} categories and over all subjects; "
      "whiskers are 95 % Wilson intervals, n is the number of questions, the dashed line is what "
      "guessing reaches. {}.",
      groups.size(), Conditions(record, scoring));
  Drawing drawing;
  drawing.wide = DrawColumns(chart, kWideFigure);
  chart.id += "-narrow";
  drawing.narrow = DrawRows(chart, kNarrowFigure);
  figure.drawings = {std::move(drawing)};
  figure.data = ScoreTable(record, scoring, AccuracyLevel::kCategory);
  return figure;
}

DotRow AccuracyRow(const StudyRecord& record, const AccuracyGroup& group,
                   const std::vector<const Score*>& scores) {
  DotRow row;
  row.label = group.shown;
  bool marked = false;
  for (size_t m = 0; m < scores.size(); ++m) {
    if (scores[m] == nullptr) continue;
    const Score& score = *scores[m];
    row.dots.push_back({static_cast<int>(m), 100 * score.accuracy,
                        Interval{100 * score.ci95.low, 100 * score.ci95.high}, "", "",
                        Tooltip(record, m, group.shown, score)});
    marked |=
        score.comparison && score.comparison->holm_p && *score.comparison->holm_p < kSignificant;
  }
  if (marked) row.label += " *";
  row.note = "n = " + FormatCount(QuestionsOf(scores));
  return row;
}

// What the asterisks of AccuracyRow say.
std::string MarkedText(const std::vector<DotRow>& rows, const char* one, const char* several) {
  const auto marked = std::count_if(rows.begin(), rows.end(),
                                    [](const DotRow& row) { return row.label.ends_with(" *"); });
  if (marked == 0) {
    return fmt::format("Looking at all {} at once (Holm’s correction, 5 %), no {} shows a change.",
                       several, one);
  }
  return fmt::format(
      "An asterisk marks the {} where some method differs from the baseline, also when looking at "
      "all {} at once (Holm’s correction, 5 %).",
      marked == 1 ? one : fmt::format("{} {}", marked, several), several);
}

Axis AccuracyAxis(const std::vector<DotRow>& rows, int intervals) {
  double low = 100 * kChance, high = 100 * kChance;
  for (const DotRow& row : rows) {
    for (const Dot& dot : row.dots) {
      low = std::min(low, dot.interval->low);
      high = std::max(high, dot.interval->high);
    }
  }
  return Axis::Linear(std::max(low, 0.0), std::min(high, 100.0), intervals);
}

std::optional<Figure> SubcategoryFigure(const StudyRecord& record, Scoring scoring) {
  const std::vector<AccuracyGroup> groups = GroupsOf(record, scoring, AccuracyLevel::kSubcategory);
  if (groups.empty()) return std::nullopt;
  DotPlot plot;
  plot.id = IdPrefix(scoring) + "-subcategories";
  plot.title = fmt::format("Accuracy by {} subcategories", groups.size());
  plot.axis_title = "correct answers, %";
  plot.description =
      "Dots with 95 % intervals, one a method, for each subcategory; the numbers are in the table "
      "below the figure.";
  plot.line = 100 * kChance;
  std::string part;
  for (const AccuracyGroup& group : groups) {
    DotRow row = AccuracyRow(record, group,
                             ScoresOf(record, scoring, AccuracyLevel::kSubcategory, group.name));
    if (group.part != part) row.heading = group.part;
    part = group.part;
    plot.rows.push_back(std::move(row));
  }
  plot.axis = AccuracyAxis(plot.rows, 6);
  Figure figure;
  figure.title = plot.title;
  figure.legend = EvaluatedLegend(record, scoring);
  figure.caption = fmt::format(
      "The share of questions answered correctly in each of the {} subcategories, with 95 % Wilson "
      "intervals; the dashed line is chance, n the number of questions. {} {}.",
      groups.size(), MarkedText(plot.rows, "subcategory", "subcategories"),
      Conditions(record, scoring));
  figure.drawings = {DrawDotsBothWays(plot)};
  figure.data = ScoreTable(record, scoring, AccuracyLevel::kSubcategory);
  return figure;
}

// One panel a category, all on the same axis.
std::optional<Figure> SubjectFigure(const StudyRecord& record, Scoring scoring) {
  const std::vector<AccuracyGroup> groups = GroupsOf(record, scoring, AccuracyLevel::kSubject);
  if (groups.empty()) return std::nullopt;
  std::vector<DotPlot> panels;
  std::vector<DotRow> all_rows;
  std::string part;
  for (const AccuracyGroup& group : groups) {
    if (panels.empty() || group.part != part) {
      DotPlot plot;
      plot.id = fmt::format("{}-subjects-{}", IdPrefix(scoring), panels.size());
      plot.title = "Accuracy by subject: " + group.part;
      plot.axis_title = group.part + ": correct answers, %";
      plot.description =
          "Dots with 95 % intervals, one a method, for each subject; the numbers are in the table "
          "below the figure.";
      plot.line = 100 * kChance;
      panels.push_back(std::move(plot));
      part = group.part;
    }
    panels.back().rows.push_back(
        AccuracyRow(record, group, ScoresOf(record, scoring, AccuracyLevel::kSubject, group.name)));
    all_rows.push_back(panels.back().rows.back());
  }
  Figure figure;
  figure.title = fmt::format("Accuracy by {} subjects", groups.size());
  figure.legend = EvaluatedLegend(record, scoring);
  figure.caption = fmt::format(
      "The share of questions answered correctly in each subject, with 95 % Wilson intervals; the "
      "dashed line is chance, n the number of questions. {} {}.",
      MarkedText(all_rows, "subject", "subjects"), Conditions(record, scoring));
  const Axis axis = AccuracyAxis(all_rows, 5);
  for (DotPlot& plot : panels) {
    plot.axis = axis;
    figure.drawings.push_back({DrawDots(plot, kPanelFigure, RowLabels::kAbove), ""});
  }
  figure.data = ScoreTable(record, scoring, AccuracyLevel::kSubject);
  return figure;
}

}  // namespace

const std::optional<Evaluation>& EvaluationOf(const MethodRecord& method, Scoring scoring) {
  return scoring == Scoring::kLetters ? method.evaluate : method.evaluate_cloze;
}

std::string ScoringPhrase(Scoring scoring) {
  return scoring == Scoring::kLetters ? "by answer letter" : "by answer text (cloze)";
}

double FlippedShare(const Score& score) {
  if (!score.comparison || score.total == 0) return kTypicalFlippedShare;
  const int64_t flipped =
      score.comparison->reference_only_correct + score.comparison->candidate_only_correct;
  if (flipped == 0) return kTypicalFlippedShare;
  return static_cast<double>(flipped) / static_cast<double>(score.total);
}

std::optional<Section> AccuracySection(const StudyRecord& record, Scoring scoring) {
  if (EvaluatedLegend(record, scoring).empty()) return std::nullopt;
  Section section;
  section.title =
      scoring == Scoring::kLetters ? "Accuracy" : "Accuracy by answer text (cloze scoring)";
  const std::string conditions = Conditions(record, scoring);
  section.paragraphs.push_back(
      scoring == Scoring::kLetters
          ? fmt::format("MMLU, {}: the answer is the letter, A to D, that the model finds most "
                        "likely after the question. All averages pool questions, not subjects.",
                        conditions)
          : fmt::format("The same questions, {}: the prompt holds no choices, and the answer is "
                        "the choice whose text the model finds most likely per byte. Small models "
                        "that only guess at letters show their knowledge here. These numbers do "
                        "not compare with published MMLU results, which are by letter.",
                        conditions));
  if (auto figure = DifferenceFigure(record, scoring)) section.blocks.push_back(*std::move(figure));
  section.blocks.push_back(CategoryFigure(record, scoring));
  if (auto figure = SubcategoryFigure(record, scoring)) {
    section.blocks.push_back(*std::move(figure));
  }
  if (auto figure = SubjectFigure(record, scoring)) section.blocks.push_back(*std::move(figure));
  return section;
}

}  // namespace nibble
