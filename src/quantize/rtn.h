// Round to nearest: the grid of each group from its extremes, each weight to the nearest grid value.
// The control that shows what calibration buys.
#ifndef NIBBLE_QUANTIZE_RTN_H_
#define NIBBLE_QUANTIZE_RTN_H_

#include <string_view>

#include "src/base/error.h"
#include "src/base/thread_pool.h"
#include "src/format/grid.h"

namespace nibble {

// `weight`'s columns are a multiple of the group's length. `name` names it in errors; a weight that
// is not finite is one.
Result<QuantizedWeight> RoundToNearest(const DenseWeight& weight, const QuantSpec& spec,
                                       std::string_view name, ThreadPool& pool);

// ‖W − Q‖² / ‖W‖²; 0 for an all-zero W.
double RelativeSquaredError(const DenseWeight& weight, const QuantizedWeight& quantized,
                            ThreadPool& pool);

}  // namespace nibble

#endif  // NIBBLE_QUANTIZE_RTN_H_
