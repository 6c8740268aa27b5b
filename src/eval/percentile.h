// Percentiles of measurements.
#ifndef NIBBLE_EVAL_PERCENTILE_H_
#define NIBBLE_EVAL_PERCENTILE_H_

#include <algorithm>
#include <cstddef>
#include <vector>

namespace nibble {

// Linear between the two values nearest to the rank, as numpy.percentile. `sorted` is ascending and
// not empty; 0 <= share <= 1.
inline double Percentile(const std::vector<double>& sorted, double share) {
  const double position = share * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(position);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (sorted[above] - sorted[below]) * (position - static_cast<double>(below));
}

}  // namespace nibble

#endif  // NIBBLE_EVAL_PERCENTILE_H_
