#include "src/report/numbers.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace nibble {
namespace {

constexpr int64_t kManyQuestions = 2000;

std::string WithSeparators(std::string digits) {
  const size_t point = std::min(digits.find('.'), digits.size());
  for (size_t at = point; at > 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

}  // namespace

std::string FormatCount(int64_t count) {
  if (count < 0) return "−" + WithSeparators(fmt::format("{}", -count));
  return WithSeparators(fmt::format("{}", count));
}

std::string FormatFixed(double value, int decimals) {
  if (!std::isfinite(value)) return "?";
  if (std::abs(value) >= 1e15) return fmt::format("{:.2e}", value);
  std::string digits = WithSeparators(fmt::format("{:.{}f}", std::abs(value), decimals));
  const bool zero = digits.find_first_not_of("0.,") == std::string::npos;
  return value < 0 && !zero ? "−" + digits : digits;
}

std::string FormatSignificant(double value, int digits) {
  if (!std::isfinite(value)) return "?";
  if (value == 0) return "0";
  // Rounding first: 9.996 has three significant digits as 10.0, not as 10.00.
  const double rounded = std::stod(fmt::format("{:.{}e}", value, digits - 1));
  const int magnitude = static_cast<int>(std::floor(std::log10(std::abs(rounded)) + 1e-9));
  if (magnitude < -6) return fmt::format("{:.{}e}", value, digits - 1);
  return FormatFixed(rounded, std::max(0, digits - 1 - magnitude));
}

std::string FormatShort(double value) {
  std::string text = FormatSignificant(value, 6);
  if (text.find('.') == std::string::npos || text.find('e') != std::string::npos) return text;
  text.erase(text.find_last_not_of('0') + 1);
  if (text.ends_with('.')) text.pop_back();
  return text;
}

std::string FormatPercentNumber(double share) { return FormatFixed(100 * share, 1); }
std::string FormatPercent(double share) { return FormatPercentNumber(share) + " %"; }
std::string FormatPercentRange(Interval shares) {
  return fmt::format("{} to {} %", FormatPercentNumber(shares.low),
                     FormatPercentNumber(shares.high));
}
std::string FormatRatio(double ratio) { return FormatSignificant(ratio) + "×"; }

std::string FormatPValue(double p) {
  if (p < 0.001) return "< 0.001";
  return fmt::format("{:.{}f}", p, p < 0.1 ? 3 : 2);
}

std::string FormatPoints(double difference, int64_t questions) {
  const std::string number = FormatFixed(100 * difference, questions >= kManyQuestions ? 2 : 1);
  const bool positive = difference > 0 && number.find_first_not_of("0.") != std::string::npos;
  return positive ? "+" + number : number;
}

std::string FormatPointsRange(Interval differences, int64_t questions) {
  return fmt::format("{} to {}", FormatPoints(differences.low, questions),
                     FormatPoints(differences.high, questions));
}

std::string FormatTolerance(double points) {
  return FormatShort(points) + (points == 1 ? " point" : " points");
}

ByteUnit ByteUnitFor(uint64_t largest) {
  const auto bytes = static_cast<double>(largest);
  if (bytes >= 0.5 * 0x1p40) return {0x1p40, "TiB"};
  if (bytes >= 0.5 * 0x1p30) return {0x1p30, "GiB"};
  if (bytes >= 0.5 * 0x1p20) return {0x1p20, "MiB"};
  return {0x1p10, "KiB"};
}

std::string FormatInUnit(uint64_t bytes, const ByteUnit& unit) {
  const double value = static_cast<double>(bytes) / unit.bytes;
  return FormatFixed(value, value < 9.995 ? 2 : value < 99.95 ? 1 : 0);
}

}  // namespace nibble
