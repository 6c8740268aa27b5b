#include "src/engine/sampler.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <vector>

#include "src/engine/kv_pool.h"

namespace nibble {
namespace {

// How often each token comes in 20,000 draws.
std::vector<double> Shares(const SamplingOptions& options, const std::vector<float>& logits) {
  Sampler sampler(options);
  std::vector<double> shares(logits.size());
  for (int i = 0; i < 20000; ++i) shares[static_cast<size_t>(sampler.Sample(logits))] += 1 / 20000.0;
  return shares;
}

TEST(SamplerTest, GreedyTakesTheLowestIdAmongEquals) {
  EXPECT_EQ(ArgMax(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(Sampler({.temperature = 0}).Sample(std::vector<float>{-5, -2, -9}), 1);
}

TEST(SamplerTest, DrawsByProbability) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.6f), std::log(0.3f)};
  const std::vector<double> shares = Shares({.temperature = 1, .seed = 1}, logits);
  EXPECT_NEAR(shares[0], 0.1, 0.015);
  EXPECT_NEAR(shares[1], 0.6, 0.015);
  EXPECT_NEAR(shares[2], 0.3, 0.015);
  // At temperature 0.5 the probabilities are squared: 0.01 : 0.36 : 0.09.
  EXPECT_NEAR(Shares({.temperature = 0.5, .seed = 2}, logits)[1], 0.36 / 0.46, 0.015);
}

TEST(SamplerTest, TopKAndTopPCutTheTail) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.6f), std::log(0.3f)};
  EXPECT_EQ(Shares({.temperature = 1, .top_k = 2}, logits)[0], 0);
  EXPECT_NEAR(Shares({.temperature = 1, .top_k = 1}, logits)[1], 1, 1e-9);
  EXPECT_NEAR(Shares({.temperature = 1, .top_p = 0.7}, logits)[1], 2.0 / 3, 0.015);
  EXPECT_NEAR(Shares({.temperature = 1, .top_p = 0.5}, logits)[1], 1, 1e-9);
}

TEST(SamplerTest, SeedReproduces) {
  const std::vector<float> logits(50, 0.0f);
  Sampler a({.temperature = 1, .seed = 9}), b({.temperature = 1, .seed = 9});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(a.Sample(logits), b.Sample(logits));
}

TEST(KvPoolTest, CountsHolders) {
  KvPool pool(2);
  const int32_t first = pool.Take().value();
  const int32_t second = pool.Take().value();
  EXPECT_NE(first, second);
  EXPECT_FALSE(pool.Take());
  pool.Share(first);
  pool.Release(first);
  EXPECT_EQ(pool.free_blocks(), 0);
  pool.Release(first);
  EXPECT_EQ(pool.free_blocks(), 1);
  EXPECT_EQ(pool.Take(), first);
}

}  // namespace
}  // namespace nibble
