#include "src/ops/cuda/linear_q4_form.h"

#include <gtest/gtest.h>

namespace nibble::cuda::q4 {
namespace {

constexpr ClusterRoom kH200{132, 66, 30, 15};

// Everything that the kernel relies on.
void CheckForm(int tiles, int units, bool fine, int64_t rows, const ClusterRoom& room) {
  SCOPED_TRACE(testing::Message() << tiles << " tiles, " << units << " units, fine " << fine << ", "
                                  << rows << " rows");
  const HopperForm form = ChooseHopperForm(tiles, units, fine, rows, room);
  ASSERT_GE(form.stages, kHopperFewestStages);
  EXPECT_LE(form.stages, kHopperMostStages);
  EXPECT_LE(form.shared_bytes(fine), kHopperSharedBytes);
  const int64_t cluster_outputs = int64_t{4} * form.groups * form.pair;
  const int64_t row_tiles = (rows + form.rows - 1) / form.rows;
  EXPECT_EQ(form.tiles, (tiles + cluster_outputs - 1) / cluster_outputs * row_tiles);
  EXPECT_GE(form.clusters, 1);
  EXPECT_LE(form.clusters, form.tiles);
  EXPECT_LE(form.clusters, 65535);  // of a grid's second dimension
  EXPECT_LE(form.pair * form.parts, 8);
  if (form.parts == 1) return;
  EXPECT_EQ(form.clusters, form.tiles);
  EXPECT_LE(2 * form.parts, units);
  // Sums go over the ring.
  EXPECT_LE(static_cast<size_t>(form.parts) * HopperPartBytes(form.rows, form.groups, form.parts),
            static_cast<size_t>(form.stages) * HopperStageBytes(form.rows, form.groups, fine));
}

TEST(HopperFormTest, AnyShapeHasAForm) {
  for (const int tiles : {1, 2, 11, 12, 36, 256, 768, 1376, 8016}) {
    for (const int units : {1, 2, 3, 5, 8, 32, 86, 1024}) {
      for (const int64_t rows : {1, 9, 16, 17, 33, 64, 65, 128, 129, 200, 512, 2048, 100000}) {
        for (const bool fine : {false, true}) {
          CheckForm(tiles, units, fine, rows, kH200);
          CheckForm(tiles, units, fine, rows,
                    {7, 3, 0, 0});  // a part of a GPU, without large clusters
        }
      }
    }
  }
}

// As measured (docs/results/kernels.md): a round less counts for more than a busy multiprocessor.
TEST(HopperFormTest, Llama2Layers) {
  const auto form = [](int outputs, int inputs, int64_t rows) {
    return ChooseHopperForm(outputs / 16, inputs / 128, false, rows, kH200);
  };
  // All blocks at once, and most of the multiprocessors.
  for (const int64_t rows : {16, 64, 128}) {
    for (const int outputs : {12288, 22016}) {
      const HopperForm chosen = form(outputs, 4096, rows);
      const int blocks = chosen.clusters * chosen.pair * chosen.parts;
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
}

}  // namespace
}  // namespace nibble::cuda::q4
