// What helps the warps that multiply in fused_layers.cu: the copying of weights, and the receiving
// of attention's newest rows.
#ifndef NIBBLE_OPS_CUDA_FUSED_LAYERS_HELPERS_CUH_
#define NIBBLE_OPS_CUDA_FUSED_LAYERS_HELPERS_CUH_

#include "src/ops/cuda/fused_layers_shared.cuh"

namespace nibble::cuda::fused {

#if NIBBLE_HOPPER_CODE

// What attention will read of a layer's cache, to the second-level cache.
template <int kDim>
__device__ void PrefetchCache(const FusedArguments& a, int layer) {
  if (Fixed().begin >= Fixed().end) return;
  const int first = Fixed().begin / kBlockTokens;
  constexpr int kBytes = kBlockTokens * kDim * 2;
  const std::byte* keys = a.keys + 2 * layer * a.half_layer_bytes;
#pragma unroll 1
  for (int i = first; i * kBlockTokens < Fixed().end; ++i) {
    const int64_t block = Fixed().entries[i - first] * a.kv_heads + Fixed().kv_head;
    PrefetchBulk(keys + block * kBytes, kBytes);
    PrefetchBulk(keys + a.half_layer_bytes + block * kBytes, kBytes);
  }
}

// A thread's work: all weights to the ring, in the order of their use: layer by layer, weight by
// weight, for every round of units all tiles of the block. The first come before the kernel before
// is done, since they do not depend on it.
template <int kGranule, int kDim>
__device__ void BringWeights(const FusedArguments& a) {
  using S = Stage<kGranule>;
  const uint32_t ring = AddressOf(sizeof(FusedFixed));
  const uint32_t full = SharedAddress(Fixed().full), empty = SharedAddress(Fixed().empty);
  // No piece may be older than the ring, or its barrier's phase would be mistaken for another.
  const int most_pieces = min(kPiecesOtherwise, a.stages * kPieces);
  RingPlace place, under_way;  // to fill; the oldest that may be on its way
  int asked = 0, done = 0;     // pieces
#pragma unroll 1
  for (int layer = 0; layer < a.layers; ++layer) {
#pragma unroll 1
    for (int linear = 0; linear < kLinears; ++linear) {
      const FusedLinear& l = a.linears[linear];
      const std::byte* weight = a.layer[layer].weights[linear];
      const std::byte *codes = weight + l.codes_at, *scales = weight + l.scales_at,
                      *zeros = weight + l.zeros_at;
      const Tiles tiles(l.tiles);
      if (linear == kOutput) {
        WaitForPhase(SharedAddress(&Fixed().batch_is_here), 0);
        PrefetchCache<kDim>(a, layer);
      }
#pragma unroll 1
      for (int first = 0; first < l.units; first += kStageUnits) {
        const int units = min(kStageUnits, l.units - first);
        const int per_unit = kUnitBytes + (l.zeros_at != 0 ? 48 : 32) * S::kGrids;
#pragma unroll 1
        for (int i = 0; i < tiles.count; ++i) {
          const auto at = static_cast<uint32_t>((tiles.begin + i) * l.units + first);
          if (asked >= a.stages * kPieces) WaitForPhase(empty + 8 * place.slot, place.parity ^ 1);
#pragma unroll 1
          for (int piece = 0; piece < kPieces; ++piece, ++asked) {
            while (asked - done >= (Fixed().waits_for_row ? kPiecesWhileWaiting : most_pieces)) {
              if (!HasPhaseEnded(full + 8 * (under_way.slot * kPieces + done % kPieces),
                                 under_way.parity)) {
                continue;
              }
              if (++done % kPieces == 0) under_way.Advance(a.stages);
            }
            const int begin = piece * kPieceUnits, count = min(units - begin, kPieceUnits);
            const uint32_t barrier = full + 8 * (place.slot * kPieces + piece);
            ArriveExpecting(barrier, max(count, 0) * per_unit);
            if (count <= 0) continue;
            const uint32_t from = at + begin, to = ring + place.slot * S::kBytes;
            CopyBulk(to + begin * kUnitBytes, codes + from * kUnitBytes, count * kUnitBytes,
                     barrier);
            CopyBulk(to + S::kScales + begin * 32 * S::kGrids, scales + from * (32 * S::kGrids),
                     count * 32 * S::kGrids, barrier);
            if (l.zeros_at != 0) {
              CopyBulk(to + S::kZeros + begin * 16 * S::kGrids, zeros + from * (16 * S::kGrids),
                       count * 16 * S::kGrids, barrier);
            }
          }
          place.Advance(a.stages);
        }
      }
    }
  }
}

// The packets' number in the first layer; each layer has its own, and one more is the row's that a
// step begins with.
inline __device__ uint32_t FirstTag(const FusedArguments& a) {
  return *a.step * static_cast<uint32_t>(a.layers + 1) + 1;
}

// One layer's cache.
template <typename T>
__device__ void CacheOf(const FusedArguments& a, int layer, T*& keys, T*& values) {
  keys = reinterpret_cast<T*>(a.keys + 2 * layer * a.half_layer_bytes);
  values = reinterpret_cast<T*>(a.keys + (2 * layer + 1) * a.half_layer_bytes);
}
// Where a token's elements begin in it; begin: of the block's part.
template <int kDim>
__device__ int64_t PlaceInCache(const FusedArguments& a, int token, int begin, int kv_head) {
  const int block = Fixed().entries[token / kBlockTokens - begin / kBlockTokens];
  const int64_t row = static_cast<int64_t>(block * a.kv_heads + kv_head) * kBlockTokens;
  return (row + token % kBlockTokens) * kDim;
}

// Consumers and the two warps that wait for attention's newest rows.
inline constexpr int kAttentionThreads = kConsumers + 64;
inline __device__ void WaitForNewest() {
  asm volatile("bar.sync 2, %0;" ::"n"(kAttentionThreads) : "memory");
}

// Waits for a head's elements, four a lane, and turns them by the newest token's angles.
template <typename T, int kDim>
__device__ float4 ReceiveTurned(const uint64_t* head, uint32_t tag, int lane) {
  constexpr int kLanes = kDim / 4;
  uint32_t own[2], other[2];
  while (!(LoadPackets(head + lane * 2, tag, own) &
           LoadPackets(head + (lane ^ (kLanes / 2)) * 2, tag, other))) {
  }
  const float sign = lane < kLanes / 2 ? -1.0f : 1.0f;
  const float2* angles = Fixed().angles + lane % (kLanes / 2) * 4;
  const float2 x = FloatsOf<T>(own[0]), y = FloatsOf<T>(own[1]);
  const float2 v = FloatsOf<T>(other[0]), w = FloatsOf<T>(other[1]);
  return {
      x.x * angles[0].x + sign * v.x * angles[0].y, x.y * angles[1].x + sign * v.y * angles[1].y,
      y.x * angles[2].x + sign * w.x * angles[2].y, y.y * angles[3].x + sign * w.y * angles[3].y};
}

// A warp's work: each layer's queries of the block's head, to shared memory.
template <typename T, int kDim>
__device__ void BringQueries(const FusedArguments& a, uint32_t tag) {
  if (Fixed().begin >= Fixed().end) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint64_t* const head = a.qkv + Fixed().head * (kDim / 2);
#pragma unroll 1
  for (int layer = 0; layer < a.layers; ++layer, ++tag) {
    if (lane < kDim / 4) {
      reinterpret_cast<float4*>(Fixed().query)[lane] = ReceiveTurned<T, kDim>(head, tag, lane);
    }
    __syncwarp();
    WaitForNewest();
  }
}
// The newest token's keys and values, to shared memory and to the cache, where the block's part has
// that token.
template <typename T, int kDim>
__device__ void BringNewest(const FusedArguments& a, uint32_t tag) {
  if (Fixed().begin >= Fixed().end) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_mine = Fixed().end == Fixed().context && lane < kDim / 4;
  const uint64_t* const head = a.qkv + (a.heads + Fixed().kv_head) * (kDim / 2);
#pragma unroll 1
  for (int layer = 0; layer < a.layers; ++layer, ++tag) {
    if (is_mine) {
      const float4 x = ReceiveTurned<T, kDim>(head, tag, lane);
      const uint2 key = {PackHalves<T>(x.x, x.y), PackHalves<T>(x.z, x.w)};
      uint32_t value[2];
      while (!LoadPackets(head + a.kv_heads * (kDim / 2) + lane * 2, tag, value)) {
      }
      Fixed().key[lane] = key;
      Fixed().value[lane] = {value[0], value[1]};
      if (Fixed().stores) {
        T *keys, *values;
        CacheOf(a, layer, keys, values);
        const int64_t place =
            PlaceInCache<kDim>(a, Fixed().context - 1, Fixed().begin, Fixed().kv_head) + lane * 4;
        *reinterpret_cast<uint2*>(keys + place) = key;
        *reinterpret_cast<uint2*>(values + place) = {value[0], value[1]};
      }
    }
    __syncwarp();
    WaitForNewest();
  }
}

// All warps but the one that copies weights: once the kernel before is done, what a step's batch
// says comes to shared memory.
template <int kDim>
__device__ void WaitForBatch(const FusedArguments& a) {
  const auto thread = static_cast<int>(threadIdx.x);
  WaitForLastKernel();
  if (thread < kDim / 2) Fixed().angles[thread] = a.angles[thread];
  // A context is divided into parts of `length` tokens from the first on that is seen.
  const int context = *a.context, seen = max(0, context - a.window);
  const int length = (context - seen + a.parts - 1) / a.parts;
  const int part = static_cast<int>(blockIdx.x) % a.parts, begin = seen + part * length;
  const int end = min(begin + length, context);
  const int first_block = begin / kBlockTokens;
  for (int i = thread; thread < kConsumers && (first_block + i) * kBlockTokens < end;
       i += kConsumers) {
    Fixed().entries[i] = a.block_table[first_block + i];
  }
  if (thread == 0) {
    const int head = static_cast<int>(blockIdx.x) / a.parts, group = a.heads / a.kv_heads;
    Fixed().context = context;
    Fixed().parts = (context - seen + length - 1) / length;
    Fixed().head = head;
    Fixed().kv_head = head / group;
    Fixed().part = part;
    Fixed().begin = begin;
    Fixed().end = head < a.heads ? end : begin;
    Fixed().stores = head % group == 0;
  }
  asm volatile("bar.sync 3, %0;" ::"n"(kThreads - 32) : "memory");
  if (thread == 0) Arrive(SharedAddress(&Fixed().batch_is_here));
}

#endif  // NIBBLE_HOPPER_CODE

}  // namespace nibble::cuda::fused

#endif  // NIBBLE_OPS_CUDA_FUSED_LAYERS_HELPERS_CUH_
