// Round to nearest: the grid of each group from its extremes, each weight to the nearest grid value.
// The control that shows what calibration buys.
#ifndef NIBBLE_QUANTIZE_RTN_H_
#define NIBBLE_QUANTIZE_RTN_H_

#include <span>
#include <string_view>

#include "src/base/error.h"
#include "src/base/thread_pool.h"
#include "src/format/weight.h"

namespace nibble {

// One group's grid: value = scale · (code - zero).
struct GroupGrid {
  uint16_t scale_f16 = 0;  // float16 bits: as stored, so that codes and errors match what is deployed
  float scale = 0;         // the same as float
  int zero = 0;

  int Code(float value) const;  // of the nearest grid value, ties to even
  float Value(int code) const { return scale * static_cast<float>(code - zero); }
};

// The grid of `values` (finite, not empty) as `grid` defines it (see Grid). Fails where the scale
// exceeds float16.
Result<GroupGrid> FindGrid(std::span<const float> values, Grid grid);

// `weight`'s columns are a multiple of the group's length. `name` names it in errors; a weight that
// is not finite is one.
Result<QuantizedWeight> RoundToNearest(const DenseWeight& weight, const QuantSpec& spec,
                                       std::string_view name, ThreadPool& pool);

// ‖W − Q‖² / ‖W‖²; 0 for an all-zero W.
double RelativeSquaredError(const DenseWeight& weight, const QuantizedWeight& quantized,
                            ThreadPool& pool);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_RTN_H_
