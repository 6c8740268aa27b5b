// Grids of a weight's rows × groups as the tiles' kernels make them.
#ifndef NIBBLE_OPS_CPU_GRID_TABLE_H_
#define NIBBLE_OPS_CPU_GRID_TABLE_H_

#include <cmath>
#include <vector>

#include "src/base/checked.h"
#include "src/format/weight.h"
#include "src/ops/cpu/quantize_kernels.h"

namespace nibble::cpu {

class GridTable {
 public:
  GridTable(const QuantSpec& spec, int64_t rows, int64_t columns)
      : length_(spec.GroupLength(columns)),
        groups_(columns / length_),
        tiles_(static_cast<size_t>(CeilDiv(rows, kTileRows) * groups_)) {}
  int64_t length() const { return length_; }
  int64_t groups() const { return groups_; }
  TileGrid& At(int64_t tile, int64_t group) {
    return tiles_[static_cast<size_t>(tile * groups_ + group)];
  }

  // Into the stored form; fails where a scale is not finite.
  Status Store(QuantizedWeight& weight) {
    for (int64_t n = 0; n < weight.rows; ++n) {
      for (int64_t g = 0; g < groups_; ++g) {
        const TileGrid& grid = At(n / kTileRows, g);
        const float scale = grid.scales[n % kTileRows];
        const auto at = static_cast<size_t>(n * groups_ + g);
        weight.scales[at] = F16FromFloat(scale);
        weight.zeros[at] = static_cast<uint8_t>(grid.zeros[n % kTileRows]);
        if (!std::isfinite(FloatFromF16(weight.scales[at]))) {
          return BadInput("row {}, group {}: needs a scale of {}, beyond float16", n, g, scale);
        }
      }
    }
    return {};
  }

 private:
  int64_t length_, groups_;
  std::vector<TileGrid> tiles_;
};

}  // namespace nibble::cpu

#endif  // NIBBLE_OPS_CPU_GRID_TABLE_H_
