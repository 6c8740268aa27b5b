#include "src/eval/divergence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "src/base/random.h"
#include "src/eval/divergence_json.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> RandomRow(size_t size, uint64_t seed, double scale) {
  Random random(seed);
  std::vector<float> row(size);
  for (float& value : row) value = static_cast<float>(scale * random.Normal());
  return row;
}

long double LogSum(const std::vector<float>& row) {
  long double max = row[0];
  for (const float value : row) max = std::max<long double>(max, value);
  long double sum = 0;
  for (const float value : row) sum += std::exp(value - max);
  return max + std::log(sum);
}

// The definition, in long double.
RowStatistics Expected(const std::vector<float>& reference, const std::vector<float>& candidate,
                       int64_t target) {
  const long double reference_sum = LogSum(reference);
  const long double candidate_sum = LogSum(candidate);
  long double kl = 0;
  for (size_t i = 0; i < reference.size(); ++i) {
    const long double log_p = reference[i] - reference_sum;
    kl += std::exp(log_p) * (log_p - (candidate[i] - candidate_sum));
  }
  RowStatistics row;
  row.reference_logprob = static_cast<double>(reference[target] - reference_sum);
  row.candidate_logprob = static_cast<double>(candidate[target] - candidate_sum);
  row.kl = static_cast<double>(kl);
  row.reference_top = std::max_element(reference.begin(), reference.end()) - reference.begin();
  row.candidate_top = std::max_element(candidate.begin(), candidate.end()) - candidate.begin();
  return row;
}

// Expected: mpmath at 30 digits.
TEST(DivergenceTest, OneRowByHand) {
  const std::vector<float> reference = {1, -2, 0.5, 3.25, 3.25, -10, 0};
  const std::vector<float> candidate = {0.5, -2.5, 1.5, 3, 3.5, -8, 0.25};
  const RowStatistics row = ComputeRow(reference, candidate, 2);
  EXPECT_NEAR(row.reference_logprob, -3.5445074635003471, 1e-14);
  EXPECT_NEAR(row.candidate_logprob, -2.6059081966256911, 1e-14);
  EXPECT_NEAR(row.kl, 0.053132019345699597, 1e-14);
  EXPECT_NEAR(row.DeltaP(), 0.044953204224742151, 1e-14);
  EXPECT_EQ(row.reference_top, 3);  // the first of two
  EXPECT_EQ(row.candidate_top, 4);
  EXPECT_NEAR(RowLogProbabilities(reference).At(2), -3.5445074635003471, 1e-14);
  EXPECT_EQ(RowLogProbabilities(reference).top(), 3);
}

// Sums of n positive terms are good to about n units in the last place at worst; KL is a difference
// of terms of the size of the logarithms.
TEST(DivergenceTest, RowsOfManySizesAgreeWithTheDefinition) {
  for (const size_t size : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 1000, 32003, 128256}) {
    for (const double noise : {0.0, 1e-3, 0.1, 3.0}) {
      const std::vector<float> reference = RandomRow(size, size, 4);
      std::vector<float> candidate = RandomRow(size, size + 1, noise);
      for (size_t i = 0; i < size; ++i) candidate[i] += reference[i];
      const auto target = static_cast<int64_t>(size / 2);
      const RowStatistics row = ComputeRow(reference, candidate, target);
      const RowStatistics expected = Expected(reference, candidate, target);
      EXPECT_NEAR(row.reference_logprob, expected.reference_logprob, 1e-12) << size;
      EXPECT_NEAR(row.candidate_logprob, expected.candidate_logprob, 1e-12) << size;
      EXPECT_NEAR(row.kl, expected.kl, 1e-12) << size;
      EXPECT_GE(row.kl, 0);
      EXPECT_EQ(row.reference_top, expected.reference_top) << size;
      EXPECT_EQ(row.candidate_top, expected.candidate_top) << size;
      EXPECT_NEAR(RowLogProbabilities(candidate).At(target), expected.candidate_logprob, 1e-12);
      if (noise == 0) {
        EXPECT_EQ(row.kl, 0);
      }
    }
  }
}

TEST(DivergenceTest, EveryInstructionSetAgrees) {
  const std::vector<float> reference = RandomRow(1003, 1, 4);
  const std::vector<float> candidate = RandomRow(1003, 2, 4);
  const RowStatistics expected = Expected(reference, candidate, 1001);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    const RowStatistics row = ComputeRow(reference, candidate, 1001);
    EXPECT_NEAR(row.reference_logprob, expected.reference_logprob, 1e-12);
    EXPECT_NEAR(row.candidate_logprob, expected.candidate_logprob, 1e-12);
    EXPECT_NEAR(row.kl, expected.kl, 1e-12) << hwy::TargetName(target);
    EXPECT_EQ(row.candidate_top, expected.candidate_top) << hwy::TargetName(target);
  }
  hwy::SetSupportedTargetsForTest(0);
}

TEST(DivergenceTest, LargeAndDistantLogits) {
  const std::vector<float> reference = {3e38f, -3e38f, 0, 1e4f};
  const std::vector<float> candidate = {1e4f, 9999, -1e4f, 0};
  const RowStatistics row = ComputeRow(reference, candidate, 0);
  EXPECT_EQ(row.reference_logprob, 0);
  EXPECT_NEAR(row.candidate_logprob, -std::log1p(std::exp(-1)), 1e-12);
  EXPECT_NEAR(row.kl, std::log1p(std::exp(-1)), 1e-12);
}

