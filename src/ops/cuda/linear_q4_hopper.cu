// Tens to thousands of rows on Hopper: a block makes 256 outputs of 64 or 128 rows at a time with
// warpgroup products, whose left operand is the weight, expanded in registers.
//
// Two warpgroups have 128 outputs each. A third brings codes, grids and rows of x through a ring of
// stages, one unit of 128 inputs each; rows in the order of inputs that the weights' packing has.
// The units of all tiles (outputs by rows) are divided over as many blocks as there are
// multiprocessors (split-K, or stream-K, arXiv:2301.03598). The blocks that share a tile wait for
// each other at the end, and each adds up a part of it, always in the same order.
#include <algorithm>

#include "src/ops/cuda/linear_q4_hopper.cuh"

namespace nibble::cuda::q4 {
namespace hopper {
namespace {

// x as stages want it: [row tile][unit][chunk][row of the tile] 16 bytes, zeros where there is no
// input or no row.
template <typename T>
__global__ void __launch_bounds__(256)
    TileRows(Geometry g, int rows, int row_tile, const T* x, int64_t stride, uint32_t* image) {
  StartNextKernel();
  WaitForLastKernel();
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  // A warp has 32 inputs of eight rows, so that it writes 128 bytes at a time.
  const int warp = thread / 32, t = thread % 4;
  const int inputs = warp % (4 * g.units), row = warp / (4 * g.units) * 8 + thread % 32 / 4;
  if (row >= (rows + row_tile - 1) / row_tile * row_tile) return;
  uint32_t pairs[4] = {};
  if (row < rows) {
    const T* from = x + row * stride;
    const int k = 32 * inputs + 8 * t;
    if (!g.spreads) {  // then 8 divides in_features
      if (k < g.in_features) {
        const uint4 loaded = *reinterpret_cast<const uint4*>(from + k);
        pairs[0] = loaded.x, pairs[1] = loaded.y, pairs[2] = loaded.z, pairs[3] = loaded.w;
      }
    } else {
      const auto* bits = reinterpret_cast<const uint16_t*>(from);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int offset = (k + i) % g.padded_group;
        const int input = (k + i) / g.padded_group * g.group_length + offset;
        if (offset < g.group_length && input < g.in_features) {
          pairs[i / 2] |= uint32_t{bits[input]} << (16 * (i % 2));
        }
      }
    }
  }
  const int64_t unit = int64_t{row / row_tile} * g.units + inputs / 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t chunk = unit * kChunks + inputs % 4 * 4 + i;
    image[(chunk * row_tile + row % row_tile) * 4 + t] = pairs[i];
  }
}

#if NIBBLE_HOPPER_CODE

// The left operand of four steps, and its grid: pairs of (code - zero) · scale, rounded to T.
template <typename T>
struct Expander;

template <>
struct Expander<__half> {
  uint32_t low_zero, high_zero;
  __half2 low_scale, high_scale;
  __device__ void SetGrid(__half2 scales, uchar2 zeros) {
    low_scale = __low2half2(scales);
    high_scale = __high2half2(scales);
    low_zero = (0x6400u | zeros.x) * 0x00010001u;        // 1024 + zero
    high_zero = (0xd400u | zeros.y << 4) * 0x00010001u;  // -(64 + zero)
  }
  // A code is masked into the mantissa of 1024, in the upper nibble of a byte as 16 · code.
  __device__ void Expand(uint32_t word, uint32_t (&a)[4]) const {
    const auto pair = [](uint32_t bits) { return *reinterpret_cast<const __half2*>(&bits); };
    const __half2 sixteenth = pair(0x2c002c00u);
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
      const __half2 low = __hsub2(pair((word & 0x000f000fu) | 0x64006400u), pair(low_zero));
      const __half2 high =
          __hfma2(pair((word & 0x00f000f0u) | 0x64006400u), sixteenth, pair(high_zero));
      const __half2 scaled_low = __hmul2(low, low_scale), scaled_high = __hmul2(high, high_scale);
      a[i] = *reinterpret_cast<const uint32_t*>(&scaled_low);
      a[i + 1] = *reinterpret_cast<const uint32_t*>(&scaled_high);
      word >>= 8;
    }
  }
};

