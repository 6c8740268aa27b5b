// Integer arithmetic on numbers read from files: an overflow is an answer, not a wrap-around.
#ifndef NIBBLE_BASE_CHECKED_H_
#define NIBBLE_BASE_CHECKED_H_

#include <concepts>
#include <optional>

namespace nibble {

template <std::integral T>
std::optional<T> CheckedAdd(T a, T b) {
  T sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

template <std::integral T>
std::optional<T> CheckedMul(T a, T b) {
  T product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}

template <std::integral T>
constexpr T CeilDiv(T a, T b) {
  return (a + b - 1) / b;
}

template <std::integral T>
constexpr T RoundUp(T a, T multiple) {
  return CeilDiv(a, multiple) * multiple;
}

}  // namespace nibble

#endif  // NIBBLE_BASE_CHECKED_H_
