#include "src/eval/statistics.h"

#include <math.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "src/base/error.h"

namespace nibble {
namespace {

// Quantiles of the standard normal distribution.
constexpr double kZ975 = 1.959963984540054;
constexpr double kZ80 = 0.8416212335729143;

// log(n!), without std::lgamma's write to a global.
double LogFactorial(int64_t n) {
  int sign = 0;
  return ::lgamma_r(static_cast<double>(n) + 1, &sign);
}

void CheckCounts(const PairedCounts& counts) {
  CHECK(counts.reference_only_correct >= 0 && counts.candidate_only_correct >= 0);
  CHECK(counts.total > 0 && counts.discordant() <= counts.total);
}

// Tango's score statistic for the hypothesis that the true difference is `delta`, -1 < delta < 1.
// Decreasing in delta; 0 at the observed difference.
double ScoreStatistic(const PairedCounts& counts, double delta) {
  const double n = static_cast<double>(counts.total);
  const double gained = static_cast<double>(counts.candidate_only_correct);
  const double lost = static_cast<double>(counts.reference_only_correct);
  // The maximum-likelihood share of lost questions given delta is the root of a·q² + b·q + c.
  const double a = 2 * n;
  const double b = -gained - lost + (2 * n - gained + lost) * delta;
  const double c = -lost * delta * (1 - delta);
  const double root = std::sqrt(std::max(0.0, b * b - 4 * a * c));
  // Where b > 0 the textbook form would cancel.
  const double share = b > 0 ? -2 * c / (b + root) : (root - b) / (2 * a);
  const double variance = n * (2 * share + delta * (1 - delta));
  const double distance = gained - lost - n * delta;
  if (variance <= 0) return distance == 0 ? 0 : std::copysign(HUGE_VAL, distance);
  return distance / std::sqrt(variance);
}

// The point between `inside` (|statistic| <= z) and `outside` where |statistic| passes z.
double Boundary(const PairedCounts& counts, double inside, double outside) {
  for (int i = 0; i < 100; ++i) {
    const double middle = inside + (outside - inside) / 2;
    if (middle == inside || middle == outside) break;
    (std::abs(ScoreStatistic(counts, middle)) <= kZ975 ? inside : outside) = middle;
  }
  return inside;
}

}  // namespace

Interval WilsonInterval(int64_t correct, int64_t total) {
  CHECK(total > 0 && correct >= 0 && correct <= total);
  const double n = static_cast<double>(total);
  const double p = static_cast<double>(correct) / n;
  const double z2 = kZ975 * kZ975;
  const double center = (p + z2 / (2 * n)) / (1 + z2 / n);
  const double half = kZ975 / (1 + z2 / n) * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  // Exactly 0 and 1 at the ends, which rounding would miss.
  return {correct == 0 ? 0.0 : std::max(0.0, center - half),
          correct == total ? 1.0 : std::min(1.0, center + half)};
}

double McNemarExactP(const PairedCounts& counts) {
  CheckCounts(counts);
  const int64_t n = counts.discordant();
  const int64_t fewer = std::min(counts.reference_only_correct, counts.candidate_only_correct);
  if (2 * fewer == n) return 1;
  const double log_largest = LogFactorial(n) - LogFactorial(fewer) - LogFactorial(n - fewer) -
                             static_cast<double>(n) * std::log(2.0);
  double sum = 1;
  double term = 1;
  for (int64_t k = fewer; k > 0 && term > sum * 1e-18; --k) {
    term *= static_cast<double>(k) / static_cast<double>(n - k + 1);
    sum += term;
  }
  return std::min(1.0, 2 * std::exp(log_largest + std::log(sum)));
}

Interval PairedDifferenceInterval(const PairedCounts& counts) {
  CheckCounts(counts);
  const double difference = counts.Difference();
  return {Boundary(counts, difference, -1), Boundary(counts, difference, 1)};
}

std::vector<double> HolmAdjusted(const std::vector<double>& p_values) {
  std::vector<size_t> order(p_values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return p_values[a] < p_values[b]; });
  std::vector<double> adjusted(p_values.size());
  double floor = 0;
  for (size_t rank = 0; rank < order.size(); ++rank) {
    const double factor = static_cast<double>(order.size() - rank);
    floor = std::max(floor, std::min(1.0, factor * p_values[order[rank]]));
    adjusted[order[rank]] = floor;
  }
  return adjusted;
}

double DetectableDifference(int64_t total, double flipped) {
  CHECK(total > 0 && flipped >= 0);
  return (kZ975 + kZ80) * std::sqrt(flipped / static_cast<double>(total));
}

}  // namespace nibble
