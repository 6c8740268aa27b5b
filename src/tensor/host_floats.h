// Floating-point numbers of whatever type in the host's memory, for code that is not in a hurry.
#ifndef NIBBLE_TENSOR_HOST_FLOATS_H_
#define NIBBLE_TENSOR_HOST_FLOATS_H_

#include <vector>

#include "src/tensor/tensor.h"

namespace nibble {

inline float LoadFloat(DType type, const void* values, int64_t i) {
  if (type == DType::kF32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return type == DType::kF16 ? FloatFromF16(bits) : FloatFromBF16(bits);
}

inline void StoreFloat(DType type, void* values, int64_t i, float value) {
  if (type == DType::kF32) {
    static_cast<float*>(values)[i] = value;
  } else {
    static_cast<uint16_t*>(values)[i] =
        type == DType::kF16 ? F16FromFloat(value) : BF16FromFloat(value);
  }
}

// What StoreFloat keeps of a value.
inline float RoundTo(DType type, float value) {
  if (type == DType::kF16) return FloatFromF16(F16FromFloat(value));
  return type == DType::kBF16 ? FloatFromBF16(BF16FromFloat(value)) : value;
}

inline float FloatAt(MatrixView matrix, int64_t r, int64_t c) {
  return LoadFloat(matrix.dtype, matrix.data, r * matrix.stride + c);
}
inline void SetFloat(MatrixView matrix, int64_t r, int64_t c, float value) {
  StoreFloat(matrix.dtype, matrix.data, r * matrix.stride + c, value);
}

// A matrix's elements, row after row.
inline std::vector<float> FloatsOf(MatrixView matrix) {
  std::vector<float> values;
  values.reserve(static_cast<size_t>(matrix.rows * matrix.columns));
  for (int64_t r = 0; r < matrix.rows; ++r) {
    for (int64_t c = 0; c < matrix.columns; ++c) values.push_back(FloatAt(matrix, r, c));
  }
  return values;
}

}  // namespace nibble

#endif  // NIBBLE_TENSOR_HOST_FLOATS_H_
