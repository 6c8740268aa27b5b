// Element types and the two 16-bit floating-point conversions everything else builds on.
#ifndef NIBBLE_TENSOR_DTYPE_H_
#define NIBBLE_TENSOR_DTYPE_H_

#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nibble {

// kF8E4M3: 8-bit floating point of 4 exponent and 3 mantissa bits (arXiv:2209.05433), of KV caches
// alone.
enum class DType : uint8_t { kF32, kF16, kBF16, kI64, kI32, kI8, kU8, kF8E4M3 };

constexpr size_t BytesOf(DType type) {
  switch (type) {
    case DType::kI64:
      return 8;
    case DType::kF32:
    case DType::kI32:
      return 4;
    case DType::kF16:
    case DType::kBF16:
      return 2;
    case DType::kI8:
    case DType::kU8:
    case DType::kF8E4M3:
      return 1;
  }
  return 0;
}

constexpr bool IsFloat(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16;
}

// "f32", "f16", "bf16", "i64", "i32", "i8", "u8", "f8_e4m3".
std::string_view Name(DType type);
std::optional<DType> DTypeFromName(std::string_view name);

// bfloat16 is the upper half of a float. Rounds to nearest, ties to even; NaN stays NaN.
constexpr float FloatFromBF16(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
constexpr uint16_t BF16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE 754 binary16, subnormals and infinities included.
constexpr float FloatFromF16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa · 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
constexpr uint16_t F16FromFloat(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return sign | 0x7e00u;   // NaN
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // rounds to 65536 or more: infinity
  if (magnitude < 0x38800000u) {                        // below 2^-14: subnormal or zero
    // Adding 0.5 aligns the value's bits to the subnormal grid and rounds to even.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (112u << 23);
  return static_cast<uint16_t>(sign | (rounded >> 13));
}
static_assert(F16FromFloat(1.0f) == 0x3c00 && FloatFromF16(0x3c00) == 1.0f);
static_assert(F16FromFloat(65504.0f) == 0x7bff && F16FromFloat(65520.0f) == 0x7c00);
static_assert(F16FromFloat(0x1p-24f) == 1 && FloatFromF16(1) == 0x1p-24f);

}  // namespace nibble

#endif  // NIBBLE_TENSOR_DTYPE_H_
