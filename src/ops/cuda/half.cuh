// The two 16-bit activation types, said once for kernels that are templates of them.
#ifndef NIBBLE_OPS_CUDA_HALF_CUH_
#define NIBBLE_OPS_CUDA_HALF_CUH_

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "src/base/error.h"
#include "src/tensor/dtype.h"

namespace nibble::cuda {

template <typename T>
struct HalfTraits;

template <>
struct HalfTraits<__half> {
  using Pair = __half2;
  static __device__ float2 ToFloats(Pair pair) { return __half22float2(pair); }
  static __device__ Pair FromFloats(float x, float y) { return __floats2half2_rn(x, y); }
  static __device__ float ToFloat(__half x) { return __half2float(x); }
  static __device__ __half FromFloat(float x) { return __float2half_rn(x); }
};

template <>
struct HalfTraits<__nv_bfloat16> {
  using Pair = __nv_bfloat162;
  static __device__ float2 ToFloats(Pair pair) { return __bfloat1622float2(pair); }
  static __device__ Pair FromFloats(float x, float y) { return __floats2bfloat162_rn(x, y); }
  static __device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 FromFloat(float x) { return __float2bfloat16_rn(x); }
};

// Calls body.template operator()<__half or __nv_bfloat16>().
template <typename Body>
void WithHalfType(DType dtype, const Body& body) {
  CHECK(dtype == DType::kF16 || dtype == DType::kBF16, "activations of type {}", Name(dtype));
  if (dtype == DType::kF16) {
    body.template operator()<__half>();
  } else {
    body.template operator()<__nv_bfloat16>();
  }
}

// silu(gate) · up, with a division that is 2 units in the last place off at most.
__device__ inline float SiluMul(float gate, float up) {
  return __fdividef(gate, 1.0f + __expf(-gate)) * up;
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_HALF_CUH_
