// Which method to deploy, and why: the fastest whose accuracy surely stays within the tolerance and
// whose memory fits the budget.
//
// - Accuracy fits (yes) where the upper end of the drop's 95 % interval is at most the tolerance,
//   does not (no) where its lower end is above it, and is undecided between. The drop is measured
//   by answer letters, or by answer text (cloze) where the baseline does no better than chance by
//   letters; where it beats chance by neither, nothing can be decided.
// - Memory fits where the peak at the smallest measured batch is within the budget.
// - Speed is the geometric mean of output tokens per second over the batch sizes that were measured
//   for, and fit, every method that fits at all, so that no one batch size decides alone; methods
//   within 2 % of each other count as equally fast, and the lower KL divergence decides.
// - Where no quantized method is surely within tolerance but the questions are too few to exclude
//   it, the choice is provisional: the undecided method with the lowest KL divergence, provided its
//   perplexity is within 5 % of the baseline's. A method that is slower than the baseline is never
//   preferred to it unless the baseline does not fit.
#ifndef NIBBLE_STUDY_RECOMMENDATION_H_
#define NIBBLE_STUDY_RECOMMENDATION_H_

#include <cstdint>
#include <optional>

#include "src/base/error.h"
#include "src/base/json.h"

namespace nibble {

inline constexpr double kDefaultMaxAccuracyDropPoints = 1;

struct RecommendationLimits {
  std::optional<double> max_accuracy_drop_points;  // >= 0; the default above where absent
  std::optional<uint64_t> memory_budget_bytes;     // no limit where absent
};

// `methods` as in study.json, the baseline first (src/report/study_record.h); any document may be
// missing. Fails where they are malformed. Returns
//   {"method": NAME or null, "provisional": bool, "summary": one sentence, "reasons": [TEXT],
//    "uncertainty": TEXT,
//    "limits": {"max_accuracy_drop_points", "is_default_tolerance", "memory_budget_bytes" or null},
//    "batch_sizes": [those that speed is the geometric mean over], "scoring": "letters" | "cloze" |
//    null,
//    "candidates": [{"method", "accuracy_drop_points", "ci95": [low, high], "fits_accuracy":
//      "yes" | "no" | "undecided", "peak_memory_bytes", "fits_memory", "largest_batch",
//      "output_tokens_per_second", "speedup"}],
//    "would_have_to_give": [TEXT]}
// A candidate's memory and tokens per second are at the largest of `batch_sizes` (else at the
// smallest batch it was measured at); its speedup is the ratio of geometric means to the baseline.
// What was not measured is null.
Result<Json> Recommend(const Json& methods, const RecommendationLimits& limits);

// How many questions show that a method which in truth loses nothing stays within `tolerance`
// points, four times in five, where a share `flipped` of answers changes between right and wrong.
int64_t QuestionsToDecide(double flipped, double tolerance_points);

}  // namespace nibble

#endif  // NIBBLE_STUDY_RECOMMENDATION_H_
