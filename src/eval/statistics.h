// Whether a measured accuracy, or a difference between two models on the same questions, is more
// than chance. Proportions are fractions, not percent. Intervals cover 95 % (two-sided).
#ifndef NIBBLE_EVAL_STATISTICS_H_
#define NIBBLE_EVAL_STATISTICS_H_

#include <cstdint>
#include <vector>

namespace nibble {

struct Interval {
  double low = 0;
  double high = 0;
};

// Wilson's score interval for `correct` of `total` (Wilson 1927, JASA 22:209). total > 0.
Interval WilsonInterval(int64_t correct, int64_t total);

// What two models did on the same questions; those that both got right or both got wrong matter by
// their number alone.
struct PairedCounts {
  int64_t total = 0;                   // > 0
  int64_t reference_only_correct = 0;  // the candidate lost these
  int64_t candidate_only_correct = 0;  // and gained these

  int64_t discordant() const { return reference_only_correct + candidate_only_correct; }
  // Candidate minus reference.
  double Difference() const {
    return static_cast<double>(candidate_only_correct - reference_only_correct) /
           static_cast<double>(total);
  }
  // The share of the questions that changed between right and wrong ("flips" in Dutta et al.,
  // Accuracy is Not All You Need, 2407.09141).
  double FlippedShare() const {
    return static_cast<double>(discordant()) / static_cast<double>(total);
  }
};

// The exact two-sided McNemar test (McNemar 1947): the probability, were a discordant question
// equally likely to favour either model, of a split at least this uneven:
//   min(1, 2 · Σ_{k=0}^{min(b,c)} C(b+c, k) · 2^-(b+c)).
// 1 where no question is discordant. The sum is carried relative to its largest term and that term
// in logarithms, so that the result is good to about 1e-9 of itself up to a million questions and
// is 0 only below the smallest double.
double McNemarExactP(const PairedCounts& counts);

// Tango's score interval for the paired difference (Tango 1998, Statistics in Medicine 17:891): all
// differences δ that the score test of "the true difference is δ" does not reject. Unlike Wald's it
// stays within [-1, 1] and keeps its width where few or no questions are discordant.
Interval PairedDifferenceInterval(const PairedCounts& counts);

// Holm's step-down correction (Holm 1979): p-values adjusted for being looked at together, in the
// order given. Each is at least its own p and at most 1.
std::vector<double> HolmAdjusted(const std::vector<double>& p_values);

// The share of questions assumed to flip where none has been measured yet: what 4-bit
// quantization of a 7B model typically does.
inline constexpr double kTypicalFlippedShare = 0.08;

// The smallest difference in accuracy that a paired comparison of `total` questions, of which a
// share `flipped` differs, finds with a power of 80 % at the level of 5 %:
//   (z_{0.975} + z_{0.8}) · √(flipped / total).
double DetectableDifference(int64_t total, double flipped = kTypicalFlippedShare);

}  // namespace nibble

#endif  // NIBBLE_EVAL_STATISTICS_H_
