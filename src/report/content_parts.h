// The parts that BuildContent puts together. A part whose measurements are absent is nullopt.
#ifndef NIBBLE_REPORT_CONTENT_PARTS_H_
#define NIBBLE_REPORT_CONTENT_PARTS_H_

#include <optional>
#include <string>
#include <vector>

#include "src/report/content.h"
#include "src/report/study_record.h"

namespace nibble {

// Widths in CSS pixels of a picture across the page, of one of two beside each other, and on a
// phone.
inline constexpr double kWideFigure = 860;
inline constexpr double kPanelFigure = 418;
inline constexpr double kNarrowFigure = 358;

enum class Scoring { kLetters, kCloze };
const std::optional<Evaluation>& EvaluationOf(const MethodRecord& method, Scoring scoring);
std::string ScoringPhrase(Scoring scoring);  // "by answer letter"

// Legend of the methods for which `has` is true; a series' number is the method's position.
template <typename Predicate>
std::vector<LegendEntry> LegendFor(const StudyRecord& record, const Predicate& has) {
  std::vector<LegendEntry> legend;
  for (size_t i = 0; i < record.methods.size(); ++i) {
    if (has(record.methods[i])) legend.push_back({static_cast<int>(i), record.methods[i].name});
  }
  return legend;
}

// The share of a score's questions that went from right to wrong or back; the usual one where none
// did, for no flips in a small sample do not mean none at all.
double FlippedShare(const Score& score);

std::vector<std::string> Cautions(const StudyRecord& record);
std::string PlainSummary(const StudyRecord& record);
Table GlanceTable(const StudyRecord& record);
std::optional<Verdict> BuildVerdict(const StudyRecord& record);

Section SetupSection(const StudyRecord& record);
std::optional<Section> AccuracySection(const StudyRecord& record, Scoring scoring);
std::optional<Section> ThroughputSection(const StudyRecord& record);
std::optional<Section> LoadSection(const StudyRecord& record);
std::optional<Section> MemorySection(const StudyRecord& record);
std::optional<Section> DivergenceSection(const StudyRecord& record);
std::optional<Section> QuantizationSection(const StudyRecord& record);
Section OptionsSection(const StudyRecord& record);

// Each member of a JSON object as a label and a value, with units taken from the key's ending.
std::vector<std::vector<std::string>> DescribeObject(const Json& object);

const BenchRun* FindRun(const MethodRecord& method, int64_t batch_size);  // null where absent
std::vector<int64_t> BatchSizes(const StudyRecord& record);               // ascending

}  // namespace nibble

#endif  // NIBBLE_REPORT_CONTENT_PARTS_H_