template <>
struct Expander<__nv_bfloat16> {
  uint32_t low_zero, high_zero;
  __nv_bfloat162 low_scale, high_scale;
  __device__ void SetGrid(__half2 scales, uchar2 zeros) {
    const float2 wide = __half22float2(scales);
    low_scale = __float2bfloat162_rn(wide.x);
    high_scale = __float2bfloat162_rn(wide.y);
    low_zero = (0x4300u | zeros.x) * 0x00010001u;  // 128 + zero
    high_zero = (0x4300u | zeros.y) * 0x00010001u;
  }
  __device__ void Expand(uint32_t word, uint32_t (&a)[4]) const {
    const auto pair = [](uint32_t bits) { return *reinterpret_cast<const __nv_bfloat162*>(&bits); };
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __nv_bfloat162 difference =
          __hsub2(pair(((word >> (4 * i)) & 0x000f000fu) | 0x43004300u),
                  pair(i % 2 == 0 ? low_zero : high_zero));
      const __nv_bfloat162 scaled = __hmul2(difference, i % 2 == 0 ? low_scale : high_scale);
      a[i] = *reinterpret_cast<const uint32_t*>(&scaled);
    }
  }
};

// A warpgroup's two products of one unit. `started`: whether the sums hold something yet. One group
// of products may still be under way at the end.
template <typename T, bool kFine, int kRows>
__device__ void ConsumeUnit(float (&sums)[kProducts][kRows / 2],
                            const HopperStage<kFine, kRows>& stage, const Weights& w,
                            bool started) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int first_tile = warp / 4 * kGroupTiles + warp % 4;
  uint32_t words[kProducts][kSteps];
#pragma unroll
  for (int m = 0; m < kProducts; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 loaded = stage.codes[first_tile + 4 * m][half][lane];
      words[m][4 * half] = loaded.x;
      words[m][4 * half + 1] = loaded.y;
      words[m][4 * half + 2] = loaded.z;
      words[m][4 * half + 3] = loaded.w;
    }
  }
  const uint64_t x = OperandDescriptor(SharedAddress(&stage.x[0][0]), kRows * 16);
  Expander<T> expanders[kProducts];
  uint32_t a[2][kProducts][4];  // used in turns
  constexpr int kGridSteps = kFine ? 2 : 4;
#pragma unroll
  for (int s = 0; s < kSteps; ++s) {
#pragma unroll
    for (int m = 0; m < kProducts; ++m) {
      if (s % kGridSteps == 0) {
        const int group = kFine ? s / kGridSteps : s / kGridSteps * (w.scales_per_unit - 1);
        const int at = group * 8 + lane / 4, tile = first_tile + 4 * m;
        uchar2 zeros{8, 8};
        if (w.zeros != nullptr) zeros = (&stage.zeros[tile][0][0])[at];
        expanders[m].SetGrid((&stage.scales[tile][0][0])[at], zeros);
      }
      expanders[m].Expand(words[m][s], a[s % 2][m]);
    }
    BeginProducts();
#pragma unroll
    for (int m = 0; m < kProducts; ++m) {
      MultiplyWarpgroup<T, kRows>(sums[m], a[s % 2][m], x + 2 * s * kRows, started || s > 0);
    }
    CommitProducts();
    WaitForProducts<1>();  // those of the step before: their operand's registers are free
  }
}

__device__ inline void SynchronizeConsumers() {
  asm volatile("bar.sync 1, %0;" ::"n"(kConsumers) : "memory");
}

// A whole tile that lies within the matrix. Its sums go where StoreFragment would write them.
template <typename T, int kRows>
__device__ void StoreTile(const Product<T>& p, int output_tile, int row_tile,
                          const float (&sums)[kProducts][kRows / 2]) {
  using H = HalfTraits<T>;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int output =
      (output_tile * kBlockTiles + warp / 4 * kGroupTiles + warp % 4) * kTileOutputs + lane / 4;
  constexpr int kProductOutputs = 4 * kTileOutputs;
  float bias[kProducts][2] = {};
  if (p.bias != nullptr) {
#pragma unroll
    for (int m = 0; m < kProducts; ++m) {
      bias[m][0] = p.bias[output + m * kProductOutputs];
      bias[m][1] = p.bias[output + m * kProductOutputs + 8];
    }
  }
  T* row = p.out + (row_tile * kRows + lane % 4 * 2) * p.out_stride;
  if (p.epilogue == Epilogue::kSiluMul) {
    // The gate's lane finishes the first row, the up's lane the second.
    const bool is_up = lane / 4 % 2 != 0;
    row += (is_up ? p.out_stride : 0) + output / 2;
#pragma unroll
    for (int n = 0; n < kRows / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 2 * kProducts; ++i) {
        const int m = i / 2, high = i % 2;
        const float d0 = sums[m][4 * n + 2 * high] + bias[m][high];
        const float d1 = sums[m][4 * n + 2 * high + 1] + bias[m][high];
        const float received = __shfl_xor_sync(~0u, is_up ? d0 : d1, 4);
        const float gate = is_up ? received : d0, up = is_up ? d1 : received;
        row[m * kProductOutputs / 2 + 4 * high] = H::FromFloat(gate / (1.0f + __expf(-gate)) * up);
      }
      row += 8 * p.out_stride;
    }
    return;
  }
  row += output;
