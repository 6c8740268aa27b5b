#include "src/ops/cuda/linear_q4_form.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <optional>

namespace nibble::cuda::q4 {
namespace {

constexpr ClusterRoom kH200{132, 66, 30};

// Everything that the kernel relies on.
void CheckForm(const HopperForm& form, int tiles, int units, int grids, int64_t rows) {
  SCOPED_TRACE(testing::Message() << tiles << " tiles, " << units << " units, " << grids
                                  << " grids, " << rows << " rows");
  ASSERT_GE(form.stages, kHopperFewestStages);
  EXPECT_LE(form.stages, kHopperMostStages);
  EXPECT_LE(form.shared_bytes(grids), HopperSharedBytes(form.rows));
  const int64_t cluster_outputs = int64_t{4} * form.groups;
  const int64_t row_tiles = (rows + form.rows - 1) / form.rows;
  EXPECT_EQ(form.tiles, (tiles + cluster_outputs - 1) / cluster_outputs * row_tiles);
  EXPECT_GE(form.clusters, 1);
  EXPECT_LE(form.clusters, form.tiles);
  EXPECT_LE(form.clusters, 65535);  // of a grid's second dimension
  if (form.parts == 1) return;
  EXPECT_EQ(form.clusters, form.tiles);
  EXPECT_LE(2 * form.parts, units);
  // Sums go over the ring.
  EXPECT_LE(static_cast<size_t>(form.parts) * HopperPartBytes(form.rows, form.groups, form.parts),
            static_cast<size_t>(form.stages) * HopperStageBytes(form.rows, form.groups, grids));
}

TEST(HopperFormTest, AnyShapeHasAForm) {
  for (const int tiles : {1, 2, 11, 12, 36, 256, 768, 1376, 8016}) {
    for (const int units : {1, 2, 3, 5, 8, 32, 86, 1024}) {
      for (const int64_t rows : {1, 9, 16, 17, 33, 64, 65, 128, 129, 200, 320, 512, 2048, 100000}) {
        for (const int grids : {1, 2, 4}) {
          // The whole of a GPU, and a part of one, without large clusters.
          for (const ClusterRoom& room : {kH200, ClusterRoom{7, 3, 0}}) {
            CheckForm(ChooseHopperForm(tiles, units, grids, rows, room), tiles, units, grids, rows);
          }
        }
      }
    }
  }
}

// Of all rows, groups and parts only the largest tiles do not fit into a block: with what other
// parts send, and with the scales of short groups.
TEST(HopperFormTest, AllButTheLargestAreCompleted) {
  constexpr int kTiles = 37, kUnits = 9;
  for (const int tile_rows : {16, 32, 48, 64, 96, 128, 160}) {
    for (const int groups : {2, 3}) {
      for (const int parts : {1, 2, 4}) {
        for (const int grids : {1, 2, 4}) {
          const bool fits = parts > 1 ? tile_rows < 128 || (tile_rows == 128 && groups == 2)
                                      : tile_rows < 160 || groups == 2 || grids == 1;
          const auto complete = [&](int64_t rows, const ClusterRoom& room) {
            return CompleteHopperForm({.rows = tile_rows, .groups = groups, .parts = parts}, kTiles,
                                      kUnits, grids, rows, room);
          };
          SCOPED_TRACE(testing::Message() << tile_rows << " rows, " << groups << " groups, "
                                          << parts << " parts, " << grids << " grids");
          for (const int64_t rows : {tile_rows - 1, 5 * tile_rows + 1}) {
            const std::optional<HopperForm> form = complete(rows, kH200);
            ASSERT_EQ(form.has_value(), fits);
            if (!form) continue;
            EXPECT_EQ(form->rows, tile_rows);
            EXPECT_EQ(form->groups, groups);
            EXPECT_EQ(form->parts, parts);
            CheckForm(*form, kTiles, kUnits, grids, rows);
            // Without parts no more clusters than there are at a time; with them as many as tiles.
            EXPECT_EQ(complete(rows, {2, 2, 2})->clusters,
                      parts > 1 ? form->tiles : std::min(form->tiles, 2));
          }
        }
      }
    }
  }
}

TEST(HopperFormTest, SomeAreNotCompleted) {
  const auto has_form = [](int parts, int units, int64_t rows, const ClusterRoom& room) {
    return CompleteHopperForm({.rows = 16, .groups = 2, .parts = parts}, 256, units, 1, rows, room)
        .has_value();
  };
  EXPECT_TRUE(has_form(4, 8, 16, kH200));
  EXPECT_FALSE(has_form(4, 7, 16, kH200));             // less than two units a part
  EXPECT_FALSE(has_form(4, 8, 16, {132, 66, 0}));      // no clusters of four
  EXPECT_FALSE(has_form(4, 8, 16 * 65536, kH200));     // as many clusters as tiles: too many
  EXPECT_TRUE(has_form(1, 8, 16 * 65536, kH200));
}

// As measured (docs/results/kernels.md): a round less counts for more than a busy multiprocessor.
TEST(HopperFormTest, Llama2Layers) {
  const auto form = [](int outputs, int inputs, int64_t rows) {
    return ChooseHopperForm(outputs / 16, inputs / 128, 1, rows, kH200);
  };
  // All blocks at once, and most of the multiprocessors.
  for (const int64_t rows : {16, 64, 128}) {
    for (const int outputs : {12288, 22016}) {
      const HopperForm chosen = form(outputs, 4096, rows);
      const int blocks = chosen.clusters * chosen.parts;
      EXPECT_EQ(chosen.clusters, chosen.tiles);
      EXPECT_GE(blocks, rows == 128 ? 96 : 106);
      EXPECT_LE(blocks, 132);
    }
  }
  // Few outputs are made by parts of the inputs; many rows are not.
  EXPECT_GT(form(4096, 11008, 64).parts, 1);
  EXPECT_EQ(form(4096, 11008, 2048).parts, 1);
  EXPECT_EQ(form(4096, 4096, 16).rows, 16);
  EXPECT_EQ(form(4096, 4096, 17).rows, 32);
  EXPECT_EQ(form(12288, 4096, 40).rows, 48);
  EXPECT_EQ(form(22016, 4096, 192).rows, 96);
  EXPECT_EQ(form(22016, 4096, 320).rows, 160);
}

}  // namespace
}  // namespace nibble::cuda::q4
