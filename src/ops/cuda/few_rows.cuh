// What the kernels for few rows of activations share.
#ifndef NIBBLE_OPS_CUDA_FEW_ROWS_CUH_
#define NIBBLE_OPS_CUDA_FEW_ROWS_CUH_

#include <cstdint>

#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/matrix_product.h"
#include "src/ops/cuda/warp_sum.cuh"

namespace nibble::cuda {

inline constexpr int kElements = 8;  // 16-bit ones of a load of 16 bytes

struct FewRowsShape {
  int64_t out_features, in_features, x_stride, out_stride;
};

// sum += a · b
template <typename T>
__device__ void MultiplyAdd(const uint4& a, const uint4& b, float& sum) {
  using Pair = typename HalfTraits<T>::Pair;
  const auto* pa = reinterpret_cast<const Pair*>(&a);
  const auto* pb = reinterpret_cast<const Pair*>(&b);
#pragma unroll
  for (int i = 0; i < kElements / 2; ++i) {
    const float2 fa = HalfTraits<T>::ToFloats(pa[i]), fb = HalfTraits<T>::ToFloats(pb[i]);
    sum = fmaf(fa.x, fb.x, sum);
    sum = fmaf(fa.y, fb.y, sum);
  }
}

template <typename Out>
__device__ Out Rounded(float value) {
  if constexpr (sizeof(Out) == 4) {
    return value;
  } else {
    return HalfTraits<Out>::FromFloat(value);
  }
}

// What is added to an output.
template <typename Out, Epilogue kEpilogue>
__device__ float Addend(const Out& to) {
  if constexpr (kEpilogue == Epilogue::kAdd) return HalfTraits<Out>::ToFloat(to);
  return 0;
}
// An output of the sums of its weight row, or of a gate's and its up's.
template <typename Out, Epilogue kEpilogue>
__device__ void StoreSum(float sum, float up, float addend, Out& to) {
  if constexpr (kEpilogue == Epilogue::kSiluMul) sum = SiluMul(sum, up);
  to = Rounded<Out>(sum + addend);
}

// On Hopper; false where it cannot be used.
bool StreamFewRows(Stream& stream, const FewRowsShape& shape, MatrixView x, const void* w,
                   const float* bias, Epilogue epilogue, MatrixView out);

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_FEW_ROWS_CUH_
