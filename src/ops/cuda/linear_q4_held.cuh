// Products of a few rows by units of a weight: what a warp holds of x in registers, and how it
// multiplies a unit of codes with that.
#ifndef NIBBLE_OPS_CUDA_LINEAR_Q4_HELD_CUH_
#define NIBBLE_OPS_CUDA_LINEAR_Q4_HELD_CUH_

#include "src/ops/cuda/linear_q4_kernels.cuh"

namespace nibble::cuda::q4 {

// One unit's share of eight rows of x: for every two steps the four registers of their B operands,
// and what zeros of 1 take from the sums of the two rows of the lane's accumulators.
template <int kGranule>
struct HeldUnit {
  static constexpr int kScales = kUnitInputs / kGranule;
  uint4 x[4];
  float sums[kScales][2];
};

template <typename T, int kGranule>
__device__ void SumHeld(HeldUnit<kGranule>& held) {
  constexpr int kScales = HeldUnit<kGranule>::kScales;
  // A weight of ones adds up the rows.
  constexpr uint32_t kOnes = std::is_same_v<T, __half> ? 0x3c003c00u : 0x3f803f80u;
  const uint32_t ones[4] = {kOnes, kOnes, kOnes, kOnes};
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    float sums[4] = {};
#pragma unroll
    for (int i = s * 4 / kScales; i < (s + 1) * 4 / kScales; ++i) {
      MultiplyAdd<T>(sums, ones, held.x[i].x, held.x[i].y, sums);
      MultiplyAdd<T>(sums, ones, held.x[i].z, held.x[i].w, sums);
    }
    held.sums[s][0] = sums[0] * (-1 / Codes<T>::kLowUnit);
    held.sums[s][1] = sums[1] * (-1 / Codes<T>::kLowUnit);
  }
}

// codes: the lane's first 16 bytes of a unit; scales, zeros: the unit's.
template <typename T, int kGranule, int kRowTiles>
__device__ void ConsumeUnit(float (&sum)[kRowTiles][4], uint32_t codes, uint32_t scales,
                            uint32_t zeros, bool has_zeros,
                            const HeldUnit<kGranule> (&held)[kRowTiles], int lane) {
  constexpr int kScales = HeldUnit<kGranule>::kScales;
  constexpr int kChunks = 4 / kScales;  // of 32 inputs, two steps each
  constexpr float kHigh = Codes<T>::kLowUnit / Codes<T>::kHighUnit;
  uint4 q;
#pragma unroll
  for (int s = 0; s < kScales; ++s) {
    const float2 scale = LoadSharedScales(scales + 32 * s + lane / 4 * 4);
    float low = 8 + Codes<T>::kOffset, high = low * kHigh;
    if (has_zeros) {
      const uchar2 pair = LoadSharedZeros(zeros + 16 * s + lane / 4 * 2);
      low = pair.x + Codes<T>::kOffset;
      high = (pair.y + Codes<T>::kOffset) * kHigh;
    }
    // Two chains of products where there is one row tile, so that they wait less for each other.
    constexpr int kChains = kRowTiles == 1 && kChunks > 1 ? 2 : 1;
    float chains[kChains][kRowTiles][4] = {};
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) chains[0][n][i] = (i < 2 ? low : high) * held[n].sums[s][i % 2];
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int chunk = s * kChunks + c;
      if (chunk % 2 == 0) q = LoadShared16(codes + 256 * chunk);
      auto& chain = chains[c % kChains];
      uint32_t a[4];
      Codes<T>::Expand(chunk % 2 == 0 ? q.x : q.z, a);
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        MultiplyAdd<T>(chain[n], a, held[n].x[chunk].x, held[n].x[chunk].y, chain[n]);
      }
      Codes<T>::Expand(chunk % 2 == 0 ? q.y : q.w, a);
#pragma unroll
      for (int n = 0; n < kRowTiles; ++n) {
        MultiplyAdd<T>(chain[n], a, held[n].x[chunk].z, held[n].x[chunk].w, chain[n]);
      }
    }
#pragma unroll
    for (int n = 0; n < kRowTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float total = chains[0][n][i] + (kChains == 2 ? chains[kChains - 1][n][i] : 0);
        sum[n][i] = fmaf(i < 2 ? scale.x : scale.y, total, sum[n][i]);
      }
    }
  }
}

}  // namespace nibble::cuda::q4

#endif  // NIBBLE_OPS_CUDA_LINEAR_Q4_HELD_CUH_
