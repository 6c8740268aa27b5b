// The 16 values that a group's codes stand for: value = scale · (code - zero); see Grid.
#ifndef NIBBLE_FORMAT_GRID_H_
#define NIBBLE_FORMAT_GRID_H_

#include <span>

#include "src/base/error.h"
#include "src/format/weight.h"

namespace nibble {

inline constexpr int kMaxCode = 15;

// Scales are stored as float16, so codes and errors are computed with scales rounded to it. kNone is
// for comparing with tools that keep float32 scales.
enum class ScaleRounding : uint8_t { kFloat16, kNone };

struct GroupGrid {
  float scale = 0;
  int zero = 0;

  int Code(float value) const;  // of the nearest grid value, ties to even
  float Value(int code) const { return scale * static_cast<float>(code - zero); }
};

// The grid of values in [low, high], low ≤ 0 ≤ high. Its scale is infinite or NaN where the range is
// not finite or needs a scale beyond float16, and never zero.
GroupGrid GridOfRange(float low, float high, Grid grid,
                      ScaleRounding rounding = ScaleRounding::kFloat16);

// The grid of `values` (finite, not empty). Fails where the scale exceeds float16.
Result<GroupGrid> FindGrid(std::span<const float> values, Grid grid);

}  // namespace nibble

#endif  // NIBBLE_FORMAT_GRID_H_
