#include "src/ops/cuda/linear_q4_form.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "src/base/checked.h"
#include "src/base/error.h"

namespace nibble::cuda::q4 {
namespace {

// Microseconds on an H200 (docs/results/kernels.md). A block's time for a unit is that of its
// warpgroups, which share the tensor cores and the issue of instructions. That of 160 rows was
// extrapolated from 96 and 128, and foretold products within 9 %.
struct RowTile {
  int rows;
  double unit;  // of a warpgroup
};
constexpr RowTile kRowTiles[] = {{16, 0.12},  {32, 0.14},   {48, 0.17},  {64, 0.19},
                                 {96, 0.245}, {128, 0.325}, {160, 0.405}};
constexpr double kStart = 3;       // of a kernel, with storing its last tiles
constexpr double kNextTile = 1.1;  // of a block
constexpr double kParts = 1.2;     // exchanging sums

constexpr int64_t kMostClusters = 65535;  // of a grid's second dimension

// What lies beside the ring: what the other parts send, or what rows are stored through.
size_t BytesBeside(const HopperForm& form) {
  return form.parts > 1 ? static_cast<size_t>(form.parts - 1) *
                              HopperPartBytes(form.rows, form.groups, form.parts)
                        : HopperStoreBytes(form.groups);
}

}  // namespace

size_t HopperForm::shared_bytes(int grids) const {
  return static_cast<size_t>(stages) * HopperStageBytes(rows, groups, grids) + BytesBeside(*this);
}

std::optional<HopperForm> CompleteHopperForm(HopperForm form, int tiles, int units, int grids,
                                             int64_t rows, const ClusterRoom& room) {
  const auto* const tile = std::ranges::find(kRowTiles, form.rows, &RowTile::rows);
  CHECK(tile != std::end(kRowTiles), "tiles of {} rows", form.rows);
  CHECK((form.groups == 2 || form.groups == 3) && form.parts <= kHopperMostParts &&
            std::has_single_bit(static_cast<unsigned>(form.parts)),
        "{} groups, {} parts", form.groups, form.parts);
  const int64_t at_once = room[std::countr_zero(static_cast<unsigned>(form.parts))];
  const auto stages = static_cast<int>((HopperSharedBytes(form.rows) - BytesBeside(form)) /
                                       HopperStageBytes(form.rows, form.groups, grids));
  const bool is_split = form.parts > 1;
  if (at_once == 0 || stages < kHopperFewestStages || (is_split && units < 2 * form.parts)) {
    return std::nullopt;
  }
  const int64_t count =
      CeilDiv<int64_t>(tiles, 4 * form.groups) * CeilDiv<int64_t>(rows, form.rows);
  CHECK(count < int64_t{1} << 31, "{} rows of {} tiles", rows, tiles);
  const int64_t clusters = is_split ? count : std::min(count, at_once);
  if (clusters > kMostClusters) return std::nullopt;
  form.stages = std::min(stages, kHopperMostStages);
  form.tiles = static_cast<int>(count);
  form.clusters = static_cast<int>(clusters);
  const auto rounds = static_cast<double>(CeilDiv(count, at_once));
  const double work = CeilDiv(units, form.parts) * form.groups * tile->unit;
  form.microseconds = is_split ? rounds * (work + kStart + kParts)
                               : rounds * work + kStart + (rounds - 1) * kNextTile;
  return form;
}

HopperForm ChooseHopperForm(int tiles, int units, int grids, int64_t rows,
                            const ClusterRoom& room) {
  HopperForm best{.microseconds = std::numeric_limits<double>::max()};
  for (const RowTile& tile : kRowTiles) {
    for (const int groups : {2, 3}) {
      for (int parts = 1; parts <= kHopperMostParts; parts *= 2) {
        const std::optional<HopperForm> form = CompleteHopperForm(
            {.rows = tile.rows, .groups = groups, .parts = parts}, tiles, units, grids, rows, room);
        if (form && form->microseconds < best.microseconds) best = *form;
      }
    }
  }
  CHECK(best.rows > 0 && best.tiles > 0, "no form for {} tiles, {} units, {} rows", tiles, units,
        rows);
  return best;
}

}  // namespace nibble::cuda::q4
