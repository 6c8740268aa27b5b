// What the two attention kernels share: 16-byte asynchronous copies into shared memory, the
// m16n8k16 tensor-core product (sm_80 and newer), and one step of the online softmax.
//
// Fragments of a warp, by lane: of an m16n8 product a lane holds columns 2 · (lane % 4) + {0, 1} of
// rows lane / 4 (elements 0, 1) and lane / 4 + 8 (elements 2, 3).
#ifndef NIBBLE_OPS_CUDA_ATTENTION_COMMON_CUH_
#define NIBBLE_OPS_CUDA_ATTENTION_COMMON_CUH_

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "src/ops/cuda/async_copy.cuh"
#include "src/ops/cuda/attention.h"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/half.cuh"
#include "src/ops/cuda/load_matrices.cuh"

namespace nibble::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

inline void CheckAttention(const AttentionSpec& attention, MatrixView q, MatrixView out) {
  CHECK(attention.head_dim % 8 == 0 && attention.head_dim > 0 && attention.head_dim <= 256,
        "heads of {}", attention.head_dim);
  CHECK(attention.kv_heads > 0 && attention.heads % attention.kv_heads == 0,
        "{} heads, {} KV heads", attention.heads, attention.kv_heads);
  CHECK(attention.scale > 0 && attention.window.value_or(1) > 0);
  for (const MatrixView& matrix : {q, out}) {
    CHECK(matrix.dtype == q.dtype && matrix.columns == attention.heads * attention.head_dim);
    CHECK(reinterpret_cast<uintptr_t>(matrix.data) % 16 == 0 && matrix.stride % 8 == 0,
          "rows must be aligned to 16 bytes");
  }
}

// In how many tokens a query sees keys.
inline int WindowOf(const AttentionSpec& attention) {
  constexpr int64_t kAll = std::numeric_limits<int32_t>::max();
  return static_cast<int>(std::min(attention.window.value_or(kAll), kAll));
}

// sum += a · b. a: 16 x 16; b: 16 x 8.
template <typename T>
__device__ void MultiplyAdd(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&sum)[4]) {
  if constexpr (std::is_same_v<T, __half>) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

template <typename T>
__device__ uint32_t PackHalves(float x, float y) {
  const auto pair = HalfTraits<T>::FromFloats(x, y);
  return reinterpret_cast<const uint32_t&>(pair);
}

inline __device__ float Exp2(float x) {  // 2^x within 2 ulp; 0 for -infinity
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// scores: of 16 queries and kKeyTiles · 8 keys, -infinity where a query does not see a key; become
// exp2(scores · scale_log2 - the row's highest so far). The rest is what the tiles before gave:
// highest: of scores · scale_log2; sums: this lane's share. factors: what the weighted sums of the
// values before are to be multiplied by; on_half(0 or 1) is called once that of a half is known.
template <int kKeyTiles, typename OnHalf>
__device__ void SoftmaxWeights(float scale_log2, float (&scores)[kKeyTiles][4], float (&highest)[2],
                               float (&sums)[2], float (&factors)[2], const OnHalf& on_half) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = -INFINITY;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
      top = fmaxf(top, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
    top = fmaxf(highest[half], top * scale_log2);
    // A row that has seen no key yet keeps its zeros.
    const float shift = top == -INFINITY ? 0.0f : top;
    factors[half] = Exp2(highest[half] - shift);
    highest[half] = top;
    float sum = 0;
#pragma unroll
    for (int tile = 0; tile < kKeyTiles; ++tile) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[tile][i] = Exp2(fmaf(scores[tile][i], scale_log2, -shift));
        sum += scores[tile][i];
      }
    }
    sums[half] = sums[half] * factors[half] + sum;
    on_half(half);
  }
}

// Both, where the sums of the values are at hand.
template <int kKeyTiles, int kDimTiles>
__device__ void SoftmaxStep(float scale_log2, float (&scores)[kKeyTiles][4], float (&highest)[2],
                            float (&sums)[2], float (&out)[kDimTiles][4]) {
  float factors[2];
  SoftmaxWeights(scale_log2, scores, highest, sums, factors, [&](int half) {
#pragma unroll
    for (int tile = 0; tile < kDimTiles; ++tile) {
      out[tile][2 * half] *= factors[half];
      out[tile][2 * half + 1] *= factors[half];
    }
  });
}

inline __device__ float SumOverQuad(float value) {  // of the lanes that share a row
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}

}  // namespace nibble::cuda

#endif  // NIBBLE_OPS_CUDA_ATTENTION_COMMON_CUH_
