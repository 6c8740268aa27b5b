// A group's grid as a warp finds it: the search that every quantizing kernel shares.
#ifndef NIBBLE_OPS_CUDA_QUANTIZE_GRID_CUH_
#define NIBBLE_OPS_CUDA_QUANTIZE_GRID_CUH_

#include "src/ops/cuda/quantize_kernels.h"
#include "src/ops/cuda/warp_sum.cuh"

namespace nibble::cuda {

inline constexpr unsigned kWholeWarp = ~0u;

__device__ inline int LaneOfWarp() { return static_cast<int>(threadIdx.x) % 32; }

__device__ inline float WarpMax(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(kWholeWarp, value, step));
  }
  return value;
}

// |error|^2.4 for ScaleSearch::kMse.
__device__ inline float PowerLoss(float error) {
  return exp2f(1.2f * __log2f(fmaxf(error * error, 1e-30f)));
}

// The grid of a group, in every lane. values(use) calls use(value, importance) for each of the
// values that are the lane's; all lanes together have all of the group's.
template <typename Values>
__device__ GroupGrid FindWarpGrid(const GroupSpec& spec, const Values& values) {
  constexpr int kShares = 80;
  float low = 0, high = 0;  // the range includes zero
  values([&](float value, float) {
    low = fminf(low, value);
    high = fmaxf(high, value);
  });
  low = -WarpMax(-low);
  high = WarpMax(high);
  GroupGrid best = GridOfRange(low, high, spec.grid, spec.rounding);
  if (spec.search == ScaleSearch::kNone) return best;
  float least = INFINITY;
  for (int i = 0; i < kShares; ++i) {
    // Products that stay products: fused into what follows they would give other scales than a
    // CPU's.
    const float share = 1 - static_cast<float>(i) / 100;
    const GroupGrid grid =
        GridOfRange(__fmul_rn(share, low), __fmul_rn(share, high), spec.grid, spec.rounding);
    float loss = 0;
    values([&](float value, float importance) {
      const float error = value - grid.Value(grid.Code(value));
      loss += spec.search == ScaleSearch::kMse ? PowerLoss(error) : importance * error * error;
    });
    loss = SumOverWarp(loss);
    if (loss < least) {
      least = loss;
      best = grid;
    }
  }
  return best;
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_QUANTIZE_GRID_CUH_
