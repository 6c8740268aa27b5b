// All layers of a step of one row, in one kernel.
//
// One row's products take as long as their weights' bytes; kernels of their own waste 2 to 3 µs each
// between the last byte of one and the first use of the next one's. Here one block on each
// multiprocessor stays for all layers, and its warps' rings of weights fill while rows are exchanged.
//
//   for each layer:  x ─ norm ─ qkv ─ attention ─ o ─ + ─ norm ─ gate, up ─ SiLU · ─ down ─ + ─ x
//   exchanged:       a         b       c              d                   e
//
// As in linear_q4_small.cu, a block has some tiles of each weight's outputs with all of their inputs,
// and its warps divide the inputs. So every block needs all of each exchanged row. Nobody waits at a
// barrier of all blocks: a row is written as packets of two elements and the step's and layer's
// number, eight bytes that are written and read at once, and readers read until the numbers are
// right. A row is written again only by blocks that have read rows which took everybody's reading of
// it to make, so one copy of each is enough.
//
// Attention: a block has some tokens of one head. Its warps' keys and values are on their way before
// the queries are there. Parts of a head are merged by whoever reads them, for the product with o.
#include "src/ops/cuda/fused_layers.h"

#include <algorithm>
#include <limits>

#include "src/base/checked.h"
#include "src/ops/cuda/attention_common.cuh"
#include "src/ops/cuda/cuda_linear.h"
#include "src/ops/cuda/hopper.cuh"
#include "src/ops/cuda/linear_q4_kernels.cuh"
#include "src/ops/cuda/load_matrices.cuh"

namespace nibble::cuda {
namespace {

using q4::kTileOutputs;
using q4::kUnitBytes;
using q4::kUnitInputs;

constexpr int kWarps = 16;  // that multiply
constexpr int kConsumers = 32 * kWarps;
// A further warpgroup helps: one warp copies weights, two wait for attention's newest rows.
constexpr int kThreads = kConsumers + 128;
// Of each thread, of the 96 with which the block starts.
constexpr int kConsumerRegisters = 104, kHelperRegisters = 64;
constexpr int kHeldUnits = 2;                        // of x in a warp's registers
constexpr int kStageUnits = kWarps * kHeldUnits;     // of one tile
constexpr int kMostStages = 8;
// A stage comes in pieces, for half of the warps each. While rows are exchanged, only one is under
// way, because the rows would wait behind them.
constexpr int kPieces = 2, kPieceUnits = kStageUnits / kPieces;
constexpr int kPiecesWhileMultiplying = 6, kPiecesWhileExchanging = 1;
constexpr int kMostLayers = 128;
constexpr int kMostParts = 4;      // of a head's context
constexpr int kMostEntries = 512;  // of the block table, of a part
constexpr int kNormRounds = 2;     // 8,192 inputs
constexpr int kDigits = 3;         // of an element of x
constexpr int kMostHeadDim = 128;
constexpr int kFetchedRounds = 3;  // at once

enum LinearOfLayer { kQkv, kOutput, kGateUp, kDown, kLinears };

// What a weight of one kind has in all layers.
struct FusedLinear {
  int tiles, units, inputs, outputs;
  uint32_t codes_at, scales_at, zeros_at, bias_at;  // zeros_at, bias_at: 0 for none
};

struct FusedLayer {
  const std::byte* weights[kLinears];
  const float *input_gain, *post_gain;
};

// What lies where in shared memory behind FusedFixed, in bytes.
struct FusedShared {
  int x, x_scales, sums, residual, total;
};

struct FusedArguments {
  FusedShared shared;
  FusedLinear linears[kLinears];
  int layers, stages;
  int units;       // of x, at most
  int sum_tiles;   // of a block, at most
  int heads, kv_heads, parts, window;
  float scale_log2, epsilon;
  std::byte* keys;  // of the first layer
  size_t half_layer_bytes;
  const int32_t* context;
  const int32_t* block_table;
  const float2* angles;
  void* residual;  // [hidden], replaced
  uint32_t* step;
  // Packets, see above. The parts: [heads, kMostParts, head_dim / 2], and the logarithm of their
  // weights' sum, [heads, kMostParts].
  uint64_t *qkv, *parts_packets, *part_sums, *middle, *gated, *out;
  FusedLayer layer[kMostLayers];
};

// A stage of the ring: up to kStageUnits units of one tile.
template <int kGranule>
struct Stage {
  static constexpr int kGrids = kUnitInputs / kGranule;
  static constexpr int kScales = kStageUnits * kUnitBytes;
  static constexpr int kZeros = kScales + kStageUnits * 32 * kGrids;
  static constexpr int kBytes = kZeros + kStageUnits * 16 * kGrids;
};

// What shared memory begins with; the ring follows.
struct alignas(128) FusedFixed {
  uint64_t full[kMostStages][kPieces], empty[kMostStages];
  uint64_t batch_is_here;  // what follows below is filled in
  float norm_sums[kWarps];
  float2 angles[kMostHeadDim / 2];
  int32_t entries[kMostEntries];  // of the block table, of the block's part
  // Of attention, turned: the block's head's queries, and the newest token's keys and values.
  alignas(16) float query[kMostHeadDim];
  alignas(16) uint2 key[kMostHeadDim / 4], value[kMostHeadDim / 4];
  volatile bool is_multiplying;  // and not waiting for rows
  int context, parts;
  // The block's part of attention: tokens of one head. No tokens where there is none.
  int head, kv_head, part, begin, end;
  bool stores;  // whether it writes the newest token's keys and values
};

#if NIBBLE_HOPPER_CODE

// At an address that the compiler knows: pointers in registers would be spilled, and rings leave the
// first-level cache no room for that.
extern __shared__ __align__(128) unsigned char shared[];
__device__ FusedFixed& Fixed() { return *reinterpret_cast<FusedFixed*>(shared); }
__device__ uint32_t AddressOf(int offset) {
  return SharedAddress(shared) + static_cast<uint32_t>(offset);
}
__device__ float* FloatsAt(int offset) { return reinterpret_cast<float*>(shared + offset); }

__device__ void StorePacket(uint64_t* to, uint32_t bits, uint32_t tag) {
  asm volatile("{\n.reg .b64 packet;\nmov.b64 packet, {%1, %2};\n"
               "st.relaxed.gpu.global.b64 [%0], packet;\n}" ::"l"(to),
               "r"(bits), "r"(tag)
               : "memory");
}
// Whether the packet has the tag.
__device__ bool LoadPacket(const uint64_t* from, uint32_t tag, uint32_t& bits) {
  uint32_t found;
  asm volatile("{\n.reg .b64 packet;\nld.relaxed.gpu.global.b64 packet, [%2];\n"
               "mov.b64 {%0, %1}, packet;\n}"
               : "=r"(bits), "=r"(found)
               : "l"(from)
               : "memory");
  return found == tag;
}
__device__ bool LoadPackets(const uint64_t* from, uint32_t tag, uint32_t (&bits)[2]) {
  uint32_t found[2];
  asm volatile("{\n.reg .b64 a, b;\nld.relaxed.gpu.global.v2.b64 {a, b}, [%4];\n"
               "mov.b64 {%0, %1}, a;\nmov.b64 {%2, %3}, b;\n}"
               : "=r"(bits[0]), "=r"(found[0]), "=r"(bits[1]), "=r"(found[1])
               : "l"(from)
               : "memory");
  return found[0] == tag && found[1] == tag;
}

// d = a · b + c: 16 outputs by 8 columns, of 32 inputs.
__device__ void MultiplyAddBytes(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3,
                                 uint32_t b0, uint32_t b1, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]),
        "r"(c[3]));
}

