#include "src/study/candidate.h"

#include <algorithm>
#include <cmath>

#include "src/eval/mmlu_subjects.h"

namespace nibble {
namespace {

AccuracyEvidence FindEvidence(const MethodRecord& baseline) {
  const auto measured = [](const std::optional<Evaluation>& evaluation) {
    return evaluation && evaluation->overall.total > 0;
  };
  const auto above_chance = [&](const std::optional<Evaluation>& evaluation) {
    return measured(evaluation) && evaluation->overall.ci95.low > kChance;
  };
  if (above_chance(baseline.evaluate)) return AccuracyEvidence::kLetters;
  if (above_chance(baseline.evaluate_cloze)) return AccuracyEvidence::kCloze;
  return measured(baseline.evaluate) || measured(baseline.evaluate_cloze)
             ? AccuracyEvidence::kAtChance
             : AccuracyEvidence::kNone;
}

const BenchRun* FindRun(const MethodRecord& method, int64_t batch_size) {
  for (const BenchRun& run : method.bench) {
    if (run.batch_size == batch_size) return &run;
  }
  return nullptr;
}

void AssessAccuracy(const MethodRecord& method, AccuracyEvidence evidence, double tolerance,
                    Candidate& candidate) {
  if (candidate.is_baseline) {
    candidate.accuracy = AccuracyFit::kYes;
    candidate.drop_points = 0;
    return;
  }
  // At chance the drop is still shown, by letters where there are any, but decides nothing.
  const bool by_text = evidence == AccuracyEvidence::kCloze || !method.evaluate;
  const std::optional<Evaluation>& evaluation = by_text ? method.evaluate_cloze : method.evaluate;
  if (!evaluation || !evaluation->overall.comparison) return;
  const ScoreComparison& comparison = *evaluation->overall.comparison;
  candidate.questions = evaluation->overall.total;
  candidate.drop_points = -100 * comparison.difference;
  candidate.drop_interval = {-100 * comparison.ci95.high, -100 * comparison.ci95.low};
  const int64_t flipped = comparison.reference_only_correct + comparison.candidate_only_correct;
  candidate.flipped = flipped == 0 || candidate.questions == 0
                          ? kTypicalFlippedShare
                          : static_cast<double>(flipped) / static_cast<double>(candidate.questions);
  if (evidence == AccuracyEvidence::kAtChance || evidence == AccuracyEvidence::kNone) return;
  if (candidate.drop_interval.high <= tolerance) {
    candidate.accuracy = AccuracyFit::kYes;
  } else if (candidate.drop_interval.low > tolerance) {
    candidate.accuracy = AccuracyFit::kNo;
  }
}

// The batch sizes at which every method that fits at all was measured and fits.
std::vector<int64_t> CommonBatchSizes(const std::vector<MethodRecord>& methods,
                                      const std::vector<Candidate>& candidates,
                                      std::optional<uint64_t> budget) {
  std::vector<int64_t> common;
  bool first = true;
  for (size_t i = 0; i < methods.size(); ++i) {
    if (candidates[i].fits_memory != true) continue;
    std::vector<int64_t> own;
    for (const BenchRun& run : methods[i].bench) {
      const bool fits = !budget || run.total_bytes <= *budget;
      if (fits && run.output_tokens_per_second > 0) own.push_back(run.batch_size);
    }
    if (first) {
      common = std::move(own);
    } else {
      std::erase_if(common, [&](int64_t batch) {
        return std::find(own.begin(), own.end(), batch) == own.end();
      });
    }
    first = false;
  }
  return common;
}

void AssessSpeed(const MethodRecord& method, const std::vector<int64_t>& batch_sizes,
                 Candidate& candidate) {
  if (method.bench.empty()) return;
  const BenchRun* shown = batch_sizes.empty() ? nullptr : FindRun(method, batch_sizes.back());
  if (shown == nullptr) shown = &method.bench.front();
  candidate.peak_bytes = shown->total_bytes;
  candidate.process_bytes = shown->process_bytes;
  candidate.tokens_per_second = shown->output_tokens_per_second;
  double logarithms = 0;
  for (const int64_t batch : batch_sizes) {
    const BenchRun* run = FindRun(method, batch);
    if (run == nullptr || !(run->output_tokens_per_second > 0)) return;
    logarithms += std::log(run->output_tokens_per_second);
  }
  if (!batch_sizes.empty()) {
    candidate.speed = std::exp(logarithms / static_cast<double>(batch_sizes.size()));
  }
}

}  // namespace

bool Candidate::IsCoarse(double tolerance_points) const {
  return !drop_points || (drop_interval.high - drop_interval.low) / 2 > tolerance_points;
}

Assessment Assess(const std::vector<MethodRecord>& methods, double tolerance_points,
                  std::optional<uint64_t> memory_budget_bytes) {
  Assessment assessment;
  if (methods.empty()) return assessment;
  assessment.evidence = FindEvidence(methods[0]);
  for (size_t i = 0; i < methods.size(); ++i) {
    const MethodRecord& method = methods[i];
    Candidate candidate;
    candidate.name = method.name;
    candidate.is_baseline = i == 0;
    AssessAccuracy(method, assessment.evidence, tolerance_points, candidate);
    candidate.largest_batch = method.largest_batch;
    if (!method.bench.empty()) {
      candidate.least_peak_bytes = method.bench.front().total_bytes;
      candidate.fits_memory =
          !memory_budget_bytes || *candidate.least_peak_bytes <= *memory_budget_bytes;
    }
    if (method.perplexity) {
      if (method.perplexity->kl_divergence &&
          std::isfinite(method.perplexity->kl_divergence->mean)) {
        candidate.kl_mean = method.perplexity->kl_divergence->mean;
      }
      candidate.perplexity_ratio = method.perplexity->perplexity_ratio;
    }
    assessment.candidates.push_back(std::move(candidate));
  }
  assessment.batch_sizes = CommonBatchSizes(methods, assessment.candidates, memory_budget_bytes);
  for (size_t i = 0; i < methods.size(); ++i) {
    AssessSpeed(methods[i], assessment.batch_sizes, assessment.candidates[i]);
  }
  return assessment;
}

}  // namespace nibble
