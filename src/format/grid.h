// The 16 values that a group's codes stand for: value = scale · (code - zero); see Grid. Hosts and
// GPUs compile the arithmetic, which is constexpr so that both can.
#ifndef NIBBLE_FORMAT_GRID_H_
#define NIBBLE_FORMAT_GRID_H_

#include <algorithm>
#include <span>

#include "src/base/error.h"
#include "src/format/weight.h"
#include "src/tensor/dtype.h"

namespace nibble {

inline constexpr int kMaxCode = 15;

// Scales are stored as float16, so codes and errors are computed with scales rounded to it. kNone
// is for comparing with tools that keep float32 scales.
enum class ScaleRounding : uint8_t { kFloat16, kNone };

// The nearest integer, ties to even, of |x| ≤ 2^22.
constexpr int RoundToEven(float x) {
  constexpr float kIntegers = 0x1.8p23f;  // around it, floats are the integers
  return static_cast<int>((x + kIntegers) - kIntegers);
}

struct GroupGrid {
  float scale = 0;
  int zero = 0;

  // Of the nearest grid value, ties to even.
  constexpr int Code(float value) const {
    const float steps = value / scale;
    const auto least = static_cast<float>(-zero), most = static_cast<float>(kMaxCode - zero);
    return zero + RoundToEven(steps > least ? (steps < most ? steps : most) : least);
  }
  constexpr float Value(int code) const { return scale * static_cast<float>(code - zero); }
};

// The grid of values in [low, high], low ≤ 0 ≤ high. Its scale is infinite or NaN where the range
// is not finite or needs a scale beyond float16, and never zero.
constexpr GroupGrid GridOfRange(float low, float high, Grid grid,
                                ScaleRounding rounding = ScaleRounding::kFloat16) {
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
    zero = exact >= kMaxCode ? kMaxCode : exact > 0 ? RoundToEven(exact) : 0;  // 0 for NaN too
  }
  return {scale, zero};
}

// The grid of `values` (finite, not empty). Fails where the scale exceeds float16.
Result<GroupGrid> FindGrid(std::span<const float> values, Grid grid);

}  // namespace nibble

#endif  // NIBBLE_FORMAT_GRID_H_