#pragma unroll
  for (int n = 0; n < kRows / 8; ++n) {
    float before[kProducts][4] = {};
    if (p.epilogue == Epilogue::kAdd) {
#pragma unroll
      for (int i = 0; i < 4 * kProducts; ++i) {
        const int m = i / 4, high = i / 2 % 2, second = i % 2;
        before[m][i % 4] = H::ToFloat(row[second * p.out_stride + m * kProductOutputs + 8 * high]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4 * kProducts; ++i) {
      const int m = i / 4, high = i / 2 % 2, second = i % 2;
      row[second * p.out_stride + m * kProductOutputs + 8 * high] =
          H::FromFloat(sums[m][4 * n + i % 4] + bias[m][high] + before[m][i % 4]);
    }
    row += 8 * p.out_stride;
  }
}

// Adds up this block's share of a tile from the parts that `parts` blocks from `first` on left.
template <typename T, int kRows>
__device__ void AddParts(const Product<T>& p, const HopperPlan& plan, int tile, int first,
                         int parts) {
  constexpr int kFragments = kProducts * kRows / 8;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  // Of a tile's blocks only the first may have begun another tile before.
  const int64_t part_stride = int64_t{2} * kFragments * kConsumers;
  const float4* const begin = plan.partials + first * part_stride + threadIdx.x;
  const bool is_second = plan.shares.Begin(first) < tile * plan.shares.units;
  const float4* const first_part = begin + (is_second ? part_stride / 2 : 0);
  const int first_tile = tile / plan.row_tiles * kBlockTiles + warp / 4 * kGroupTiles + warp % 4;
  const int first_row = tile % plan.row_tiles * kRows + lane % 4 * 2;
  constexpr int kAtOnce = 8, kTogether = 2;  // parts and fragments whose loads are in flight
#pragma unroll 1
  for (int f = static_cast<int>(blockIdx.x) - first; f < kFragments; f += kTogether * parts) {
    float sums[kTogether][4] = {};
#pragma unroll 1
    for (int j = 0; j < parts; j += kAtOnce) {
      float4 loaded[kTogether][kAtOnce];
#pragma unroll
      for (int i = 0; i < kTogether * kAtOnce; ++i) {
        const int part = j + i % kAtOnce, fragment = f + i / kAtOnce * parts;
        float4& to = loaded[i / kAtOnce][i % kAtOnce];
        to = float4{};
        if (part < parts && fragment < kFragments) {
          to =
              __ldcg((part == 0 ? first_part : begin + part * part_stride) + fragment * kConsumers);
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether * kAtOnce; ++i) {
        const float4& from = loaded[i / kAtOnce][i % kAtOnce];
        sums[i / kAtOnce][0] += from.x;
        sums[i / kAtOnce][1] += from.y;
        sums[i / kAtOnce][2] += from.z;
        sums[i / kAtOnce][3] += from.w;
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int fragment = f + i * parts;
      if (fragment >= kFragments) break;
      StoreFragment<4>(p, (first_tile + fragment % kProducts * 4) * kTileOutputs, lane / 4,
                       first_row + fragment / kProducts * 8, sums[i]);
    }
  }
}

template <typename T, bool kFine, int kRows>
__device__ void Consume(const Weights& w, const Product<T>& p, const HopperPlan& plan, int begin,
                        int end, const HopperStage<kFine, kRows>* ring, uint32_t full,
                        uint32_t empty) {
  constexpr int kRing = kStages<kRows>, kFragments = kProducts * kRows / 8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  WaitForLastKernel();  // it may read or write what this one writes
  int first_shared = -1, last_shared = -1;
  int slot = 0, last_slot = -1;
  uint32_t parity = 0;
  for (int index = begin; index < end;) {
    const int tile = index / plan.shares.units;
    const int output_tile = tile / plan.row_tiles, row_tile = tile % plan.row_tiles;
    const int stop = min(end, (tile + 1) * plan.shares.units);
    const bool is_whole = stop - index == plan.shares.units && (row_tile + 1) * kRows <= p.rows &&
                          (output_tile + 1) * kBlockTiles * kTileOutputs <= p.outputs;
    float sums[kProducts][kRows / 2];
    bool started = false;
    for (; index < stop; ++index) {
      WaitForPhase(full + 8 * slot, parity);
      ConsumeUnit<T>(sums, ring[slot], w, started);
      started = true;
      // The unit before is done with, the last step of this one may not be.
      if (last_slot >= 0 && lane == 0) Arrive(empty + 8 * last_slot);
      last_slot = slot;
      if (++slot == kRing) {
        slot = 0;
        parity ^= 1;
      }
    }
    WaitForProducts<0>();
#pragma unroll
    for (int m = 0; m < kProducts; ++m) {
#pragma unroll
      for (int i = 0; i < kRows / 2; ++i) Pin(sums[m][i]);
    }
    if (is_whole) {
      StoreTile<T, kRows>(p, output_tile, row_tile, sums);
      continue;
    }
    float4* partial = plan.Partial(static_cast<int>(blockIdx.x), tile, kFragments) + threadIdx.x;
#pragma unroll
    for (int f = 0; f < kFragments; ++f) {
      const float* d = sums[f % kProducts] + f / kProducts * 4;
      __stcg(partial + f * kConsumers, float4{d[0], d[1], d[2], d[3]});
    }
    const int first = plan.shares.FirstBlock(tile);
    const int parts = plan.shares.LastBlock(tile) - first + 1;
    if (parts == 1) {  // at the matrix's edge; a thread reads back what it wrote
      AddParts<T, kRows>(p, plan, tile, first, parts);
      continue;
    }
    SynchronizeConsumers();
    if (threadIdx.x == 0) {
      __threadfence();  // all threads' part before the count
      atomicInc(plan.counters + first, static_cast<unsigned>(2 * parts - 1));
    }
    (first_shared < 0 ? first_shared : last_shared) = tile;
  }
  // All blocks run at once, so none waits for one that has not begun.
#pragma unroll 1
  for (int i = 0; i < 2; ++i) {
    const int tile = i == 0 ? first_shared : last_shared;
    if (tile < 0) continue;
    const int first = plan.shares.FirstBlock(tile);
    const int parts = plan.shares.LastBlock(tile) - first + 1;
    if (threadIdx.x == 0) {
      volatile unsigned* counter = plan.counters + first;
      while (*counter < static_cast<unsigned>(parts)) {
      }
      __threadfence();
    }
    SynchronizeConsumers();
    AddParts<T, kRows>(p, plan, tile, first, parts);
    // The last one to leave finds twice the parts and leaves zero.
    if (threadIdx.x == 0) atomicInc(plan.counters + first, static_cast<unsigned>(2 * parts - 1));
  }
}

#endif  // NIBBLE_HOPPER_CODE

template <typename T, bool kFine, int kRows>
__global__ void __launch_bounds__(kThreads, 1)
    HopperKernel(Weights w, Product<T> p, HopperPlan plan) {
#if NIBBLE_HOPPER_CODE
  constexpr int kRing = kStages<kRows>;
  extern __shared__ __align__(128) unsigned char shared[];
  __shared__ uint64_t full_barriers[kRing], empty_barriers[kRing];
  auto* ring = reinterpret_cast<HopperStage<kFine, kRows>*>(shared);
  const uint32_t full = SharedAddress(full_barriers), empty = SharedAddress(empty_barriers);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRing; ++i) {
      InitializeBarrier(full + 8 * i, 32 * kCopyWarps + 1);  // weights by all, rows by one
      InitializeBarrier(empty + 8 * i, kConsumers / 32);
    }
    PublishBarriers();
  }
  __syncthreads();
  StartNextKernel();
  const int begin = plan.shares.Begin(static_cast<int>(blockIdx.x));
  const int end = plan.shares.Begin(static_cast<int>(blockIdx.x) + 1);
  if (threadIdx.x >= kConsumers) {
    GiveRegisters<kCopyRegisters>();
    Produce(w, plan, begin, end, ring, full, empty);
  } else {
    TakeRegisters<kConsumerRegisters>();
    Consume(w, p, plan, begin, end, ring, full, empty);
  }
#endif
}

// Fewer units a block are not worth their addition.
constexpr int64_t kFewestUnits = 2;

// Tiles of which there are no more than blocks have so many blocks each: a block that takes part in
// two tiles would leave its sums of both.
HopperShares SharesOf(int64_t tiles, int64_t units, int64_t most_blocks) {
  const int64_t blocks = std::clamp<int64_t>(tiles * units / kFewestUnits, 1, most_blocks);
  const int64_t parts =
      std::clamp<int64_t>(units / kFewestUnits, 1, std::max<int64_t>(1, most_blocks / tiles));
  return {.blocks = static_cast<int>(tiles <= most_blocks ? tiles * parts : blocks),
          .units = static_cast<int>(units),
          .parts = static_cast<int>(tiles <= most_blocks ? parts : 0),
          .even = EvenShares::Of(tiles * units, blocks)};
}

int64_t ImageBytes(int64_t rows, int64_t in_features) {
  const int64_t tile = RowsOfTile(rows);
  const int64_t padded_rows = (std::min<int64_t>(rows, kHopperRows) + tile - 1) / tile * tile;
  return padded_rows * ((in_features + kUnitInputs - 1) / kUnitInputs * kUnitInputs) * 2;
}
size_t PartBytes(int multiprocessors, int64_t rows) {
  return size_t{2} * static_cast<size_t>(multiprocessors) * kBlockTiles * kTileOutputs *
         static_cast<size_t>(RowsOfTile(rows)) * sizeof(float);
}
size_t CounterBytes(int multiprocessors) {
  return (static_cast<size_t>(multiprocessors) * sizeof(unsigned) + 255) / 256 * 256;
}

template <typename T, bool kFine, int kRows>
void LaunchHopper(Stream& stream, const Geometry& geometry, const Weights& w, const Product<T>& p,
                  void* scratch) {
  const int64_t row_tiles = (p.rows + kRows - 1) / kRows;
  const int64_t tiles = (w.tiles + kBlockTiles - 1) / kBlockTiles * row_tiles;
  CHECK(tiles * w.units < int64_t{1} << 31, "{} rows of {} outputs", p.rows, p.outputs);
  const HopperShares shares = SharesOf(tiles, w.units, stream.multiprocessors());
  auto* bytes = static_cast<std::byte*>(scratch);
  auto* parts = bytes + CounterBytes(stream.multiprocessors());
  auto* image = parts + PartBytes(stream.multiprocessors(), p.rows);
  LaunchDependent(stream, TileRows<T>,
                  static_cast<unsigned>(row_tiles * kRows / 8 * 4 * w.units / 8), 256, 0, geometry,
                  p.rows, kRows, p.x, p.x_stride, reinterpret_cast<uint32_t*>(image));
  const HopperPlan plan{.shares = shares,
                        .row_tiles = static_cast<int>(row_tiles),
                        .image = reinterpret_cast<const uint4*>(image),
                        .partials = reinterpret_cast<float4*>(parts),
                        .counters = reinterpret_cast<unsigned*>(bytes)};
  LaunchDependent(stream, HopperKernel<T, kFine, kRows>, static_cast<unsigned>(shares.blocks),
                  kThreads, sizeof(HopperStage<kFine, kRows>) * kStages<kRows>, w, p, plan);
}

template <typename T, bool kFine>
void LaunchHopper(Stream& stream, const Geometry& geometry, const Weights& w, const Product<T>& p,
                  void* scratch) {
  if (RowsOfTile(p.rows) == kMaxRows) {
    LaunchHopper<T, kFine, kMaxRows>(stream, geometry, w, p, scratch);
  } else {
    LaunchHopper<T, kFine, 64>(stream, geometry, w, p, scratch);
  }
}

}  // namespace
}  // namespace hopper

