// A sum over a warp.
#ifndef NIBBLE_OPS_CUDA_WARP_SUM_CUH_
#define NIBBLE_OPS_CUDA_WARP_SUM_CUH_

namespace nibble::cuda {

// Of all lanes' values, in every lane.
template <typename T>
__device__ T SumOverWarp(T sum) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return sum;
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_WARP_SUM_CUH_
