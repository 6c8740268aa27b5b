#include "src/report/numbers.h"

#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

TEST(Numbers, Counts) {
  EXPECT_EQ(FormatCount(0), "0");
  EXPECT_EQ(FormatCount(999), "999");
  EXPECT_EQ(FormatCount(14042), "14,042");
  EXPECT_EQ(FormatCount(6'738'415'616), "6,738,415,616");
}

TEST(Numbers, SignificantDigits) {
  EXPECT_EQ(FormatSignificant(0.012345), "0.0123");
  EXPECT_EQ(FormatSignificant(9.996), "10.0");
  EXPECT_EQ(FormatSignificant(45210.4), "45,200");
  EXPECT_EQ(FormatSignificant(-1.5), "−1.50");
  EXPECT_EQ(FormatSignificant(0), "0");
  EXPECT_EQ(FormatSignificant(3e-9), "3.00e-09");
  EXPECT_EQ(FormatSignificant(INFINITY), "?");
}

TEST(Numbers, ShortHasNoTrailingZeros) {
  EXPECT_EQ(FormatShort(128), "128");
  EXPECT_EQ(FormatShort(1.50), "1.5");
  EXPECT_EQ(FormatShort(1e-5), "0.00001");
  EXPECT_EQ(FormatShort(2000), "2,000");
}

TEST(Numbers, FixedHasNoNegativeZero) {
  EXPECT_EQ(FormatFixed(-0.04, 1), "0.0");
  EXPECT_EQ(FormatFixed(-1.25, 1), "−1.2");
  EXPECT_EQ(FormatFixed(1e300, 2), "1.00e+300");
}

TEST(Numbers, PointsAreSignedAndFinerWithManyQuestions) {
  EXPECT_EQ(FormatPoints(-0.0123, 171), "−1.2");
  EXPECT_EQ(FormatPoints(-0.0123, 14042), "−1.23");
  EXPECT_EQ(FormatPoints(0.0123, 171), "+1.2");
  EXPECT_EQ(FormatPoints(0.0001, 171), "0.0");
  EXPECT_EQ(FormatPointsRange({-0.081, 0.043}, 171), "−8.1 to +4.3");
}

TEST(Numbers, PValues) {
  EXPECT_EQ(FormatPValue(1e-9), "< 0.001");
  EXPECT_EQ(FormatPValue(0.0321), "0.032");
  EXPECT_EQ(FormatPValue(0.41), "0.41");
}

TEST(Numbers, OneUnitForATable) {
  const ByteUnit unit = ByteUnitFor(uint64_t{13} << 30);
  EXPECT_STREQ(unit.name, "GiB");
  EXPECT_EQ(FormatInUnit(uint64_t{13} << 30, unit), "13.0");
  EXPECT_EQ(FormatInUnit(uint64_t{160} << 20, unit), "0.16");
}

}  // namespace
}  // namespace nibble
