// What the parts of linear_q4_hopper.cu share: the stages, how work is shared, and how it is
// brought in.
#ifndef NIBBLE_OPS_CUDA_LINEAR_Q4_HOPPER_CUH_
#define NIBBLE_OPS_CUDA_LINEAR_Q4_HOPPER_CUH_

#include "src/ops/cuda/hopper.cuh"
#include "src/ops/cuda/linear_q4_kernels.cuh"

namespace nibble::cuda::q4::hopper {

inline constexpr int kGroups = 2;      // warpgroups that multiply
inline constexpr int kGroupTiles = 8;  // of 16 outputs: two products of 64
inline constexpr int kProducts = kGroupTiles / 4;
inline constexpr int kBlockTiles = kGroups * kGroupTiles;
inline constexpr int kConsumers = 128 * kGroups;
inline constexpr int kCopyWarps = 4;
inline constexpr int kThreads = kConsumers + 32 * kCopyWarps;
// A block starts with 168 registers a thread; more than it has would be waited for for ever.
inline constexpr int kConsumerRegisters = 232, kCopyRegisters = 40;
static_assert(kConsumers * kConsumerRegisters + 32 * kCopyWarps * kCopyRegisters <= 168 * kThreads);
inline constexpr int kSteps = kUnitInputs / 16;
inline constexpr int kChunks = kUnitInputs / 8;  // of 8 inputs, 16 bytes a row
inline constexpr int kMaxRows = 128;             // of a block

constexpr int RowsOfTile(int64_t rows) { return rows <= 64 ? 64 : kMaxRows; }

// One unit of a block's tile. kFine: scales for every 32 inputs, else for every 64 or more.
template <bool kFine, int kRows>
struct HopperStage {
  static constexpr int kScales = kFine ? 4 : 2;  // at most, stored for a unit and tile
  uint4 codes[kBlockTiles][2][32];
  // Chunk 4q + i of a row has inputs 32q + 8t + 2i + {0, 1} of the unit, t = 0 … 3: two chunks make
  // the depth of one step, in the order of the codes.
  uint4 x[kChunks][kRows];
  __half2 scales[kBlockTiles][kScales][8];
  uchar2 zeros[kBlockTiles][kScales][8];
};
template <int kRows>
inline constexpr int kStages = kRows == kMaxRows ? 4 : 6;

// How units are shared: every tile by `parts` blocks; or, where that is 0, all units evenly.
struct HopperShares {
  int blocks;
  int units;  // of a tile
  int parts;
  EvenShares even;

  __device__ int Begin(int block) const {
    return parts == 0 ? even.Begin(block) : block / parts * units + block % parts * units / parts;
  }
  __device__ int FirstBlock(int tile) const {
    return parts == 0 ? even.BlockOf(tile * units) : tile * parts;
  }
  __device__ int LastBlock(int tile) const {
    return parts == 0 ? even.BlockOf((tile + 1) * units - 1) : (tile + 1) * parts - 1;
  }
};

struct HopperPlan {
  HopperShares shares;
  int row_tiles;
  const uint4* image;  // see TileRows
  float4* partials;    // [2 · blocks][fragments][kConsumers]
  unsigned* counters;  // [blocks], zero between calls; a tile's is that of its first block

  // A block's sums of a tile: its first tile and its last one have a place each.
  __device__ float4* Partial(int block, int tile, int fragments) const {
    const int place = 2 * block + (shares.Begin(block) >= tile * shares.units ? 0 : 1);
    return partials + place * int64_t{kConsumers} * fragments;
  }
};

#if NIBBLE_HOPPER_CODE

// What one lane copies of a stage's weights: its warp has four tiles, 512 bytes of codes at a time;
// and 16 bytes of their scales and of their zeros.
template <bool kFine, int kRows>
class WeightCopies {
  using Stage = HopperStage<kFine, kRows>;
  static constexpr int kWarpTiles = kBlockTiles / kCopyWarps;

