// What a token's probability is in sampling: an integer, computed in integers but for one float32
// subtraction and one multiplication, so that every device has the same weights for the same
// logits, and sums do not depend on their order. Hosts and GPUs compile this file.
//
//   distance[i] = log2(probability of the most probable ÷ probability of i), 26 bits after the
//   point weight[i]   = 2^(40 - distance[i])
#ifndef NIBBLE_OPS_TOKEN_WEIGHT_H_
#define NIBBLE_OPS_TOKEN_WEIGHT_H_

#include <cstdint>

#ifdef __CUDACC__
#define NIBBLE_HOST_DEVICE __host__ __device__
#else
#define NIBBLE_HOST_DEVICE
#endif

namespace nibble {

// The distance of a token that is never drawn: one less than 2^-39 times as probable as the most
// probable, or whose logit is NaN.
inline constexpr uint32_t kNeverDrawn = 0xffffffffu;

// `scale`: log2(e) / temperature, finite.
NIBBLE_HOST_DEVICE inline uint32_t TokenDistance(float highest, float logit, float scale) {
  const float octaves = (highest - logit) * scale;
  if (!(octaves < 39.0f)) return kNeverDrawn;  // NaN too
  return static_cast<uint32_t>(octaves * 0x1p26f);
}

// The upper half of the product.
NIBBLE_HOST_DEVICE inline uint32_t HighProduct(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}

// At least 1 for what may be drawn. Relative error 1.2e-8.
NIBBLE_HOST_DEVICE inline uint64_t TokenWeight(uint32_t distance) {
  if (distance == kNeverDrawn) return 0;
  // 2^-f = 1 - f · g(f) for the fraction f; g interpolates at Chebyshev's points. 31 bits after the
  // point, f 32.
  const uint32_t f = distance << 6;
  uint32_t g = 246789;
  g = 2773769 - HighProduct(g, f);
  g = 20609476 - HighProduct(g, f);
  g = 119183688 - HighProduct(g, f);
  g = 515881603 - HighProduct(g, f);
  g = 1488522224 - HighProduct(g, f);
  const uint32_t power = (uint32_t{1} << 31) - HighProduct(g, f);
  return (static_cast<uint64_t>(power) << 9) >> (distance >> 26);
}

}  // namespace nibble

#endif  // NIBBLE_OPS_TOKEN_WEIGHT_H_
