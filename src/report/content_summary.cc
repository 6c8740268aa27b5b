// The words at the top: title, summary, recommendation, and what limits the evidence.
#include <algorithm>
#include <cmath>

#include "src/base/units.h"
#include "src/eval/mmlu_subjects.h"
#include "src/report/content_parts.h"
#include "src/report/numbers.h"

namespace nibble {
namespace {

std::string JoinNames(const std::vector<std::string>& names) {
  std::string joined;
  for (size_t i = 0; i < names.size(); ++i) {
    if (i > 0) joined += i + 1 == names.size() ? " and " : ", ";
    joined += names[i];
  }
  return joined;
}

std::string AccuracySentences(const StudyRecord& record) {
  const MethodRecord& baseline = record.methods[0];
  if (!baseline.evaluate) return "";
  const Score& overall = baseline.evaluate->overall;
  std::vector<std::string> changes, proven;
  for (const MethodRecord& method : record.methods) {
    if (!method.evaluate || !method.evaluate->overall.comparison) continue;
    const ScoreComparison& comparison = *method.evaluate->overall.comparison;
    changes.push_back(fmt::format(
        "{} with {}", FormatPoints(comparison.difference, method.evaluate->overall.total),
        method.name));
    if (comparison.ci95.low > 0 || comparison.ci95.high < 0) proven.push_back(method.name);
  }
  std::string text =
      fmt::format(" Of {} MMLU questions {} answers {} correctly.", FormatCount(overall.total),
                  baseline.name, FormatPercent(overall.accuracy));
  if (changes.empty()) return text;
  text += fmt::format(" The difference in points is {}", JoinNames(changes));
  if (proven.empty()) {
    return text + (changes.size() == 1 ? ", no more than chance explains."
                                       : ", none of it more than chance explains.");
  }
  if (proven.size() == changes.size()) return text + ", more than chance explains.";
  return text + fmt::format("; only that of {} is more than chance explains.", JoinNames(proven));
}

// "2.83 times as many tokens per second at batch size 1, in 28.6 % of the memory"
std::string Gain(const StudyRecord& record, const MethodRecord& method, int64_t batch) {
  const BenchRun* baseline = FindRun(record.methods[0], batch);
  const BenchRun* run = FindRun(method, batch);
  if (baseline == nullptr || run == nullptr || !(baseline->output_tokens_per_second > 0) ||
      baseline->total_bytes == 0) {
    return "";
  }
  return fmt::format(
      "{} times the tokens per second in {} of the memory at batch size {}",
      FormatSignificant(run->output_tokens_per_second / baseline->output_tokens_per_second),
      FormatPercent(static_cast<double>(run->total_bytes) /
                    static_cast<double>(baseline->total_bytes)),
      batch);
}

// Of the method that gains most at the smallest batch size.
std::string SpeedSentence(const StudyRecord& record) {
  const std::vector<int64_t> batches = BatchSizes(record);
  if (batches.empty()) return "";
  const MethodRecord* fastest = nullptr;
  double most = 0;
  for (size_t m = 1; m < record.methods.size(); ++m) {
    const BenchRun* run = FindRun(record.methods[m], batches.front());
    if (run == nullptr || run->output_tokens_per_second <= most) continue;
    most = run->output_tokens_per_second;
    fastest = &record.methods[m];
  }
  if (fastest == nullptr) return "";
  std::vector<std::string> gains = {Gain(record, *fastest, batches.front())};
  if (batches.size() > 1) gains.push_back(Gain(record, *fastest, batches.back()));
  std::erase(gains, "");
  if (gains.empty()) return "";
  return fmt::format(" {} gives {}.", fastest->name, JoinNames(gains));
}

// Why these questions cannot rank the methods, or what they cannot show; empty where all of MMLU
// was asked and nothing is in doubt.
std::string SampleCaution(const StudyRecord& record) {
  constexpr double kCoarse = 0.02;  // a study that sees only this much cannot settle one point
  double flipped = 0;
  const MethodRecord* widest = nullptr;
  for (const MethodRecord& method : record.methods) {
    if (!method.evaluate || !method.evaluate->overall.comparison) continue;
    flipped = std::max(flipped, FlippedShare(method.evaluate->overall));
    const auto width = [](const MethodRecord& m) {
      const Interval& interval = m.evaluate->overall.comparison->ci95;
      return interval.high - interval.low;
    };
    if (widest == nullptr || width(method) > width(*widest)) widest = &method;
  }
  if (widest == nullptr) return "";
  const Score& score = widest->evaluate->overall;
  const std::string detectable =
      FormatSignificant(100 * DetectableDifference(score.total, flipped), 2);
  const std::string with_all =
      fmt::format("with all {} questions of MMLU it would be {} points", FormatCount(kMmluTestQuestions),
                  FormatSignificant(100 * DetectableDifference(kMmluTestQuestions, flipped), 2));
  if (DetectableDifference(score.total, flipped) <= kCoarse) {
    if (!record.sample_questions) return "";
    return fmt::format(
        "Only {} questions were asked, and true differences below about {} points may not show; "
        "{}.",
        FormatCount(score.total), detectable, with_all);
  }
  const ScoreComparison& comparison = *score.comparison;
  const bool around_zero = comparison.ci95.low < 0 && comparison.ci95.high > 0;
  return fmt::format(
      "A sample of {} questions cannot rank the methods. The measured difference of {} is {} "
      "points "
      "with a 95 % interval from {}, which {}. Only a true difference of about {} points or more "
      "would show reliably; {}.",
      FormatCount(score.total), widest->name, FormatPoints(comparison.difference, score.total),
      FormatPointsRange(comparison.ci95, score.total),
      around_zero ? "holds a loss, no change and a gain alike" : "leaves its size open", detectable,
      with_all);
}

std::string ChanceCaution(const StudyRecord& record) {
  const auto& evaluation = record.methods[0].evaluate;
  if (!evaluation || evaluation->overall.total == 0) return "";
  if (evaluation->overall.ci95.low > kChance) return "";
  return fmt::format(
      "{} is not better than chance at choosing answer letters: {} correct, 95 % interval {}, "
      "where "
      "guessing gives 25 %. A model that guesses has nothing to lose, so by letters quantization "
      "looks harmless whatever it does.{}",
      record.methods[0].name, FormatPercent(evaluation->overall.accuracy),
      FormatPercentRange(evaluation->overall.ci95),
      record.methods[0].evaluate_cloze ? " The scores by answer text, further down, tell more."
                                       : "");
}

std::string MissingCaution(const MethodRecord& method, bool baseline, const StudyRecord& record) {
  const auto any = [&](const auto& has) {
    return std::any_of(record.methods.begin(), record.methods.end(), has);
  };
  std::vector<std::string> missing;
  const auto check = [&](const char* name, const auto& has) {
    // What no method has was not asked for.
    if (!has(method) && any(has)) missing.push_back(name);
  };
  if (!baseline)
    check("quantization", [](const MethodRecord& m) { return m.quantize.has_value(); });
  check("accuracy", [](const MethodRecord& m) { return m.evaluate.has_value(); });
  check("accuracy by answer text",
        [](const MethodRecord& m) { return m.evaluate_cloze.has_value(); });
  check("perplexity", [](const MethodRecord& m) { return m.perplexity.has_value(); });
  check("throughput and memory", [](const MethodRecord& m) { return !m.bench.empty(); });
  if (missing.empty() && method.error.empty()) return "";
  std::string text = method.name;
  text += missing.empty() ? " is incomplete" : " has no " + JoinNames(missing);
  if (!method.error.empty()) return text + ": " + method.error;
  return text + ": the study was interrupted, or that stage failed.";
}

Table CandidateTable(const RecommendationRecord& recommendation) {
  Table table;
  table.caption = "How each method stands against the limits";
  table.columns = {{"Method", Align::kLeft}, {"Accuracy drop, points"},
                   {"95 % interval"},        {"Within tolerance"},
                   {"Peak memory"},          {"Fits memory"},
                   {"Output, tokens/s"},     {"Speed"}};
  for (const RecommendationCandidate& candidate : recommendation.candidates) {
    if (candidate.method == recommendation.method) table.marked_row = table.rows.size();
    const auto& drop = candidate.accuracy_drop_points;
    table.rows.push_back(
        {candidate.method, drop ? FormatFixed(*drop, 2) : "–",
         candidate.ci95 ? fmt::format("{} to {}", FormatFixed(candidate.ci95->low, 2),
                                      FormatFixed(candidate.ci95->high, 2))
                        : "–",
         candidate.fits_accuracy.empty() ? "–" : candidate.fits_accuracy,
         candidate.peak_memory_bytes ? FormatBytes(*candidate.peak_memory_bytes) : "–",
         !candidate.fits_memory   ? "–"
         : *candidate.fits_memory ? "yes"
                                  : "no",
         candidate.output_tokens_per_second ? FormatSignificant(*candidate.output_tokens_per_second)
                                            : "–",
         candidate.speedup ? FormatRatio(*candidate.speedup) : "–"});
  }
  return table;
}

}  // namespace

std::vector<std::string> Cautions(const StudyRecord& record) {
  std::vector<std::string> cautions;
  const auto add = [&](std::string text) {
    if (!text.empty()) cautions.push_back(std::move(text));
  };
  if (record.synthetic) {
    add("The weights are synthetic: random numbers of the model’s shape. Speed and memory are "
        "real; "
        "anything said about accuracy, perplexity or divergence is not about any trained model.");
  }
  add(SampleCaution(record));
  add(ChanceCaution(record));
  if (record.baseline_note.find("(from") != std::string::npos) {
    add(
        fmt::format("The baseline is {}: its weights had been quantized before this study. What is "
                    "measured is the loss added here, not the loss against the original model.",
                    record.baseline_note));
  }
  if (record.repetitions == 1) {
    add("Throughput was measured once (one repetition): small differences in speed may be noise.");
  }
  for (size_t m = 0; m < record.methods.size(); ++m) {
    add(MissingCaution(record.methods[m], m == 0, record));
  }
  return cautions;
}

std::string PlainSummary(const StudyRecord& record) {
  std::vector<std::string> names;
  for (size_t m = 1; m < record.methods.size(); ++m) names.push_back(record.methods[m].name);
  std::string text =
      fmt::format("This study measures {} as {}", record.model_name, record.methods[0].name);
  if (!names.empty()) {
    text += fmt::format(
        ", the baseline, and as {}, on one machine, over the same questions, the "
        "same text and the same workload",
        JoinNames(names));
  }
  return text + "." + AccuracySentences(record) + SpeedSentence(record);
}

Table GlanceTable(const StudyRecord& record) {
  const std::vector<int64_t> batches = BatchSizes(record);
  uint64_t largest = 0;
  for (const MethodRecord& method : record.methods) {
    for (const BenchRun& run : method.bench) largest = std::max(largest, run.total_bytes);
  }
  const ByteUnit unit = ByteUnitFor(largest);
  Table table;
  table.caption = "At a glance";
  table.columns = {{"Method", Align::kLeft}};
  const auto any = [&](const auto& has) {
    return std::any_of(record.methods.begin(), record.methods.end(), has);
  };
  const bool letters = any([](const MethodRecord& m) { return m.evaluate.has_value(); });
  const bool cloze = any([](const MethodRecord& m) { return m.evaluate_cloze.has_value(); });
  const bool perplexity = any([](const MethodRecord& m) { return m.perplexity.has_value(); });
  if (letters) table.columns.insert(table.columns.end(), {{"MMLU, %"}, {"Difference, points"}});
  if (cloze) table.columns.push_back({"By text, %"});
  if (perplexity) table.columns.insert(table.columns.end(), {{"Perplexity"}, {"KL mean"}});
  if (!batches.empty()) {
    table.columns.push_back({fmt::format("Tokens/s, batch {}", batches.front())});
    if (batches.size() > 1) {
      table.columns.push_back({fmt::format("Tokens/s, batch {}", batches.back())});
    }
    table.columns.push_back({fmt::format("Memory, batch {}, {}", batches.back(), unit.name)});
  }
  for (const MethodRecord& method : record.methods) {
    if (record.recommendation && record.recommendation->method == method.name) {
      table.marked_row = table.rows.size();
    }
    std::vector<std::string> row = {method.name};
    const auto add_accuracy = [&](const std::optional<Evaluation>& evaluation) {
      row.push_back(evaluation ? FormatPercentNumber(evaluation->overall.accuracy) : "–");
      row.push_back("–");
      if (!evaluation || !evaluation->overall.comparison) return;
      const ScoreComparison& comparison = *evaluation->overall.comparison;
      const int64_t questions = evaluation->overall.total;
      row.back() = fmt::format("{} ({})", FormatPoints(comparison.difference, questions),
                               FormatPointsRange(comparison.ci95, questions));
    };
    if (letters) add_accuracy(method.evaluate);
    if (cloze) {
      row.push_back(method.evaluate_cloze
                        ? FormatPercentNumber(method.evaluate_cloze->overall.accuracy)
                        : "–");
    }
    if (perplexity) {
      const auto& result = method.perplexity;
      row.push_back(result ? FormatSignificant(result->perplexity, 4) : "–");
      row.push_back(result && result->kl_divergence ? FormatSignificant(result->kl_divergence->mean)
                                                    : "–");
    }
    if (!batches.empty()) {
      const BenchRun* first = FindRun(method, batches.front());
      const BenchRun* last = FindRun(method, batches.back());
      row.push_back(first != nullptr ? FormatSignificant(first->output_tokens_per_second) : "–");
      if (batches.size() > 1) {
        row.push_back(last != nullptr ? FormatSignificant(last->output_tokens_per_second) : "–");
      }
      row.push_back(last != nullptr ? FormatInUnit(last->total_bytes, unit) : "–");
    }
    table.rows.push_back(std::move(row));
  }
  return table;
}

std::optional<Verdict> BuildVerdict(const StudyRecord& record) {
  if (!record.recommendation) return std::nullopt;
  const RecommendationRecord& recommendation = *record.recommendation;
  Verdict verdict;
  if (recommendation.method.empty()) {
    verdict.kind = VerdictKind::kNone;
    verdict.heading = "No method fits the limits";
  } else if (recommendation.provisional) {
    verdict.kind = VerdictKind::kProvisional;
    verdict.heading = "Provisionally, " + recommendation.method;
  } else {
    verdict.kind = VerdictKind::kFirm;
    verdict.heading = "Deploy " + recommendation.method;
  }
  verdict.summary = recommendation.summary;
  verdict.reasons = recommendation.reasons;
  verdict.uncertainty = recommendation.uncertainty;
  verdict.would_have_to_give = recommendation.would_have_to_give;
  verdict.candidates = CandidateTable(recommendation);
  return verdict;
}

Content BuildContent(const StudyRecord& record) {
  Content content;
  content.kicker = "nibble study";
  if (!record.created.empty()) content.kicker += " · " + record.created.substr(0, 10);
  content.title = "Deploying " + record.model_name;
  content.summary = PlainSummary(record);
  content.glance = GlanceTable(record);
  content.verdict = BuildVerdict(record);
  content.cautions = Cautions(record);
  content.sections.push_back(SetupSection(record));
  const auto add = [&](std::optional<Section> section) {
    if (section) content.sections.push_back(*std::move(section));
  };
  add(AccuracySection(record, Scoring::kLetters));
  add(AccuracySection(record, Scoring::kCloze));
  add(ThroughputSection(record));
  add(MemorySection(record));
  add(LoadSection(record));
  add(DivergenceSection(record));
  add(QuantizationSection(record));
  content.sections.push_back(OptionsSection(record));
  return content;
}

}  // namespace nibble
