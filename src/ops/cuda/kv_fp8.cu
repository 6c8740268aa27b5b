#include "src/base/checked.h"
#include "src/ops/cuda/dependent_launch.cuh"
#include "src/ops/cuda/kv_fp8.cuh"
#include "src/ops/cuda/kv_fp8.h"

namespace nibble::cuda {
namespace {

constexpr int kWarps = 8, kThreads = 32 * kWarps;

struct Fp8Shape {
  int heads, kv_heads, head_dim;
  int64_t qkv_stride;
};

// Where a token's head lies: of [blocks, kv_heads, kBlockTokens].
__device__ int64_t TokenAt(const DeviceBatch& batch, int sequence, int position, int kv_heads,
                           int kv_head) {
  const int64_t block = batch.block_tables[sequence * batch.table_stride + position / kBlockTokens];
  return (block * kv_heads + kv_head) * kBlockTokens + position % kBlockTokens;
}

// Grid (rows, heads of queries, keys and values): a warp takes a head of a row, a lane two
// neighbours and the two that they turn with, and as many half a warp's width further.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    RopeAndStoreFp8Kernel(DeviceBatch batch, Fp8Shape shape, const float2* angles, T* qkv,
                          KvView kv) {
  using H = HalfTraits<T>;
  using Pair = typename H::Pair;
  constexpr int kMost = 2;  // of 64 pairs each
  StartNextKernel();
  WaitForLastKernel();
  const int row = static_cast<int>(blockIdx.x), lane = static_cast<int>(threadIdx.x) % 32;
  const int head = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32;
  const int half = shape.head_dim / 2, turned = shape.heads + shape.kv_heads;
  if (head >= turned + shape.kv_heads) return;
  T* from = qkv + row * shape.qkv_stride + static_cast<int64_t>(head) * shape.head_dim;
  float2 low[kMost] = {}, high[kMost] = {};
  uint32_t largest = 0;
#pragma unroll
  for (int j = 0; j < kMost; ++j) {
    const int i = 2 * lane + 64 * j;
    if (i >= half) continue;
    low[j] = H::ToFloats(*reinterpret_cast<const Pair*>(from + i));
    high[j] = H::ToFloats(*reinterpret_cast<const Pair*>(from + half + i));
    if (head < turned) {
      const float4 angle =
          *reinterpret_cast<const float4*>(angles + static_cast<int64_t>(row) * half + i);
      const float2 a = low[j], b = high[j];
      low[j] = {a.x * angle.x - b.x * angle.y, a.y * angle.z - b.y * angle.w};
      high[j] = {b.x * angle.x + a.x * angle.y, b.y * angle.z + a.y * angle.w};
    }
    for (const float x : {low[j].x, low[j].y, high[j].x, high[j].y}) {
      largest = max(largest, __float_as_uint(fabsf(x)));  // as numbers: NaN is the largest
    }
  }
  if (head < shape.heads) {
#pragma unroll
    for (int j = 0; j < kMost; ++j) {
      const int i = 2 * lane + 64 * j;
      if (i >= half) continue;
      *reinterpret_cast<Pair*>(from + i) = H::FromFloats(low[j].x, low[j].y);
      *reinterpret_cast<Pair*>(from + half + i) = H::FromFloats(high[j].x, high[j].y);
    }
    return;
  }
  const bool is_key = head < turned;
  const int64_t token = TokenAt(batch, batch.row_sequence[row], batch.positions[row],
                                shape.kv_heads, head - (is_key ? shape.heads : turned));
  const uint32_t scale_bits = Fp8ScaleBits(__uint_as_float(__reduce_max_sync(~0u, largest)));
  const float inverse = 1 / __uint_as_float(scale_bits);
  auto* to = static_cast<uint8_t*>(is_key ? kv.keys : kv.values) + token * shape.head_dim;
  const auto store = [&](int element, float2 pair) {
    *reinterpret_cast<__nv_fp8x2_storage_t*>(to + Fp8Place(element)) =
        __nv_cvt_float2_to_fp8x2({pair.x * inverse, pair.y * inverse}, __NV_SATFINITE, __NV_E4M3);
  };
#pragma unroll
  for (int j = 0; j < kMost; ++j) {
    const int i = 2 * lane + 64 * j;
    if (i >= half) continue;
    store(i, low[j]);
    store(half + i, high[j]);
  }
  if (lane == 0) {
    auto* scales = reinterpret_cast<uint16_t*>(kv.scales + token);
    scales[is_key ? 0 : 1] = static_cast<uint16_t>(scale_bits >> 16);
  }
}

// Eight elements as four pairs.
template <typename T>
__device__ uint4 Scaled(const uint32_t (&pairs)[4], float scale) {
  using Pair = typename HalfTraits<T>::Pair;
  uint32_t scaled[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = HalfTraits<T>::ToFloats(reinterpret_cast<const Pair&>(pairs[i]));
    const Pair pair = HalfTraits<T>::FromFloats(x.x * scale, x.y * scale);
    scaled[i] = reinterpret_cast<const uint32_t&>(pair);
  }
  return {scaled[0], scaled[1], scaled[2], scaled[3]};
}

// Grid (blocks of the longest context, tiles): the first tile of a sequence expands its blocks, but
// for those that the sequence before has in the same places.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    ExpandKvKernel(DeviceBatch batch, int kv_heads, int head_dim, KvView kv, KvView wide) {
  StartNextKernel();
  WaitForLastKernel();
  const PrefillTile tile = batch.prefill_tiles[blockIdx.y];
  const int s = tile.sequence, index = static_cast<int>(blockIdx.x);
  if (tile.first_row != batch.row_begin[s]) return;
  const int first_token = index * kBlockTokens;
  if (first_token >= batch.context_lengths[s]) return;
  const int32_t* table = batch.block_tables + s * batch.table_stride;
  if (s > 0 && batch.row_begin[s] - batch.row_begin[s - 1] > 1 &&
      first_token < batch.context_lengths[s - 1] &&
      table[index - batch.table_stride] == table[index]) {
    return;
  }
  const int chunks = head_dim / 16, tokens = kv_heads * kBlockTokens;
  const int64_t first = static_cast<int64_t>(table[index]) * tokens;
  for (int i = static_cast<int>(threadIdx.x); i < tokens * chunks; i += kThreads) {
    const uint32_t scales = kv.scales[first + i / chunks];
    const int64_t chunk = first * chunks + i;
#pragma unroll
    for (const bool is_key : {true, false}) {
      const uint4 bytes = reinterpret_cast<const uint4*>(is_key ? kv.keys : kv.values)[chunk];
      const float scale = __uint_as_float(is_key ? scales << 16 : scales & 0xffff0000u);
      uint32_t low[4], high[4];  // elements 0 to 7, and 8 to 15
      const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const uint2 pairs = FromFp8<T>(words[q]);
        low[q] = pairs.x;
        high[q] = pairs.y;
      }
      uint4* to = reinterpret_cast<uint4*>(is_key ? wide.keys : wide.values) + 2 * chunk;
      to[0] = Scaled<T>(low, scale);
      to[1] = Scaled<T>(high, scale);
    }
  }
}

}  // namespace