TEST(DivergenceTest, WhatIsNotFiniteIsNeverHidden) {
  for (const size_t size : {1, 3, 16, 37}) {
    for (size_t at = 0; at < size; ++at) {
      for (const float bad : {kNan, kInfinity, -kInfinity}) {
        const std::vector<float> good = RandomRow(size, 3, 2);
        std::vector<float> broken = good;
        broken[at] = bad;
        const auto target = static_cast<int64_t>((at + 1) % size);
        EXPECT_FALSE(std::isfinite(RowLogProbabilities(broken).At(target))) << size << " " << at;
        DivergenceAccumulator accumulator;
        const Status reference = accumulator.Add(ComputeRow(broken, good, target));
        ASSERT_FALSE(reference.has_value());
        EXPECT_THAT(reference.error().message(), HasSubstr("reference: the model gives token 0"));
        const Status candidate = DivergenceAccumulator().Add(ComputeRow(good, broken, target));
        ASSERT_FALSE(candidate.has_value());
        EXPECT_EQ(candidate.error().code(), ErrorCode::kBadInput);
      }
    }
  }
}

// Expected: numpy, exp(mean) and exp(mean) · std(ddof=1) / sqrt(5).
TEST(DivergenceTest, Perplexity) {
  PerplexityAccumulator perplexity;
  for (const double logprob : {-1.5, -0.25, -3.0, -0.75, -2.0}) {
    ASSERT_TRUE(perplexity.Add(logprob).has_value());
  }
  EXPECT_EQ(perplexity.tokens(), 5);
  EXPECT_NEAR(perplexity.mean_nll(), 1.5, 1e-15);
  EXPECT_NEAR(perplexity.perplexity(), 4.4816890703380645, 1e-14);
  EXPECT_NEAR(perplexity.perplexity_se(), 2.1551752628236867, 1e-14);
  const Json json = ToJson(perplexity);
  EXPECT_EQ(json["tokens"], 5);
  EXPECT_EQ(json["perplexity"], perplexity.perplexity());
  EXPECT_EQ(json["perplexity_se"], perplexity.perplexity_se());
}

TEST(DivergenceTest, OneTokenHasNoStandardError) {
  PerplexityAccumulator perplexity;
  ASSERT_TRUE(perplexity.Add(-2).has_value());
  EXPECT_TRUE(std::isnan(perplexity.perplexity_se()));
  EXPECT_EQ(ToJson(perplexity).dump(),
            R"({"perplexity":7.38905609893065,"perplexity_se":null,"tokens":1})");
  EXPECT_FALSE(perplexity.Add(-INFINITY).has_value());
  EXPECT_EQ(perplexity.tokens(), 1);
}

// Expected: numpy's mean and percentile (its default, linear) of the same series.
TEST(DivergenceTest, Summary) {
  DivergenceAccumulator accumulator;
  for (int i = 0; i <= 100; ++i) {
    RowStatistics row;
    row.kl = std::pow(i * 37 % 101, 2) / 1e4;
    row.candidate_logprob = -0.1 - i * 0.02;
    row.reference_logprob = -0.2 - (i * 13 % 101) * 0.01;
    row.reference_top = i % 4;
    ASSERT_TRUE(accumulator.Add(row).has_value());
  }
  EXPECT_EQ(accumulator.tokens(), 101);
  const DivergenceSummary summary = accumulator.Summarize();
  EXPECT_NEAR(summary.kl_divergence.mean, 0.335, 1e-14);
  EXPECT_NEAR(summary.kl_divergence.median, 0.25, 1e-14);
  EXPECT_NEAR(summary.kl_divergence.p99, 0.9801, 1e-14);
  EXPECT_NEAR(summary.kl_divergence.p999, 0.99801, 1e-14);
  EXPECT_NEAR(summary.kl_divergence.max, 1, 1e-14);
  EXPECT_NEAR(summary.delta_p.mean, -0.12554502482067945, 1e-14);
  EXPECT_NEAR(summary.delta_p.p1, -0.6013537434029724, 1e-14);
  EXPECT_NEAR(summary.delta_p.p5, -0.5115026199287187, 1e-14);
  EXPECT_NEAR(summary.delta_p.p95, 0.3196424296408325, 1e-14);
  EXPECT_NEAR(summary.delta_p.p99, 0.4272076991110789, 1e-14);
  EXPECT_NEAR(summary.top1_agreement, 26.0 / 101, 1e-14);
  EXPECT_NEAR(summary.perplexity_reference, 2.0137527074704766, 1e-13);
  EXPECT_NEAR(summary.perplexity_ratio, 1.4918246976412701, 1e-13);

  const Json json = ToJson(summary);
  EXPECT_EQ(json["kl_divergence"]["p999"], summary.kl_divergence.p999);
  EXPECT_EQ(json["kl_divergence"].size(), 5u);
  EXPECT_EQ(json["delta_p"]["p5"], summary.delta_p.p5);
  EXPECT_EQ(json["delta_p"].size(), 5u);
  EXPECT_EQ(json["top1_agreement"], summary.top1_agreement);
  EXPECT_EQ(json["perplexity_reference"], summary.perplexity_reference);
  EXPECT_EQ(json["perplexity_ratio"], summary.perplexity_ratio);
}

}  // namespace
}  // namespace nibble