__device__ void Prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

__device__ void PrefetchBulk(const void* global, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes));
}

__device__ float SumOverWarp(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}

template <typename T>
__device__ float2 FloatsOf(uint32_t bits) {
  return HalfTraits<T>::ToFloats(reinterpret_cast<const typename HalfTraits<T>::Pair&>(bits));
}

// Where a row's packet lies: the two that one lane needs for a product, of elements 2t, 2t + 1 and 2t
// + 8, 2t + 9 of every 16, are neighbours.
__device__ int PlaceOf(int packet) {
  return (packet & ~7) | (packet & 3) << 1 | (packet >> 2 & 1);
}

// A block's tiles of a weight.
struct Tiles {
  int begin, count;
  __device__ explicit Tiles(int tiles)
      : begin(static_cast<int>(blockIdx.x * static_cast<uint32_t>(tiles) / gridDim.x)),
        count(static_cast<int>((blockIdx.x + 1) * static_cast<uint32_t>(tiles) / gridDim.x) -
              begin) {}
};
__device__ int RoundsOf(int units) { return (units + kStageUnits - 1) / kStageUnits; }

__device__ void SynchronizeConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}

// Where a thread is in the ring.
struct RingPlace {
  uint32_t slot = 0, parity = 0;
  __device__ void Advance(int stages) {
    if (++slot == stages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

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
// weight, for every round of units all tiles of the block. The first come before the kernel before is
// done, since they do not depend on it.
template <int kGranule, int kDim>
__device__ void BringWeights(const FusedArguments& a) {
  using S = Stage<kGranule>;
  const uint32_t ring = AddressOf(sizeof(FusedFixed));
  const uint32_t full = SharedAddress(Fixed().full), empty = SharedAddress(Fixed().empty);
  // No piece may be older than the ring, or its barrier's phase would be mistaken for another.
  const int most_pieces = min(kPiecesWhileMultiplying, a.stages * kPieces);
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
            while (asked - done >= (Fixed().is_multiplying ? most_pieces : kPiecesWhileExchanging)) {
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
            CopyBulk(to + begin * kUnitBytes, codes + from * kUnitBytes, count * kUnitBytes, barrier);
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
__device__ uint32_t FirstTag(const FusedArguments& a) {
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
constexpr int kAttentionThreads = kConsumers + 64;
__device__ void WaitForNewest() {
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
  return {x.x * angles[0].x + sign * v.x * angles[0].y, x.y * angles[1].x + sign * v.y * angles[1].y,
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

// All warps but the one that copies weights: once the kernel before is done, what a step's batch says
// comes to shared memory.
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

// A warp's part of all else that a block does.
template <typename T, int kGranule, int kDim>
class FusedWarp {
  using H = HalfTraits<T>;

 public:
  __device__ explicit FusedWarp(const FusedArguments& a)
      : a_(a),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void Run() {
    const uint32_t first_tag = FirstTag(a_);
    PublishResidual(first_tag);
#pragma unroll 1
    for (int layer = 0; layer < a_.layers; ++layer) {
      const uint32_t tag = first_tag + static_cast<uint32_t>(layer);
      const FusedLayer& weights = a_.layer[layer];
#pragma unroll 1
      for (int linear = 0; linear < kLinears; ++linear) {
        switch (linear) {
          case kOutput:
            FetchAttention(tag);
            break;
          case kDown:
            Fetch(a_.gated, tag);
            break;
          default:
            FetchNormed(linear == kQkv ? a_.out : a_.middle,
                        linear == kQkv ? weights.input_gain : weights.post_gain, tag);
        }
        if (linear == kQkv) PrefetchGains(weights.post_gain);
        if (linear == kGateUp) PrefetchGains(a_.layer[min(layer + 1, a_.layers - 1)].input_gain);
        Multiply(a_.linears[linear]);
        SynchronizeConsumers();
        Finish(linear, weights, linear == kDown ? tag + 1 : tag);
        if (linear == kQkv) Attend(layer, tag);
      }
    }
    // Everybody has read the number: nothing would be here otherwise.
    if (blockIdx.x == 0 && threadIdx.x == 0) ++*a_.step;
    const Tiles tiles(a_.linears[kDown].tiles);
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const int output = (tiles.begin + i) * kTileOutputs + lane_;
      if (lane_ < kTileOutputs && output < a_.linears[kDown].outputs) {
        static_cast<T*>(a_.residual)[output] = H::FromFloat(FloatsAt(a_.shared.residual)[i * kTileOutputs + lane_]);
      }
    }
  }

 private:
  // The block's part of the row that the step begins with.
  __device__ void PublishResidual(uint32_t tag) {
    const Tiles tiles(a_.linears[kDown].tiles);
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const int output = (tiles.begin + i) * kTileOutputs + lane_ % kTileOutputs;
      const bool inside = output < a_.linears[kDown].outputs;
      const float value =
          inside ? H::ToFloat(static_cast<const T*>(a_.residual)[output]) : 0.0f;
      if (lane_ < kTileOutputs) FloatsAt(a_.shared.residual)[i * kTileOutputs + lane_] = value;
      const float next = __shfl_down_sync(~0u, value, 1);
      if (inside && lane_ < kTileOutputs && lane_ % 2 == 0) {
        StorePacket(a_.out + PlaceOf(output / 2), PackHalves<T>(value, next), tag);
      }
    }
  }

  // A warp has two neighbouring units of each round; a lane of each four inputs, two and two, that
  // are one lane's of a product.
  __device__ int UnitOf(int round, int u) const {
    return round * kStageUnits + warp_ * kHeldUnits + u;
  }
  __device__ int FirstInput(int unit) const {
    return unit * kUnitInputs + lane_ / 4 * 16 + lane_ % 4 * 2;
  }
  // Waits for the elements of some rounds.
  template <int kRounds>
  __device__ void Receive(const uint64_t* from, uint32_t tag, int round, int inputs,
                          uint32_t (&bits)[kRounds * kHeldUnits][2]) const {
    bool come = false;
    do {
      if (come) continue;  // what waits asks again, nobody else
      come = true;
#pragma unroll
      for (int i = 0; i < kRounds * kHeldUnits; ++i) {
        const int unit = UnitOf(round + i / kHeldUnits, i % kHeldUnits);
        bits[i][0] = bits[i][1] = 0;
        if (FirstInput(unit) < inputs) {
          come &= LoadPackets(from + unit * (kUnitInputs / 2) + 2 * lane_, tag, bits[i]);
        }
      }
    } while (!__all_sync(~0u, come));
  }

  // Keeps a unit of x as integers of three signed digits of 8 bits and a power of two: the digits of
  // the largest are all in use.
  __device__ void PutX(int unit, float2 low, float2 high) const {
    const float largest =
        fmaxf(fmaxf(fabsf(low.x), fabsf(low.y)), fmaxf(fabsf(high.x), fabsf(high.y)));
    // Numbers without a sign compare as their bits do, and what is not a number as the largest.
    const bool is_number = low.x == low.x && low.y == low.y && high.x == high.x && high.y == high.y;
    const uint32_t bits =
        __reduce_max_sync(~0u, is_number ? __float_as_uint(largest) : 0x7fc00000u);
    const int exponent = max(static_cast<int>(bits >> 23), 30);  // biased
    const float factor = __int_as_float((127 + 127 + 21 - exponent) << 23);
    int q[4] = {__float2int_rn(low.x * factor), __float2int_rn(high.x * factor),
                __float2int_rn(low.y * factor), __float2int_rn(high.y * factor)};
#pragma unroll
    for (int digit = kDigits - 1; digit >= 0; --digit) {
      const uint32_t word =
          __byte_perm(__byte_perm(q[0], q[1], 0x0040), __byte_perm(q[2], q[3], 0x0040), 0x5410);
      asm volatile("st.shared.u32 [%0], %1;" ::"r"(AddressOf(a_.shared.x) + (unit * kDigits + digit) * kUnitInputs +
                                                    lane_ % 4 * 32 + lane_ / 4 * 4),
                   "r"(word)
                   : "memory");
#pragma unroll
      for (int& rest : q) rest = (rest + 128) >> 8;
    }
    if (lane_ == 0) {
      FloatsAt(a_.shared.x_scales)[unit] = bits >= 0x7f800000u ? __int_as_float(0x7fc00000)
                                            : __int_as_float((exponent - 21) << 23);
    }
  }

  __device__ void Fetch(const uint64_t* from, uint32_t tag) {
    BeginPhase();
    const FusedLinear& l = a_.linears[kDown];
#pragma unroll 1
    for (int first = 0; first < RoundsOf(l.units); first += kFetchedRounds) {
      uint32_t bits[kFetchedRounds * kHeldUnits][2];
      Receive<kFetchedRounds>(from, tag, first, l.inputs, bits);
#pragma unroll
      for (int i = 0; i < kFetchedRounds * kHeldUnits; ++i) {
        const int unit = UnitOf(first + i / kHeldUnits, i % kHeldUnits);
        if (unit < l.units) PutX(unit, FloatsOf<T>(bits[i][0]), FloatsOf<T>(bits[i][1]));
      }
    }
    __syncwarp();
  }

  // Into the second-level cache.
  __device__ void PrefetchGains(const float* gain) const {
    for (int round = 0; round < RoundsOf(a_.linears[kQkv].units); ++round) {
      const int k = UnitOf(round, 0) * kUnitInputs + lane_ * 8;
      if (k < a_.linears[kQkv].inputs) Prefetch(gain + k);
    }
  }
  // x · gain / sqrt(mean(x²) + epsilon)
  __device__ void FetchNormed(const uint64_t* from, const float* gain, uint32_t tag) {
    BeginPhase();
    constexpr int kUnits = kNormRounds * kHeldUnits;
    const FusedLinear& l = a_.linears[kQkv];
    float2 gains[kUnits][2];
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int k = FirstInput(UnitOf(i / kHeldUnits, i % kHeldUnits));
      const auto* of_k = reinterpret_cast<const float2*>(gain + k);
      gains[i][0] = k < l.inputs ? __ldg(of_k) : float2{};
      gains[i][1] = k + 8 < l.inputs ? __ldg(of_k + 4) : float2{};
    }
    uint32_t bits[kUnits][2];
    Receive<kNormRounds>(from, tag, 0, l.inputs, bits);
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float2 x = FloatsOf<T>(bits[i][j]);
        squares += x.x * x.x + x.y * x.y;
        gains[i][j] = {x.x * gains[i][j].x, x.y * gains[i][j].y};
      }
    }
    squares = SumOverWarp(squares);
    if (lane_ == 0) Fixed().norm_sums[warp_] = squares;
    SynchronizeConsumers();
    squares = Fixed().norm_sums[lane_ % kWarps];
#pragma unroll
    for (int step = kWarps / 2; step > 0; step /= 2) {
      squares += __shfl_xor_sync(~0u, squares, step);
    }
    const float factor = rsqrtf(squares / static_cast<float>(l.inputs) + a_.epsilon);
#pragma unroll
    for (int i = 0; i < kUnits; ++i) {
      const int unit = UnitOf(i / kHeldUnits, i % kHeldUnits);
      if (unit >= l.units) break;
      PutX(unit, {gains[i][0].x * factor, gains[i][0].y * factor},
           {gains[i][1].x * factor, gains[i][1].y * factor});
    }
    __syncwarp();
  }

  // The heads' outputs from those of their parts.
  __device__ void FetchAttention(uint32_t tag) {
    BeginPhase();
    const FusedLinear& l = a_.linears[kOutput];
    const int parts = Fixed().parts;
#pragma unroll 1
    for (int i = 0; i < RoundsOf(l.units) * kHeldUnits; ++i) {
      const int unit = UnitOf(i / kHeldUnits, i % kHeldUnits);
      if (unit >= l.units) break;
      const int k = FirstInput(unit), head = k / kDim;
      const bool inside = k < l.inputs;  // and so is k + 8
      uint32_t bits[kMostParts][2], sums[kMostParts];
      bool come;
      do {
        come = true;
#pragma unroll
        for (int p = 0; p < kMostParts; ++p) {
          const int at = head * kMostParts + p;
          const uint64_t* packets =
              a_.parts_packets + at * (kDim / 2) + (unit * (kUnitInputs / 2) + 2 * lane_) % (kDim / 2);
          bits[p][0] = bits[p][1] = 0;
          sums[p] = __float_as_uint(-INFINITY);
          if (p >= parts || !inside) continue;
          come &= LoadPackets(packets, tag, bits[p]) & LoadPacket(a_.part_sums + at, tag, sums[p]);
        }
      } while (!__all_sync(~0u, come));
      float top = __uint_as_float(sums[0]);
#pragma unroll
      for (int p = 1; p < kMostParts; ++p) top = fmaxf(top, __uint_as_float(sums[p]));
      float sum = 0;
      float2 low{}, high{};
#pragma unroll
      for (int p = 0; p < kMostParts; ++p) {
        const float factor = Exp2(__uint_as_float(sums[p]) - top);
        const float2 x = FloatsOf<T>(bits[p][0]), y = FloatsOf<T>(bits[p][1]);
        sum += factor;
        low = {fmaf(factor, x.x, low.x), fmaf(factor, x.y, low.y)};
        high = {fmaf(factor, y.x, high.x), fmaf(factor, y.y, high.y)};
      }
      const float share = inside ? __fdividef(1, sum) : 0;
      if (!inside) low = high = {};
      PutX(unit, {low.x * share, low.y * share}, {high.x * share, high.y * share});
    }
    __syncwarp();
  }

  static constexpr int kGrids = kUnitInputs / kGranule;
  static_assert(kHeldUnits == 2);
  // A unit of x as right operands: columns 0, 1 and 3 are its digits, the others zeros.
  struct HeldUnit {
    uint32_t x[8];
    float scale;       // of the lane's digits
    int sums[kGrids];  // of a granule's inputs, the lane's two columns together
  };
  // The two columns of a lane: 0 and 1, or 2 and 3.
  static __device__ int Together(int even, int odd) { return even * 256 + odd; }

  __device__ void Load(HeldUnit& held, int unit) const {
    const int column = lane_ / 4;
    uint4 low{}, high{};
    if (column < 2 || column == 3) {
      const uint32_t from =
          AddressOf(a_.shared.x) + (unit * kDigits + min(column, kDigits - 1)) * kUnitInputs + lane_ % 4 * 32;
      low = q4::LoadShared16(from);
      high = q4::LoadShared16(from + 16);
    }
    const uint32_t all[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) held.x[i] = all[i];
    held.scale = FloatsAt(a_.shared.x_scales)[unit] * (lane_ % 4 == 0 ? 256.0f : 1.0f);
    constexpr uint32_t kOnes = 0x01010101;
#pragma unroll
    for (int g = 0; g < kGrids; ++g) {
      int sums[4] = {};
#pragma unroll
      for (int i = g * 4 / kGrids; i < (g + 1) * 4 / kGrids; ++i) {
        MultiplyAddBytes(sums, kOnes, kOnes, kOnes, kOnes, held.x[2 * i], held.x[2 * i + 1], sums);
      }
      held.sums[g] = Together(sums[0], sums[1]);
    }
  }

  // A code of the upper outputs is the upper half of a byte, and counts 16 times; what it adds to the
  // lower outputs is taken away from their sums. The addresses are the lane's.
  template <bool kHasZeros>
  __device__ static void Consume(float (&sum)[2], uint32_t codes, uint32_t scales, uint32_t zeros,
                                 const HeldUnit& held) {
    constexpr uint32_t kUpper = 0xf0f0f0f0;
    uint4 q{};
#pragma unroll
    for (int g = 0; g < kGrids; ++g) {
      const float2 scale = q4::LoadSharedScales(scales + 32 * g);
      int low_zero = 8, high_zero = 8;
      if constexpr (kHasZeros) {
        const uchar2 pair = q4::LoadSharedZeros(zeros + 16 * g);
        low_zero = pair.x;
        high_zero = pair.y;
      }
      int sums[4] = {};
#pragma unroll
      for (int i = g * 4 / kGrids; i < (g + 1) * 4 / kGrids; ++i) {
        if (i % 2 == 0) q = q4::LoadShared16(codes + 256 * i);
        const uint32_t first = i % 2 == 0 ? q.x : q.z, second = i % 2 == 0 ? q.y : q.w;
        MultiplyAddBytes(sums, first, first & kUpper, second, second & kUpper, held.x[2 * i],
                         held.x[2 * i + 1], sums);
      }
      const int high = Together(sums[2], sums[3]), low = Together(sums[0], sums[1]) - high;
      sum[0] = fmaf(scale.x * held.scale, static_cast<float>(low - low_zero * held.sums[g]), sum[0]);
      sum[1] = fmaf(scale.y * held.scale, static_cast<float>(high - high_zero * 16 * held.sums[g]),
                    sum[1]);
    }
  }

  // The block's tiles times the units that the warp holds, to `own`, the lane's of a tile's sums.
  template <bool kHasZeros>
  __device__ void MultiplyTiles(const HeldUnit (&held)[kHeldUnits], int tiles, bool adds,
                                float* own) {
    using S = Stage<kGranule>;
    const uint32_t ring = AddressOf(sizeof(FusedFixed));
    const uint32_t full = SharedAddress(Fixed().full) + 8 * (warp_ / (kWarps / kPieces));
    const uint32_t codes = ring + warp_ * kHeldUnits * kUnitBytes + 16 * lane_;
    const uint32_t scales = ring + S::kScales + warp_ * kHeldUnits * 32 * kGrids + lane_ / 4 * 4;
    const uint32_t zeros = ring + S::kZeros + warp_ * kHeldUnits * 16 * kGrids + lane_ / 4 * 2;
#pragma unroll 1
    for (int i = 0; i < tiles; ++i, own += kWarps * kTileOutputs) {
      WaitForPhase(full + 8 * kPieces * place_.slot, place_.parity);
      const uint32_t stage = place_.slot * uint32_t{S::kBytes};
      float sums[kHeldUnits][2] = {};
#pragma unroll
      for (int u = 0; u < kHeldUnits; ++u) {
        Consume<kHasZeros>(sums[u], codes + stage + u * kUnitBytes, scales + stage + u * 32 * kGrids,
                           zeros + stage + u * 16 * kGrids, held[u]);
      }
      __syncwarp();
      if (lane_ == 0) Arrive(SharedAddress(Fixed().empty) + 8 * place_.slot);
      place_.Advance(a_.stages);
      float low = sums[0][0] + sums[1][0], high = sums[0][1] + sums[1][1];
      low += __shfl_down_sync(~0u, low, 1);
      high += __shfl_down_sync(~0u, high, 1);
      if (lane_ % 4 == 0) {  // all columns are the same row
        own[0] = adds ? own[0] + low : low;
        own[8] = adds ? own[8] + high : high;
      }
    }
  }

  // The block's tiles times x, to Sums().
  __device__ void Multiply(const FusedLinear& l) {
    BeginPhase();
    const int tiles = Tiles(l.tiles).count;
    float* const own = Sums() + warp_ * kTileOutputs + lane_ / 4;
    if (warp_ == 0 && lane_ == 0) Fixed().is_multiplying = true;
#pragma unroll 1
    for (int round = 0; round < RoundsOf(l.units); ++round) {
      HeldUnit held[kHeldUnits];
#pragma unroll
      for (int u = 0; u < kHeldUnits; ++u) {
        const int unit = UnitOf(round, u);
        Load(held[u], min(unit, l.units - 1));
        // Of a unit that there is not, whatever lies in the ring counts nothing.
        if (unit >= l.units) held[u].scale = 0;
      }
      if (l.zeros_at != 0) {
        MultiplyTiles<true>(held, tiles, round > 0, own);
      } else {
        MultiplyTiles<false>(held, tiles, round > 0, own);
      }
    }
    if (warp_ == 0 && lane_ == 0) Fixed().is_multiplying = false;
  }

  // Adds up the block's outputs and publishes them.
  __device__ void Finish(int linear, const FusedLayer& weights, uint32_t tag) {
    BeginPhase();
    const FusedLinear& l = a_.linears[linear];
    uint64_t* const packets = linear == kQkv      ? a_.qkv
                              : linear == kOutput ? a_.middle
                              : linear == kGateUp ? a_.gated
                                                  : a_.out;
    const Tiles tiles(l.tiles);
    const int own = lane_ % kTileOutputs, half = lane_ / kTileOutputs;
#pragma unroll 1
    for (int i = warp_; i < tiles.count; i += kWarps) {
      const float* from = Sums() + (i * kWarps + half) * kTileOutputs + own;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kWarps / 2; ++j) total += from[2 * j * kTileOutputs];
      total += __shfl_xor_sync(~0u, total, kTileOutputs);
      if (own >= 8) total *= 1.0f / 16;
      const int output = (tiles.begin + i) * kTileOutputs + own;
      const bool inside = output < l.outputs;
      if (l.bias_at != 0 && inside) {
        total += __ldg(reinterpret_cast<const float*>(weights.weights[linear] + l.bias_at) + output);
      }
      int element = output;
      if (linear == kGateUp) {
        const float up = __shfl_down_sync(~0u, total, 1);
        total = SiluMul(total, up);
        // Outputs 0, 2, ... to the first lanes.
        total = __shfl_sync(~0u, total, 2 * lane_ % kTileOutputs);
        element = (tiles.begin + i) * (kTileOutputs / 2) + own;
      } else if (linear != kQkv) {
        total = H::ToFloat(H::FromFloat(total + FloatsAt(a_.shared.residual)[i * kTileOutputs + own]));
        __syncwarp();
        if (half == 0) FloatsAt(a_.shared.residual)[i * kTileOutputs + own] = total;
      }
      const float next = __shfl_down_sync(~0u, total, 1);
      const int elements = linear == kGateUp ? kTileOutputs / 2 : kTileOutputs;
      const int end = linear == kGateUp ? l.outputs / 2 : l.outputs;
      if (lane_ < elements && lane_ % 2 == 0 && element < end) {
        const int place = linear == kQkv ? element / 2 : PlaceOf(element / 2);
        StorePacket(packets + place, PackHalves<T>(total, next), tag);
      }
    }
    // The next product's, or attention's, are others: they are written while these are read.
    in_other_sums_ = !in_other_sums_;
  }

  static constexpr int kLanes = kDim / 8;  // of a token's keys or values, eight each
  static constexpr int kWarpTokens = 32 / kLanes;
  static constexpr int kTokensAtOnce = 5;  // of a lane

  __device__ void Attend(int layer, uint32_t tag) {
    BeginPhase();
    const bool is_idle = Fixed().begin >= Fixed().end;
    if (!is_idle) AttendPart(layer, tag);
    SynchronizeConsumers();
    if (!is_idle) FinishPart(tag);
    in_other_sums_ = !in_other_sums_;
  }

  __device__ void AttendPart(int layer, uint32_t tag) {
    const int kv_head = Fixed().kv_head, begin = Fixed().begin, end = Fixed().end;
    const int context = Fixed().context;
    const int chunk = lane_ % kLanes;
    T *keys, *values;
    CacheOf(a_, layer, keys, values);
    const auto place_of = [&](int token) {
      return PlaceInCache<kDim>(a_, token, begin, kv_head) + chunk * 8;
    };
    float query[8], highest = -INFINITY, sum = 0, out[8] = {};
    // Backwards, so that the newest token is the first lanes' first.
    int token = end - 1 - warp_ * kWarpTokens - lane_ / kLanes;
    // Both are in the second-level cache already.
    const auto load = [&](const T* cache, int i) {
      const int t = token - i * kWarps * kWarpTokens;
      const bool is_here = t >= begin && (i > 0 || t != context - 1);
      return is_here ? *reinterpret_cast<const uint4*>(cache + place_of(t)) : uint4{};
    };
    uint4 k[kTokensAtOnce];
#pragma unroll
    for (int i = 0; i < kTokensAtOnce; ++i) k[i] = load(keys, i);
    WaitForNewest();
#pragma unroll
    for (int i = 0; i < 8; i += 4) {
      const float4 x = *reinterpret_cast<const float4*>(Fixed().query + chunk * 8 + i);
      query[i] = x.x;
      query[i + 1] = x.y;
      query[i + 2] = x.z;
      query[i + 3] = x.w;
    }
    // The newest is not in the cache yet.
    if (token == context - 1) k[0] = reinterpret_cast<const uint4*>(Fixed().key)[chunk];
    while (true) {
      uint4 v[kTokensAtOnce];
      float scores[kTokensAtOnce], top = highest;
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        const uint32_t words[4] = {k[i].x, k[i].y, k[i].z, k[i].w};
        v[i] = load(values, i);
        float score = 0;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 x = FloatsOf<T>(words[j]);
          score = fmaf(x.x, query[2 * j], score);
          score = fmaf(x.y, query[2 * j + 1], score);
        }
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2) {
          score += __shfl_xor_sync(~0u, score, step);
        }
        scores[i] = token - i * kWarps * kWarpTokens >= begin ? score * a_.scale_log2 : -INFINITY;
        top = fmaxf(top, scores[i]);
      }
      if (token == context - 1) v[0] = reinterpret_cast<const uint4*>(Fixed().value)[chunk];
      const float shift = top == -INFINITY ? 0.0f : top;
      const float factor = Exp2(highest - shift);
      highest = top;
      sum *= factor;
#pragma unroll
      for (float& x : out) x *= factor;
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) {
        const float weight = Exp2(scores[i] - shift);
        const uint32_t words[4] = {v[i].x, v[i].y, v[i].z, v[i].w};
        sum += weight;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float2 x = FloatsOf<T>(words[j]);
          out[2 * j] = fmaf(weight, x.x, out[2 * j]);
          out[2 * j + 1] = fmaf(weight, x.y, out[2 * j + 1]);
        }
      }
      token -= kTokensAtOnce * kWarps * kWarpTokens;
      if (!__any_sync(~0u, token >= begin)) break;
