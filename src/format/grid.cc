#include "src/format/grid.h"

#include <algorithm>
#include <cmath>

namespace nibble {

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
