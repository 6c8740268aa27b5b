#include "src/quantize/rtn.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "src/base/random.h"

namespace nibble {
namespace {

using ::testing::HasSubstr;

struct Floats {
  std::vector<float> values;
  int64_t rows, columns;
  DenseWeight weight() const {
    return {DType::kF32, rows, columns, reinterpret_cast<const std::byte*>(values.data()), nullptr};
  }
};

Floats RandomWeight(int64_t rows, int64_t columns, uint64_t seed) {
  Random random(seed);
  Floats floats{{}, rows, columns};
  for (int64_t i = 0; i < rows * columns; ++i) {
    floats.values.push_back(static_cast<float>(random.Normal() * 0.05));
  }
  return floats;
}

TEST(FindGridTest, AsymmetricIncludesZeroAndCoversTheRange) {
  const GroupGrid grid = FindGrid(std::vector<float>{-0.5f, 1.0f, 0.2f}, Grid::kAsymmetric).value();
  EXPECT_NEAR(grid.scale, 1.5 / 15, 1e-4);
  EXPECT_EQ(grid.zero, 5);
  EXPECT_EQ(grid.Code(-0.5f), 0);
  EXPECT_EQ(grid.Code(1.0f), 15);
  EXPECT_EQ(grid.Value(grid.Code(0.0f)), 0.0f);
  // All on one side: zero is an end of the range.
  EXPECT_EQ(FindGrid(std::vector<float>{0.3f, 0.6f}, Grid::kAsymmetric)->zero, 0);
  EXPECT_EQ(FindGrid(std::vector<float>{-0.3f, -0.6f}, Grid::kAsymmetric)->zero, 15);
}

TEST(FindGridTest, SymmetricClipsThePositiveExtreme) {
  const GroupGrid grid = FindGrid(std::vector<float>{1.5f, -0.1f}, Grid::kSymmetric).value();
  EXPECT_NEAR(grid.scale, 0.2, 1e-4);
  EXPECT_EQ(grid.zero, 8);
  EXPECT_EQ(grid.Code(1.5f), 15);
  EXPECT_NEAR(grid.Value(15), 1.4, 1e-3);
}

TEST(FindGridTest, FullRangeMapsTheExtremeExactly) {
  for (const float extreme : {0.75f, -0.75f}) {
    const GroupGrid grid =
        FindGrid(std::vector<float>{extreme, -extreme / 2}, Grid::kSymmetricFull).value();
    EXPECT_EQ(grid.Code(extreme), 0);
    EXPECT_EQ(grid.Value(0), extreme);
  }
}

TEST(FindGridTest, ZerosAndTinyValuesHaveAGrid) {
  for (const Grid kind : {Grid::kAsymmetric, Grid::kSymmetric, Grid::kSymmetricFull}) {
    for (const float tiny : {0.0f, 1e-12f}) {
      const GroupGrid grid = FindGrid(std::vector<float>{tiny, -tiny}, kind).value();
      EXPECT_EQ(grid.Value(grid.Code(tiny)), 0.0f);
    }
  }
  EXPECT_FALSE(FindGrid(std::vector<float>{3e6f, 0.0f}, Grid::kAsymmetric));
}

// Every weight goes to the nearest of the 16 values its group has.
TEST(RoundToNearestTest, TakesTheNearestGridValue) {
  ThreadPool pool(2);
  const Floats floats = RandomWeight(24, 128, 1);
  for (const Grid kind : {Grid::kAsymmetric, Grid::kSymmetric, Grid::kSymmetricFull}) {
    for (const int64_t group : {int64_t{32}, int64_t{64}, int64_t{128}, kPerChannel}) {
      const QuantizedWeight q =
          RoundToNearest(floats.weight(), {.group_size = group, .grid = kind}, "w", pool).value();
      for (int64_t n = 0; n < q.rows; ++n) {
        for (int64_t k = 0; k < q.columns; ++k) {
          const auto at = static_cast<size_t>(n * q.groups() + k / q.group_length());
          const float scale = FloatFromF16(q.scales[at]);
          const float want = floats.values[static_cast<size_t>(n * 128 + k)];
          float best = std::numeric_limits<float>::infinity();
          for (int code = 0; code < 16; ++code) {
            best = std::min(best, std::abs(scale * static_cast<float>(code - q.zeros[at]) - want));
          }
          ASSERT_LE(std::abs(q.At(n, k) - want), best * 1.0001f + 1e-9f) << n << " " << k;
        }
      }
    }
  }
}

TEST(RoundToNearestTest, ErrorIsThatOfItsDefinition) {
  ThreadPool pool(3);
  const Floats floats = RandomWeight(40, 64, 2);
  const QuantizedWeight q =
      RoundToNearest(floats.weight(), {.group_size = 32}, "w", pool).value();
  double error = 0, square = 0;
  for (int64_t n = 0; n < 40; ++n) {
    for (int64_t k = 0; k < 64; ++k) {
      const double w = floats.values[static_cast<size_t>(n * 64 + k)];
      error += std::pow(w - q.At(n, k), 2);
      square += w * w;
    }
  }
  EXPECT_NEAR(RelativeSquaredError(floats.weight(), q, pool), error / square, 1e-12);
  // 4 bits over about 4 standard deviations: a step of 0.27, an error of step² / 12.
  EXPECT_GT(error / square, 0.003);
  EXPECT_LT(error / square, 0.012);
}

TEST(RoundToNearestTest, NamesAWeightThatIsNotFinite) {
  ThreadPool pool(1);
  Floats floats = RandomWeight(4, 32, 3);
  floats.values[2 * 32 + 5] = std::numeric_limits<float>::quiet_NaN();
  const auto result = RoundToNearest(floats.weight(), {.group_size = 32}, "layer.q", pool);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code(), ErrorCode::kBadInput);
  EXPECT_THAT(result.error().message(), HasSubstr("layer.q: row 2"));
}

}  // namespace
}  // namespace nibble
