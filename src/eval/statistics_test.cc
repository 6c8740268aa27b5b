#include "src/eval/statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace nibble {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

PairedCounts Counts(int64_t lost, int64_t gained, int64_t total) {
  return {.total = total, .reference_only_correct = lost, .candidate_only_correct = gained};
}

// Expected: scipy 1.17.1, stats.binomtest(k, n).proportion_ci(method="wilson").
TEST(StatisticsTest, WilsonInterval) {
  const struct {
    int64_t correct, total;
    double low, high;
  } cases[] = {{0, 10, 0, 0.27753279986288926},
               {3, 10, 0.10779126740630102, 0.6032218525388546},
               {10, 10, 0.7224672001371109, 1},
               {1, 1, 0.20654931437723745, 1},
               {81, 263, 0.2552885198782742, 0.36620957698280004},
               {6521, 14042, 0.456154431109961, 0.47265011912422905}};
  for (const auto& c : cases) {
    const Interval interval = WilsonInterval(c.correct, c.total);
    EXPECT_NEAR(interval.low, c.low, 1e-13) << c.correct << "/" << c.total;
    EXPECT_NEAR(interval.high, c.high, 1e-13) << c.correct << "/" << c.total;
  }
  EXPECT_EQ(WilsonInterval(0, 7).low, 0);
  EXPECT_EQ(WilsonInterval(7, 7).high, 1);
}

// Expected: 2 · Σ_{k=0}^{min(b,c)} C(b+c, k) / 2^(b+c), in exact fractions for the small ones and
// with mpmath at 40 digits (log-gamma, summed downwards) for the large.
TEST(StatisticsTest, McNemarExact) {
  const struct {
    int64_t lost, gained;
    double p;
  } cases[] = {{0, 0, 1},
               {1, 0, 1},
               {5, 5, 1},
               {6, 5, 1},
               {0, 5, 0.0625},
               {10, 2, 0.03857421875},
               {0, 60, 1.734723475976807e-18},
               {520, 600, 0.018207019279300234},
               {700, 400, 1.1735888055805613e-19},
               {1, 1000, 9.3513014574022532e-299},
               {500000, 502000, 0.045824695263224316}};
  for (const auto& c : cases) {
    EXPECT_NEAR(McNemarExactP(Counts(c.lost, c.gained, 2000000)), c.p, 1e-9 * c.p)
        << c.lost << " against " << c.gained;
    EXPECT_EQ(McNemarExactP(Counts(c.lost, c.gained, 2000000)),
              McNemarExactP(Counts(c.gained, c.lost, 2000000)));
  }
  EXPECT_EQ(McNemarExactP(Counts(1000, 5000, 14042)), 0);  // 2.6e-634
}

// Expected: Tango's statistic (p12 - p21 - nδ) / sqrt(n (2 q + δ (1 - δ))) with q maximized
// numerically over the multinomial likelihood and the roots found with scipy's brentq. The first
// case is that of Fagerland, Lydersen and Laake (2014), who print -0.517 and -0.026.
TEST(StatisticsTest, PairedDifferenceInterval) {
  const struct {
    int64_t lost, gained, total;
    double low, high;
  } cases[] = {{7, 1, 21, -0.517232277, -0.026003032},
               {10, 2, 50, -0.300504812, -0.028057995},
               {5, 5, 40, -0.166323658, 0.166323658},
               {0, 6, 30, 0.063783927, 0.373056964},
               {30, 30, 60, -0.245299515, 0.245299515},
               {1, 0, 3, -0.792340399, 0.415329378},
               {3, 0, 3, -1, 0.122994064},
               {600, 520, 14042, -0.010381544, -0.001027651}};
  for (const auto& c : cases) {
    const Interval interval = PairedDifferenceInterval(Counts(c.lost, c.gained, c.total));
    EXPECT_NEAR(interval.low, c.low, 3e-9) << c.lost << ", " << c.gained;
    EXPECT_NEAR(interval.high, c.high, 3e-9) << c.lost << ", " << c.gained;
    const Interval mirrored = PairedDifferenceInterval(Counts(c.gained, c.lost, c.total));
    EXPECT_NEAR(mirrored.low, -interval.high, 1e-12);
    EXPECT_NEAR(mirrored.high, -interval.low, 1e-12);
  }
}

TEST(StatisticsTest, NoDiscordantQuestionsLeaveAnInterval) {
  // With b = c = 0 the statistic is nδ / sqrt(nδ(1 - δ)), which passes z at z² / (n + z²).
  const double z2 = 1.959963984540054 * 1.959963984540054;
  const Interval interval = PairedDifferenceInterval(Counts(0, 0, 100));
  EXPECT_NEAR(interval.high, z2 / (100 + z2), 1e-12);
  EXPECT_NEAR(interval.low, -z2 / (100 + z2), 1e-12);
}

TEST(StatisticsTest, IntervalsContainTheDifferenceAndStayWithinOne) {
  for (int64_t total = 1; total <= 12; ++total) {
    for (int64_t lost = 0; lost <= total; ++lost) {
      for (int64_t gained = 0; lost + gained <= total; ++gained) {
        const PairedCounts counts = Counts(lost, gained, total);
        const Interval interval = PairedDifferenceInterval(counts);
        EXPECT_LE(interval.low, counts.Difference());
        EXPECT_GE(interval.high, counts.Difference());
        EXPECT_GE(interval.low, -1);
        EXPECT_LE(interval.high, 1);
        EXPECT_LT(interval.low, interval.high);
      }
    }
  }
}

TEST(StatisticsTest, DifferenceAndFlips) {
  const PairedCounts counts = Counts(30, 10, 200);
  EXPECT_DOUBLE_EQ(counts.Difference(), -0.1);
  EXPECT_DOUBLE_EQ(counts.FlippedShare(), 0.2);
}

// By hand: sorted 0.01·4, 0.03·3, 0.04·2 = 0.08 raised to 0.09, 0.5·1.
TEST(StatisticsTest, Holm) {
  EXPECT_THAT(HolmAdjusted({0.04, 0.01, 0.5, 0.03}),
              ElementsAre(DoubleNear(0.09, 1e-15), DoubleNear(0.04, 1e-15), DoubleNear(0.5, 1e-15),
                          DoubleNear(0.09, 1e-15)));
  EXPECT_THAT(HolmAdjusted({0.9, 0.6}), ElementsAre(1, 1));
  EXPECT_THAT(HolmAdjusted({0.3}), ElementsAre(0.3));
  EXPECT_THAT(HolmAdjusted({}), IsEmpty());
}

// (1.959963985 + 0.841621234) · sqrt(0.08 / 14042), computed with scipy: about 0.67 points.
TEST(StatisticsTest, DetectableDifference) {
  EXPECT_NEAR(DetectableDifference(14042), 0.006687046550192716, 1e-15);
  EXPECT_NEAR(DetectableDifference(171, 0.2), 2.8015852181 * std::sqrt(0.2 / 171), 1e-10);
}

}  // namespace
}  // namespace nibble