#pragma unroll
      for (int i = 0; i < kTokensAtOnce; ++i) k[i] = load(keys, i);
    }
    // The warp's tokens together.
#pragma unroll
    for (int step = kLanes; step < 32; step *= 2) {
      const float theirs = __shfl_xor_sync(~0u, highest, step), top = fmaxf(highest, theirs);
      const float shift = top == -INFINITY ? 0.0f : top;
      const float factor = Exp2(highest - shift), their_factor = Exp2(theirs - shift);
      highest = top;
      sum = sum * factor + __shfl_xor_sync(~0u, sum, step) * their_factor;
#pragma unroll
      for (float& x : out) x = x * factor + __shfl_xor_sync(~0u, x, step) * their_factor;
    }
    float* own = Sums() + warp_ * kPartStride;
    if (lane_ < kLanes) {
      auto* to = reinterpret_cast<float4*>(own + chunk * 8);
      to[0] = {out[0], out[1], out[2], out[3]};
      to[1] = {out[4], out[5], out[6], out[7]};
    }
    if (lane_ == 0) {
      own[kDim] = highest;
      own[kDim + 1] = sum;
    }
  }

  __device__ void FinishPart(uint32_t tag) {
    const int dim = warp_ * 32 + lane_;
    if (dim >= kDim) return;
    float top = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) top = fmaxf(top, Sums()[w * kPartStride + kDim]);
    float sum = 0, out = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float* from = Sums() + w * kPartStride;
      const float factor = Exp2(from[kDim] - top);
      sum = fmaf(factor, from[kDim + 1], sum);
      out = fmaf(factor, from[dim], out);
    }
    out = __fdividef(out, sum);
    const float next = __shfl_down_sync(~0u, out, 1);
    const int at = Fixed().head * kMostParts + Fixed().part;
    if (dim % 2 == 0) {
      StorePacket(a_.parts_packets + at * (kDim / 2) + PlaceOf(dim / 2), PackHalves<T>(out, next),
                  tag);
    }
    if (dim == 0) StorePacket(a_.part_sums + at, __float_as_uint(top + __log2f(sum)), tag);
  }

  static constexpr int kPartStride = kDim + 4;  // of a warp's sums in attention

  // To be called where a phase begins: keeps the compiler from computing all phases' addresses before
  // the first layer, since it would then have to spill them.
  __device__ void BeginPhase() { asm volatile("" : "+r"(warp_), "+r"(lane_)); }

  // What products and attention leave for each other's warps takes turns with what is being read.
  __device__ float* Sums() const {  // [tiles][warps][16], or attention's [warps][kPartStride]
    const int size = a_.sum_tiles * kWarps * kTileOutputs;
    return FloatsAt(a_.shared.sums) + (in_other_sums_ ? size : 0);
  }

  const FusedArguments& a_;
  int warp_, lane_;
  RingPlace place_;
  bool in_other_sums_ = false;
};

