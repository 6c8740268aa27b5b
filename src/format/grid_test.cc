#include "src/format/grid.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace nibble {
namespace {

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

TEST(GridOfRangeTest, ScalesAreWhatIsStoredUnlessAskedOtherwise) {
  const float exact = 1.0f / 15;
  EXPECT_EQ(GridOfRange(0, 1, Grid::kAsymmetric, ScaleRounding::kNone).scale, exact);
  EXPECT_EQ(GridOfRange(0, 1, Grid::kAsymmetric).scale, FloatFromF16(F16FromFloat(exact)));
  EXPECT_FALSE(std::isfinite(GridOfRange(0, std::numeric_limits<float>::infinity(),
                                         Grid::kAsymmetric).scale));
}

}  // namespace
}  // namespace nibble
