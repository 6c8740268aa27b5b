// Hopper's 4-bit product in every form that it may be given, whether or not a shape chooses it.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>

#include "src/ops/cuda/linear_q4_kernels.cuh"
#include "src/ops/cuda/linear_q4_test_util.cuh"

namespace nibble::cuda::q4 {
namespace {

constexpr int kRowTiles[] = {16, 32, 48, 64, 96, 128, 160};

std::string Text(const HopperForm& form) {
  return fmt::format("{} rows, {} groups, {} parts, {} stages, {} tiles, {} clusters",
                     form.rows, form.groups, form.parts, form.stages, form.tiles, form.clusters);
}

class LinearQ4HopperTest : public LinearQ4Test {
 protected:
  void SetUp() override {
    LinearQ4Test::SetUp();
    if (!IsSkipped() && !HasHopperProduct()) GTEST_SKIP() << "no kernel for this device";
  }

  // Compares each form with tiles of so many rows with the reference.
  void CheckForms(int tile_rows, const Problem& problem, uint64_t seed);

 private:
  template <typename T>
  void Multiply(const Case& c, const Geometry& geometry, const HopperForm& form) {
    const Problem& p = c.problem;
    HopperProduct(*stream_, geometry, WeightsOf(geometry, c.layout, c.packed.data()),
                  Product<T>{.x = c.x_view.row<T>(0),
                             .out = c.out_view.row<T>(0),
                             .bias = c.bias_data,
                             .x_stride = c.x_view.stride,
                             .out_stride = c.out_view.stride,
                             .rows = static_cast<int>(p.rows),
                             .in = static_cast<int>(p.in),
                             .outputs = static_cast<int>(p.out),
                             .epilogue = p.epilogue},
                  form);
    stream_->CheckLaunch("a 4-bit linear layer", p.rows, p.out);
  }
};

void LinearQ4HopperTest::CheckForms(int tile_rows, const Problem& p, uint64_t seed) {
  SCOPED_TRACE(p.text());
  const Case c = MakeCase(p, seed);
  const Geometry geometry = Geometry::Of(p.out, p.in, c.layout.group_length);
  ASSERT_FALSE(geometry.spreads);
  // As many clusters as there are tiles, and so few that each makes several tiles.
  for (const int at_once : {1 << 16, 3}) {
    for (const int groups : {2, 3}) {
      for (int parts = 1; parts <= kHopperMostParts; parts *= 2) {
        if (parts > 1 && at_once == 3) continue;  // a cluster for each tile all the same
        // HopperFormTest has those for which there is none.
        const std::optional<HopperForm> form = CompleteHopperForm(
            {.rows = tile_rows, .groups = groups, .parts = parts}, geometry.tiles, geometry.units,
            geometry.scales_per_unit(), p.rows, {at_once, at_once, at_once});
        if (!form) continue;
        SCOPED_TRACE(Text(*form));
        CheckProduct(c, [&] {
          WithHalfType(p.dtype, [&]<typename T>() { Multiply<T>(c, geometry, *form); });
        });
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Of an odd number of units, which two and four parts do not divide evenly.
TEST_F(LinearQ4HopperTest, EveryGroupLength) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const int64_t group :
         {int64_t{32}, int64_t{64}, int64_t{128}, int64_t{384}, kPerChannel}) {
      for (const int tile_rows : kRowTiles) {
        for (const bool is_ragged : {false, true}) {
          CheckForms(tile_rows,
                     {.rows = is_ragged ? 2 * tile_rows + 1 : tile_rows - 1,
                      .out = 576 + 16,
                      .in = 9 * 128,
                      .group = group,
                      .grid = is_ragged ? Grid::kAsymmetric : Grid::kSymmetricFull,
                      .dtype = dtype},
                     1);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

// Weights of which the largest scale is far above most, and far from those of other tests.
TEST_F(LinearQ4HopperTest, WideScales) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const Grid grid : {Grid::kAsymmetric, Grid::kSymmetricFull}) {
      for (const int64_t group : {32, 128}) {
        CheckForms(64,
                   {.rows = 64,
                    .out = 400,
                    .in = 1152,
                    .group = group,
                    .grid = grid,
                    .dtype = dtype,
                    .wide_scales = true},
                   5);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Stored eight at a time (without gaps) and one by one, in tiles that end within a warpgroup.
TEST_F(LinearQ4HopperTest, Epilogues) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const Epilogue epilogue : {Epilogue::kNone, Epilogue::kAdd, Epilogue::kSiluMul}) {
      for (const bool bias : {false, true}) {
        for (const int64_t gap : {0, 5}) {
          for (const int tile_rows : kRowTiles) {
            CheckForms(tile_rows,
                       {.rows = tile_rows + 1,
                        .out = gap == 0 ? 400 : 202,
                        .in = 1088,
                        .group = 64,
                        .dtype = dtype,
                        .epilogue = epilogue,
                        .bias = bias,
                        .x_gap = gap,
                        .out_gap = gap},
                       2);
            if (HasFatalFailure()) return;
          }
        }
      }
    }
  }
}

// Of less than a tile to several tiles.
TEST_F(LinearQ4HopperTest, OutputCounts) {
  for (const int64_t out : {1, 16, 130, 200, 264, 392, 1000}) {
    for (const int tile_rows : kRowTiles) {
      CheckForms(tile_rows, {.rows = tile_rows, .out = out, .in = 1024, .bias = true}, 3);
      if (HasFatalFailure()) return;
    }
  }
}

// From half a unit to more than all stages of a ring have in a part.
TEST_F(LinearQ4HopperTest, InputCounts) {
  for (const int64_t in : {64, 128, 256, 512, 640, 54 * 128}) {
    for (const int64_t group : {32, 64}) {
      for (const int tile_rows : kRowTiles) {
        CheckForms(tile_rows, {.rows = 3 * tile_rows - 1, .out = 592, .in = in, .group = group}, 4);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST_F(LinearQ4HopperTest, TakesMoreRowsThanOtherKernels) {
  const Q4Layout layout = Q4Layout::Of(64, 256, {.group_size = 32});
  EXPECT_GT(LinearQ4MostRows(layout, CudaKernels::kAuto),
            LinearQ4MostRows(layout, CudaKernels::kPortable));
}

// Not those of weights whose rows of x must be spread out.
TEST_F(LinearQ4HopperTest, TakesNoRowsOfWeightsThatSpread) {
  for (const auto& [in, group] : {std::pair<int64_t, int64_t>{960, 48}, {222, kPerChannel}}) {
    const Q4Layout layout = Q4Layout::Of(64, in, {.group_size = group});
    EXPECT_EQ(LinearQ4MostRows(layout, CudaKernels::kAuto),
              LinearQ4MostRows(layout, CudaKernels::kPortable));
  }
}

}  // namespace
}  // namespace nibble::cuda::q4
