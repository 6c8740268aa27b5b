#include "src/ops/cuda/linear_q4_form.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "src/base/checked.h"
#include "src/base/error.h"

namespace nibble::cuda::q4 {
namespace {

// Microseconds on an H200 (docs/results/kernels.md). A block's time for a unit is that of its
// warpgroups, which share the tensor cores and the issue of instructions.
constexpr struct {
  int rows;
  double unit;  // of a warpgroup
} kRowTiles[] = {{16, 0.17}, {32, 0.195}, {64, 0.225}, {128, 0.33}};
constexpr double kStart = 3.5;     // of a kernel, with storing its last tiles
constexpr double kNextTile = 1.5;  // of a block
constexpr double kParts = 2.3;     // exchanging sums

// What lies beside the ring: what the other parts send, or what rows are stored through.
size_t BytesBeside(const HopperForm& form) {
  return form.parts > 1 ? static_cast<size_t>(form.parts - 1) *
                              HopperPartBytes(form.rows, form.groups, form.parts)
                        : HopperStoreBytes(form.groups);
}

}  // namespace

size_t HopperForm::shared_bytes(bool fine) const {
  return static_cast<size_t>(stages) * HopperStageBytes(rows, groups, fine) + BytesBeside(*this);
}

// Sharing rows of x has no gain in this estimate, so that of two equal forms the one without a pair,
// which comes first, is taken: none has a pair today.
HopperForm ChooseHopperForm(int tiles, int units, bool fine, int64_t rows,
                            const ClusterRoom& room) {
  HopperForm best{.microseconds = std::numeric_limits<double>::max()};
  for (const auto& [tile_rows, unit] : kRowTiles) {
    const int64_t row_tiles = CeilDiv<int64_t>(rows, tile_rows);
    for (const int groups : {2, 3}) {
      for (const int pair : {1, 2}) {
        for (int parts = 1; parts <= kHopperMostParts && (parts == 1 || units >= 2 * parts);
             parts *= 2) {
          const int64_t at_once = room[std::countr_zero(static_cast<unsigned>(pair * parts))];
          HopperForm form{.rows = tile_rows, .groups = groups, .pair = pair, .parts = parts};
          const auto stages = static_cast<int>((kHopperSharedBytes - BytesBeside(form)) /
                                               HopperStageBytes(tile_rows, groups, fine));
          if (at_once == 0 || stages < kHopperFewestStages) continue;
          const int64_t count = CeilDiv<int64_t>(tiles, 4 * groups * pair) * row_tiles;
          CHECK(count < int64_t{1} << 31, "{} rows of {} tiles", rows, tiles);
          const auto rounds = static_cast<double>(CeilDiv(count, at_once));
          const double work = CeilDiv(units, parts) * groups * unit;
          form.microseconds = parts > 1 ? rounds * (work + kStart + kParts)
                                        : rounds * work + kStart + (rounds - 1) * kNextTile;
          if (form.microseconds >= best.microseconds) continue;
          form.stages = std::min(stages, kHopperMostStages);
          form.tiles = static_cast<int>(count);
          form.clusters = static_cast<int>(parts > 1 ? count : std::min(count, at_once));
          best = form;
        }
      }
    }
  }
  CHECK(best.rows > 0 && best.tiles > 0, "no form for {} tiles, {} units, {} rows", tiles, units,
        rows);
  return best;
}

}  // namespace nibble::cuda::q4
