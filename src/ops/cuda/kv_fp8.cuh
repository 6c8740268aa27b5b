// Keys and values of 8 bits (E4M3, arXiv:2209.05433).
//
// A head's 16 consecutive elements lie in an order in which a lane's four bytes are what the
// product m16n8k16 wants of it: bytes 4q + {0, 1, 2, 3} are elements 2q + {0, 1, 8, 9}, q from 0
// to 3.
//
// Each token's keys of a head, and its values, have a scale: the least power of two by which their
// largest magnitude does not exceed 448, so that what is stored is exact in 16 bits, too. It is NaN
// where a key or value is not finite.
#ifndef NIBBLE_OPS_CUDA_KV_FP8_CUH_
#define NIBBLE_OPS_CUDA_KV_FP8_CUH_

#include <cuda_fp8.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "src/ops/cuda/half.cuh"

namespace nibble::cuda {

struct Fp8 {
  uint8_t bits;
};

// What attention's weights are multiplied by besides the values' scales, to keep small ones out of
// float16's subnormal numbers: of float16 values a scale is at most 256, and a weight 1.
inline constexpr float kFp8WeightScale = 128;

// The place of an even element, and the next one's behind it.
inline __host__ __device__ int Fp8Place(int element) {
  return element / 16 * 16 + element % 8 * 2 + element % 16 / 8 * 2;
}

// Four consecutive bytes: elements 2q and 2q + 1, then 2q + 8 and 2q + 9, of type T.
template <typename T>
__device__ uint2 FromFp8(uint32_t bytes) {
  __half2_raw pairs[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    pairs[i] =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(bytes >> 16 * i), __NV_E4M3);
  }
  uint2 result;
  if constexpr (std::is_same_v<T, __half>) {
    result = {reinterpret_cast<const uint32_t&>(pairs[0]),
              reinterpret_cast<const uint32_t&>(pairs[1])};
  } else {
    const auto convert = [](const __half2_raw& raw) {
      const float2 floats = __half22float2(raw);
      const auto pair = HalfTraits<T>::FromFloats(floats.x, floats.y);
      return reinterpret_cast<const uint32_t&>(pair);
    };
    result = {convert(pairs[0]), convert(pairs[1])};
  }
  return result;
}

// The bits of the scale of elements whose largest magnitude has these bits (of float32).
inline __host__ __device__ uint32_t Fp8ScaleBits(float largest) {
#ifdef __CUDA_ARCH__
  const uint32_t bits = __float_as_uint(largest / 448);
#else
  const float quotient = largest / 448;
  uint32_t bits;
  std::memcpy(&bits, &quotient, sizeof bits);
#endif
  if (bits >= 0x7f800000u) return 0x7fc00000u;
  const uint32_t up = (bits + 0x7fffffu) & 0xff800000u;
  constexpr uint32_t kLeast = 27u << 23;  // 2^-100, whose inverse is finite
  return up < kLeast ? kLeast : up;
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_KV_FP8_CUH_