#endif  // NIBBLE_HOPPER_CODE

template <typename T, int kGranule, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    FusedLayersKernel(const __grid_constant__ FusedArguments a) {
#if NIBBLE_HOPPER_CODE
  const auto thread = static_cast<int>(threadIdx.x);
  if (thread < a.stages) {
    for (uint64_t& full : Fixed().full[thread]) InitializeBarrier(SharedAddress(&full), 1);
    InitializeBarrier(SharedAddress(Fixed().empty + thread), kWarps);
  }
  if (thread == 0) {
    InitializeBarrier(SharedAddress(&Fixed().batch_is_here), 1);
    Fixed().is_multiplying = true;
  }
  PublishBarriers();
  // Where no scales have been yet must be no NaN, see Multiply.
  using S = Stage<kGranule>;
  for (int i = thread; i < a.stages * (S::kZeros - S::kScales) / 4; i += kThreads) {
    constexpr int kWords = (S::kZeros - S::kScales) / 4;
    *FloatsAt(sizeof(FusedFixed) + i / kWords * S::kBytes + S::kScales + i % kWords * 4) = 0;
  }
  ShowToProducts();  // and to copies
  __syncthreads();
  StartNextKernel();
  // The same in all lanes, so that the compiler sees it.
  if (__shfl_sync(~0u, thread / 128, 0) == kWarps / 4) {
    GiveRegisters<kHelperRegisters>();
    if (thread == kConsumers) BringWeights<kGranule, kDim>(a);
    const int helper = thread / 32 - kWarps;
    if (helper == 0) return;
    WaitForBatch<kDim>(a);
    const uint32_t tag = FirstTag(a);
    if (helper == 1) BringQueries<T, kDim>(a, tag);
    if (helper == 2) BringNewest<T, kDim>(a, tag);
  } else {
    TakeRegisters<kConsumerRegisters>();
    WaitForBatch<kDim>(a);
    FusedWarp<T, kGranule, kDim>(a).Run();
  }
#endif
}