void RopeAndStoreFp8(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
                     const float2* table, MatrixView qkv, KvView kv) {
  if (qkv.rows == 0) return;
  CHECK(attention.head_dim % 16 == 0 && attention.head_dim <= 256 && qkv.stride % 2 == 0,
        "heads of {}", attention.head_dim);
  const Fp8Shape shape{.heads = static_cast<int>(attention.heads),
                       .kv_heads = static_cast<int>(attention.kv_heads),
                       .head_dim = static_cast<int>(attention.head_dim),
                       .qkv_stride = qkv.stride};
  const int64_t heads = attention.heads + 2 * attention.kv_heads;
  const dim3 grid(static_cast<unsigned>(qkv.rows),
                  static_cast<unsigned>(CeilDiv<int64_t>(heads, kWarps)));
  WithHalfType(qkv.dtype, [&]<typename T>() {
    LaunchDependent(stream, RopeAndStoreFp8Kernel<T>, grid, kThreads, 0, batch, shape, table,
                    qkv.row<T>(0), kv);
  });
  stream.CheckLaunch("rope and KV store", qkv.rows, qkv.columns);
}

void ExpandKv(Stream& stream, const DeviceBatch& batch, const AttentionSpec& attention,
              DType activations, KvView kv, KvView wide) {
  if (batch.prefill_tile_count == 0) return;
  const dim3 grid(static_cast<unsigned>(CeilDiv<int64_t>(batch.longest_prefill, kBlockTokens)),
                  static_cast<unsigned>(batch.prefill_tile_count));
  WithHalfType(activations, [&]<typename T>() {
    LaunchDependent(stream, ExpandKvKernel<T>, grid, kThreads, 0, batch,
                    static_cast<int>(attention.kv_heads), static_cast<int>(attention.head_dim), kv,
                    wide);
  });
  stream.CheckLaunch("expanding the KV cache", batch.longest_prefill, batch.prefill_tile_count);
}

}  // namespace nibble::cuda
