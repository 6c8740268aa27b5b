// What the warps of fused_layers.cu have in common: arguments, shared memory, the packets of
// exchanged rows.
#ifndef NIBBLE_OPS_CUDA_FUSED_LAYERS_SHARED_CUH_
#define NIBBLE_OPS_CUDA_FUSED_LAYERS_SHARED_CUH_

#include "src/ops/cuda/attention_common.cuh"
#include "src/ops/cuda/hopper.cuh"
#include "src/ops/cuda/linear_q4_kernels.cuh"
#include "src/ops/cuda/warp_sum.cuh"

namespace nibble::cuda::fused {

using q4::kTileOutputs;
using q4::kUnitBytes;
using q4::kUnitInputs;

inline constexpr int kWarps = 16;  // that multiply
inline constexpr int kConsumers = 32 * kWarps;
// A further warpgroup helps: one warp copies weights, two wait for attention's newest rows.
inline constexpr int kThreads = kConsumers + 128;
// Of each thread, of the 96 with which the block starts.
inline constexpr int kConsumerRegisters = 104, kHelperRegisters = 64;
inline constexpr int kHeldUnits = 2;                     // of x in a warp's registers
inline constexpr int kStageUnits = kWarps * kHeldUnits;  // of one tile
inline constexpr int kMostStages = 8;
// A stage comes in pieces, for half of the warps each. While a block waits for a row, only one is
// under way, because the row would wait behind them.
inline constexpr int kPieces = 2, kPieceUnits = kStageUnits / kPieces;
inline constexpr int kPiecesOtherwise = 8, kPiecesWhileWaiting = 1;
inline constexpr int kMostLayers = 128;
inline constexpr int kMostParts = 4;      // of a head's context
inline constexpr int kMostEntries = 512;  // of the block table, of a part
inline constexpr int kNormRounds = 2;     // of a row that is normalized: up to 8,192 inputs
inline constexpr int kFetchedRounds = 3;  // at once, of longer rows
inline constexpr int kDigits = 3;         // of an element of x
inline constexpr int kMostHeadDim = 128;

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
  int units;      // of x, at most
  int sum_tiles;  // of a block, at most
  int heads, kv_heads, parts, window;
  float scale_log2, epsilon;
  std::byte* keys;  // of the first layer
  size_t half_layer_bytes;
  const int32_t* context;
  const int32_t* block_table;
  const float2* angles;
  void* residual;  // [hidden], replaced
  uint32_t* step;
  // Packets of the exchanged rows. Attention's parts: [heads, kMostParts, head_dim / 2], and the
  // logarithm of their weights' sum, [heads, kMostParts].
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
  volatile bool waits_for_row;
  int context, parts;
  // The block's part of attention: tokens of one head. No tokens where there is none.
  int head, kv_head, part, begin, end;
  bool stores;  // whether it writes the newest token's keys and values
};

#if NIBBLE_HOPPER_CODE

// At an address that the compiler knows: pointers in registers would be spilled, and rings leave
// the first-level cache no room for that.
extern __shared__ __align__(128) unsigned char shared[];
inline __device__ FusedFixed& Fixed() { return *reinterpret_cast<FusedFixed*>(shared); }
inline __device__ uint32_t AddressOf(int offset) {
  return SharedAddress(shared) + static_cast<uint32_t>(offset);
}
inline __device__ float* FloatsAt(int offset) { return reinterpret_cast<float*>(shared + offset); }

// A packet is two elements and a tag, written and read at once.
inline __device__ void StorePacket(uint64_t* to, uint32_t bits, uint32_t tag) {
  asm volatile(
      "{\n.reg .b64 packet;\nmov.b64 packet, {%1, %2};\n"
      "st.relaxed.gpu.global.b64 [%0], packet;\n}" ::"l"(to),
      "r"(bits), "r"(tag)
      : "memory");
}
// Whether the packet has the tag.
inline __device__ bool LoadPacket(const uint64_t* from, uint32_t tag, uint32_t& bits) {
  uint32_t found;
  asm volatile(
      "{\n.reg .b64 packet;\nld.relaxed.gpu.global.b64 packet, [%2];\n"
      "mov.b64 {%0, %1}, packet;\n}"
      : "=r"(bits), "=r"(found)
      : "l"(from)
      : "memory");
  return found == tag;
}
// The same of two that are neighbours.
inline __device__ bool LoadPackets(const uint64_t* from, uint32_t tag, uint32_t (&bits)[2]) {
  uint32_t found[2];
  asm volatile(
      "{\n.reg .b64 a, b;\nld.relaxed.gpu.global.v2.b64 {a, b}, [%4];\n"
      "mov.b64 {%0, %1}, a;\nmov.b64 {%2, %3}, b;\n}"
      : "=r"(bits[0]), "=r"(found[0]), "=r"(bits[1]), "=r"(found[1])
      : "l"(from)
      : "memory");
  return found[0] == tag && found[1] == tag;
}

// d = a · b + c: 16 outputs by 8 columns, of 32 inputs.
inline __device__ void MultiplyAddBytes(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                        uint32_t a3, uint32_t b0, uint32_t b1, const int (&c)[4]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
      : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]), "r"(c[2]),
        "r"(c[3]));
}

inline __device__ void Prefetch(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

inline __device__ void PrefetchBulk(const void* global, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes));
}

template <typename T>
__device__ float2 FloatsOf(uint32_t bits) {
  return HalfTraits<T>::ToFloats(reinterpret_cast<const typename HalfTraits<T>::Pair&>(bits));
}

// Where a row's packet lies. Those of elements {2t, 2t + 1} and {2t + 8, 2t + 9} of every 16 are
// neighbours: a lane needs both for a product.
inline __device__ int PlaceOf(int packet) {
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
inline __device__ int RoundsOf(int units) { return (units + kStageUnits - 1) / kStageUnits; }

inline __device__ void SynchronizeConsumers() {
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

#endif  // NIBBLE_HOPPER_CODE

}  // namespace nibble::cuda::fused

#endif  // NIBBLE_OPS_CUDA_FUSED_LAYERS_SHARED_CUH_