const CudaLinear& WeightOf(const DecoderLayer& layer, int linear) {
  const PreparedLinear* const all[] = {layer.qkv, layer.output, layer.gate_up, layer.down};
  return static_cast<const CudaLinear&>(*all[linear]);
}

q4::Geometry GeometryOf(const CudaLinear& weight) {
  const Q4Layout& layout = *weight.layout().q4;
  return q4::Geometry::Of(layout.out_features, layout.in_features, layout.group_length);
}

// Of the first layer's weights, and what follows from them.
FusedArguments ShapeOf(std::span<const DecoderLayer> layers, int multiprocessors) {
  FusedArguments a{};
  a.layers = static_cast<int>(layers.size());
  int units = 0, tiles = 0;
  for (int i = 0; i < kLinears; ++i) {
    const CudaLinear& weight = WeightOf(layers[0], i);
    const q4::Geometry geometry = GeometryOf(weight);
    const Q4Layout& layout = *weight.layout().q4;
    a.linears[i] = {
        .tiles = geometry.tiles,
        .units = geometry.units,
        .inputs = geometry.in_features,
        .outputs = geometry.out_features,
        .codes_at = static_cast<uint32_t>(layout.codes_offset),
        .scales_at = static_cast<uint32_t>(layout.scales_offset),
        .zeros_at = layout.symmetric ? 0 : static_cast<uint32_t>(layout.zeros_offset),
        .bias_at = weight.layout().has_bias ? static_cast<uint32_t>(weight.layout().bias_at) : 0};
    units = std::max(units, geometry.units);
    tiles = std::max(tiles, CeilDiv(geometry.tiles, multiprocessors));
  }
  const AttentionSpec& attention = layers[0].attention;
  a.units = units;
  // Attention's sums take the place of some tiles'.
  a.sum_tiles = std::max(tiles, static_cast<int>(attention.head_dim) / kTileOutputs + 1);
  a.heads = static_cast<int>(attention.heads);
  a.kv_heads = static_cast<int>(attention.kv_heads);
  a.parts = std::min(kMostParts, multiprocessors / a.heads);
  a.window = WindowOf(attention);
  a.scale_log2 = attention.scale * kLog2E;
  return a;
}

