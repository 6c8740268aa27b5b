#include "src/format/grid.h"

#include <algorithm>
#include <cmath>

namespace nibble {

int GroupGrid::Code(float value) const {
  return std::clamp(static_cast<int>(std::lrint(value / scale)) + zero, 0, kMaxCode);
}

GroupGrid GridOfRange(float low, float high, Grid grid, ScaleRounding rounding) {
  float scale = 0;
  switch (grid) {
    case Grid::kAsymmetric:
      scale = (high - low) / kMaxCode;
      break;
    case Grid::kSymmetric:
      scale = 2 * std::max(high, -low) / kMaxCode;
      break;
    case Grid::kSymmetricFull:
      // Code 0 stands for -8 scales: a positive extreme wants a negative scale.
      scale = (high > -low ? -high : -low) / 8;
      break;
  }
  if (rounding == ScaleRounding::kFloat16) scale = FloatFromF16(F16FromFloat(scale));
  // All zeros, or smaller than float16 can tell from zero: any grid that holds zero will do.
  if (scale == 0) scale = 1;
  int zero = 8;
  if (grid == Grid::kAsymmetric) {
    const float exact = -low / scale;
    zero = exact >= kMaxCode ? kMaxCode : std::isnan(exact) ? 0 : static_cast<int>(std::lrint(exact));
  }
  return {scale, zero};
}

Result<GroupGrid> FindGrid(std::span<const float> values, Grid grid) {
  float low = 0, high = 0;  // the range includes zero
  for (const float value : values) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const GroupGrid found = GridOfRange(low, high, grid);
  if (!std::isfinite(found.scale)) {
    return BadInput("values from {} to {} need a scale beyond float16", low, high);
  }
  return found;
}

}  // namespace nibble
