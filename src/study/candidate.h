// What a study's measurements say about each method against the deployment's limits: the facts that
// a recommendation (recommendation.h, which defines the terms) is made of.
#ifndef NIBBLE_STUDY_CANDIDATE_H_
#define NIBBLE_STUDY_CANDIDATE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/report/study_record.h"

namespace nibble {

enum class AccuracyFit { kYes, kNo, kUndecided };

struct Candidate {
  std::string name;
  bool is_baseline = false;

  AccuracyFit accuracy = AccuracyFit::kUndecided;
  std::optional<double> drop_points;  // positive: a loss
  Interval drop_interval;             // of drop_points, where that is known
  int64_t questions = 0;
  double flipped = 0;  // share of answers that changed between right and wrong

  std::optional<bool> fits_memory;           // unknown without a measurement
  std::optional<uint64_t> peak_bytes;        // as recommendation.h says
  std::optional<uint64_t> least_peak_bytes;  // at the smallest batch measured
  std::optional<uint64_t> process_bytes;     // beside peak_bytes
  std::optional<double> tokens_per_second;   // beside peak_bytes
  std::optional<BatchThatFits> largest_batch;
  std::optional<double> speed;               // the geometric mean

  std::optional<double> kl_mean;
  std::optional<double> perplexity_ratio;

  // The interval is too wide for its middle to mean anything at this tolerance.
  bool IsCoarse(double tolerance_points) const;
};

enum class AccuracyEvidence { kLetters, kCloze, kAtChance, kNone };

struct Assessment {
  AccuracyEvidence evidence = AccuracyEvidence::kNone;
  std::vector<int64_t> batch_sizes;  // that speeds are means over, ascending
  std::vector<Candidate> candidates;
};

Assessment Assess(const std::vector<MethodRecord>& methods, double tolerance_points,
                  std::optional<uint64_t> memory_budget_bytes);

}  // namespace nibble

#endif  // NIBBLE_STUDY_CANDIDATE_H_