// Gives the ring as many stages as there is room for, and all else its place; false where there is too
// little.
template <int kGranule>
bool Place(FusedArguments& a) {
  const int x = a.units * kDigits * kUnitInputs, x_scales = RoundUp(a.units, 4) * 4;
  const int sums = 2 * a.sum_tiles * kWarps * kTileOutputs * 4;
  const int residual = a.sum_tiles * kTileOutputs * 4;
  const auto available = static_cast<int>(q4::SharedMemory::OfDevice().of_block);
  const int rest = available - int{sizeof(FusedFixed)} - x - x_scales - sums - residual;
  a.stages = std::min(rest / Stage<kGranule>::kBytes, kMostStages);
  a.shared.x = int{sizeof(FusedFixed)} + a.stages * Stage<kGranule>::kBytes;
  a.shared.x_scales = a.shared.x + x;
  a.shared.sums = a.shared.x_scales + x_scales;
  a.shared.residual = a.shared.sums + sums;
  a.shared.total = a.shared.residual + residual;
  return a.stages >= 2;
}

// Calls body.template operator()<granule>().
template <typename Body>
auto WithGranule(int granule, const Body& body) {
  switch (granule) {
    case 32:
      return body.template operator()<32>();
    case 64:
      return body.template operator()<64>();
    default:
      return body.template operator()<128>();
  }
}