 public:
  __device__ WeightCopies(const Weights& w, int warp, int lane)
      : w_(w), first_tile_(warp * kWarpTiles), lane_(lane) {
    const int chunks = 2 * w.scales_per_unit;  // of a tile's scales in a unit
    has_scales_ = lane < kWarpTiles * chunks;
    scale_tile_ = first_tile_ + lane / chunks % kWarpTiles;
    scale_chunk_ = lane % chunks;
    has_zeros_ = w.zeros != nullptr && lane < kWarpTiles * w.scales_per_unit;
    zero_tile_ = first_tile_ + lane / w.scales_per_unit % kWarpTiles;
    zero_chunk_ = lane % w.scales_per_unit;
  }

  // first_tile: of the block's tile. Beyond the last it reads that again; nobody uses it.
  __device__ void Copy(Stage& stage, int first_tile, int unit) const {
#pragma unroll
    for (int i = 0; i < kWarpTiles; ++i) {
      const int64_t tile = min(first_tile + first_tile_ + i, w_.tiles - 1);
      const uint4* from = w_.codes + (tile * w_.units + unit) * 64 + lane_;
      const uint32_t to = SharedAddress(stage.codes[first_tile_ + i]) + 16 * lane_;
      CopyAsync16(to, from);
      CopyAsync16(to + 512, from + 32);
    }
    const int group = w_.ScaleGroup(unit);
    if (has_scales_) {
      const int64_t tile = min(first_tile + scale_tile_, w_.tiles - 1);
      CopyAsync16(SharedAddress(&stage.scales[scale_tile_][0][4 * scale_chunk_]),
                  w_.scales + (tile * w_.scale_groups + group) * 8 + 4 * scale_chunk_);
    }
    if (has_zeros_) {
      const int64_t tile = min(first_tile + zero_tile_, w_.tiles - 1);
      CopyAsync16(SharedAddress(&stage.zeros[zero_tile_][zero_chunk_][0]),
                  w_.zeros + (tile * w_.scale_groups + group) * 8 + 8 * zero_chunk_);
    }
  }

 private:
  const Weights& w_;
  int first_tile_, lane_;
  int scale_tile_, scale_chunk_, zero_tile_, zero_chunk_;
  bool has_scales_, has_zeros_;
};

// Brings units [begin, end) through the ring: the third warpgroup's part.
template <bool kFine, int kRows>
__device__ void Produce(const Weights& w, const HopperPlan& plan, int begin, int end,
                        HopperStage<kFine, kRows>* ring, uint32_t full, uint32_t empty) {
  constexpr int kRing = kStages<kRows>;
  const int thread = static_cast<int>(threadIdx.x) - kConsumers;
  const WeightCopies<kFine, kRows> weights(w, thread / 32, thread % 32);
  Place place(begin, plan.shares.units, plan.row_tiles);
  const auto copy_weights = [&](int slot) {
    weights.Copy(ring[slot], place.output_tile * kBlockTiles, place.unit);
    ArriveAfterCopies(full + 8 * slot);
  };
  const auto copy_rows = [&](int slot) {
    if (thread != 0) return;
    constexpr int kBytes = kChunks * kRows * 16;
    const int64_t at = int64_t{place.row_tile} * plan.shares.units + place.unit;
    ArriveExpecting(full + 8 * slot, kBytes);
    CopyBulk(SharedAddress(ring[slot].x), plan.image + at * kChunks * kRows, kBytes,
             full + 8 * slot);
  };
  const int first_count = min(kRing, end - begin);
  const Place first = place;
  for (int i = 0; i < first_count; ++i) {
    copy_weights(i);
    place.Advance(plan.shares.units, plan.row_tiles);
  }
  WaitForLastKernel();  // x is ready now
  place = first;
  for (int i = 0; i < first_count; ++i) {
    copy_rows(i);
    place.Advance(plan.shares.units, plan.row_tiles);
  }
  int slot = 0;
  uint32_t parity = 0;
  for (int i = begin + first_count; i < end; ++i) {
    WaitForPhase(empty + 8 * slot, parity);
    copy_rows(slot);
    copy_weights(slot);
    place.Advance(plan.shares.units, plan.row_tiles);
    if (++slot == kRing) {
      slot = 0;
      parity ^= 1;
    }
  }
}

#endif  // NIBBLE_HOPPER_CODE

}  // namespace nibble::cuda::q4::hopper

#endif  // NIBBLE_OPS_CUDA_LINEAR_Q4_HOPPER_CUH_
