#include "src/report/svg_axis.h"

#include <algorithm>
#include <cmath>

#include "src/report/numbers.h"

namespace nibble {
namespace {

// The smallest of 1, 2, 5 times a power of ten that is at least `step`.
double RoundStep(double step) {
  const double power = std::pow(10, std::floor(std::log10(step)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= step * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

constexpr double kSmallest = 1e-12;  // what a logarithmic axis shows zero as

}  // namespace

Axis Axis::Linear(double low, double high, int intervals) {
  Axis axis;
  // A range of rounding errors is no range.
  const double least = std::max({std::abs(low), std::abs(high), 1e-9}) * 1e-6;
  const double step = RoundStep(std::max(high - low, least) / intervals);
  const double first = std::floor(low / step + 1e-9);
  const double last = std::max(std::ceil(high / step - 1e-9), first + 1);
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
  axis.low_ = first * step;
  axis.high_ = last * step;
  for (double i = first; i <= last; ++i) {
    axis.ticks_.push_back({i * step, FormatFixed(i * step, std::min(decimals, 12))});
  }
  return axis;
}

Axis Axis::Logarithmic(double low, double high, int ticks) {
  Axis axis;
  axis.scale_ = AxisScale::kLogarithmic;
  low = std::max(low, kSmallest);
  high = std::max(high, low * 1.01);
  const double decades = std::log10(high / low);
  const std::vector<double> factors = decades * 3 <= ticks + 1 ? std::vector<double>{1, 2, 5}
                                      : decades * 1.5 <= ticks ? std::vector<double>{1, 3}
                                                               : std::vector<double>{1};
  const auto every = static_cast<int>(std::max(1.0, std::ceil(decades / ticks)));
  std::vector<double> candidates;
  const int first = static_cast<int>(std::floor(std::log10(low))) - 1;
  const int last = static_cast<int>(std::ceil(std::log10(high))) + 1;
  for (int power = first; power <= last; ++power) {
    if ((power - first) % every != 0) continue;
    for (const double factor : factors) candidates.push_back(factor * std::pow(10, power));
  }
  // The axis ends at the nearest ticks outside the numbers.
  axis.low_ = low;
  axis.high_ = high;
  for (const double value : candidates) {
    if (value <= low * (1 + 1e-9)) axis.low_ = value;
  }
  for (auto value = candidates.rbegin(); value != candidates.rend(); ++value) {
    if (*value >= high * (1 - 1e-9)) axis.high_ = *value;
  }
  for (const double value : candidates) {
    if (value >= axis.low_ * (1 - 1e-9) && value <= axis.high_ * (1 + 1e-9)) {
      axis.ticks_.push_back({value, FormatShort(value)});
    }
  }
  return axis;
}

Axis Axis::LogarithmicAt(const std::vector<double>& values) {
  Axis axis;
  axis.scale_ = AxisScale::kLogarithmic;
  axis.low_ = *std::min_element(values.begin(), values.end());
  axis.high_ = *std::max_element(values.begin(), values.end());
  for (const double value : values) axis.ticks_.push_back({value, FormatShort(value)});
  return axis;
}

double Axis::Position(double value) const {
  if (!(high_ > low_)) return 0.5;
  const double position =
      scale_ == AxisScale::kLinear
          ? (value - low_) / (high_ - low_)
          : std::log(std::max(value, kSmallest) / low_) / std::log(high_ / low_);
  return std::isfinite(position) ? std::clamp(position, 0.0, 1.0) : 0.0;
}

}  // namespace nibble
