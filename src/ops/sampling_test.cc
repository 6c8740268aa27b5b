#include "src/ops/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "src/base/random.h"
#include "src/ops/token_weight.h"

namespace nibble {
namespace {

constexpr int kDraws = 20000;

// How often each token comes.
std::vector<double> Shares(const SamplingOptions& options, const std::vector<float>& logits) {
  std::vector<double> shares(logits.size());
  for (int i = 0; i < kDraws; ++i) {
    shares[static_cast<size_t>(ChooseToken(logits, ChoiceAt(options, i)))] += 1.0 / kDraws;
  }
  return shares;
}

const std::vector<float> kThree = {std::log(0.1f), std::log(0.6f), std::log(0.3f)};

TEST(SamplingTest, GreedyTakesTheLowestIdAmongEquals) {
  EXPECT_EQ(MostProbable(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(ChooseToken(std::vector<float>{-5, -2, -9}, ChoiceAt({.temperature = 0}, 3)), 1);
}

TEST(SamplingTest, DrawsByProbability) {
  const std::vector<double> shares = Shares({.temperature = 1, .seed = 1}, kThree);
  EXPECT_NEAR(shares[0], 0.1, 0.015);
  EXPECT_NEAR(shares[1], 0.6, 0.015);
  EXPECT_NEAR(shares[2], 0.3, 0.015);
  // At temperature 0.5 the probabilities are squared: 0.01 : 0.36 : 0.09.
  EXPECT_NEAR(Shares({.temperature = 0.5, .seed = 2}, kThree)[1], 0.36 / 0.46, 0.015);
}

TEST(SamplingTest, TopKAndTopPCutTheTail) {
  EXPECT_EQ(Shares({.temperature = 1, .top_k = 2}, kThree)[0], 0);
  EXPECT_NEAR(Shares({.temperature = 1, .top_k = 1}, kThree)[1], 1, 1e-9);
  EXPECT_NEAR(Shares({.temperature = 1, .top_p = 0.7}, kThree)[1], 2.0 / 3, 0.015);
  EXPECT_NEAR(Shares({.temperature = 1, .top_p = 0.5}, kThree)[1], 1, 1e-9);
  // Of the two that top_k keeps, the first alone holds 0.6 of their weight.
  EXPECT_NEAR(Shares({.temperature = 1, .top_k = 2, .top_p = 0.6}, kThree)[1], 1, 1e-9);
}

TEST(SamplingTest, EqualTokensAreKeptByTheirIds) {
  const std::vector<float> equal(10, 1.5f);
  for (const SamplingOptions& options :
       {SamplingOptions{.temperature = 1, .top_k = 4}, {.temperature = 1, .top_p = 0.4}}) {
    const std::vector<double> shares = Shares(options, equal);
    for (size_t i = 0; i < 4; ++i) EXPECT_NEAR(shares[i], 0.25, 0.015) << i;
    for (size_t i = 4; i < 10; ++i) EXPECT_EQ(shares[i], 0) << i;
  }
}

TEST(SamplingTest, WeightsAreTheExponentials) {
  Random random(1);
  for (int i = 0; i < 10000; ++i) {
    const auto octaves = static_cast<float>(random.Uniform() * 20);
    const double weight = static_cast<double>(TokenWeight(TokenDistance(0, -octaves, 1)));
    EXPECT_NEAR(weight / std::exp2(40.0 - octaves), 1, 2e-6) << octaves;
  }
  EXPECT_EQ(TokenWeight(TokenDistance(3, 3, 1)), uint64_t{1} << 40);
  EXPECT_GE(TokenWeight(TokenDistance(0, -38.99999f, 1)), 1u);
  EXPECT_EQ(TokenWeight(TokenDistance(0, -39, 1)), 0u);
}

TEST(SamplingTest, ChoicesDependOnSeedAndPositionAlone) {
  const std::vector<float> logits(50, 0.0f);
  const auto text = [&](uint64_t seed) {
    std::vector<int32_t> tokens;
    for (int i = 0; i < 100; ++i) {
      tokens.push_back(ChooseToken(logits, ChoiceAt({.temperature = 1, .seed = seed}, i)));
    }
    return tokens;
  };
  EXPECT_EQ(text(9), text(9));
  EXPECT_NE(text(9), text(10));
}

TEST(SamplingTest, OddLogitsAndTemperaturesChooseSomething) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {1e-300, 1e-3, 1.0, 1e3, 1e300}) {
    const TokenChoice choice = ChoiceAt({.temperature = temperature, .top_p = 0.9}, 0);
    EXPECT_EQ(ChooseToken(std::vector<float>{kNaN, kNaN}, choice), 0);
    EXPECT_EQ(ChooseToken(std::vector<float>{-kInfinity, -kInfinity}, choice), 0);
    EXPECT_EQ(ChooseToken(std::vector<float>{0, kInfinity, kInfinity}, choice), 1);
    EXPECT_EQ(ChooseToken(std::vector<float>{-kInfinity, kNaN, 7}, choice), 2);
  }
  EXPECT_NEAR(Shares({.temperature = 1e-300}, kThree)[1], 1, 1e-9);
  EXPECT_NEAR(Shares({.temperature = 1e300}, kThree)[0], 1.0 / 3, 0.015);
}

}  // namespace
}  // namespace nibble