constexpr size_t Aligned(size_t bytes) { return RoundUp<size_t>(bytes, 256); }

}  // namespace

bool CanFuseLayers(std::span<const DecoderLayer> layers, const KvLayout& cache, int64_t context,
                   int multiprocessors) {
  if (layers.empty() || layers.size() > kMostLayers || !q4::HasHopperProduct()) return false;
  const AttentionSpec& attention = layers[0].attention;
  if (cache.scaled() || (attention.head_dim != 64 && attention.head_dim != 128) ||
      attention.heads > multiprocessors) {
    return false;
  }
  int granule = 0;
  for (const DecoderLayer& layer : layers) {
    if (layer.attention.window != attention.window) return false;
    for (int i = 0; i < kLinears; ++i) {
      const CudaLinear& weight = WeightOf(layer, i);
      const LinearLayout& layout = weight.layout();
      if (!layout.q4 || layout.has_order) return false;
      const LinearLayout& first = WeightOf(layers[0], i).layout();
      if (layout.total_bytes != first.total_bytes || layout.has_bias != first.has_bias ||
          layout.q4->symmetric != first.q4->symmetric ||
          layout.q4->group_length != first.q4->group_length ||
          layout.total_bytes > std::numeric_limits<uint32_t>::max()) {
        return false;
      }
      const q4::Geometry geometry = GeometryOf(weight);
      if (granule == 0) granule = geometry.granule;
      if (geometry.spreads || geometry.granule != granule ||
          geometry.scale_groups != geometry.units * geometry.scales_per_unit() ||
          geometry.in_features % 16 != 0) {
        return false;
      }
    }
  }
  FusedArguments a = ShapeOf(layers, multiprocessors);
  const int64_t part = CeilDiv<int64_t>(std::min<int64_t>(context, a.window), a.parts);
  return CeilDiv(a.linears[kQkv].units, kStageUnits) <= kNormRounds &&
         CeilDiv<int64_t>(part, kBlockTokens) + 1 <= kMostEntries &&
         WithGranule(granule, [&]<int kGranule>() { return Place<kGranule>(a); });
}

