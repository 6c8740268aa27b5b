// One rounding policy for everything a report prints. CSV files hold the numbers unrounded.
//   shares        percent, one decimal: a question in a thousand
//   differences   points, signed, one decimal; two from 2,000 questions on, where they mean
//   something rates, ratios three significant digits memory        one unit per table, three
//   significant digits
// A minus is U+2212 and the space before a unit does not break.
#ifndef NIBBLE_REPORT_NUMBERS_H_
#define NIBBLE_REPORT_NUMBERS_H_

#include <cstdint>
#include <string>

#include "src/report/study_record.h"

namespace nibble {

std::string FormatCount(int64_t count);  // 14042 → "14,042"
std::string FormatSignificant(double value,
                              int digits = 3);        // 0.012345 → "0.0123", 45210 → "45,210"
std::string FormatShort(double value);                // 1.5 → "1.5", 128 → "128"
std::string FormatFixed(double value, int decimals);  // -1.25 → "−1.3"

std::string FormatPercent(double share);          // 0.4123 → "41.2 %"
std::string FormatPercentNumber(double share);    // 0.4123 → "41.2"
std::string FormatPercentRange(Interval shares);  // "38.0 to 44.5 %"
std::string FormatRatio(double ratio);            // "2.61×"
std::string FormatPValue(double p);               // "< 0.001", "0.032", "0.41"

// `questions` is how many answers stand behind the difference.
std::string FormatPoints(double difference, int64_t questions);          // −0.0123 → "−1.2"
std::string FormatPointsRange(Interval differences, int64_t questions);  // "−3.1 to +0.7"

std::string FormatTolerance(double points);  // "1 point", "0.5 points"

// The unit that shows `largest` in at most three digits before the point.
struct ByteUnit {
  double bytes;
  const char* name;
};
ByteUnit ByteUnitFor(uint64_t largest);
std::string FormatInUnit(uint64_t bytes, const ByteUnit& unit);  // without the unit's name

}  // namespace nibble

#endif  // NIBBLE_REPORT_NUMBERS_H_