bool HasHopperProduct() {
  // Without Hopper's code the kernel is empty and has no barriers.
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, hopper::HopperKernel<__half, false, 64>) ==
             cudaSuccess &&
         attributes.sharedSizeBytes > 0;
}

bool CanUseHopperProduct(const Geometry& geometry) {
  const int64_t padded = (geometry.in_features + kUnitInputs - 1) / kUnitInputs * kUnitInputs;
  return HasHopperProduct() && geometry.packed_inputs() == padded;
}

size_t HopperBytes(int multiprocessors, int64_t rows, int64_t in_features) {
  return hopper::CounterBytes(multiprocessors) + hopper::PartBytes(multiprocessors, rows) +
         static_cast<size_t>(hopper::ImageBytes(rows, in_features));
}

template <typename T>
void HopperProduct(Stream& stream, const Geometry& geometry, const Weights& weights,
                   const Product<T>& product, void* scratch) {
  if (geometry.granule == 32) {
    hopper::LaunchHopper<T, true>(stream, geometry, weights, product, scratch);
  } else {
    hopper::LaunchHopper<T, false>(stream, geometry, weights, product, scratch);
  }
}

template void HopperProduct(Stream&, const Geometry&, const Weights&, const Product<__half>&,
                            void*);
template void HopperProduct(Stream&, const Geometry&, const Weights&, const Product<__nv_bfloat16>&,
                            void*);

}  // namespace nibble::cuda::q4