namespace {

// Offsets in bytes of what the kernel keeps in scratch memory.
struct FusedScratch {
  size_t step = 0, qkv, parts, part_sums, middle, gated, out, total;
  FusedScratch(int64_t hidden, int64_t intermediate, int64_t heads, int64_t kv_heads,
               int64_t head_dim) {
    size_t end = Aligned(sizeof(uint32_t));
    const auto packets = [&end](int64_t count) {
      const size_t begin = end;
      end += Aligned(static_cast<size_t>(count) * sizeof(uint64_t));
      return begin;
    };
    qkv = packets((heads + 2 * kv_heads) * head_dim / 2);
    parts = packets(heads * kMostParts * head_dim / 2);
    part_sums = packets(heads * kMostParts);
    middle = packets(CeilDiv<int64_t>(hidden, 2));
    gated = packets(CeilDiv<int64_t>(intermediate, 2));
    out = packets(CeilDiv<int64_t>(hidden, 2));
    total = end;
  }
};

}  // namespace

size_t FusedLayersScratchBytes(const ModelExtents& model) {
  return FusedScratch(model.hidden, model.intermediate, model.heads, model.kv_heads,
                      model.head_dim)
      .total;
}

void RunFusedLayers(Stream& stream, const DeviceBatch& batch, std::span<const DecoderLayer> layers,
                    const float2* angles, float epsilon, const FusedKv& kv, MatrixView residual,
                    void* scratch) {
  CHECK(batch.rows == 1 && residual.rows == 1 && batch.prefill_tile_count == 0);
  FusedArguments a = ShapeOf(layers, stream.multiprocessors());
  const AttentionSpec& attention = layers[0].attention;
  const FusedScratch places(a.linears[kOutput].outputs, a.linears[kDown].inputs, a.heads,
                            a.kv_heads, attention.head_dim);
  auto* const memory = static_cast<std::byte*>(scratch);
  const auto packets = [memory](size_t at) { return reinterpret_cast<uint64_t*>(memory + at); };
  a.epsilon = epsilon;
  a.keys = kv.keys;
  a.half_layer_bytes = kv.half_layer_bytes;
  a.context = batch.context_lengths;
  a.block_table = batch.block_tables;
  a.angles = angles;
  a.residual = residual.data;
  a.step = reinterpret_cast<uint32_t*>(memory + places.step);
  a.qkv = packets(places.qkv);
  a.parts_packets = packets(places.parts);
  a.part_sums = packets(places.part_sums);
  a.middle = packets(places.middle);
  a.gated = packets(places.gated);
  a.out = packets(places.out);
  for (size_t i = 0; i < layers.size(); ++i) {
    for (int j = 0; j < kLinears; ++j) {
      a.layer[i].weights[j] = static_cast<const std::byte*>(WeightOf(layers[i], j).weight());
    }
    a.layer[i].input_gain = layers[i].input_norm.row<float>(0);
    a.layer[i].post_gain = layers[i].post_attention_norm.row<float>(0);
  }
  WithGranule(GeometryOf(WeightOf(layers[0], kQkv)).granule, [&]<int kGranule>() {
    Place<kGranule>(a);
    WithHalfType(residual.dtype, [&]<typename T>() {
      auto* const kernel = attention.head_dim == 64 ? FusedLayersKernel<T, kGranule, 64>
                                                    : FusedLayersKernel<T, kGranule, 128>;
      LaunchDependent(stream, kernel, static_cast<unsigned>(stream.multiprocessors()), kThreads,
                      static_cast<size_t>(a.shared.total), a);
    });
  });
  stream.CheckLaunch("a step's layers", 1, residual.columns);
}

}  // namespace nibble::cuda
